"""A disk that is full, or that may not be written to: each command says so in one line, and nothing of the learner's is
lost, whichever write it is that fails."""

import errno
import itertools
import os
import resource
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from llmsys.course import cli
from llmsys.course.authoring import nbgrader_export
from llmsys.course.grading import grade, report, sandbox
from llmsys.course.workspace import notebook, workspace
from llmsys.course.workspace.notebook import cells_by_id, read_notebook, write_notebook


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(each) for each in arguments], prog_name="llmsys")


def is_one_line(done, *says):
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit), done.output
    assert len(done.stderr.splitlines()) == 1 and all(each in done.stderr for each in says), done.stderr
    return True


@contextmanager
def failing(monkeypatch, number, code):
    """The write of that number, from 0, fails; yields a list that is not empty once it has."""
    failed, count, replace = [], itertools.count(), os.replace

    def refuse(source, target):
        if next(count) == number:
            failed.append(target)
            raise OSError(code, os.strerror(code))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(notebook.os, "replace", refuse)
        yield failed


@pytest.fixture
def begun(built_course, tmp_path, monkeypatch):
    """A function that makes a workspace with an answer in it, with news in the lesson and a new file beside it; the
    workspace is the current directory."""
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    pristine = (built_course.lessons / "90_tiny.ipynb").read_bytes()
    names = map("work {}".format, itertools.count())

    def make():
        (built_course.lessons / "90_tiny.ipynb").write_bytes(pristine)
        (built_course.lessons / "new.md").unlink(missing_ok=True)
        work = workspace.start(tmp_path / next(names)).workspace
        edit(work / "90_tiny.ipynb", "90-double", "def double(x):\n    return x + x  # mine\n")
        edit(work / "90_tiny.ipynb", "90-halve-check", "print('passed')\n")
        edit(built_course.lessons / "90_tiny.ipynb", "90-watch-1", "## Watch it")
        (built_course.lessons / "new.md").write_text("new")
        monkeypatch.chdir(work)
        return work

    return make


def edit(path, cell, source):
    changed = read_notebook(path)
    cells_by_id(changed)[cell]["source"] = source
    write_notebook(path, changed)


def files(work):
    return {path.relative_to(work).as_posix(): path.read_bytes() for path in work.rglob("*") if path.is_file()}


def without_backups(found):
    return {name: text for name, text in found.items() if "/backups/" not in name}


COMMANDS = [["start", "."], ["update"], ["reset", "90"], ["reset", "90.double"], ["grade", ".", "--restore"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_whichever_write_fails_it_is_said_and_nothing_is_lost(begun, command, monkeypatch):
    monkeypatch.setattr(grade, "grade_workspace", lambda *a, **k: report.Report((), 0))
    work = begun()
    before = files(work)
    run(*command)
    after = files(work)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed and (command[0] == "update" or "90_tiny.ipynb" in changed or command[0] == "start")
    for number, code in zip(itertools.count(), itertools.cycle([errno.ENOSPC, errno.EROFS])):
        work = begun()
        assert files(work) == before
        with failing(monkeypatch, number, code) as failed:
            done = run(*command)
        if not failed:
            break
        is_one_line(done, os.strerror(code), str(failed[0]), "room" if code == errno.ENOSPC else "may write to")
        halfway = files(work)
        for name, text in without_backups(halfway).items():
            assert text in (before.get(name), after.get(name)), f"{name} is neither as it was nor as it is to be"
        assert set(before) <= set(halfway)
        kept = set(halfway) - set(without_backups(halfway))
        if halfway["90_tiny.ipynb"] == before["90_tiny.ipynb"]:
            assert not kept, "nothing was replaced, so there is nothing to keep"
        else:
            assert all(halfway[each] == before["90_tiny.ipynb"] for each in kept)
        run(*command)  # with room again
        assert without_backups(files(work)) == without_backups(after)
    assert number, "no write has failed"


@contextmanager
def full_disk(bytes):
    """Every file ends after so many bytes: a real error of the system's in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 100, 2000])
def test_a_reset_on_a_disk_that_is_really_full_leaves_no_empty_backup(begun, room):
    work = begun()
    before = files(work)
    for what in ("90", "90.double"):
        with full_disk(room):
            done = run("reset", what)
        assert is_one_line(done, "cannot be written", "make room on the disk") and files(work) == before


def test_a_start_on_a_full_disk_can_be_finished_later(built_course, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with full_disk(1000):
        assert is_one_line(run("start", "work"), "cannot be written", "make room on the disk")
    assert not (tmp_path / "work" / "90_tiny.ipynb").exists()
    assert run("start", "work").exit_code == 0 and read_notebook(tmp_path / "work" / "90_tiny.ipynb")


@pytest.mark.parametrize("command", [["start", "new"], ["start", "new/er"]], ids=" ".join)
def test_a_directory_that_cannot_be_made_is_named(built_course, tmp_path, monkeypatch, command):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(notebook.Path, "mkdir", refuse)
    assert is_one_line(run(*command), str(tmp_path / command[1]), "Permission denied", "may write to")


def test_a_report_that_cannot_be_written_is_said_after_it_was_shown(begun, monkeypatch, tmp_path):
    monkeypatch.setattr(grade, "grade_workspace", lambda *a, **k: report.Report((), 0))
    begun()
    (tmp_path / "a file").write_text("")
    for name, why in ((tmp_path, "directory"), (tmp_path / "a file" / "grade.json", "")):
        for form in ("--json", "--junit"):
            done = run("grade", ".", form, name)
            assert is_one_line(done, str(name), "cannot be written", why) and "points" in done.stdout
    with full_disk(10):
        done = run("grade", ".", "--json", tmp_path / "grade.json")
    assert is_one_line(done, "grade.json", "make room") and not (tmp_path / "grade.json").exists()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "nowhere" / "summary.md"))
    assert is_one_line(run("grade", ".", "--summary"), "the step summary cannot be written", "nowhere")


def test_grading_without_a_temporary_directory_is_said(begun, monkeypatch):
    def nowhere(**options):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    begun()
    monkeypatch.setattr(sandbox.tempfile, "mkdtemp", nowhere)
    monkeypatch.setattr(grade, "grade_workspace", lambda *a, **k: sandbox.Sandbox())
    assert is_one_line(run("grade", "."), "No usable temporary directory found", "TMPDIR")


def test_an_export_to_a_full_disk_is_said(built_course, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nbgrader_export.manifest, "solutions_dir", lambda: built_course.solutions)
    with full_disk(100):
        assert is_one_line(run("export", "nbgrader", "90", "course"), "cannot be written", "make room")
    assert not [path for path in (tmp_path / "course").rglob("*") if path.is_file() and path.name.startswith(".9")]
    done = run("export", "nbgrader", "90", "my course")
    assert done.exit_code == 0 and "Next: cd 'my course' && nbgrader generate_assignment 90_tiny" in done.stdout
