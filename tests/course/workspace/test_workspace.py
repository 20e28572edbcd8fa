"""The learner's directory: laid out once, never overwritten, put back with a copy kept, and comparable by nbval."""

import subprocess
import sys

import pytest

from llmsys.course import manifest
from llmsys.course.checking.answer import PropertyResult
from llmsys.course.checking.checks import Result
from llmsys.course.workspace import update, workspace
from llmsys.course.workspace.notebook import NotebookError, cells_by_id, read_notebook, write_notebook


@pytest.fixture
def work(built_course, tmp_path):
    return workspace.start(tmp_path / "work").workspace


def answer(path, exercise, code):
    """Write an answer in place of the stub."""
    notebook = read_notebook(path)
    cell = cells_by_id(notebook)[exercise]
    assert "raise NotImplementedError" in cell["source"]
    cell["source"] = cell["source"].replace("# Your code here\n    raise NotImplementedError", code)
    write_notebook(path, notebook)


def test_start_lays_everything_down_once_and_overwrites_nothing(built_course, tmp_path):
    first = workspace.start(tmp_path / "work")
    path = first.workspace / "90_tiny.ipynb"
    assert first.laid == ("90_tiny.ipynb",) and first.kept == ()
    assert path.read_bytes() == (built_course.lessons / path.name).read_bytes()
    assert (workspace.pristine(first.workspace) / path.name).read_bytes() == path.read_bytes()
    answer(path, "90-double", "return 2 * x")
    (first.workspace / "mine" / "__init__.py").write_text("mine = True\n")
    before = {each: each.read_bytes() for each in first.workspace.rglob("*") if each.is_file()}
    again = workspace.start(tmp_path / "work")
    assert again.laid == () and again.kept == ("90_tiny.ipynb",)
    assert {each: each.read_bytes() for each in first.workspace.rglob("*") if each.is_file()} == before
    path.unlink()
    assert workspace.start(tmp_path / "work").laid == ("90_tiny.ipynb",)


def test_start_refuses_the_pristine_lessons_and_a_file(built_course, tmp_path, monkeypatch):
    with pytest.raises(workspace.WorkspaceError, match="pristine"):
        workspace.start(built_course.lessons)
    (tmp_path / "file").write_text("")
    with pytest.raises(workspace.WorkspaceError, match="is a file"):
        workspace.start(tmp_path / "file")
    monkeypatch.setattr(manifest, "lessons_dir", lambda: tmp_path / "nothing")
    with pytest.raises(workspace.WorkspaceError, match="no lessons"):
        workspace.start(tmp_path / "work")


def test_find_goes_up_and_the_environment_overrides(work, tmp_path, monkeypatch):
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    deep = work / "a" / "b"
    deep.mkdir(parents=True)
    assert workspace.find(deep) == workspace.find(work) == workspace.require(deep.parents[1]) == work
    monkeypatch.chdir(tmp_path)
    assert workspace.find() is None
    with pytest.raises(workspace.WorkspaceError, match="llmsys start work"):
        workspace.require()
    monkeypatch.setenv("LLMSYS_WORKSPACE", str(work))
    assert workspace.find() == workspace.find(tmp_path) == work
    monkeypatch.setenv("LLMSYS_WORKSPACE", "")
    assert workspace.find(work) is None


def test_reset_puts_one_exercise_back_and_keeps_a_copy(work):
    path = work / "90_tiny.ipynb"
    pristine = cells_by_id(read_notebook(path))
    answer(path, "90-double", "return x")
    answer(path, "90-halve", "return x / 2")
    edited = path.read_bytes()
    done = workspace.reset("90.double", work)
    now = cells_by_id(read_notebook(path))
    assert now["90-double"] == pristine["90-double"] and "return x / 2" in now["90-halve"]["source"]
    assert done.backup.read_bytes() == edited
    assert workspace.reset("90.double", work).backup != done.backup  # in the same second, too


def test_reset_puts_a_deleted_cell_back_where_it_was(work):
    path = work / "90_tiny.ipynb"
    notebook = read_notebook(path)
    order = [cell["id"] for cell in notebook["cells"]]
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "90-halve"]
    write_notebook(path, notebook)
    workspace.reset("90.halve", work)
    assert [cell["id"] for cell in read_notebook(path)["cells"]] == order


def test_reset_of_a_lesson_mends_even_a_broken_file(work, built_course):
    path = work / "90_tiny.ipynb"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(NotebookError):
        workspace.reset("90.double", work)
    done = workspace.reset("90", work)
    assert done.backup.read_text(encoding="utf-8") == "{"
    assert path.read_bytes() == (built_course.lessons / path.name).read_bytes()
    with pytest.raises(manifest.UnknownId, match="did you mean 90.double"):
        workspace.reset("90.duble", work)


