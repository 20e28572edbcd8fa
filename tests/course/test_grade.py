"""From notebooks to tasks: which cells are the answer, what is noted, whose workspace is where. Then a small class."""

import dataclasses
import json
import sys

import pytest

from llmsys.course import grade as grading
from llmsys.course import sandbox
from llmsys.course.grade import Course, check_notebook, grade_class, grade_notebook, grade_workspace, workspace_in
from llmsys.course.manifest import Exercise, Lesson, UnknownId
from llmsys.course.notebook import write_notebook
from llmsys.course.sandbox import GradeError

RIGHT = "def double(x):\n    return 2 * x\n"
CHECKS = """
from llmsys.course.checking import exercise_check

@exercise_check("91.double")
def double(answer):
    with answer.property("doubles", why="It was asked for."):
        x = answer.randn(3)
        answer.matches(2 * x, x)
"""
EXERCISES = (
    Exercise("91.double", "double", 2, 1, "", "91"),
    Exercise("91.halve", "halve", 3, 1, "", "91"),
)
LESSON = Lesson("91", "small", "Small", 5, "Test", "", exercises=EXERCISES)


def code(id, source, *roles, **metadata):
    metadata = {"tags": list(roles), **metadata}
    cell = {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": None}
    return cell | ({"id": id} if id else {})


def notebook(*cells, version="new"):
    metadata = {"llmsys": {"lesson": "91", "version": version}}
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


SETUP = code("91-start-1", "import torch", "setup")
DOUBLE = code("91-double", RIGHT, "exercise", exercise="91.double", nbgrader={"grade_id": "91-double"})
HALVE = code("91-halve", "def halve(x): ...", "exercise", exercise="91.halve")
CHECK = code("91-double-check", 'check("91.double", double)', "check", exercise="91.double")


@pytest.fixture
def course(tmp_path, monkeypatch):
    (tmp_path / "checks_of_91.py").write_text(CHECKS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    write_notebook(tmp_path / "pristine" / LESSON.notebook, notebook(SETUP, DOUBLE, CHECK, HALVE))
    return Course((LESSON,), tmp_path / "pristine", "checks_of_91", [tmp_path])


def tasks(course, tmp_path, *cells, **options):
    """The two tasks of a notebook of these cells."""
    path = tmp_path / LESSON.notebook
    path.write_text(json.dumps(notebook(*cells, **options)), encoding="utf-8")
    return grading._tasks(path, LESSON, course)


def answer(task):
    return [source for _, source in task.job["cells"]]


@pytest.mark.parametrize(
    "cell",
    [
        DOUBLE,
        code("91-double", RIGHT),  # the id alone
        code("mine", RIGHT, "exercise", exercise="91.double"),  # the role and the exercise alone
        code("mine", RIGHT, nbgrader={"grade_id": "91-double"}),  # nbgrader's id alone
        code(None, RIGHT, nbgrader={"grade_id": "91-double"}),  # and an editor that drops cell ids
    ],
)
def test_an_answer_is_found_by_any_of_its_marks(course, tmp_path, cell):
    double, halve = tasks(course, tmp_path, SETUP, cell, CHECK)
    assert answer(double) == [RIGHT] and not double.notes
    assert halve.job is None and "`llmsys reset 91.halve`" in halve.problem


def test_a_cell_that_was_split_is_run_in_both_parts(course, tmp_path):
    second = code("split", "def double(x): return x", "exercise", exercise="91.double")
    assert answer(tasks(course, tmp_path, SETUP, DOUBLE, second, CHECK)[0]) == [RIGHT, second["source"]]


def test_what_an_update_laid_beside_the_answer_is_no_part_of_it(course, tmp_path):
    incoming = code("91-double-new-123456", "def double(x): ...", "llmsys-incoming")
    assert answer(tasks(course, tmp_path, SETUP, DOUBLE, incoming, CHECK)[0]) == [RIGHT]


def test_only_setup_cells_and_the_answer_are_run(course, tmp_path):
    mine = code("mine", "raise ValueError")
    double, halve = tasks(course, tmp_path, SETUP, mine, DOUBLE, CHECK, HALVE)
    assert double.job["setup"] == halve.job["setup"] == [("91-start-1", "import torch", None)]
    assert answer(double) == [RIGHT] and answer(halve) == [HALVE["source"]]


def test_setup_cells_edited_added_and_deleted(course, tmp_path):
    edited, added = code("91-start-1", "import os", "setup"), code("mine", "import re", "setup")
    double, _ = tasks(course, tmp_path, edited, added, DOUBLE, CHECK)
    assert double.job["setup"] == [("91-start-1", "import os", "import torch"), ("mine", "import re", None)]
    double, _ = tasks(course, tmp_path, added, DOUBLE, CHECK)
    assert double.job["setup"] == [("91-start-1", "import torch", None), ("mine", "import re", None)]


def test_check_cells_deleted_and_edited_and_an_older_version_are_noted(course, tmp_path):
    assert "deleted" in tasks(course, tmp_path, SETUP, DOUBLE)[0].notes[0]
    other = code("91-double-check", "print('passed')", "check")
    assert "edited" in tasks(course, tmp_path, SETUP, DOUBLE, other)[0].notes[0]
    double, halve = tasks(course, tmp_path, SETUP, DOUBLE, CHECK, version="old")
    assert "`llmsys update`" in double.notes[0] and double.job
    assert "`llmsys update`" in halve.problem and halve.job is None


@pytest.mark.parametrize(
    "metadata",
    [{"nbgrader": {"grade_id": ["91-double"]}}, {"nbgrader": {"grade_id": {}}}, {"tags": [{}, 3]}, {"exercise": [1]}],
)
def test_nonsense_in_metadata_is_survived(course, tmp_path, metadata):
    cell = code(None, RIGHT + "# not a cell of the lesson's\n")
    cell["metadata"] |= metadata
    for task in tasks(course, tmp_path, cell):
        assert task.job is None and task.problem


def test_an_integer_too_long_to_read_is_a_malformed_notebook(course, tmp_path):
    path = tmp_path / LESSON.notebook
    path.write_text('{"nbformat": ' + "1" * 10_000 + "}", encoding="utf-8")
    assert "malformed" in grading._tasks(path, LESSON, course)[0].problem


def test_what_is_not_there_is_named(course, tmp_path):
    with pytest.raises(GradeError, match="nowhere is not a directory"):
        grade_workspace(tmp_path / "nowhere", course=course)
    with pytest.raises(GradeError, match="for each learner"):
        grade_class(tmp_path / "nowhere", course=course)
    with pytest.raises(UnknownId, match="no lesson '17': there are 91"):
        grade_workspace(tmp_path, ["17"], course=course)
    with pytest.raises(UnknownId):
        grade_notebook(tmp_path / LESSON.notebook, only="91.treble", course=course)


def test_where_a_submission_has_its_notebooks(tmp_path):
    places = ("fork/lessons", "fork/solutions", "fork/work", "flat", "deep/my notebooks", "moved/mine")
    for name in (*places, "moved/mine/.llmsys", "none"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in places:
        (tmp_path / name / LESSON.notebook).touch()
    found = {name: workspace_in(tmp_path / name, [LESSON]) for name in ("fork", "flat", "deep", "moved", "none")}
    expected = ("fork/work", "flat", "deep/my notebooks", "moved/mine", "none")
    assert list(found.values()) == [tmp_path / each for each in expected]


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


def test_one_notebook_and_one_exercise(course, tmp_path):
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
