"""Grading one notebook, one exercise, a small class; and what is said where nothing can be graded."""

import dataclasses
import sys

import pytest

from llmsys.course.grading import sandbox
from llmsys.course.grading.grade import Course, check_notebook, grade_class, grade_notebook, grade_workspace
from llmsys.course.grading.sandbox import GradeError
from llmsys.course.manifest import UnknownId
from llmsys.course.workspace.notebook import write_notebook
from tests.support.notebooks import CHECK, DOUBLE, EXERCISES, HALVE, LESSON, SETUP, code, forget_lesson_91, notebook

CHECKS = """
from llmsys.course.checking.checks import exercise_check

@exercise_check("91.double")
def double(answer):
    with answer.property("doubles", why="It was asked for."):
        x = answer.randn(3)
        answer.matches(2 * x, x)
"""


@pytest.fixture
def course(tmp_path, monkeypatch):
    forget_lesson_91(monkeypatch, "checks_of_91")
    (tmp_path / "checks_of_91.py").write_text(CHECKS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    write_notebook(tmp_path / "pristine" / LESSON.notebook, notebook(SETUP, DOUBLE, CHECK, HALVE))
    return Course((LESSON,), tmp_path / "pristine", "checks_of_91", [tmp_path])


def test_missing_directories_lessons_and_notebooks_are_named(course, tmp_path):
    with pytest.raises(GradeError, match="nowhere is not a directory"):
        grade_workspace(tmp_path / "nowhere", course=course)
    with pytest.raises(GradeError, match="for each learner"):
        grade_class(tmp_path / "nowhere", course=course)
    with pytest.raises(UnknownId, match="no lesson '17': there are 91"):
        grade_workspace(tmp_path, ["17"], course=course)
    with pytest.raises(UnknownId):
        grade_notebook(tmp_path / LESSON.notebook, only="91.treble", course=course)


def test_a_class_is_graded_learner_by_learner(course, tmp_path):
    """Three learners: one is right, one asks for the wrong thing, one has handed nothing in. In two processes."""
    course = dataclasses.replace(course, lessons=[dataclasses.replace(LESSON, exercises=EXERCISES[:1])])
    submissions = tmp_path / "submissions"
    wrong = code("91-double", "def double(x):\n    return x[0]\n", "exercise", exercise="91.double")
    write_notebook(submissions / "ada" / "work" / LESSON.notebook, notebook(SETUP, DOUBLE, CHECK))
    write_notebook(submissions / "=bob" / LESSON.notebook, notebook(SETUP, wrong, CHECK))
    (submissions / "eve").mkdir()
    (submissions / ".git").mkdir()
    (submissions / "notes.txt").touch()
    seen = []
    graded = grade_class(submissions, course=course, seed=5, progress=lambda learner, grade: seen.append(learner))
    assert seen == ["=bob", "ada", "eve"]
    header, bob, ada, eve = graded.rows()
    assert header == ["learner", "91.double", "points", "of", "remarks"]
    assert bob[:4] == ["=bob", 0, 0, 2] and "91.double: expected" not in bob[4] and "91.double: " in bob[4]
    assert ada == ["ada", 2, 2, 2, ""]
    assert eve[:4] == ["eve", 0, 0, 2] and "is not there" in eve[4]
    assert graded.to_csv().splitlines()[1].startswith("'=bob,0,0,2,")
    assert graded.exit_code == 0 and {report.seed for report in graded.reports} == {5}


def test_one_notebook_or_one_exercise_of_it_can_be_graded(course, tmp_path):
    path = tmp_path / "handed in" / LESSON.notebook
    write_notebook(path, notebook(SETUP, DOUBLE, CHECK))
    (grade,) = check_notebook(path, only="91.double", course=course)
    assert grade and str(grade).startswith("✓ 91.double passed")
    report = grade_notebook(path, only="91.halve", course=course)  # nothing to run
    assert [each.status for each in report.grades] == ["not graded"] and report.exit_code == 1


def test_a_worker_that_does_not_start_is_not_the_learners_fault(course, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.sys, "executable", sys.executable)
    monkeypatch.setattr(sandbox, "_environment", lambda *_: {"PYTHONPATH": "", "PYTHONHOME": str(tmp_path)})
    path = tmp_path / "work" / LESSON.notebook
    write_notebook(path, notebook(SETUP, DOUBLE, CHECK))
    report = grade_notebook(path, only="91.double", course=course)
    assert report.grades[0].line.startswith("the grader's own process did not start")
