"""The grader against answers that crash, loop, flood, cheat and lie: each costs its own exercise, with a clear line.

One notebook holds those that end or break their process, an exercise each, and one that is right behind them; it is
graded once. Those that leave their process whole share one. (tests/course/grading/test_remote.py has what else a
process may do, killed or silent, in cheaper processes.)
"""

import dataclasses
import json
import os
import sys

import pytest

from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.grading.grade import Course, grade_workspace
from llmsys.course.grading.remote import RemoteRunner
from llmsys.course.grading.sandbox import Sandbox
from llmsys.course.manifest import Exercise, Lesson
from llmsys.course.workspace.notebook import write_notebook
from tests.support.notebooks import code

TOY = '''
"""What every exercise of the toy lesson asks for: double a tensor."""

from llmsys.course.checking.checks import exercise_check
from llmsys.course.checking.diagnosis import misconception


def reference(x):
    return 2 * x


def check(answer):
    with answer.property("the result has x's shape", why="Doubling is elementwise."):
        answer.form(answer(x := answer.randn(3)), x)
    with answer.property("doubles whatever comes", why="That is what was asked."):
        for n in (1, 7):
            x = answer.randn(n)
            answer.matches(2 * x, x)


def squared(x):
    return x * x


for name in {names}:
    exercise_check(f"90.{{name}}", reference=reference)(check)
    misconception(f"90.{{name}}", "You squared it.")(squared)
'''

# Answers that are graded as a notebook is, in a process each, by the name of their exercise: the cell, the status that
# it earns, and what the report says. Those that a process survives are further down, in one process.
RIGHT = "def double(x):\n    return x + x\n"
ANSWERS = {
    "endless": ("def double(x):\n    while True:\n        pass\n", "failed", "it took longer than 1.5 s"),
    "exit": ("import os\ndef double(x):\n    os._exit(0)\n", "failed", "ended its process (with status 0)"),
    "garbage": (
        """
import os
def double(x):
    for fd in range(3, 1024):
        try:
            os.write(fd, b"passed!")
        except OSError:
            pass
    return 2 * x
""",
        "failed",
        "wrote to the grader's pipe",
    ),
    "patches": (
        """
import builtins, torch
import llmsys.course.checking.compare as compare
torch.allclose = torch.equal = lambda *a, **k: True
torch.testing.assert_close = lambda *a, **k: None
torch.Tensor.__eq__ = lambda a, b: True
compare.compare = lambda *a, **k: None
builtins.all = lambda *a: True
def double(x):
    return 2 * x
""",
        "failed",
        "it changed what judges it: builtins.all, torch.",
    ),
    "forges": (  # the report
        """
import llmsys.course.checking.runner as runner
plain = runner.Run.to_plain
runner.Run.to_plain = lambda self: plain(self) | {"passed": True}
def double(x):
    return 2 * x
""",
        "failed",
        "it changed what judges it: llmsys.course.checking.runner.Run.to_plain must stay as it is",
    ),
    "last": (  # and nothing of the caller's is there, and what it prints is read to the end
        """
import os
assert "SOME_TOKEN" not in os.environ and os.listdir() == [] and os.read(0, 9) == b""
def double(x):
    print("p" * 10**7)
    for _ in range(200):
        os.write(1, b"flood " * 10000)
    return x + x
""",
        "passed",
        "",
    ),
}
SETUP = "import torch\n"


def exercise(name):
    return Exercise(f"90.{name}", "double", 2, 1, "", "90")


