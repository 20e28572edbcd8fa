"""`llmsys grade`: what an exercise is worth, found out without believing a word that the notebook's process says.

For each exercise one process (`llmsys.course.sandbox`) runs the notebook's setup cells and that exercise's cells, no
others, and then calls the learner's function when it is told to (`llmsys.course.worker`). Here, in the grader's
process, the same check as in the notebook draws fresh inputs from a seed that nobody knows beforehand, holds what is
expected, and compares plain buffers. So it makes no difference what a notebook prints, what its check cells say, or
what it patches; and an endless loop, a crash or a flood costs the exercise that it is in, and nothing else.

    report = grade_workspace("work")            # a learner's; the report is in llmsys.course.report
    grade_class("submissions").to_csv()         # one directory a learner

Limits: this stops accidents and casual tampering. The process runs as the same user on the same machine; strangers'
code belongs in a container.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import groupby
from pathlib import Path

from llmsys.course import manifest
from llmsys.course.manifest import Exercise, Lesson
from llmsys.course.notebook import NotebookError, cells_by_id, identify, read_notebook, role, tags
from llmsys.course.report import FAILED, PASSED, STUB, UNGRADED, ClassReport, Grade, Report
from llmsys.course.sandbox import GradeError, Sandbox
from llmsys.course.update import INCOMING
from llmsys.course.workspace import MARKER

TIME_LIMIT = 60.0  # seconds for the cells and all calls of one exercise
MEMORY_LIMIT = 2 << 30  # bytes, beyond what Python, torch and the course take
NOTEBOOK_LIMIT = 64 << 20  # bytes of a notebook's file
JOBS = 2  # processes at a time: one is spoken to while the next one imports torch


@dataclass(frozen=True)
class Course:
    """What is graded against: the lessons, their pristine notebooks, and where the checks are if not in this package
    (`module` is imported here and in the worker, and may lie in `path`)."""

    lessons: Sequence[Lesson] = field(default_factory=manifest.lessons)
    pristine: Path = field(default_factory=manifest.lessons_dir)
    module: str | None = None
    path: Sequence[str | Path] = ()

    def original(self, lesson: Lesson) -> dict:
        """The pristine notebook; an empty one where it has not been built."""
        path = self.pristine / lesson.notebook
        return read_notebook(path) if path.exists() else {"cells": [], "metadata": {}}


@dataclass(frozen=True)
class Limits:
    """What one exercise may take: seconds on the clock, bytes of memory; and how many processes run at a time."""

    seconds: float = TIME_LIMIT
    memory: int = MEMORY_LIMIT
    jobs: int = JOBS


@dataclass(frozen=True)
class _Task:
    """One exercise to grade: the worker's job, or the problem that leaves none."""

    learner: str
    exercise: Exercise
    notebook: str
    job: dict | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()


Progress = Callable[[str, Grade], None]  # called with the learner's name ("" if there is one only) and each grade


def grade_workspace(
    directory: str | Path,
    lessons: Iterable[str] | None = None,
    *,
    jobs: int = JOBS,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
    seed: int | None = None,
    course: Course | None = None,
    progress: Progress = lambda learner, grade: None,
) -> Report:
    """Grade the notebooks in a directory: all lessons, or those with these numbers ("02").

    seed: of the checks' inputs; drawn anew where it is None. Raises GradeError where there is no such
    directory, UnknownId where a lesson is none. What is wrong with a notebook is said in the report.
    """
    course, limits = course or Course(), Limits(time_limit, memory_limit, jobs)
    chosen = _chosen(course, lessons)
    if not Path(directory).is_dir():
        raise GradeError(f"{directory} is not a directory: name the one that the notebooks are in")
    tasks = [task for lesson in chosen for task in _tasks(Path(directory) / lesson.notebook, lesson, course)]
    (report,) = _reports(tasks, [""], course, limits, seed, progress)
    return report


def grade_notebook(
    path: str | Path,
    lesson: Lesson | None = None,
    *,
    only: str | None = None,
    jobs: int = JOBS,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
    seed: int | None = None,
    course: Course | None = None,
    progress: Progress = lambda learner, grade: None,
) -> Report:
    """Grade one notebook, or `only` one exercise of it. The lesson is known by the file's name if it is not given."""
    course, limits = course or Course(), Limits(time_limit, memory_limit, jobs)
    tasks = _tasks(Path(path), lesson or _lesson(Path(path).stem, course), course, only)
    (report,) = _reports(tasks, [""], course, limits, seed, progress)
    return report


