"""The account of processor time: it counts what tests take, child processes too, for the right lesson or package, in
units that do not depend on the machine; and it fails a run that is far beyond a budget."""

import os
import re
from pathlib import Path

import pytest

from llmsys.course import manifest
from llmsys.course.authoring.reference_time import LOOP_SECONDS
from tests.support import processor_time
from tests.support.processor_time import Budgets, place_of, read_budgets

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
BUSY = "import time\nwhile time.process_time() < 0.3: pass"
BUSY_THEN_WAITING = BUSY + "\nprint(flush=True)\ninput()"
SLOW_TEST = f"""
import subprocess, sys, time

children = []

def test_itself():
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass

def test_a_child():
    subprocess.run([sys.executable, "-c", {BUSY!r}], check=True)

def test_a_child_that_goes_on():
    command = [sys.executable, "-c", {BUSY_THEN_WAITING!r}]
    children.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
    children[0].stdout.readline()
"""
NESTED = "test_03_tiled_attention.py"


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("tests/lessons/test_03_tiled_attention.py", "lesson 03"),
        ("tests/viz/tiled_attention/test_pictures.py", "lesson 03"),
        ("solutions/03_tiled_attention.ipynb", "notebook 03"),
        ("tests/viz/kit/test_svg.py", "viz"),
        ("tests/viz/test_viz.py", "viz"),
        ("tests/lessons/test_common.py", "lessons"),
        ("tests/attention/hopper/test_forward.py", "attention"),
        ("tests/test_wheel.py", "packaging"),
    ],
)
def test_each_file_is_counted_where_it_belongs(file, place):
    assert place_of(file, {"tiled_attention": "03"}) == place


@pytest.fixture
def run(pytester, monkeypatch):
    """A run of one slow test file of lesson 03 in this process, under some budgets."""
    (pytester.mkdir("tests") / "lessons").mkdir()
    (pytester.path / "tests/lessons" / NESTED).write_text(SLOW_TEST)

    def run(lesson, **changes):
        budgets = Budgets({"each": lesson}, {"each": 1.0}, {}, 3)
        monkeypatch.setattr(processor_time, "read_budgets", lambda: budgets)
        monkeypatch.setattr(processor_time, "calibrate", lambda: LOOP_SECONDS)  # this machine is the reference
        for name, value in changes.items():
            monkeypatch.setattr(processor_time, name, value)
        return pytester.runpytest_inprocess("-p", "tests.support.processor_time", "tests")

    return run


def test_a_budget_exceeded_threefold_fails_the_run_and_says_so(run):
    done = run(0.1, FULL=False)
    done.assert_outcomes(passed=3)
    assert done.ret == pytest.ExitCode.TESTS_FAILED
    done.stdout.re_match_lines([r" +\d\.\d  lesson 03 \(of 0\.1\)"])
    done.stdout.re_match_lines([r"TOO LONG: lesson 03 took \d\.\d s .*; its budget is 0.1 s"])


@pytest.mark.parametrize(("lesson", "full"), [(0.5, False), (0.01, True)], ids=["less than threefold", "make test-all"])
def test_otherwise_a_run_is_not_failed(run, lesson, full):
    done = run(lesson, FULL=full)
    done.assert_outcomes(passed=3)
    assert done.ret == pytest.ExitCode.OK
    done.stdout.no_fnmatch_line("*TOO LONG*")


def test_a_machine_that_is_ten_times_as_slow_says_the_same(run):
    """Where the calibration loop takes 2 s, 0.8 s are 0.08 s of the reference machine."""
    done = run(0.1, FULL=False, calibrate=lambda: 2.0)
    assert done.ret == pytest.ExitCode.OK
    done.stdout.re_match_lines([r" +0\.1  lesson 03 \(of 0\.1\)", r".*the calibration loop took 2\.00 s"])


def test_workers_report_to_the_controller(pytester, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(test_slow=SLOW_TEST, test_quick="def test_nothing(): pass")
    plugins = ["-p", "tests.support.processor_time", "-p", "xdist.plugin"]
    done = pytester.runpytest_subprocess(*plugins, "-n", "2", "--dist", "loadfile", "--processor-time=file")
    done.assert_outcomes(passed=4)
    (line,) = [line for line in done.outlines if line.endswith("  test_slow.py")]
    loop = float(re.search(r"the calibration loop took (\d\.\d\d) s", done.stdout.str())[1])
    here = float(line.split()[0]) * loop / LOOP_SECONDS
    assert 0.5 < here < 5  # 0.2 s in the worker, 0.3 s in each of its child processes


def test_seven_lessons_have_twelve_minutes_and_each_further_one_a_hundred_seconds():
    """With all that belongs to them: the tests of the library that a lesson brings along, too."""
    budgets = read_budgets()
    numbers = [lesson.number for lesson in manifest.lessons()]
    allowed = 12 * 60 + 100 * max(len(numbers) - 7, 0)
    lessons = sum(budgets.of(f"lesson {number}") + budgets.of(f"notebook {number}") for number in numbers)
    planned = {"serving", "parallel"}
    counted = set(budgets.packages) - planned
    assert planned <= set(budgets.packages) and lessons + sum(budgets.packages[name] for name in counted) <= allowed
    assert budgets.of("lesson 26") == 60 and budgets.of("notebook 26") == 40
    assert all(budgets.of(name) == 300 for name in planned)


def test_every_folder_of_tests_has_a_budget():
    places = {place_of(str(path.relative_to(ROOT)), {}) for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(places) > 10
    assert {place for place in places if read_budgets().of(place) is None} == set()
