"""`llmsys grade`: what an exercise is worth, found out without believing a word that the notebook's process says.

For each exercise one process (`llmsys.course.grading.sandbox`) runs the notebook's setup cells and that exercise's
cells, no others, and then calls the learner's function when it is told to (`llmsys.course.grading.worker`). Here, in
the grader's process, the same check as in the notebook draws fresh inputs from a seed that nobody knows beforehand,
holds what is expected, and compares plain buffers. So it makes no difference what a notebook prints, what its check
cells say, or what it patches; and an endless loop, a crash or a flood costs the exercise that it is in, and nothing
else.

    report = grade_workspace("work")            # a learner's; the report is in llmsys.course.grading.report
    grade_class("submissions").to_csv()         # one directory a learner

Limits: this stops accidents and casual tampering. The process runs as the same user on the same machine; strangers'
code belongs in a container.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import groupby
from pathlib import Path

from llmsys.course.grading.report import FAILED, PASSED, STUB, UNGRADED, ClassReport, Grade, Report
from llmsys.course.grading.sandbox import GradeError, Sandbox
from llmsys.course.grading.submission import Course, Task, tasks_of, workspace_in
from llmsys.course.manifest import Lesson

TIME_LIMIT = 60.0  # seconds for the cells and all calls of one exercise
MEMORY_LIMIT = 2 << 30  # bytes, beyond what Python, torch and the course take
JOBS = 2  # processes at a time: one is spoken to while the next one imports torch


@dataclass(frozen=True)
class Limits:
    """What one exercise may take: seconds on the clock, bytes of memory; and how many processes run at a time."""

    seconds: float = TIME_LIMIT
    memory: int = MEMORY_LIMIT
    jobs: int = JOBS


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
    chosen = course.chosen(lessons)
    if not Path(directory).is_dir():
        raise GradeError(f"{directory} is not a directory: name the one that the notebooks are in")
    tasks = [task for lesson in chosen for task in tasks_of(Path(directory) / lesson.notebook, lesson, course)]
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
    tasks = tasks_of(Path(path), lesson or course.lesson(Path(path).stem), course, only)
    (report,) = _reports(tasks, [""], course, limits, seed, progress)
    return report


def check_notebook(path: str | Path, only: str | None = None, *, course: Course | None = None) -> Iterator[Grade]:
    """The grades of one notebook, each as soon as it is known, as `llmsys check` shows them."""
    course = course or Course()
    tasks = tasks_of(Path(path), course.lesson(Path(path).stem), course, only)
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
    chosen = course.chosen(lessons)
    if not Path(directory).is_dir():
        raise GradeError(f"{directory} is not a directory: name the one that has a directory for each learner")
    folders = sorted(each for each in Path(directory).iterdir() if each.is_dir() and not each.name.startswith("."))
    tasks = []
    for folder in folders:
        place = workspace_in(folder, chosen)
        for lesson in chosen:
            tasks += [replace(t, learner=folder.name) for t in tasks_of(place / lesson.notebook, lesson, course)]
    return ClassReport(tuple(_reports(tasks, [each.name for each in folders], course, limits, seed, progress)))


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


def _grades(tasks: Sequence[Task], course: Course, limits: Limits, seed: int) -> Iterator[Grade]:
    """The grade of each task, in order. Processes are started ahead of their turn, before torch is imported here."""
    waiting = sum(task.job is not None for task in tasks)
    ready: list[Sandbox] = []
    try:
        for task in tasks:
            while waiting and len(ready) < max(1, limits.jobs):
                ready.append(Sandbox(course.path))
                waiting -= 1
            if task.job is None:
                yield Grade(task.exercise, task.notebook, task.status, task.problem, task.notes)
                continue
            with ready.pop(0) as sandbox:
                yield _grade(task, sandbox, course, limits, seed)
    finally:
        for sandbox in ready:
            sandbox.close()


def _grade(task: Task, sandbox: Sandbox, course: Course, limits: Limits, seed: int) -> Grade:
    """Grade one exercise in that process."""
    from llmsys.course.checking.checks import get_check, run_check
    from llmsys.course.grading.remote import RemoteRunner, clean
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
