"""nbgrader's points, by the grader: what an exported assignment's check cells say is not believed.

nbgrader runs a student's notebook, checks and all, in one kernel, and looks at which check cells raised an error. So a
student's cell can replace `llmsys.course.check`, or IPython's way of showing errors, and have all points. `Judge` is a
preprocessor for nbgrader that comes after the notebook has run, and before the points are saved: it grades each
exercise as `llmsys grade` does, in a process of its own by the original check, and gives the check cell an error or
takes it away accordingly. The exported `nbgrader_config.py` puts it there:

    from llmsys.course.authoring.nbgrader_judge import judged_by_llmsys
    judged_by_llmsys(c)

A course that has a configuration of its own takes these two lines into it.
"""

from nbformat.v4 import new_output
from nbgrader.converters import Autograde
from nbgrader.preprocessors import Execute, NbGraderPreprocessor

from llmsys.course.checking.checks import get_check
from llmsys.course.grading.grade import Grading
from llmsys.course.grading.report import UNGRADED, Grade
from llmsys.course.grading.submission import Course, tasks_in_notebook
from llmsys.course.manifest import UnknownId


def judged_by_llmsys(c) -> None:
    """Have nbgrader's autograding ask the grader, in nbgrader's configuration `c`."""
    known = Autograde.autograde_preprocessors.default()
    at = known.index(Execute) + 1
    c.Autograde.autograde_preprocessors = [*known[:at], Judge, *known[at:]]


class Judge(NbGraderPreprocessor):
    """Gives each check cell the output that its exercise has earned. Which exercise that is, nbgrader's own id says,
    which no student can change; check cells of which the course has no check are left as they are."""

    def preprocess(self, notebook, resources):
        course = Course()
        cells = {cell.metadata.get("nbgrader", {}).get("grade_id"): cell for cell in notebook.cells}
        for lesson in course.lessons:
            asked = [each for each in lesson.exercises if each.check_cell_id in cells and _has_check(each.id)]
            tasks = tasks_in_notebook(_plain(notebook), lesson, course, asked) if asked else []
            for grade in Grading(course=course).grades(tasks):
                cells[grade.exercise.check_cell_id].outputs = _outputs(grade)
        return notebook, resources


def _has_check(id: str) -> bool:
    try:
        return bool(get_check(id))
    except UnknownId:
        return False


def _plain(notebook) -> dict:
    """The notebook in plain dicts, its cells under the ids by which nbgrader knows them."""
    cells = [dict(cell, metadata=dict(cell.metadata)) for cell in notebook.cells]
    for cell in cells:
        cell["id"] = cell["metadata"].get("nbgrader", {}).get("grade_id") or cell.get("id")
    return {"cells": cells, "metadata": dict(notebook.metadata)}


def _outputs(grade: Grade) -> list:
    """The check cell's outputs: the grade's own card, and an error unless it has passed."""
    outputs = [new_output("stream", name="stdout", text=f"{grade}\n")]
    if not grade:
        kind, said = "NotGraded" if grade.status == UNGRADED else "NotPassed", grade.line or grade.status
        outputs.append(new_output("error", ename=kind, evalue=said, traceback=[f"{kind}: {said}"]))
    return outputs