def check_notebook(path: str | Path, only: str | None = None, *, course: Course | None = None) -> Iterator[Grade]:
    """The grades of one notebook, each as soon as it is known, as `llmsys check` shows them."""
    course = course or Course()
    tasks = _tasks(Path(path), _lesson(Path(path).stem, course), course, only)
    yield from _grades(tasks, course, Limits(), secrets.randbits(32))


def grade_class(
    directory: str | Path,
    lessons: Iterable[str] | None = None,
    *,
    jobs: int = JOBS,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
    seed: int | None = None,
    course: Course | None = None,
    progress: Progress = lambda learner, grade: None,
) -> ClassReport:
    """Grade a directory of submissions: each directory in it is a learner's workspace, or a fork that holds one."""
    course, limits = course or Course(), Limits(time_limit, memory_limit, jobs)
    chosen = _chosen(course, lessons)
    if not Path(directory).is_dir():
        raise GradeError(f"{directory} is not a directory: name the one that has a directory for each learner")
    folders = sorted(each for each in Path(directory).iterdir() if each.is_dir() and not each.name.startswith("."))
    tasks = []
    for folder in folders:
        place = workspace_in(folder, chosen)
        for lesson in chosen:
            tasks += [replace(t, learner=folder.name) for t in _tasks(place / lesson.notebook, lesson, course)]
    return ClassReport(tuple(_reports(tasks, [each.name for each in folders], course, limits, seed, progress)))


def workspace_in(folder: Path, lessons: Sequence[Lesson]) -> Path:
    """Where in a learner's submission the notebooks are: where a workspace is marked, else where most lessons are, not
    counting a fork's pristine lessons and solutions; the folder itself where there are none."""
    candidates = [folder, folder / "work", *sorted(each for each in folder.glob("*") if each.is_dir())]
    for candidate in candidates:
        if (candidate / MARKER).is_dir():
            return candidate
    skipped = ("lessons", "solutions")
    counts = {
        candidate: sum((candidate / lesson.notebook).exists() for lesson in lessons)
        for candidate in candidates
        if candidate.name not in skipped or candidate == folder
    }
    return max(counts, key=counts.get)  # of equals the first


# From a notebook to tasks


def _chosen(course: Course, numbers: Iterable[str] | None) -> list[Lesson]:
    if numbers is None:
        return [lesson for lesson in course.lessons if lesson.exercises]
    return [_lesson(number, course) for number in numbers]


def _lesson(name: str, course: Course) -> Lesson:
    """The lesson of that number, name or file name."""
    for lesson in course.lessons:
        if name in (lesson.number, lesson.name, lesson.slug):
            return lesson
    known = ", ".join(lesson.number for lesson in course.lessons)
    raise manifest.UnknownId(f"no lesson {name!r}: there are {known}")


def _tasks(path: Path, lesson: Lesson, course: Course, only: str | None = None) -> list[_Task]:
    """A task for each exercise of a notebook, whatever state that is in."""
    exercises = [lesson.exercise(only)] if only else lesson.exercises
    blank = [_Task("", exercise, lesson.notebook) for exercise in exercises]
    original = course.original(lesson)
    try:
        if not path.is_file():
            raise NotebookError(f"{path.name} is not there: `llmsys start` lays it down")
        if path.stat().st_size > NOTEBOOK_LIMIT:
            raise NotebookError(f"{path.name} is larger than {NOTEBOOK_LIMIT >> 20} MiB: clear its outputs")
        notebook = read_notebook(path)
        notes, setup = _notes(notebook, original), _setup(notebook, original)
        return [_task(task, notebook, original, setup, notes, course) for task in blank]
    except (NotebookError, OSError) as error:
        problem = str(error).replace(str(path), path.name)
    except Exception as error:  # JSON of the right form, and nonsense in it
        problem = f"{path.name} is malformed ({type(error).__name__}: {error}): replace it"
    return [replace(task, problem=problem) for task in blank]