def notebook(answers, setup=SETUP):
    """A lesson with these answers; every check cell in its original form."""
    cells = [code("90-start-1", setup, "setup")]
    for name, source in answers.items():
        cells.append(code(f"90-{name}", source, "exercise", exercise=f"90.{name}"))
        cells.append(code(f"90-{name}-check", f'check("90.{name}", double)', "check", exercise=f"90.{name}"))
    metadata = {"llmsys": {"lesson": "90", "version": "new"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


STUBS = dict.fromkeys(ANSWERS, "def double(x):\n    raise NotImplementedError\n")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The toy lesson, and where its pristine notebook and its checks are."""
    root = tmp_path_factory.mktemp("toy")
    (root / "toy_course.py").write_text(TOY.format(names=list(ANSWERS)), encoding="utf-8")
    lesson = Lesson("90", "toy", "A toy", 5, "Test", "", exercises=tuple(map(exercise, ANSWERS)))
    write_notebook(root / "pristine" / lesson.notebook, notebook(STUBS))
    sys.path.insert(0, str(root))
    yield Course((lesson,), root / "pristine", "toy_course", [root])
    sys.path.remove(str(root))


@pytest.fixture(scope="module")
def report(toy, tmp_path_factory):
    """The report on all of the answers; graded once."""
    root = tmp_path_factory.mktemp("work")
    answers = notebook({name: source for name, (source, *_) in ANSWERS.items()})
    cells = {cell["id"]: cell for cell in answers["cells"]}
    forged = 'def check(*_):\n    print("✓ 90.patches passed")\n\ncheck("90.patches", double)'
    cells["90-patches-check"]["source"] = forged
    answers["cells"].remove(cells["90-last-check"])
    answers["cells"].append(code("mine", "raise SystemExit('cells of the learner are not run')"))
    write_notebook(root / "90_toy.ipynb", answers)
    os.environ["SOME_TOKEN"] = "secret"
    try:
        return grade_workspace(root, course=toy, time_limit=1.5, memory_limit=512 << 20)
    finally:
        del os.environ["SOME_TOKEN"]


@pytest.fixture(scope="module")
def grades(report):
    return {grade.exercise.id.removeprefix("90."): grade for grade in report.grades}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_costs_only_its_own_exercise_and_says_why(grades, name):
    _, status, says = ANSWERS[name]
    grade = grades[name]
    assert (grade.status, grade.points) == (status, 2 if status == "passed" else 0), str(grade)
    assert says in grade.message
    assert "Traceback" not in grade.line and len(grade.line) < 200


def test_an_edited_check_cell_is_noted_and_has_no_effect(grades):
    assert grades["patches"].notes == ("its check cell was edited; the original check graded it",)
    assert grades["last"].notes == ("its check cell was deleted; the original check graded it",)
    assert grades["last"] and not grades["patches"] and not grades["forges"].notes


def test_of_a_flood_of_output_only_the_end_is_kept(grades):
    assert len(grades["last"].output) < 5000 and grades["last"].output.endswith("flood ")
    assert "bytes before this" in grades["last"].output
    assert grades["patches"].output == ""


def test_the_report_adds_up_the_points(report):
    assert report.points == 2 * sum(status == "passed" for _, status, _ in ANSWERS.values()) and report.exit_code == 1
    assert report.of == 2 * len(ANSWERS)


def test_nothing_is_left_running(report):
    alive = [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_worker(pid)] if sys.platform == "linux" else []
    assert not alive


def _is_worker(pid):
    """Whether it is a worker that this process has started."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return parent == os.getpid() and b"llmsys.course.grading.worker" in file.read()
    except OSError:
        return False


# Answers that cheat without ending their process: one holds them all, and each call says which is meant

CHEATS = """
import sys, threading
import toy_course, torch
from toy_course import reference as innocent

class Equal(torch.Tensor):
    def __eq__(self, other):
        return torch.tensor(True)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return torch.tensor(True)

def calls(x):
    return toy_course.reference(x)

def calls_under_another_name(x):
    try:
        return innocent(x)
    except Exception:
        return x + x

def stops_the_watch(x):
    sys.setprofile(None)
    return innocent(x)

def stops_the_watch_and_hides_it(x):
    try:
        sys.setprofile(None)
    except Exception:
        pass
    return innocent(x)

def in_a_thread(x):
    threading.excepthook = lambda *error: None
    found = [x + x]
    thread = threading.Thread(target=lambda: found.append(innocent(x)))
    thread.start()
    thread.join()
    return found[-1]

def needs_too_much(x):
    return torch.zeros(1 << 32)[: x.numel()] + 2 * x

def eats_memory(x):
    kept = []
    while True:
        kept.append(bytearray(1 << 24))

def squared(x):
    return x * x

def stub(x):
    # Let me think.
    raise NotImplementedError

def too_large(x):
    return torch.zeros(40_000_000)

def not_data(x):
    return lambda: x

def too_deep(x):
    for _ in range(100):
        x = [x]
    return x

def double(x, how):
    if how == "subclass":
        return x.as_subclass(Equal)
    if how == "leaves":
        sys.exit()
    if how == "modifies":
        return x.mul_(2)
    return globals()[how](x)
"""


@pytest.fixture(scope="module")
def cheats(toy):
    """A runner of them all."""
    with Sandbox(toy.path) as sandbox:
        runner = RemoteRunner(sandbox, time_limit=60, memory_limit=1 << 30)
        cells = [("90.exit", CHEATS)]
        job = {"id": "90.exit", "function": "double", "setup": [], "cells": cells, "module": toy.module}
        assert runner.open(job).problem == ""
        yield runner


class As:
    """A runner that says which of the cheats is meant."""

    def __init__(self, runner, how):
        self.runner, self.how = runner, how

    def run(self, args, kwargs):
        return self.runner.run(args, {**kwargs, "how": self.how})


@pytest.mark.parametrize(
    ("how", "kind", "says"),
    [
        ("subclass", "type", "not a subclass"),
        ("calls", "forbidden", "write this yourself: toy_course.reference was called"),
        ("calls_under_another_name", "forbidden", "write this yourself: toy_course.reference was called"),
        ("stops_the_watch", "error", "sys.setprofile is in use"),
        ("stops_the_watch_and_hides_it", "forbidden", "write this yourself"),
        ("in_a_thread", "forbidden", "write this yourself"),
        ("needs_too_much", "error", "more than the 1,024 MiB of memory"),
        ("eats_memory", "error", "more than the 1,024 MiB of memory"),
        ("stub", "stub", ""),
        ("too_large", "type", "too much to send"),
        ("not_data", "type", "return tensors, numbers"),
        ("too_deep", "type", "nested more than"),
        ("leaves", "error", "SystemExit"),
        ("modifies", "modified", "in place"),
    ],
)
def test_a_cheat_gets_no_points_and_is_told_why(cheats, how, kind, says):
    result = run_check(get_check("90.exit"), As(cheats, how), seed=3)
    assert not result
    assert (result.failure.kind, says in result.failure.message) == (kind, True), result


def test_a_wrong_answer_is_recognised_from_its_values_alone(cheats):
    result = run_check(get_check("90.exit"), As(cheats, "squared"), seed=3)
    assert not result and result.misconception.message == "You squared it."


# Notebooks that are not what they should be


def graded(toy, root, *, names=("exit", "garbage"), text=None, **changes):
    """The report on a notebook in which these exercises are answered rightly, after some changes."""
    lesson = dataclasses.replace(toy.lessons[0], exercises=tuple(map(exercise, names)))
    whole = notebook(dict.fromkeys(names, RIGHT), setup=changes.pop("setup", SETUP))
    for id in changes.pop("without", ()):
        whole["cells"] = [cell for cell in whole["cells"] if cell["id"] != id]
    whole["metadata"]["llmsys"] |= changes
    if text is None:
        text = json.dumps(whole)
    if text:
        (root / lesson.notebook).write_text(text, encoding="utf-8")
    return grade_workspace(root, course=dataclasses.replace(toy, lessons=(lesson,))).grades


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{not json", "line 1 is not JSON"),
        ("<<<<<<< HEAD\n{}", "merge conflict"),
        ("[]", "no list of cells"),
        ('{"cells": [{"cell_type": "code"}], "nbformat": 4}', "cell 1 has no source"),
        ("", "90_toy.ipynb is not there: `llmsys update` brings it"),
    ],
)
def test_a_notebook_that_cannot_be_read_costs_its_exercises(toy, tmp_path, text, says):
    first, second = graded(toy, tmp_path, text=text)
    assert first.status == second.status == "not graded"
    assert says in first.line and "\n" not in first.message


def test_an_older_notebook_without_the_exercise_is_to_be_updated(toy, tmp_path):
    first, second = graded(toy, tmp_path, without=("90-exit", "90-garbage"), version="old")
    assert first.status == "not graded" and "`llmsys update`" in first.line
    assert any("another version of the lesson" in note for note in first.notes)


def test_a_deleted_exercise_cell_can_be_put_back(toy, tmp_path):
    first, second = graded(toy, tmp_path, without=("90-exit", "90-garbage"))
    assert first.status == "not graded" and first.line.endswith("`llmsys reset 90.exit` puts it back")


def test_a_setup_cell_edited_to_raise_gives_way_to_the_original(toy, tmp_path):
    (first,) = graded(toy, tmp_path, names=("exit",), setup="raise ValueError('broken')", version="old")
    assert first
    assert "the setup cell was edited and raised ValueError: broken" in first.notes[-1]
    assert "`llmsys update`" in first.notes[0]
