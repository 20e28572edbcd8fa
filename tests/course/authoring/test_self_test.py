"""The self-test of the checks finds a bad check. (That each lesson's own checks stand it is tested with the lesson.)"""

import dataclasses
import time

import pytest

from llmsys.course import manifest
from llmsys.course.authoring import self_test
from llmsys.course.authoring.mutations import Mutation
from llmsys.course.checking import checks, diagnosis
from llmsys.course.checking.checks import exercise_check
from llmsys.course.checking.diagnosis import misconception

SOURCE = '''# %% tags=["setup"]
import nothing_that_exists

# %% tags=["exercise"] exercise="95.clip"
LIMIT = 10


def clip(x):
    """x, at most 10."""
    ### BEGIN SOLUTION
    if x > LIMIT:
        return LIMIT
    return x
    ### END SOLUTION

# %% tags=["check"] exercise="95.clip"
check("95.clip", clip)
'''
EXERCISE = manifest.Exercise(id="95.clip", function="clip", points=1, minutes=1, summary="", lesson="95")


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one exercise. Yields a function that self-tests a check of it."""
    lesson = manifest.Lesson("95", "clip", "Clip", 1, "Test", "", (), (EXERCISE,))
    (tmp_path / f"{lesson.name}.py").write_text(SOURCE)
    monkeypatch.setattr(manifest, "lessons", lambda: (lesson,))
    monkeypatch.setattr(checks, "_registry", {})
    monkeypatch.setattr(diagnosis, "_registry", {})

    def run(check, misconceptions=(), equivalent=("x > LIMIT → x >= LIMIT",), hints=("a", "b", "c"), **options):
        reasons = dict.fromkeys(equivalent, "10 is 10 either way")
        exercise_check("95.clip", hints=hints, equivalent=reasons)(check)
        for message, function in misconceptions:
            misconception("95.clip", message)(function)
        report = self_test.self_test(solutions=tmp_path, **options)
        return {line.what: line for line in report.lines}, report

    return run


def good(answer):
    with answer.property("small numbers stay"):
        answer.matches(3, 3)
        answer.matches(-12, -12)
    with answer.property("large ones do not"):
        answer.matches(10, 10)
        answer.matches(10, 11)
        answer.matches(10, 99)


WRONG = (
    ("You clip nothing.", lambda x: x),
    ("You clip to zero.", lambda x: x if x <= 10 else 0),
    ("You clip below, too.", lambda x: max(-20, min(x, 10))),
)


def test_a_good_check_stands(course):
    wrong = (*WRONG[:2], ("You clip one too soon.", lambda x: min(x, 9)))
    lines, report = course(good, wrong)
    assert report.ok, str(report)
    assert "0 failed, 0 skipped" in str(report).splitlines()[-1] and "--seed" in str(report).splitlines()[-1]
    assert any(what.startswith("rejects") for what in lines)


@pytest.mark.parametrize(
    "change, what",
    [
        ({"misconceptions": WRONG}, "recognises <lambda>"),  # the third one is right after all
        ({"misconceptions": WRONG[:2]}, "ships at least three misconceptions"),
        ({"equivalent": ()}, "rejects 2 of 2 mutations of the solution"),
        ({"equivalent": ("x > LIMIT → x >= LIMIT", "x + 1 → x - 1")}, "every mutation called equivalent exists"),
        ({"hints": ("a",)}, "has three hints"),
    ],
)
def test_what_is_missing_is_found(course, change, what):
    lines, report = course(good, **change)
    assert not report.ok
    assert [line for line in report.lines if line.what == what and line.ok is False], str(report)


def test_a_check_that_accepts_anything_is_found(course):
    def lax(answer):
        with answer.property("it runs"):
            answer(3)

    lines, report = course(lax, WRONG, equivalent=())
    wrong = [str(line) for line in report.lines if line.ok is False]
    assert any("the check accepts it" in line for line in wrong) and any("it accepts: " in line for line in wrong)


def test_a_check_that_rejects_the_solution_is_found(course):
    def wrong(answer):
        with answer.property("it is 4"):
            answer.matches(4, 3)

    lines, report = course(wrong)
    assert not lines["the solution passes"].ok and lines["the stub is not written yet"].ok


def test_a_missing_cell_is_found(course, tmp_path):
    (tmp_path / "95_clip.py").write_text("# %%\n")
    lines, report = course(good)
    assert lines["has a check and a solution"].ok is False


def test_a_check_that_takes_too_long_is_found(course, monkeypatch):
    monkeypatch.setattr(self_test, "CHECK_SECONDS", 0.05)

    def slow(answer):
        start = time.process_time()
        while time.process_time() < start + 0.3:
            pass
        good(answer)

    lines, report = course(slow)
    (line,) = [line for what, line in lines.items() if what.startswith("passes within 0.05 s (it took ")]
    assert line.ok is False and "a learner waits for it" in str(line)


@pytest.mark.parametrize(("took", "ok"), [((1.0, 2.0, 9.0), True), ((1.0, 6.0, 7.0), False)])
def test_half_of_the_checks_must_take_little(monkeypatch, took, ok):
    exercises = [dataclasses.replace(EXERCISE, id=f"95.{name}") for name in "abc"]
    lesson = manifest.Lesson("95", "clip", "Clip", 1, "Test", "", (), tuple(exercises))
    monkeypatch.setattr(manifest, "lessons", lambda: (lesson,))
    times = iter(took)

    def test_exercise(exercise, source, draw, seconds):
        seconds[exercise.id] = next(times)
        yield self_test.Line(exercise.id, "the solution passes", True)

    monkeypatch.setattr(self_test, "_test_exercise", test_exercise)
    last = self_test.self_test("95").lines[-1]
    assert last.what.startswith("half of the 3 checks take at most 5 s") and last.ok is ok


def test_a_mutation_that_never_ends_is_stopped_and_counts_as_rejected(course):
    checks._registry.clear()
    exercise_check("95.clip")(good)
    endless = Mutation("", "def clip(x):\n    while x == x:\n        pass\n")
    assert self_test._rejected(checks.get_check("95.clip"), EXERCISE, endless, limit=0.1)


def test_everything_that_was_asked_for_is_tested():
    every = [Mutation(str(i), "") for i in range(40)]
    assert self_test.Draw(1, everything=True).of("95.clip", every) == every
    assert set(self_test.Draw(1).of("95.clip", every)) < set(every)


def test_a_stub_is_what_the_learner_gets():
    stub = self_test.stub(self_test.exercise_cell(SOURCE, "95.clip"))
    assert "    raise NotImplementedError\n" in stub and "SOLUTION" not in stub and "LIMIT = 10" in stub
    with pytest.raises(NotImplementedError):
        self_test.load(stub, EXERCISE)(3)


def test_the_exit_status_tells(course, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "solutions_dir", lambda: tmp_path)
    exercise_check("95.clip")(good)
    assert self_test.main(["95"]) == 1 and "failed" in capsys.readouterr().out
    with pytest.raises(KeyError):
        self_test.main(["95.nothing"])
    assert dataclasses.asdict(EXERCISE)["id"] == "95.clip"
