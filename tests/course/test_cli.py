"""The command line: what each command says, what it exits with, and that a mistake costs one line and no traceback."""

import csv
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import tokenizers
import typer.main
from typer.testing import CliRunner

import llmsys.models
from llmsys.course import cli, manifest
from llmsys.course.cli import errors, learn
from llmsys.course.grading import grade as grading
from llmsys.course.grading.report import Grade
from llmsys.course.workspace.notebook import cells_by_id, read_notebook, write_notebook
from llmsys.course.workspace.status import LessonStatus

ROOT = Path(__file__).parents[2]
MANIFEST = """
[[lesson]]
number = "90"
slug = "tiny"
title = "A tiny lesson"
minutes = 5
part = "Test"
summary = "Doubling."
[[lesson.exercise]]
id = "90.double"
function = "double"
points = 2
minutes = 1
summary = "Double a number."
[[lesson.exercise]]
id = "90.halve"
function = "halve"
points = 3
minutes = 7
summary = "Halve a number."
"""
STUB = "def {}(x):\n    # Your code here\n    raise NotImplementedError\n"


def code(id, source):
    return {"cell_type": "code", "id": id, "source": source, "metadata": {}, "outputs": [], "execution_count": None}


def lesson_with(*cells):
    return {"cells": list(cells), "metadata": {"llmsys": {"lesson": "90"}}, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture
def lessons(tmp_path, monkeypatch):
    """A course of one lesson with two stubs; returns its directory of pristine lessons."""
    (tmp_path / "lessons.toml").write_text(MANIFEST, encoding="utf-8")
    folder = tmp_path / "lessons"
    cells = [code(f"90-{name}", STUB.format(name)) for name in ("double", "halve")]
    write_notebook(folder / "90_tiny.ipynb", lesson_with(*cells))
    found = manifest.read_manifest(tmp_path / "lessons.toml")
    monkeypatch.setattr(manifest, "lessons", lambda: found)
    monkeypatch.setattr(manifest, "lessons_dir", lambda: folder)
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def work(lessons, tmp_path, monkeypatch):
    """That course's workspace, which is the current directory."""
    assert run("start", "work").exit_code == 0
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(each) for each in arguments], prog_name="llmsys")


def run_alone(*arguments, cwd, before="", path=ROOT):
    """The command in a process of its own, after a line of Python."""
    program = f"{before}\nfrom llmsys.course.cli import main; main()"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def commands(group=None, path=()):
    """Every command that can be run, as (words, command)."""
    group = group or typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


# Every command


def test_the_commands_are_these():
    names = {" ".join(words) for words, _ in commands()}
    learner = {"doctor", "start", "update", "status", "check", "hint", "reset"}
    author = {"new", "build", "lint"}
    others = {"plan serving", "grade", "export nbgrader", "bench", "data", "generate", "train", "serve", "chat"}
    assert names == learner | author | others


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_has_an_example_that_the_command_accepts(words):
    shown = run(*words, "--help")
    assert shown.exit_code == 0
    example = " ".join(shown.output[shown.output.index("Example: ") :].removeprefix("Example: ").split())
    program, *arguments = shlex.split(example)
    assert program == "llmsys" and tuple(arguments[: len(words)]) == words
    command = dict(commands())[words]
    command.make_context(" ".join(words), arguments[len(words) :])  # raises where it would be refused


def test_the_quick_commands_import_nothing_slow(tmp_path):
    """One after another in a fresh process, which says after each what it has imported by then."""
    program = """
import sys
from typer.testing import CliRunner
from llmsys.course import cli
for command in ("--help", "start .", "status", "update", "doctor"):
    done = CliRunner().invoke(cli.app, command.split(), prog_name="llmsys")
    print("AFTER", command, done.exit_code, type(done.exception).__name__)
    print(*sys.modules)
"""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    slow = {"torch", "triton", "numpy", "matplotlib", "nbformat", "nbconvert", "IPython", "jupyterlab"}
    sections = done.stdout.split("AFTER ")[1:]
    assert len(sections) == 5
    for section in sections:
        ran, imported = section.splitlines()
        assert ran.endswith((" 0 NoneType", " 0 SystemExit", "doctor 1 SystemExit")), ran
        assert slow.isdisjoint(imported.split()), ran