def test_mine_gives_the_latest_answer_of_a_name(work):
    (work / "mine" / "lesson_01.py").write_text("def softmax(): return 1\ndef first(): return 1\n")
    (work / "mine" / "lesson_02.py").write_text("def softmax(): return 2\n")
    program = (
        "from mine import softmax, first; from mine.lesson_01 import softmax as old; print(softmax(), first(), old())\n"
        "try:\n    from mine import nothing\nexcept ImportError as error:\n    print('nothing' in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=work, capture_output=True, text=True)
    assert done.stdout == "2 1 1\nTrue\n", done.stderr


def test_what_an_answer_imports_is_no_answer(work):
    (work / "mine" / "lesson_01.py").write_text("def softmax(): return 1\n\nclass Pool: pass\n")
    (work / "mine" / "lesson_02.py").write_text("from torch import softmax\n\ndef merge(Pool): return softmax\n")
    program = "from mine import softmax, merge, Pool; print(softmax(), merge.__name__, Pool.__module__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=work, capture_output=True, text=True)
    assert done.stdout == "1 merge mine.lesson_01\n", done.stderr


def test_checks_are_restored_and_nothing_else(work):
    path = work / "90_tiny.ipynb"
    pristine = cells_by_id(read_notebook(path))
    notebook = read_notebook(path)
    cells = cells_by_id(notebook)
    cells["90-double-check"] |= {"source": "print('passed')", "outputs": []}
    cells["90-double"]["source"] += "\n# mine"
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "90-halve-check"]
    notebook["cells"].append(pristine["90-double-check"] | {"id": "copied", "source": "check(1, 2)"})
    write_notebook(path, notebook)
    edited = path.read_bytes()
    assert workspace.restore_checks(path) == ["90-double-check", "90-halve-check"]
    now = cells_by_id(read_notebook(path))
    for id in ("90-double-check", "90-halve-check"):
        assert now[id] == pristine[id] and now[id]["outputs"]
    assert now["90-double"] == cells["90-double"]
    assert "nbval-check-output" not in now["copied"]["metadata"]["tags"]
    (kept,) = (work / ".llmsys" / "backups").iterdir()
    assert kept.read_bytes() == edited
    assert workspace.restore_checks(path) == []


def test_a_learners_copy_announces_what_a_check_looks_for(built_course, tmp_path):
    name = "90_tiny.ipynb"
    lesson = read_notebook(built_course.lessons / name)
    check = cells_by_id(lesson)["90-double-check"]
    passed = Result("90.double", True, (PropertyResult("doubles 1 < 2", True), PropertyResult("doubles 0", True)))
    check["outputs"][0]["data"] = {"text/plain": repr(passed), "text/html": passed._repr_html_()}
    write_notebook(built_course.lessons / name, lesson)
    work = workspace.start(tmp_path / "work").workspace
    path = work / name

    def shown():
        return cells_by_id(read_notebook(path))["90-double-check"]

    def announces(cell):
        data, html = cell["outputs"][0]["data"], cell["outputs"][0]["data"]["text/html"]
        assert data["text/plain"] == "… What this check will look for\n  · doubles 1 < 2\n  · doubles 0"
        assert "What this check will look for" in html and "doubles 1 &lt; 2" in html and "passed" not in html
        assert cell["execution_count"] is None and cell["source"] == check["source"]
        return True

    assert announces(shown())
    assert read_notebook(workspace.pristine(work) / name) == lesson  # the base of an update is the lesson itself
    assert cells_by_id(read_notebook(path)) | {"90-double-check": check} == cells_by_id(lesson)
    workspace.restore_checks(path)
    assert shown() == check  # what nbval compares
    workspace.reset("90", work)
    assert announces(shown())
    notebook = read_notebook(path)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "90-double-check"]
    write_notebook(path, notebook)
    workspace.reset("90", work)
    check["source"] = "check('90.double', double)"
    write_notebook(built_course.lessons / name, lesson)
    update.update(work)
    assert announces(shown())  # an update brings it in alike


def test_a_notebook_that_is_no_lesson_is_refused(work):
    notebook = read_notebook(work / "90_tiny.ipynb")
    notebook["metadata"].pop("llmsys")
    write_notebook(work / "scratch.ipynb", notebook)
    write_notebook(work / "90_tiny.ipynb", notebook)
    with pytest.raises(NotebookError, match="is not a copy of a lesson"):
        workspace.restore_checks(work / "scratch.ipynb")
    assert workspace.restore_checks(work / "90_tiny.ipynb") == []  # its name says which it is


@pytest.mark.slow
def test_nbval_passes_exactly_when_the_exercises_are_right(built_course, tmp_path):
    halves = {"right": "return x / 2", "wrong": "return x / 3"}
    paths = [workspace.start(tmp_path / name).workspace / "90_tiny.ipynb" for name in halves]
    for path, halve in zip(paths, halves.values(), strict=True):
        answer(path, "90-double", "return 2 * x")
        answer(path, "90-halve", halve)
        notebook = read_notebook(path)
        cells_by_id(notebook)["90-halve-check"] |= {"source": "True", "outputs": []}  # tampered with
        write_notebook(path, notebook)
        workspace.restore_checks(path)
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", "--nbval-lax"]
    done = subprocess.run([*command, "--nbval-current-env", *paths], cwd=tmp_path, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    assert len(failed) == 1 and "wrong/90_tiny.ipynb" in failed[0] and "1 failed" in done.stdout, done.stdout
    cells = [cell["id"] for cell in read_notebook(paths[1])["cells"] if cell["cell_type"] == "code"]
    assert f"Cell {cells.index('90-halve-check')}" in failed[0], "and it is the check of the wrong answer that fails"


def test_status_counts_what_has_passed(work, monkeypatch):
    from llmsys.course.workspace import progress
    from llmsys.course.workspace.status import status

    monkeypatch.setenv("LLMSYS_WORKSPACE", str(work))
    (lesson,) = status()
    assert (lesson.present, lesson.passed, lesson.points, lesson.lesson.points) == (True, (), 0, 5)
    progress.attempt("90.double", "one", False)
    progress.attempt("90.halve", "two", True)
    (work / "90_tiny.ipynb").unlink()
    (lesson,) = status(work)
    assert (lesson.present, [exercise.id for exercise in lesson.passed], lesson.points) == (False, ["90.halve"], 3)
