"""The export, through nbgrader itself: what it releases has no solutions, and what it grades gets the right points."""

import copy
import dataclasses
import logging
import os
import shutil
import sys

import nbformat
import pytest

from llmsys.course import manifest
from llmsys.course.authoring import nbgrader_export
from llmsys.course.workspace.notebook import cells_by_id, read_notebook, role, write_notebook
from tests.support.size import FULL, sized

# nbgrader runs a lesson twice. So: of one lesson the setup, a kernel, and an exercise that is none. In the full form:
# the tiny lesson, whose check is its own, and every lesson, whole.
LESSONS = sized(short=["02"], full=["90", *(lesson.number for lesson in manifest.lessons())])
SHORT = ("02.softmax_kernel", "02.merge")


def shortened(lesson, solution):
    """A lesson of the exercises in SHORT alone, and of its notebook what they need."""
    chosen = tuple(lesson.exercise(id) for id in SHORT)
    kept = {id for each in chosen for id in (each.cell_id, each.check_cell_id)}
    cells = [cell for cell in solution["cells"] if cell["id"] in kept or role(cell) == "setup"]
    return dataclasses.replace(lesson, exercises=chosen), solution | {"cells": cells}

REPLACES = """
import llmsys.course, llmsys.course.attempts
check = llmsys.course.check = llmsys.course.attempts.check = lambda id, answer: True
get_ipython().set_custom_exc((Exception,), lambda *error: None)
"""


def grade(course_dir, name, student):
    """Autograde one student's notebook in nbgrader's own way. Returns the points of each check cell."""
    from nbgrader.api import Gradebook

    api = api_of(course_dir)
    done = api.autograde(name, student)
    assert done["success"], done.get("log") or done.get("error")
    with Gradebook(f"sqlite:///{course_dir}/gradebook.db") as gradebook:
        notebook = gradebook.find_submission_notebook(name, name, student)
        return {each.name: each.score for each in notebook.grades}


def api_of(course_dir):
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import PyFileConfigLoader

    settings = PyFileConfigLoader("nbgrader_config.py", path=str(course_dir)).load_config()
    settings.CourseDirectory.root = str(course_dir)
    settings.CourseDirectory.db_url = f"sqlite:///{course_dir}/gradebook.db"
    return NbGraderAPI(config=settings)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Object of type <Submitted")  # nbgrader's own use of its database
@pytest.mark.parametrize("number", LESSONS)
def test_nbgrader_releases_and_grades_it(number, request, tmp_path, monkeypatch):
    logging.getLogger("traitlets").setLevel(logging.CRITICAL)  # nbgrader reports each notebook it converts
    monkeypatch.setenv("PYTHONPATH", str(manifest.HERE.parents[1]))
    programs = os.path.dirname(sys.executable)  # nbgrader runs alembic
    monkeypatch.setenv("PATH", os.pathsep.join([programs, os.environ["PATH"]]))
    monkeypatch.setenv("LLMSYS_WORKSPACE", "")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    if number == "90":  # the small lesson, whose check is its own
        course = request.getfixturevalue("built_course")
        lesson, solution = course.lesson, read_notebook(course.solutions / course.lesson.notebook)
        nbgrader_export.export_lesson(lesson, solution, tmp_path, preamble="")
    else:
        lesson = manifest.lesson(number)
        solution = read_notebook(manifest.solutions_dir() / lesson.notebook)
        if not FULL:
            lesson, solution = shortened(lesson, solution)
        nbgrader_export.export_lesson(lesson, copy.deepcopy(solution), tmp_path)

    done = api_of(tmp_path).generate_assignment(lesson.name)
    assert done["success"], done.get("log") or done.get("error")
    released = tmp_path / "release" / lesson.name / lesson.notebook
    assert "SOLUTION" not in released.read_text(encoding="utf-8")

    handed_in = read_notebook(released)
    cells, answers = cells_by_id(handed_in), cells_by_id(solution)
    *answered, left_out = lesson.exercises if len(lesson.exercises) > 1 else (*lesson.exercises, None)
    for exercise in answered:
        cells[exercise.cell_id]["source"] = answers[exercise.cell_id]["source"]
    cells[lesson.exercises[0].check_cell_id]["source"] = "pass  # a student cannot change a test"
    if number != "90":  # nor what it calls
        cells[lesson.exercises[-1].cell_id]["source"] += REPLACES
    target = tmp_path / "submitted" / "ada" / lesson.name / lesson.notebook
    write_notebook(target, handed_in)
    expected = {each.check_cell_id: each.points * (each is not left_out) for each in lesson.exercises}
    assert grade(tmp_path, lesson.name, "ada") == expected


def test_every_cell_has_its_part(built_course, tmp_path):
    path = nbgrader_export.export_nbgrader("90", tmp_path / "course")
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        part = cell.metadata.get("nbgrader")
        assert (part is None) == (role(cell) == "predict")
        if part:
            assert part.grade_id == cell.id and part.solution == (role(cell) == "exercise")
            assert part.locked != part.solution and part.grade == ("points" in part) == (role(cell) == "check")
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert [cell.metadata.nbgrader.points for cell in notebook.cells if role(cell) == "check"] == [2, 3]
    assert nbgrader_export.export_nbgrader("90", tmp_path / "course") == path  # again: nothing new
    path.write_text("the instructor's own", encoding="utf-8")
    with pytest.raises(FileExistsError, match="name another directory"):
        nbgrader_export.export_nbgrader("90", tmp_path / "course")


def test_an_optional_exercise_is_run_and_counts_for_nothing(built_course):
    from nbgrader.nbgraderformat import MetadataValidator
    from nbgrader.utils import determine_grade

    double, halve = built_course.lesson.exercises
    lesson = dataclasses.replace(
        built_course.lesson, exercises=(double, dataclasses.replace(halve, points=0, optional=True))
    )
    solution = read_notebook(built_course.solutions / lesson.notebook)
    notebook = nbformat.from_dict(nbgrader_export.nbgrader_form(lesson, solution, preamble=""))
    MetadataValidator().validate_nb(notebook)
    checks = [cell for cell in notebook.cells if role(cell) == "check"]
    assert [determine_grade(cell) for cell in checks] == [(2, 2), (0, 0)]


def test_a_check_becomes_a_test():
    made = nbgrader_export.assertion('x = 1\ncheck(\n    "90.double", double\n)  # the last line', "import check")
    before, condition = made.split("\ndisplay(result)\n")
    assert before == 'import check\nx = 1\nresult = check(\n    "90.double", double\n)'
    assert condition.startswith("assert result, ")


def test_without_a_solution_it_says_what_to_build(built_course, tmp_path):
    shutil.rmtree(built_course.solutions)
    with pytest.raises(FileNotFoundError, match="llmsys build 90"):
        nbgrader_export.export_nbgrader("90", tmp_path)
