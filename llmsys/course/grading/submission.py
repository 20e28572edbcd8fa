"""What a learner handed in: which cells of a notebook answer which exercise, and what is to be said about the rest.

From here the grader gets, for each exercise, a job for a worker (`llmsys.course.grading.worker`): the setup cells, the
cells that hold the answer, the name to call. Cells of the learner's own are not in it, and neither are check cells.
Whatever state a notebook is in, every exercise has a task: where there is nothing to run, the task says why, and what
to do.

The notebook is a stranger's file, and is read as such: an edited setup cell comes with the original, to be run in its
place where it fails; an edited check cell is noted and not believed.
"""

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmsys.course import manifest
from llmsys.course.grading.notebooks import NOTEBOOK_LIMIT, find_notebooks, workspace_in
from llmsys.course.grading.report import STUB, UNGRADED
from llmsys.course.grading.words import clean, shown_name
from llmsys.course.manifest import Exercise, Lesson
from llmsys.course.workspace.notebook import NotebookError, cells_by_id, identify, read_notebook, role, tags
from llmsys.course.workspace.update import INCOMING

__all__ = ["UNTOUCHED", "Course", "Task", "tasks_in", "tasks_in_notebook", "tasks_of", "workspace_in"]

UNTOUCHED = "not written yet: replace `raise NotImplementedError` with your own lines"


@dataclass(frozen=True)
class Course:
    """What is graded against: the lessons, their pristine notebooks, and where the checks are if not in this package
    (`module` is imported here and in the worker, and may lie in `path`)."""

    lessons: Sequence[Lesson] = field(default_factory=manifest.lessons)
    pristine: Path = field(default_factory=lambda: manifest.lessons_dir())
    module: str | None = None
    path: Sequence[str | Path] = ()

    def original(self, lesson: Lesson) -> dict:
        """The pristine notebook; an empty one where it has not been built."""
        path = self.pristine / lesson.notebook
        return read_notebook(path) if path.exists() else {"cells": [], "metadata": {}}

    def chosen(self, names: Iterable[str] | None) -> list[Lesson]:
        """These lessons, or all that have exercises. Raises UnknownId."""
        return [each for each in self.lessons if each.exercises] if names is None else [self.lesson(n) for n in names]

    def lesson(self, name: str) -> Lesson:
        """The lesson of that number, name or slug. Raises UnknownId."""
        for lesson in self.lessons:
            if name in (lesson.number, lesson.name, lesson.slug):
                return lesson
        known = ", ".join(lesson.number for lesson in self.lessons)
        raise manifest.UnknownId(f"no lesson {name!r}: there are {known}")


@dataclass(frozen=True)
class Task:
    """One exercise to grade: the worker's job, or where there is none the status that is clear without one, and why."""

    learner: str
    exercise: Exercise
    notebook: str
    job: dict | None = None
    status: str = UNGRADED
    problem: str = ""
    notes: tuple[str, ...] = ()


def tasks_in(folder: Path, lessons: Sequence[Lesson], course: Course, learner: str = "") -> list[Task]:
    """A task for each exercise of these lessons in a learner's submission, wherever in it their notebooks are."""
    try:
        found = find_notebooks(folder, lessons)
    except OSError as error:
        problem = f"{shown_name(folder.name)} cannot be read ({error.strerror or error})"
        every = [(lesson.notebook, each) for lesson in lessons for each in lesson.exercises]
        return [Task(learner, each, notebook, problem=problem) for notebook, each in every]
    tasks = []
    for lesson in lessons:
        at = found[lesson.number]
        own = tasks_of(at.path, lesson, course) if not at.problem else []
        own = own or [Task("", each, lesson.notebook, problem=at.problem) for each in lesson.exercises]
        tasks += [replace(each, learner=learner, notes=(*at.notes, *each.notes)) for each in own]
    return tasks


def tasks_of(path: Path, lesson: Lesson, course: Course, only: str | None = None) -> list[Task]:
    """A task for each exercise of a notebook, whatever state that is in."""
    exercises = [lesson.exercise(only)] if only else lesson.exercises
    blank = [Task("", exercise, lesson.notebook) for exercise in exercises]
    try:
        if not path.exists():
            raise NotebookError(f"{lesson.notebook} is not there: `llmsys update` brings it")
        if not path.is_file():
            raise NotebookError(f"{path.name} is no file: `llmsys update` brings the notebook when it is moved away")
        if path.stat().st_size > NOTEBOOK_LIMIT:
            raise NotebookError(f"{path.name} is larger than {NOTEBOOK_LIMIT >> 20} MiB: clear its outputs")
        return tasks_in_notebook(read_notebook(path), lesson, course, exercises)
    except (NotebookError, OSError) as error:
        problem = clean(str(error).replace(str(path), shown_name(path.name)))
    except Exception as error:  # JSON of the right form, and nonsense in it
        problem = clean(f"{shown_name(path.name)} is malformed ({type(error).__name__}: {error}): replace it")
    return [replace(task, problem=problem) for task in blank]


