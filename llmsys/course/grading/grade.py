"""`llmsys grade`: what an exercise is worth, found out without believing a word that the notebook's process says.

For each exercise one process (`llmsys.course.grading.sandbox`) runs the notebook's setup cells and that exercise's
cells, no others, and then calls the learner's function when it is told to (`llmsys.course.grading.worker`). Here, in
the grader's process, the same check as in the notebook draws fresh inputs from a seed that nobody knows beforehand,
holds what is expected, and compares plain buffers. So it makes no difference what a notebook prints, what its check
cells say, or what it patches; and an endless loop, a crash or a flood costs the exercise that it is in, and nothing
else.

    report = grade_workspace("work")            # a learner's; the report is in llmsys.course.grading.report
    grade_class("submissions").to_csv()         # one directory a learner

Where bubblewrap runs, each process is in a jail (`llmsys.course.grading.jail`). Elsewhere this stops accidents and
casual tampering: the process runs as the same user on the same machine, and strangers' code belongs in a container.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmsys.course.grading import jail
from llmsys.course.grading.class_report import ClassReport
from llmsys.course.grading.journal import NAME, Journal
from llmsys.course.grading.notebooks import lesson_of_file
from llmsys.course.grading.one_exercise import Bench
from llmsys.course.grading.report import Grade, Report
from llmsys.course.grading.sandbox import GradeError
from llmsys.course.grading.submission import Course, Task, tasks_in, tasks_of
from llmsys.course.grading.words import shown_name
from llmsys.course.manifest import Lesson

TIME_LIMIT = 60.0  # seconds of processor time for the cells and all calls of one exercise
MEMORY_LIMIT = 2 << 30  # bytes, beyond what Python, torch and the course take
JOBS = 2  # exercises at a time


Progress = Callable[[str, Grade], None]  # called with the learner's name ("" if there is one only) and each grade


@dataclass(frozen=True, kw_only=True)
class Grading:
    """How to grade, and with what.

    jobs            exercises at a time
    time_limit      seconds of processor time that one exercise may take
    memory_limit    bytes that it may take
    seed            of the checks' inputs; drawn anew where it is None
    course          the lessons and their checks, by default this course's
    progress        is called with each grade
    finished        is called with each learner's report, as soon as it is whole
    isolate         True demands a jail, False does without, None takes one where there is one
    """

    jobs: int = JOBS
    time_limit: float = TIME_LIMIT
    memory_limit: int = MEMORY_LIMIT
    seed: int | None = None
    course: Course | None = None
    progress: Progress = lambda learner, grade: None
    finished: Callable[[Report], None] = lambda report: None
    isolate: bool | None = None

    def __post_init__(self):
        if self.isolate and (why := jail.why_not()):
            raise GradeError(f"the exercises are to run in a jail, and there is none: {why}")
        object.__setattr__(self, "course", self.course or Course())
        object.__setattr__(self, "seed", secrets.randbits(32) if self.seed is None else self.seed)

    @property
    def isolated(self) -> bool:
        """Whether exercises run in a jail."""
        return self.isolate is not False and jail.available()

    def reports(
        self,
        tasks: Sequence[Task],
        learners: Sequence[str],
        hidden: Sequence[Path] = (),
        journal: Journal | None = None,
    ) -> list[Report]:
        """The reports of these learners, in order; tasks are in their order, too. A jail hides the places `hidden`, a
        journal keeps each grade as it comes."""
        began, grades = time.perf_counter(), self.grades(tasks, hidden, journal)
        reports, left = [], list(tasks)
        for learner in learners:
            own = []
            while left and left[0].learner == learner:
                left.pop(0)
                own.append(next(grades))
                self.progress(learner, own[-1])
            alone = len(learners) == 1
            seconds = time.perf_counter() - began if alone else sum(grade.seconds for grade in own)
            reports.append(Report(tuple(own), self.seed, seconds, learner, self.isolated))
            self.finished(reports[-1])
        return reports

    def grades(
        self, tasks: Sequence[Task], hidden: Sequence[Path] = (), journal: Journal | None = None
    ) -> Iterator[Grade]:
        """The grade of each task, in order; several are graded at a time."""
        how = {"time_limit": self.time_limit, "memory_limit": self.memory_limit}
        with Bench(self.course, self.seed, isolate=self.isolated, hidden=hidden, **how) as bench:
            yield from bench.grades(tasks, self.jobs, journal)


def grade_workspace(directory: str | Path, lessons: Iterable[str] | None = None, **how) -> Report:
    """Grade the notebooks in a directory: all lessons, or those with these numbers ("02"). `how`: see `Grading`.

    Raises GradeError where there is no such directory, UnknownId where a lesson is none. What is wrong with a notebook
    is said in the report.
    """
    grading = Grading(**how)
    chosen = grading.course.chosen(lessons)
    place = _directory(directory, "the one that the notebooks are in")
    (report,) = grading.reports(tasks_in(place, chosen, grading.course), [""], [place])
    return report


def grade_notebook(path: str | Path, lesson: Lesson | None = None, *, only: str | None = None, **how) -> Report:
    """Grade one notebook, or `only` one exercise of it. The lesson is known by the notebook's metadata, or the file's
    name, if it is not given. `how`: see `Grading`."""
    grading = Grading(**how)
    (report,) = grading.reports(_of_notebook(path, lesson, only, grading.course), [""], [Path(path).parent])
    return report


def check_notebook(path: str | Path, only: str | None = None, *, course: Course | None = None) -> Iterator[Grade]:
    """The grades of one notebook, each as soon as it is known, as `llmsys check` shows them."""
    grading = Grading(course=course)
    yield from grading.grades(_of_notebook(path, None, only, grading.course), [Path(path).parent])


def grade_class(directory: str | Path, lessons: Iterable[str] | None = None, **how) -> ClassReport:
    """Grade a directory of submissions: each directory in it is a learner's workspace, or a fork that holds one. `how`:
    see `Grading`. Grades are kept in the directory as they come (`llmsys.course.grading.journal`)."""
    place = _directory(directory, "the one that has a directory for each learner")
    limits = {name: how.get(name) for name in ("time_limit", "memory_limit", "isolate")}
    journal = Journal(place, {**limits, "lessons": lessons and list(lessons)})
    if how.get("seed") is None:
        how["seed"] = journal.seed
    grading = Grading(**how)
    chosen = grading.course.chosen(lessons)
    journal.begin(grading.seed)
    tasks, names, skipped = [], [], []
    for path in sorted(place.iterdir()):
        name = shown_name(path.name)
        if why := _no_submission(path):
            skipped += [f"{name}: {why}"] * (path.name != NAME)
            continue
        names.append(name)
        tasks += tasks_in(path, chosen, grading.course, name)
    skipped += [journal.problem] if journal.problem else []
    reports = grading.reports(tasks, names, [place], journal)
    journal.finish()
    return ClassReport(tuple(reports), tuple(skipped))


def _no_submission(path: Path) -> str:
    """Why something in a class's directory is no learner's submission; "" where it is one."""
    if path.name.startswith("."):
        return "hidden"
    if path.is_symlink():
        return "a link"
    return "" if path.is_dir() else "no directory"


def _directory(path: str | Path, what: str) -> Path:
    if not Path(path).is_dir():
        raise GradeError(f"{path} is not a directory: name {what}")
    return Path(path)


def _of_notebook(path: str | Path, lesson: Lesson | None, only: str | None, course: Course) -> list[Task]:
    found = lesson or lesson_of_file(Path(path), course.lessons) or course.lesson(Path(path).stem)
    return tasks_of(Path(path), found, course, only)
