"""From notebooks to tasks: which cells are the answer, what is noted, and where in a submission the notebooks are."""

import json

import pytest

from llmsys.course.grading.submission import Course, tasks_of, workspace_in
from llmsys.course.workspace.notebook import write_notebook
from tests.support.notebooks import CHECK, DOUBLE, HALVE, LESSON, RIGHT, SETUP, code, notebook


@pytest.fixture
def course(tmp_path):
    write_notebook(tmp_path / "pristine" / LESSON.notebook, notebook(SETUP, DOUBLE, CHECK, HALVE))
    return Course((LESSON,), tmp_path / "pristine")


def tasks(course, tmp_path, *cells, **options):
    """The two tasks of a notebook of these cells."""
    path = tmp_path / LESSON.notebook
    path.write_text(json.dumps(notebook(*cells, **options)), encoding="utf-8")
    return tasks_of(path, LESSON, course)


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


def test_an_untouched_stub_takes_no_process(course, tmp_path):
    stub = code("91-halve", "def halve(x):\n    raise NotImplementedError\n", "exercise", exercise="91.halve")
    write_notebook(course.pristine / LESSON.notebook, notebook(SETUP, DOUBLE, CHECK, stub))
    double, halve = tasks(course, tmp_path, SETUP, DOUBLE, CHECK, stub)
    assert double.job and halve.job is None and halve.status == "not written yet"
    edited = stub | {"source": stub["source"] + "# ?"}
    assert tasks(course, tmp_path, SETUP, DOUBLE, CHECK, edited)[1].job


def test_cells_that_an_update_added_beside_the_answer_are_not_run(course, tmp_path):
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
    assert "malformed" in tasks_of(path, LESSON, course)[0].problem


def test_where_a_submission_has_its_notebooks(tmp_path):
    places = ("fork/lessons", "fork/solutions", "fork/work", "flat", "deep/my notebooks", "moved/mine")
    for name in (*places, "moved/mine/.llmsys", "none"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for name in places:
        (tmp_path / name / LESSON.notebook).touch()
    found = {name: workspace_in(tmp_path / name, [LESSON]) for name in ("fork", "flat", "deep", "moved", "none")}
    expected = ("fork/work", "flat", "deep/my notebooks", "moved/mine", "none")
    assert list(found.values()) == [tmp_path / each for each in expected]