def _task(blank: Task, notebook: dict, original: dict, setup: list, notes: tuple[str, ...], course: Course) -> Task:
    exercise = blank.exercise
    cells = _cells_of(exercise, notebook, original)
    if not cells:
        remedy = f"`llmsys reset {exercise.id}` puts it back"
        if notes:  # an older version may not have had it
            remedy = "`llmsys update` brings it"
        return replace(blank, problem=f"the notebook has no cell for {exercise.id}: {remedy}", notes=notes)
    stub = cells_by_id(original).get(exercise.cell_id, {}).get("source", "")
    # A copy of the untouched cell, above the answer or below it, is no part of the answer.
    cells = [cell for cell in cells if not _is_stub(cell["source"], stub, exercise.function)] or cells[:1]
    if "raise NotImplementedError" in stub and [cell["source"] for cell in cells] == [stub]:
        return replace(blank, status=STUB, problem=UNTOUCHED, notes=notes)
    job = {
        "id": exercise.id,
        "function": exercise.function,
        "setup": setup,
        "cells": [(_part(exercise, n), cell["source"]) for n, cell in enumerate(cells, start=1)],
        "module": course.module,
        "processes": exercise.processes,
    }
    return replace(blank, job=job, notes=(*notes, *_check_cell_notes(exercise, notebook, original)))


def tasks_in_notebook(notebook: dict, lesson: Lesson, course: Course, exercises: Sequence[Exercise]) -> list[Task]:
    """A task for each of these exercises of the lesson, in a notebook that has been read."""
    original = course.original(lesson)
    notes, setup = _notes(notebook, original), _setup(notebook, original)
    blank = [Task("", exercise, lesson.notebook) for exercise in exercises]
    return [_task(task, notebook, original, setup, notes, course) for task in blank]


def _is_stub(source: str, stub: str, name: str) -> bool:
    """Whether a cell is the lesson's own stub, or one of the kind, from another version: a function that does nothing
    but raise NotImplementedError."""
    if source.strip() == stub.strip():
        return "raise NotImplementedError" in stub
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    *before, last = body or [None]
    if not isinstance(last, ast.FunctionDef) or last.name != name:
        return False
    told = [each for each in last.body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
    given = all(isinstance(each, ast.Import | ast.ImportFrom) for each in before)
    return given and [ast.unparse(each) for each in told] == ["raise NotImplementedError"]


def _part(exercise: Exercise, n: int) -> str:
    return exercise.id if n == 1 else f"{exercise.id}, part {n}"


def _notes(notebook: dict, original: dict) -> tuple[str, ...]:
    versions = [each["metadata"].get("llmsys") for each in (notebook, original)]
    mine, newest = (each.get("version") if isinstance(each, dict) else None for each in versions)
    if newest is None or mine == newest:
        return ()
    return ("the notebook is from another version of the lesson: `llmsys update` brings it up to date",)


def _check_cell_notes(exercise: Exercise, notebook: dict, original: dict) -> tuple[str, ...]:
    wanted = cells_by_id(original).get(exercise.check_cell_id)
    ids = identify(notebook, original)
    found = next((cell for id, cell in zip(ids, notebook["cells"], strict=True) if id == exercise.check_cell_id), None)
    if wanted is None or (found is not None and found["source"].strip() == wanted["source"].strip()):
        return ()
    return (f"its check cell was {'deleted' if found is None else 'edited'}; the original check graded it",)


def _cells_of(exercise: Exercise, notebook: dict, original: dict) -> list[dict]:
    """The cells that hold the answer, in order: by cell id, by nbgrader's id, or by role and exercise (a cell that was
    split has these twice). What an update put beside the learner's own is not the learner's answer."""
    found = []
    for id, cell in zip(identify(notebook, original), notebook["cells"], strict=True):
        graded_as = cell["metadata"].get("nbgrader", {}).get("grade_id")
        named = role(cell) == "exercise" and cell["metadata"].get("exercise") == exercise.id
        if cell["cell_type"] == "code" and INCOMING not in tags(cell):
            if named or exercise.cell_id in (id, graded_as):
                found.append(cell)
    return found


def _setup(notebook: dict, original: dict) -> list[tuple[str, str, str | None]]:
    """The setup cells, (name, source, the original source if that is another one). A deleted one is as it was."""
    pristine = {id: cell["source"] for id, cell in cells_by_id(original).items() if role(cell) == "setup"}
    own = [
        (id or "setup", cell["source"])
        for id, cell in zip(identify(notebook, original), notebook["cells"], strict=True)
        if cell["cell_type"] == "code" and INCOMING not in tags(cell) and (role(cell) == "setup" or id in pristine)
    ]
    deleted = [(id, source, None) for id, source in pristine.items() if id not in dict(own)]
    edited = {id: pristine[id] for id, source in own if id in pristine and source != pristine[id]}
    return deleted + [(id, source, edited.get(id)) for id, source in own]
