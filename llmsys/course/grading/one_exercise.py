"""One exercise after another, several at a time: from a task to its grade.

Each exercise has a process of its own and, here, a thread that speaks to it. What a check computes here (inputs, what
is expected, which mistake an answer shows) is done by one thread at a time, in its turn: Triton's interpreter and the
meters are one for the whole process. While a learner's process is at work, the turn is another's; that is nearly
always.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from llmsys.course.grading.report import FAILED, PASSED, STUB, UNGRADED, Grade
from llmsys.course.grading.sandbox import Sandbox
from llmsys.course.grading.submission import Course, Task
from llmsys.course.grading.words import clean


class Bench:
    """Where exercises are graded: with these limits, by this seed, in jails that hide `hidden` where `isolate` is true.
    At its end no process is left."""

    def __init__(
        self,
        course: Course,
        seed: int,
        *,
        time_limit: float,
        memory_limit: int,
        isolate: bool = False,
        hidden: Sequence[Path] = (),
    ):
        self.course, self.seed, self.isolate, self.hidden = course, seed, isolate, tuple(hidden)
        self.limits = {"time_limit": time_limit, "memory_limit": memory_limit}
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._open: set[Sandbox] = set()
        self._stopped_in: dict[tuple[str, str, str], str] = {}  # learner, notebook, setup cell -> how it ended

    def __enter__(self) -> "Bench":
        return self

    def __exit__(self, *error) -> None:
        self._over.set()
        for sandbox in list(self._open):
            sandbox.kill()

    def grades(self, tasks: Sequence[Task], jobs: int, journal=None) -> Iterator[Grade]:
        """The grade of each task, in order, `jobs` at a time."""
        with ThreadPoolExecutor(max(1, jobs)) as pool:
            try:
                waiting = [task if task.job is None else pool.submit(self._kept, task, journal) for task in tasks]
                for task, each in zip(tasks, waiting, strict=True):
                    yield _without_a_process(task) if each is task else each.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.__exit__()
                raise

    def _kept(self, task: Task, journal) -> Grade:
        if journal and (known := journal.known(task)):
            return known
        grade = self._grade(task)
        if journal and not self._over.is_set():
            journal.add(task, grade)
        return grade

    @contextmanager
    def _sandbox(self) -> Iterator[Sandbox]:
        with Sandbox(self.course.path, isolate=self.isolate, hidden=self.hidden) as sandbox:
            self._open.add(sandbox)
            try:
                if self._over.is_set():
                    sandbox.kill()
                yield sandbox
            finally:
                self._open.discard(sandbox)

    @contextmanager
    def _others_turn(self) -> Iterator[None]:
        """While the learner's process is at work."""
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()

    def _grade(self, task: Task) -> Grade:
        """Grade one exercise. A setup cell that has ended a process is not run again, but as it was."""
        while True:
            task, problem = self._without_bad_cells(task)
            if problem:
                return Grade(task.exercise, task.notebook, FAILED, problem, task.notes)
            with self._sandbox() as sandbox, self._turn:
                grade, cell = self._in_a_process(task, sandbox)
            setup = {name: original for name, _, original in task.job["setup"]}
            if cell not in setup or self._over.is_set():
                return grade
            self._stopped_in[task.learner, task.notebook, cell] = grade.line
            if setup[cell] is None:
                return grade

    def _without_bad_cells(self, task: Task) -> tuple[Task, str]:
        """The task with the original of each setup cell that is known to end its process; or what to say where there is
        none."""
        setup, notes = [], []
        for name, source, original in task.job["setup"]:
            how = self._stopped_in.get((task.learner, task.notebook, name))
            if how and original is None:
                return task, how
            setup.append((name, original, None) if how else (name, source, original))
            notes += [f"{how}; the original was run instead"] if how else []
        return replace(task, job={**task.job, "setup": setup}, notes=(*task.notes, *notes)), ""

    def _in_a_process(self, task: Task, sandbox: Sandbox) -> tuple[Grade, str]:
        """The grade, and in which cell the process was stopped or ended, "" for none."""
        from llmsys.course.checking.checks import get_check, run_check
        from llmsys.course.grading.remote import RemoteRunner
        from llmsys.hardware.tier import load_triton, triton_installed

        began = time.perf_counter()

        def grade(status: str, message: str = "", details: str = "", notes: tuple[str, ...] = ()) -> Grade:
            sandbox.close()
            seconds, notes = time.perf_counter() - began, (*task.notes, *notes)
            return Grade(task.exercise, task.notebook, status, message, notes, details, clean(sandbox.printed), seconds)

        if self.course.module:
            import_module(self.course.module)
        check = get_check(task.exercise.id)
        if check.kernel and not triton_installed():
            return grade(UNGRADED, "it is a Triton kernel, and the grader's machine has no Triton"), ""
        if check.kernel:
            load_triton()  # which decides how it runs: misconceptions that are kernels may be run here
        runner = RemoteRunner(sandbox, **self.limits, waiting=self._others_turn)
        opened = runner.open(task.job)
        if opened.problem:
            return grade(FAILED, opened.problem, notes=opened.notes), opened.cell
        try:
            result = run_check(check, runner, seed=self.seed)
        except Exception as error:  # a value so odd that the check itself stumbles costs this exercise, and no other
            message = f"the check could not judge what was returned ({type(error).__name__}: {error})"
            return grade(FAILED, runner.stopped and str(runner.stopped) or clean(message), notes=opened.notes), ""
        objections = runner.objections()
        if runner.stopped and result.failure:
            result = replace(result, failure=replace(result.failure, message=str(runner.stopped)))
        status = PASSED if result else STUB if result.failure.kind == "stub" else FAILED
        message = "" if result else result.failure.message
        if result.misconception:
            message += f"\nThis looks like: {result.misconception.message}"
        if result and (objections or runner.stopped):
            return grade(FAILED, "; ".join(objections) or str(runner.stopped), notes=opened.notes), ""
        new = tuple(each for each in objections if each not in message)
        return grade(status, message, repr(result), (*opened.notes, *new)), ""


def _without_a_process(task: Task) -> Grade:
    return Grade(task.exercise, task.notebook, task.status, task.problem, task.notes)