def test_python_m_llmsys_is_the_same_command_line():
    done = subprocess.run([sys.executable, "-m", "llmsys", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "Usage: llmsys " in done.stdout


# Errors


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status"], "make one with `llmsys start work`"),
        (["check"], "make one with `llmsys start work`"),
        (["update"], "make one with `llmsys start work`"),
        (["reset", "90.double"], "make one with `llmsys start work`"),
        (["hint", "90.doubel"], "did you mean 90.double"),
        (["check", "91"], "did you mean 90"),
        (["check", "90", "--all"], "--seed and --all go with --self-test"),
        (["start", "lessons"], "pristine lessons"),
        (["start", "lessons.toml"], "is a file"),
        (["build", "77"], "no lesson '77'"),
        (["export", "nbgrader", "nothing", "out"], "no lesson 'nothing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_is_one_line_with_a_remedy(lessons, arguments, says):
    if arguments[0] == "check" and len(arguments) > 1:
        run("start", "work")
    done = run(*arguments)
    assert done.exit_code == 2 and says in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
    assert isinstance(done.exception, SystemExit)


def test_a_bug_keeps_its_traceback(lessons, monkeypatch):
    monkeypatch.setattr(learn.workspaces, "start", lambda directory: {}["bug"])
    done = run("start", "work")
    assert done.exit_code == 1 and isinstance(done.exception, KeyError)


def test_a_missing_package_is_named_a_missing_module_of_ours_is_a_bug():
    assert "needs torch" in errors.for_people(ModuleNotFoundError("no", name="torch.nn"))
    assert "llmsys doctor" in errors.for_people(ModuleNotFoundError("no", name="torch"))
    assert errors.for_people(ModuleNotFoundError("no", name="llmsys.course.nothing")) is None
    assert errors.for_people(ValueError("a bug")) is None


def test_every_error_that_is_shown_without_a_traceback_exists():
    for name in errors.FOR_PEOPLE:
        module, _, kind = name.partition(":")
        assert issubclass(getattr(__import__(module, fromlist=[kind]), kind), Exception)


def test_without_torch_a_command_says_what_it_needs(tmp_path):
    done = run_alone("hint", "02.merge", cwd=tmp_path, before="import sys; sys.modules['torch'] = None")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("this command needs torch, which is missing: `llmsys doctor`")


# The learner's commands


def test_start_lays_the_lessons_and_overwrites_nothing(lessons, tmp_path):
    first = run("start", "my work")
    assert first.exit_code == 0 and "1 lesson laid into" in first.stdout and "90_tiny.ipynb" in first.stdout
    assert "cd 'my work' && jupyter lab 90_tiny.ipynb" in first.stdout
    again = run("start", "my work")
    assert again.exit_code == 0 and "1 lesson there already, left as it is" in again.stdout
    assert (tmp_path / "my work" / ".llmsys").is_dir()


def test_status_knows_what_passed_and_what_is_next(work, monkeypatch):
    shown = run("status").stdout
    assert "A tiny lesson" in shown and "· ·" in shown and "0 of 5" in shown
    assert "Next: 90.double (in 90_tiny.ipynb, about 1 minute). Double a number." in shown
    asked = {"passed": "2026-01-01T00:00:00+00:00", "hints": 3, "asked": 2, "failed": ["x"]}
    record(work, double=asked, halve={"hints": 2, "asked": 1, "failed": ["x"]})
    for place in (work, work.parent, work / "mine"):
        monkeypatch.chdir(place)
        shown = run("status").stdout
        assert "✓ ·" in shown and "1 passed" in shown
        assert re.search(r"90 +A tiny lesson +✓ · +2 of 5 +3", shown)
        assert "Next: 90.halve (in 90_tiny.ipynb, about 7 minutes)" in shown
    record(work, double={"passed": "now"}, halve={"passed": "now"})
    assert "5 of 5" in run("status").stdout and "All exercises have passed" in run("status").stdout


def test_status_says_where_a_lesson_is_missing(work):
    (work / "90_tiny.ipynb").unlink()
    assert "90_tiny.ipynb is not here: `llmsys update` brings it" in run("status").stdout
    assert "90_tiny.ipynb: back" in run("update").stdout and (work / "90_tiny.ipynb").exists()
    assert "is not here" not in run("status").stdout


def test_a_workspace_inside_a_workspace_is_refused(work, monkeypatch):
    for where in ("work", "deeper/still"):
        done = run("start", where)
        assert done.exit_code == 2 and not (work / where).exists()
        said = f"{work / where} lies in the workspace {work}: one workspace is not laid into another."
        assert done.stderr == f"{said} Name a directory apart\n"
    monkeypatch.chdir(work.parent)
    done = run("start", ".")
    assert done.exit_code == 2 and f"holds the workspace {work}" in done.stderr
    assert run("start", "work").exit_code == run("start", "another").exit_code == 0


def test_paths_in_advice_can_be_pasted_into_a_shell(lessons, tmp_path, monkeypatch):
    assert run("start", "my work").exit_code == 0
    monkeypatch.chdir(tmp_path / "my work")
    (tmp_path / "my work" / "90_tiny.ipynb").unlink()
    advice = run("reset", "90").stderr.split("`")[1]
    assert shlex.split(advice) == ["llmsys", "start", str(tmp_path / "my work")]
    assert run(*shlex.split(advice)[1:]).exit_code == 0 and (tmp_path / "my work" / "90_tiny.ipynb").exists()


def test_next_is_the_lesson_that_was_begun(monkeypatch):
    def exercise(id):
        return manifest.Exercise(id, "f", 1, 1, "", id[:2])

    def status(number, passed):
        exercises = (exercise(f"{number}.a"), exercise(f"{number}.b"))
        lesson = manifest.Lesson(number, "x", "X", 1, "Test", "", exercises=exercises)
        return LessonStatus(lesson, True, exercises[:passed])

    assert "Next: 03.b" in learn._next([status("01", 2), status("02", 0), status("03", 1)])
    assert "Next: 02.a" in learn._next([status("01", 2), status("02", 0), status("03", 2)])


def with_an_optional_exercise(lesson):
    beyond = manifest.Exercise("90.beyond", "beyond", 0, 5, "Go on.", "90", optional=True)
    return dataclasses.replace(lesson, exercises=(*lesson.exercises, beyond))


def test_status_marks_what_is_optional_and_counts_it_apart(work, lessons, monkeypatch):
    lesson = with_an_optional_exercise(manifest.lesson("90"))
    monkeypatch.setattr(manifest, "lessons", lambda: (lesson,))
    shown = run("status").stdout
    assert "· · (·)" in shown and "0 of 5" in shown and "(·) is an optional exercise" in shown
    record(work, double={"passed": "now"}, beyond={"passed": "now"})
    shown = run("status").stdout
    assert "✓ · (✓)" in shown and "1 passed, and 1 optional" in shown and "2 of 5" in shown
    assert "Next: 90.halve" in shown
    record(work, double={"passed": "now"}, halve={"passed": "now"})
    shown = run("status").stdout
    assert "5 of 5" in shown and "All exercises have passed. Optional ones are left: 90.beyond." in shown


def test_a_lesson_of_which_optional_exercises_alone_are_left_is_not_the_next_one(lessons):
    done = with_an_optional_exercise(manifest.lesson("90"))
    new = manifest.Lesson("91", "x", "X", 1, "Test", "", exercises=(manifest.Exercise("91.a", "f", 1, 1, "", "91"),))
    found = [LessonStatus(done, True, done.required), LessonStatus(new, True, ())]
    assert "Next: 91.a" in learn._next(found)


def test_check_fails_by_an_optional_exercise_only_where_it_is_asked_for(work, lessons, monkeypatch):
    lesson = with_an_optional_exercise(manifest.lesson("90"))
    monkeypatch.setattr(manifest, "lessons", lambda: (lesson,))
    made = {True: "failed", False: "passed"}
    grades = [Grade(each, lesson.notebook, made[each.optional], "wrong") for each in lesson.exercises]
    monkeypatch.setattr(
        grading, "check_notebook", lambda *a, only=None: (each for each in grades if only in (None, each.exercise.id))
    )
    done = run("check", "90")
    assert done.exit_code == 0 and "✗ 90.beyond (optional): wrong" in done.stdout
    assert "It is optional, and does not count." in done.stdout
    assert run("check", "90.beyond").exit_code == 1


def test_update_says_what_changed_and_keeps_edits(work, lessons):
    assert run("update").stdout.strip() == "Every lesson is up to date."
    edit(work / "90_tiny.ipynb", "90-double", "def double(x):\n    return 2 * x\n")
    upstream = read_notebook(lessons / "90_tiny.ipynb")
    upstream["cells"].append(code("90-more", "print('more')"))
    write_notebook(lessons / "90_tiny.ipynb", upstream)
    done = run("update")
    assert done.exit_code == 0 and "1 added" in done.stdout and "Reload Notebook from Disk" in done.stdout
    cells = cells_by_id(read_notebook(work / "90_tiny.ipynb"))
    assert "90-more" in cells and "return 2 * x" in cells["90-double"]["source"]


def test_reset_puts_an_exercise_back_and_says_where_yours_is(work):
    edit(work / "90_tiny.ipynb", "90-double", "def double(x):\n    return 3 * x\n")
    done = run("reset", "90.double")
    assert done.exit_code == 0
    assert "raise NotImplementedError" in cells_by_id(read_notebook(work / "90_tiny.ipynb"))["90-double"]["source"]
    kept = Path(done.stdout.splitlines()[0].partition("kept: ")[2])
    assert "return 3 * x" in cells_by_id(read_notebook(kept))["90-double"]["source"]


def test_a_file_that_is_no_notebook_is_an_error_of_one_line(work):
    (work / "90_tiny.ipynb").write_text("<<<<<<< HEAD\n")
    done = run("reset", "90.double")
    assert done.exit_code == 2 and "merge conflict" in done.stderr and len(done.stderr.splitlines()) == 1


def test_hints_come_one_after_another_and_are_remembered(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work" / ".llmsys").mkdir(parents=True)
    shown = [run("hint", "00.next_token").stdout for _ in range(4)]
    assert [text[:11] for text in shown] == ["Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "Hint 3 of 3"]
    progress = json.loads((tmp_path / "work" / ".llmsys" / "progress.json").read_text())
    assert progress["exercises"]["00.next_token"]["hints"] == 3


def test_doctor_exits_with_1_where_the_lessons_do_not_run(monkeypatch):
    from llmsys.course import doctor

    well = run("doctor")
    assert well.exit_code == 0 and "✓ torch" in well.stdout and doctor.diagnose().verdict in well.stdout
    monkeypatch.setattr(doctor, "version", lambda name: None)
    ill = run("doctor")
    assert ill.exit_code == 1 and 'pip install "torch>=2.11,<2.16"' in ill.stdout


# Checking and grading

RIGHT = "def next_token(logits):\n    return logits[:, -1].argmax(dim=-1)\n"
WRONG = "def next_token(logits):\n    return logits.argmax(dim=1)[:, -1]\n"
CHECK = 'check("00.next_token", next_token)'


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A function that puts an answer to 00.next_token into a workspace, and its check cell under it."""
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    monkeypatch.chdir(tmp_path)
    work = tmp_path / "work"
    (work / ".llmsys").mkdir(parents=True)

    def lesson(answer, check=CHECK):
        check = code("00-next_token-check", check) | {"metadata": {"tags": ["check", "nbval-check-output"]}}
        notebook = lesson_with(code("00-next_token", answer), check)
        notebook["metadata"]["llmsys"]["lesson"] = "00"
        return notebook

    def put(answer, check=CHECK, where=work):
        write_notebook(where / "00_start_here.ipynb", lesson(answer, check))
        return where / "00_start_here.ipynb"

    put(STUB.format("next_token"), where=tmp_path / "pristine")
    monkeypatch.setattr(manifest, "lessons_dir", lambda: tmp_path / "pristine")
    return put


def test_check_shows_what_the_notebook_shows(begun, tmp_path, monkeypatch):
    begun(STUB.format("next_token"))
    done = run("check", "00.next_token")
    assert done.exit_code == 1 and "· 00.next_token: not written yet" in done.stdout
    begun(WRONG)
    done = run("check", "00")
    assert done.exit_code == 1 and "This looks like: You took the argmax over positions" in done.stdout
    begun(RIGHT)
    done = run("check", "00")
    assert done.exit_code == 0 and "✓ 00.next_token passed" in done.stdout
    assert "Run the check cells of 00.next_token in the notebook" in done.stdout
    text = '{"version": 1, "exercises": {"00.next_token": {"passed": "now"}}, "predictions": {}}'
    (tmp_path / "work" / ".llmsys" / "progress.json").write_text(text)
    passed = Grade(manifest.exercise("00.next_token"), "00_start_here.ipynb", "passed")
    monkeypatch.setattr("llmsys.course.grading.grade.check_notebook", lambda *a, **k: iter([passed]))
    done = run("check", "00")
    assert done.exit_code == 0 and "00.next_token" in done.stdout and "Run the check cells" not in done.stdout


def test_grade_writes_every_form_that_is_asked_for(begun, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    begun(WRONG)
    forms = ("--json", "out/g.json", "--junit", "out/g.xml", "--summary")
    done = run("grade", "work", "--lesson", "00", "--seed", 7, *forms)
    assert done.exit_code == 1 and "0 of 1" in done.stdout and "seed 7" in done.stdout
    (graded,) = json.loads((tmp_path / "out" / "g.json").read_text())["exercises"]
    assert graded["exercise"] == "00.next_token" and graded["status"] == "failed"
    suite = ElementTree.parse(tmp_path / "out" / "g.xml").getroot().find("testsuite")
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert "0 of 1 points" in (tmp_path / "summary.md").read_text()


def test_grade_puts_the_original_check_cells_back(begun):
    path = begun(RIGHT, check="print('passed')")
    done = run("grade", "--lesson", "0", "--restore")  # of the workspace below the current directory
    assert done.exit_code == 0 and "00-next_token-check put back" in done.stdout
    assert cells_by_id(read_notebook(path))["00-next_token-check"]["source"] == CHECK


def test_grade_class_prints_a_csv(begun, tmp_path):
    begun(RIGHT, where=tmp_path / "class" / "ada")
    (tmp_path / "class" / "blaise").mkdir()  # who has handed nothing in
    done = run("grade", "--class", "class", "--lesson", "00")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert done.exit_code == 0
    assert [(row["learner"], row["00.next_token"]) for row in rows] == [("ada", "1"), ("blaise", "0")]
    assert run("grade", "work", "--class", "class").exit_code == 2


def test_a_class_in_a_folder_of_traps_with_odd_names_on_a_plain_terminal(begun, tmp_path):
    """Of the folder nothing is imported, not even by plain `python -m llmsys`; and every learner can be shown."""
    begun(RIGHT, where=tmp_path / "class" / "Zoë")
    try:
        os.mkdir(os.fsencode(tmp_path / "class") + b"/a\xff")
    except OSError:  # a file system of UTF-8 alone
        pytest.skip("needs a folder whose name is no UTF-8")
    for name in ("torch", "typer", "rich", "numpy", "json", "selectors", "sitecustomize", "llmsys_checks"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r})\n")
    arguments = ["grade", "--class", "class", "--lesson", "00", "--json", "all.json", "--junit", "all.xml"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "llmsys", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env=environment | {"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["learner"], row["points"]) for row in rows] == [(r"Zo\xeb", "1"), (r"a\xff", "0")]
    assert not (tmp_path / "imported").exists()
    learners = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["learners"]
    assert [each["points"] for each in learners] == [1, 0] and 'name="Zoë: 00_start_here"' in (
        tmp_path / "all.xml"
    ).read_text(encoding="utf-8")


def test_isolate_demands_a_jail(begun, monkeypatch):
    from llmsys.course.grading import jail

    monkeypatch.setattr(jail, "why_not", lambda: "bubblewrap (bwrap) is not installed")
    done = run("grade", ".", "--isolate", "--lesson", "00")
    assert done.exit_code == 2 and "in a jail, and there is none: bubblewrap (bwrap) is not installed" in done.stderr


def test_grade_names_a_directory_that_is_not_there(begun):
    done = run("grade", "nowhere", "--lesson", "00")
    assert done.exit_code == 2 and "nowhere is not a directory" in done.stderr


# The library's, the instructors' and the authors' commands


def test_bench_refuses_an_unknown_benchmark():
    done = run("bench", "nothing")
    assert done.exit_code == 2 and "softmax" in done.stderr


@pytest.mark.parametrize("out", ["file", "file/deep", "no room"])
def test_bench_without_a_place_for_its_record_is_refused_before_it_measures(out, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llmsys.bench.softmax.measure", lambda quick: pytest.fail("it measured"))
    if out == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 0}))
    done = run("bench", "softmax", "--quick", "--out", out)
    assert done.exit_code == 2 and done.stderr.startswith(f"{out}: ") and len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def model():
    """SmolLM2, loaded once for all the commands that let it speak."""
    return llmsys.models.load_model()


@pytest.fixture
def loaded_before(model, monkeypatch):
    """`generate` finds the model loaded, where it asks for the one that `model` is."""
    load = llmsys.models.load_model

    def load_model(path=None, *, device, dtype):
        is_model = path is None and str(device) == "cpu" and dtype == next(model.parameters()).dtype
        return model if is_model else load(path, device=device, dtype=dtype)

    monkeypatch.setattr(llmsys.models, "load_model", load_model)


def test_generate_refuses_an_unknown_stage_and_lists_those_there_are():
    done = run("generate", "Hello", "--attention", "nothing")
    assert done.exit_code == 2 and "online" in done.stderr and "sdpa" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--model", "/nowhere/model.gguf"], "/nowhere/model.gguf"), (["--model", "README.md"], "README.md")],
)
def test_generate_says_what_is_wrong_with_a_model(options, says, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("not a model")
    monkeypatch.chdir(tmp_path)
    done = run("generate", "Hello", *options)
    assert done.exit_code == 2 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("generate", "Hello", "--model"), ("train", "runs", "--model")])
@pytest.mark.parametrize(
    ("file", "key", "content"),
    [
        ("config.json", "num_attention_heads", {"num_attention_heads": -1}),
        ("config.json", "rope_theta", {"rope_parameters": {"rope_theta": "x"}}),
        ("generation_config.json", "eos_token_id", {"eos_token_id": [None]}),
        ("tokenizer_config.json", "bos_token", {"bos_token": []}),
        ("tokenizer_config.json", "chat_template", {"chat_template": {"a": 1}}),
        ("tokenizer.json", "added_tokens", {"added_tokens": True}),
        ("model.safetensors.index.json", "weight_map", {"weight_map": "x"}),
    ],
)
def test_a_setting_that_cannot_be_costs_one_line(command, file, key, content, tmp_path, monkeypatch):
    directory = tmp_path / "model"
    config = llmsys.models.LlamaConfig("tiny", 256, 16, 1, 2, 2, 8, 16, 32)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    core = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    llmsys.models.save_model(llmsys.models.Llama(config, llmsys.models.Tokenizer(core)), directory)
    if file == "model.safetensors.index.json":
        (directory / "model.safetensors").unlink()
    before = json.loads((directory / file).read_text()) if (directory / file).exists() else {}
    (directory / file).write_text(json.dumps(before | content))
    monkeypatch.chdir(tmp_path)
    done = run(*command, "model")
    assert done.exit_code == 2 and "Traceback" not in done.stderr
    said = re.sub(r"[│\s]+", "", done.stderr)  # the frame around it may break a name
    assert file in said and key in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--dtype", "int8"), "int8"),
        (("--device", "abacus"), "abacus"),
        (("--device", ""), "torch cannot compute there"),
        (("--device", "meta"), "--device meta: torch cannot compute there"),
        (("--attention", "hopper", "--device", "cpu"), "stage hopper"),
    ],
)
def test_generate_names_the_device_or_stage_that_cannot_run_it(options, says, loaded_before):
    done = run("generate", "Hello", "--max-new-tokens", "1", *options)
    assert done.exit_code == 2 and says in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_generate_on_a_gpu_that_is_not_there_is_one_line(device, loaded_before, monkeypatch):
    import torch

    zeros = torch.zeros

    def no_gpu(*size, device=None):
        if device and device.startswith("cuda"):
            raise AssertionError("Torch not compiled with CUDA enabled")  # as torch for CPUs alone says it
        return zeros(*size, device=device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "zeros", no_gpu)
    done = run("generate", "Hello", "--device", device)
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr == (
        f"--device {device}: torch finds no GPU here. Leave --device out, or give cpu; `llmsys doctor` says what is "
        "missing\n"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--seed", str(2**64), "--temperature", "1"), "seed must have at most 64 bits"),
        (("--temperature", "inf"), "temperature must be 0"),
        (("--temperature", "1", "--top-p", "nan"), "top_p must be above 0"),
        (("--top-k", "3"), "top_k has no effect at temperature 0"),
        (("--attention", "contigous"), "Did you mean 'contiguous'?"),
    ],
)
def test_generate_refuses_values_in_one_line(options, says, loaded_before):
    done = run("generate", "Hello", "--max-new-tokens", "1", *options)
    assert done.exit_code == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("prompt", ["", "a\udcff"])
def test_generate_refuses_what_is_no_text_in_one_line(prompt, loaded_before):
    done = run("generate", prompt)
    assert done.exit_code == 2 and done.stderr.startswith("prompt must") and len(done.stderr.splitlines()) == 1


def test_generate_says_in_one_line_that_a_model_gives_no_numbers(loaded_before, model, monkeypatch):
    head = model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda x: head(x) * float("nan"))
    done = run("generate", "Hello", "--temperature", "1")
    assert done.exit_code == 2 and "logits are not finite (NaN)" in done.stderr and len(done.stderr.splitlines()) == 1


def test_generate_takes_a_cache_by_its_name_and_the_smallest_temperature(loaded_before):
    greedy = run("generate", "Hello", "--max-new-tokens", "3")
    assert greedy.exit_code == 0
    for options in (["--attention", "contiguous"], ["--temperature", "5e-324", "--seed", "-1", "--top-p", "5e-324"]):
        assert run("generate", "Hello", "--max-new-tokens", "3", *options).stdout == greedy.stdout


def test_generate_says_which_stage_auto_picks(loaded_before):
    done = run("generate", "Hello", "--attention", "auto", "--max-new-tokens", "1")
    assert done.exit_code == 0
    assert "attention, prompt: sdpa (on the cpu" in done.stderr and "attention, each new token: sdpa" in done.stderr


def test_generate_prints_the_same_text_on_a_stage_in_python_as_on_torchs_own(loaded_before):
    """On a stage that is written in Python, and the same text as on torch's own."""
    online = run("generate", "What is the capital of France?", "--attention", "online", "--max-new-tokens", "8")
    assert online.exit_code == 0 and "Paris" in online.stdout
    assert run("generate", "What is the capital of France?", "--max-new-tokens", "8").stdout == online.stdout


def test_what_authors_do_needs_a_checkout(lessons, monkeypatch):
    def nowhere():
        raise FileNotFoundError("the solutions are not part of the installed package: clone the repository")

    monkeypatch.setattr(manifest, "solutions_dir", nowhere)
    for arguments in (["new", "07", "x"], ["build", "90"], ["lint", "90"], ["export", "nbgrader", "90", "out"]):
        done = run(*arguments)
        assert done.exit_code == 2 and "clone the repository" in done.stderr


def test_a_new_lesson_that_is_refused_is_said_in_one_line():
    done = run("new", "00", "another")
    assert done.exit_code == 2 and done.stderr == "there is a lesson 00: Start here\n"


def record(work, **exercises):
    entries = {f"90.{name}": entry for name, entry in exercises.items()}
    text = json.dumps({"version": 1, "exercises": entries, "predictions": {}})
    (work / ".llmsys" / "progress.json").write_text(text)


def edit(path, cell, source):
    notebook = read_notebook(path)
    cells_by_id(notebook)[cell]["source"] = source
    write_notebook(path, notebook)