def _task(blank: _Task, notebook: dict, original: dict, setup: list, notes: tuple[str, ...], course: Course) -> _Task:
    exercise = blank.exercise
    cells = _cells_of(exercise, notebook, original)
    if not cells:
        remedy = f"`llmsys reset {exercise.id}` puts it back"
        if notes:  # an older version may not have had it
            remedy = "`llmsys update` brings it"
        return replace(blank, problem=f"the notebook has no cell for {exercise.id}: {remedy}", notes=notes)
    job = {
        "id": exercise.id,
        "function": exercise.function,
        "setup": setup,
        "cells": [(exercise.id, cell["source"]) for cell in cells],
        "module": course.module,
    }
    return replace(blank, job=job, notes=(*notes, *_check_cell_notes(exercise, notebook, original)))


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


# From tasks to grades


def _reports(tasks, learners, course, limits, seed, progress) -> list[Report]:
    """The reports of these learners, in order."""
    seed = secrets.randbits(32) if seed is None else seed
    began, grades = time.perf_counter(), []
    for task, grade in zip(tasks, _grades(tasks, course, limits, seed), strict=True):
        grades.append(grade)
        progress(task.learner, grade)
    seconds = time.perf_counter() - began
    pairs = groupby(zip(tasks, grades, strict=True), key=lambda pair: pair[0].learner)
    of = {learner: tuple(grade for _, grade in group) for learner, group in pairs}
    alone = len(learners) == 1
    took = {learner: sum(g.seconds for g in of.get(learner, ())) if not alone else seconds for learner in learners}
    return [Report(of.get(learner, ()), seed, took[learner], learner) for learner in learners]


def _grades(tasks: Sequence[_Task], course: Course, limits: Limits, seed: int) -> Iterator[Grade]:
    """The grade of each task, in order. Processes are started ahead of their turn, before torch is imported here."""
    waiting = sum(task.job is not None for task in tasks)
    ready: list[Sandbox] = []
    try:
        for task in tasks:
            while waiting and len(ready) < max(1, limits.jobs):
                ready.append(Sandbox(course.path))
                waiting -= 1
            if task.job is None:
                yield Grade(task.exercise, task.notebook, UNGRADED, task.problem, task.notes)
                continue
            with ready.pop(0) as sandbox:
                yield _grade(task, sandbox, course, limits, seed)
    finally:
        for sandbox in ready:
            sandbox.close()


def _grade(task: _Task, sandbox: Sandbox, course: Course, limits: Limits, seed: int) -> Grade:
    """Grade one exercise in that process."""
    from llmsys.course.checking import get_check, run_check
    from llmsys.course.remote import RemoteRunner, clean
    from llmsys.hardware.tier import load_triton, triton_installed

    began = time.perf_counter()

    def grade(status: str, message: str = "", details: str = "", notes: tuple[str, ...] = ()) -> Grade:
        sandbox.close()
        seconds, notes = time.perf_counter() - began, (*task.notes, *notes)
        return Grade(task.exercise, task.notebook, status, message, notes, details, clean(sandbox.printed), seconds)

    if course.module:
        import_module(course.module)
    check = get_check(task.exercise.id)
    if check.kernel and not triton_installed():
        return grade(UNGRADED, "it is a Triton kernel, and the grader's machine has no Triton")
    if check.kernel:
        load_triton()  # which decides how it runs: misconceptions that are kernels may be run here
    runner = RemoteRunner(sandbox, time_limit=limits.seconds, memory_limit=limits.memory)
    opened = runner.open(task.job)
    if opened.problem:
        return grade(FAILED, opened.problem, notes=opened.notes)
    try:
        result = run_check(check, runner, seed=seed)
    except Exception as error:  # a value so odd that the check itself stumbles costs this exercise, and no other
        message = f"the check could not judge what was returned ({type(error).__name__}: {error})"
        return grade(FAILED, runner.stopped and str(runner.stopped) or clean(message), notes=opened.notes)
    if runner.stopped and result.failure:
        result = replace(result, failure=replace(result.failure, message=str(runner.stopped)))
    status = PASSED if result else STUB if result.failure.kind == "stub" else FAILED
    message = "" if result else result.failure.message
    if result.misconception:
        message += f"\nThis looks like: {result.misconception.message}"
    return grade(status, message, repr(result), opened.notes)
