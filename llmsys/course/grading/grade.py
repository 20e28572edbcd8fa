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


Progress = Callable[[str, Grade], None]  # called with the learner's name ("" if there is one only) and each grade


@dataclass(frozen=True, kw_only=True)
class Grading:
    """How to grade, and with what.

    jobs            processes at a time
    time_limit      seconds that one exercise may take, on the clock
    memory_limit    bytes that it may take
    seed            of the checks' inputs; drawn anew where it is None
    course          the lessons and their checks, by default this course's
    progress        is called with each grade
    """

    jobs: int = JOBS
    time_limit: float = TIME_LIMIT
    memory_limit: int = MEMORY_LIMIT
    seed: int | None = None
    course: Course | None = None
    progress: Progress = lambda learner, grade: None

    def __post_init__(self):
        object.__setattr__(self, "course", self.course or Course())
        object.__setattr__(self, "seed", secrets.randbits(32) if self.seed is None else self.seed)

    def reports(self, tasks: Sequence[Task], learners: Sequence[str]) -> list[Report]:
        """The reports of these learners, in order."""
        began, grades = time.perf_counter(), []
        for task, grade in zip(tasks, self.grades(tasks), strict=True):
            grades.append(grade)
            self.progress(task.learner, grade)
        seconds = time.perf_counter() - began
        pairs = groupby(zip(tasks, grades, strict=True), key=lambda pair: pair[0].learner)
        of = {learner: tuple(grade for _, grade in group) for learner, group in pairs}
        alone = len(learners) == 1
        took = {learner: sum(g.seconds for g in of.get(learner, ())) if not alone else seconds for learner in learners}
        return [Report(of.get(learner, ()), self.seed, took[learner], learner) for learner in learners]

    def grades(self, tasks: Sequence[Task]) -> Iterator[Grade]:
        """The grade of each task, in order. Processes start ahead of their turn, before torch is imported here."""
        waiting = sum(task.job is not None for task in tasks)
        ready: list[Sandbox] = []
        try:
            for task in tasks:
                while waiting and len(ready) < max(1, self.jobs):
                    ready.append(Sandbox(self.course.path))
                    waiting -= 1
                if task.job is None:
                    yield Grade(task.exercise, task.notebook, task.status, task.problem, task.notes)
                    continue
                with ready.pop(0) as sandbox:
                    yield _grade(task, sandbox, self)
        finally:
            for sandbox in ready:
                sandbox.close()


def grade_workspace(directory: str | Path, lessons: Iterable[str] | None = None, **how) -> Report:
    """Grade the notebooks in a directory: all lessons, or those with these numbers ("02"). `how`: see `Grading`.

    Raises GradeError where there is no such directory, UnknownId where a lesson is none. What is wrong with a notebook
    is said in the report.
    """
    grading = Grading(**how)
    chosen = grading.course.chosen(lessons)
    place = _directory(directory, "the one that the notebooks are in")
    tasks = [task for lesson in chosen for task in tasks_of(place / lesson.notebook, lesson, grading.course)]
    (report,) = grading.reports(tasks, [""])
    return report


def grade_notebook(path: str | Path, lesson: Lesson | None = None, *, only: str | None = None, **how) -> Report:
    """Grade one notebook, or `only` one exercise of it. The lesson is known by the file's name if it is not given.
    `how`: see `Grading`."""
    grading = Grading(**how)
    (report,) = grading.reports(_of_notebook(path, lesson, only, grading.course), [""])
    return report


def check_notebook(path: str | Path, only: str | None = None, *, course: Course | None = None) -> Iterator[Grade]:
    """The grades of one notebook, each as soon as it is known, as `llmsys check` shows them."""
    grading = Grading(course=course)
    yield from grading.grades(_of_notebook(path, None, only, grading.course))


def grade_class(directory: str | Path, lessons: Iterable[str] | None = None, **how) -> ClassReport:
    """Grade a directory of submissions: each directory in it is a learner's workspace, or a fork that holds one. `how`:
    see `Grading`."""
    grading = Grading(**how)
    chosen = grading.course.chosen(lessons)
    place = _directory(directory, "the one that has a directory for each learner")
    folders = sorted(each for each in place.iterdir() if each.is_dir() and not each.name.startswith("."))
    tasks = []
    for folder in folders:
        work = workspace_in(folder, chosen)
        for lesson in chosen:
            found = tasks_of(work / lesson.notebook, lesson, grading.course)
            tasks += [replace(task, learner=folder.name) for task in found]
    return ClassReport(tuple(grading.reports(tasks, [each.name for each in folders])))


def _directory(path: str | Path, what: str) -> Path:
    if not Path(path).is_dir():
        raise GradeError(f"{path} is not a directory: name {what}")
    return Path(path)


def _of_notebook(path: str | Path, lesson: Lesson | None, only: str | None, course: Course) -> list[Task]:
    return tasks_of(Path(path), lesson or course.lesson(Path(path).stem), course, only)


def _grade(task: Task, sandbox: Sandbox, grading: Grading) -> Grade:
    """Grade one exercise in that process."""
    from llmsys.course.checking.checks import get_check, run_check
    from llmsys.course.grading.remote import RemoteRunner, clean
    from llmsys.hardware.tier import load_triton, triton_installed

    began = time.perf_counter()

    def grade(status: str, message: str = "", details: str = "", notes: tuple[str, ...] = ()) -> Grade:
        sandbox.close()
        seconds, notes = time.perf_counter() - began, (*task.notes, *notes)
        return Grade(task.exercise, task.notebook, status, message, notes, details, clean(sandbox.printed), seconds)

    if grading.course.module:
        import_module(grading.course.module)
    check = get_check(task.exercise.id)
    if check.kernel and not triton_installed():
        return grade(UNGRADED, "it is a Triton kernel, and the grader's machine has no Triton")
    if check.kernel:
        load_triton()  # which decides how it runs: misconceptions that are kernels may be run here
    runner = RemoteRunner(sandbox, time_limit=grading.time_limit, memory_limit=grading.memory_limit)
    opened = runner.open(task.job)
    if opened.problem:
        return grade(FAILED, opened.problem, notes=opened.notes)
    try:
        result = run_check(check, runner, seed=grading.seed)
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
