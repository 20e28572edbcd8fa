"""A pytest plugin that says where a run's processor time went, and holds each lesson and package to its budget.

    python -m pytest -p tests.support.processor_time --nbval-lax solutions/*.ipynb

(tests/conftest.py loads it for the tests.) Time is that of the process and of its child processes (a notebook's
kernel, a command), in seconds of the reference machine: the calibration loop of
`llmsys.course.authoring.reference_time` runs beside the tests, again and again, so that a slow machine or a busy one
says the same. It is counted for the file of the test, and files are summed by lesson, notebook and package. Budgets
stand in budgets.toml; one exceeded threefold fails the run. With pytest-xdist each worker measures its own tests, and
the controller adds up.

`--processor-time=file` shows the files instead.
"""

import os
import re
import resource
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median

import pytest

from llmsys.course import manifest
from llmsys.course.authoring.reference_time import LOOP_SECONDS, calibrate, reference_seconds
from tests.support.size import FULL

EVERY = 15.0  # processor seconds after which the calibration loop runs again
OVERHEAD = "starting, imports, collecting"


@dataclass(frozen=True)
class Budgets:
    """What each lesson, notebook and package may take, and the factor by which that may be exceeded."""

    lessons: Mapping[str, float]
    notebooks: Mapping[str, float]
    packages: Mapping[str, float]
    fails_at: float

    def of(self, place: str) -> float | None:
        """The budget of a place as `place_of` names it; None where it has none."""
        kind, _, number = place.partition(" ")
        for name, budgets in (("lesson", self.lessons), ("notebook", self.notebooks)):
            if kind == name:
                return budgets.get(number, budgets["each"])
        return self.packages.get(place)


def read_budgets() -> Budgets:
    """The table beside this file."""
    table = tomllib.loads(Path(__file__).with_name("budgets.toml").read_text(encoding="utf-8"))
    return Budgets(table["lesson"], table["notebook"], table["package"], table["fails_at"])


def place_of(file: str, slugs: Mapping[str, str]) -> str:
    """Where a test file's time is counted: "lesson 03", "notebook 03", or a package. `slugs` has each lesson's number
    by its slug.

    >>> place_of("tests/viz/tiled_attention/test_pictures.py", {"tiled_attention": "03"})
    'lesson 03'
    """
    path = PurePosixPath(file)
    folders = path.parts[:-1]
    if path.suffix == ".ipynb":
        number = re.match(r"\d\d", path.name)
        return f"notebook {number.group()}" if number else "other notebooks"
    if folders[:1] != ("tests",):
        return folders[0] if folders else path.name
    if folders[1:2] == ("lessons",) and (number := re.match(r"test_(\d\d)_", path.name)):
        return f"lesson {number[1]}"
    if folders[1:2] == ("viz",) and folders[2:3] and folders[2] in slugs:
        return f"lesson {slugs[folders[2]]}"
    return folders[1] if len(folders) > 1 else "packaging"


def spent() -> float:
    """The processor seconds of this process so far, and of its child processes, ended or (on Linux) still running."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages) + _spent_by_running_children()


def _spent_by_running_children() -> float:
    """And by those of their children that they have waited for. A child that ends counts with RUSAGE_CHILDREN."""
    ticks = 0
    for list_of_pids in Path("/proc/self/task").glob("*/children"):
        try:
            pids = list_of_pids.read_text().split()
        except OSError:  # the thread has ended just now
            continue
        for pid in pids:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended just now
                continue
            ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


class Meter:
    """Measures the tests of this process. `seconds` is what each file took, in seconds of the reference machine."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self._loops: list[float] = []
        self._calibrated_at = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        if not self._loops or spent() - self._calibrated_at > EVERY:
            self._loops.append(calibrate())
            self._calibrated_at = spent()
        before = spent()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid.partition("::")[0]] += reference_seconds(spent() - before, self.loop)

    @property
    def loop(self) -> float:
        """What the calibration loop takes here, lately."""
        if not self._loops:
            self._loops.append(calibrate())
        return median(self._loops[-3:])

    def finish(self) -> dict[str, float]:
        """What each file took; and, for none of them, what this process took beside its tests."""
        whole = reference_seconds(spent(), self.loop)
        return dict(self.seconds) | {OVERHEAD: max(whole - self.seconds.total(), 0.0)}


class Worker:
    """Hands what a worker of pytest-xdist has measured to the controller."""

    def __init__(self, config, meter: Meter):
        self.config, self.meter = config, meter

    @pytest.hookimpl
    def pytest_sessionfinish(self):
        self.config.workeroutput["processor_time"] = self.meter.finish()


class Reporter:
    """Adds up what all processes have measured, prints it, and fails a run that is far beyond a budget."""

    def __init__(self, config, meter: Meter, budgets: Budgets):
        self.config, self.meter, self.budgets = config, meter, budgets
        self.files: Counter[str] = Counter()
        self.slugs = {lesson.slug: lesson.number for lesson in manifest.lessons()}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        self.files.update(getattr(node, "workeroutput", {}).get("processor_time", {}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session):
        if not self.files:  # no workers, which are child processes of this one
            self.files.update(self.meter.finish())
        if self.exceeded() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def places(self) -> Counter[str]:
        """The time of each lesson, notebook and package."""
        found: Counter[str] = Counter()
        for file, seconds in self.files.items():
            found[file if file == OVERHEAD else place_of(file, self.slugs)] += seconds
        return found

    def exceeded(self) -> list[str]:
        """A line for each place that took more than its budget allows."""
        if FULL:
            return []
        factor = self.budgets.fails_at
        return [
            f"{place} took {seconds:.1f} s of the reference machine; its budget is {budget:g} s"
            f" (tests/support/budgets.toml), and a run fails beyond {factor:g} times that"
            for place, seconds in self.places().items()
            if (budget := self.budgets.of(place)) is not None and seconds > factor * budget
        ]

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        by_file = self.config.getoption("processor_time") == "file"
        terminalreporter.section("processor time, in seconds of the reference machine", sep="-")
        shown = self.files if by_file else self.places()
        for name, seconds in sorted(shown.items(), key=lambda each: -each[1] if by_file else each[0]):
            budget = None if by_file or FULL else self.budgets.of(name)
            if seconds >= 0.05:
                write(f"{seconds:8.1f}  {name}" + (f" (of {budget:g})" if budget is not None else ""))
        loops = f"the calibration loop took {self.meter.loop:.2f} s, {LOOP_SECONDS:.2f} s there"
        write(f"{shown.total():8.1f}  in all; {loops}")
        for line in self.exceeded():
            write(f"TOO LONG: {line}", red=True, bold=True)


def pytest_addoption(parser):
    choices = ("package", "file")
    text = "how the processor time of a run is shown: by lesson and package, or by file"
    parser.addoption("--processor-time", choices=choices, default="package", help=text)


def pytest_configure(config):
    meter = Meter()
    config.pluginmanager.register(meter, "processor-time-meter")
    if hasattr(config, "workeroutput") or hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker(config, meter), "processor-time-worker")
    else:
        config.pluginmanager.register(Reporter(config, meter, read_budgets()), "processor-time-reporter")
