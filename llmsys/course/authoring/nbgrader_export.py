"""A lesson for nbgrader: a course directory in which an instructor can release, collect and grade it.

    llmsys export nbgrader 02 my_course
    cd my_course
    nbgrader generate_assignment 02_online_softmax      # what the students get
    nbgrader autograde 02_online_softmax                # what they have handed in

The exercises are nbgrader's solution cells; each is graded by its check, in a locked cell with the manifest's points
that fails unless the check passes. An optional exercise's check has 0 points, so that nbgrader runs it and does not
count it. All other cells are read-only, but for the predictions. The points are the grader's own, for the course's
nbgrader_config.py has it asked (`llmsys.course.authoring.nbgrader_judge`): whatever a student's cell replaces, in that
kernel, changes nothing. Needs the repository (a wheel has no solutions), and nbgrader only
where the commands above are run.
"""

import ast
from pathlib import Path

from llmsys.course import manifest
from llmsys.course.manifest import Lesson
from llmsys.course.workspace.notebook import dumps, read_notebook, role, write_text

IMPORT_CHECK = "from llmsys.course import check"

CONFIG = '''"""nbgrader's settings for the llmsys course."""

from llmsys.course.authoring.nbgrader_judge import judged_by_llmsys

c = get_config()  # noqa: F821 (nbgrader defines it)
judged_by_llmsys(c)  # points are llmsys's own: what a notebook's check cells say is shown and not believed
c.CourseDirectory.course_id = "llmsys"
c.ClearSolutions.code_stub = {"python": "# Your code here\\nraise NotImplementedError"}
c.Execute.timeout = 600  # seconds a cell: a language model runs in some of them
'''


def export_nbgrader(number: str, out_dir: str | Path) -> Path:
    """Write a lesson's nbgrader source into a course directory, made if need be. Returns the notebook's path.

    Raises UnknownId, FileNotFoundError where the solutions are not there, and FileExistsError where the directory
    holds another version of the lesson.
    """
    lesson = manifest.lesson(number)
    solution = manifest.solutions_dir() / lesson.notebook
    if not solution.exists():
        raise FileNotFoundError(f"{solution} is not built: run llmsys build {lesson.number}")
    return export_lesson(lesson, read_notebook(solution), Path(out_dir))


def export_lesson(lesson: Lesson, solution: dict, out_dir: Path, *, preamble: str = IMPORT_CHECK) -> Path:
    """Write nbgrader's source of a lesson, given the notebook with its solutions, into a course directory, as
    `export_nbgrader` does. `preamble` is the first line of every test cell."""
    text = dumps(nbgrader_form(lesson, solution, preamble))
    path = out_dir / "source" / lesson.name / lesson.notebook
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(f"{path} is another version of this lesson: move it away, or name another directory")
    write_text(path, text)
    config = out_dir / "nbgrader_config.py"
    if not config.exists():
        write_text(config, CONFIG)
    return path


def nbgrader_form(lesson: Lesson, solution: dict, preamble: str = IMPORT_CHECK) -> dict:
    """The notebook as nbgrader's source: every cell's part in the grading, no outputs, a kernel that everyone has."""
    points = {exercise.check_cell_id: exercise.points for exercise in lesson.exercises}
    cells = []
    for cell in solution["cells"]:
        cell = cell | {"metadata": {key: value for key, value in cell["metadata"].items() if key != "nbgrader"}}
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
        part = {"solution": False, "grade": False, "locked": True}
        if role(cell) == "exercise":
            part = {"solution": True, "grade": False, "locked": False}
        elif role(cell) == "check":
            part = {"solution": False, "grade": True, "locked": True, "points": points[cell["id"]]}
            cell["source"] = assertion(cell["source"], preamble)
        if role(cell) != "predict":
            part |= {"schema_version": 3, "task": False, "cell_type": cell["cell_type"], "grade_id": cell["id"]}
            cell["metadata"]["nbgrader"] = part
        cells.append(cell)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return solution | {"cells": cells, "metadata": solution["metadata"] | {"kernelspec": kernel}}


def assertion(source: str, preamble: str = IMPORT_CHECK) -> str:
    """A check cell as a test: what it checks is shown, and the cell fails unless it passes.

    It is shown with `display` because nbgrader takes a cell's own result for a partial grade.
    """
    call = ast.parse(source).body[-1]
    lines = source.splitlines()
    before, checked = lines[: call.lineno - 1], ast.get_source_segment(source, call)
    test = [f"result = {checked}", "display(result)", 'assert result, "not right yet: the report above says why"']
    return "\n".join([*filter(None, [preamble]), *before, *test])
