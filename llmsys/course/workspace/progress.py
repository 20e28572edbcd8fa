"""What the learner has done, in one file of their workspace: exercises, hints, predictions, best results.

It is `.llmsys/progress.json` in the workspace (`llmsys.course.workspace.workspace.find`). Outside of one, as in the
grader, nothing is written, and what hints and predictions need is remembered for as long as the process lives.

The file is read, changed and replaced under a lock, so that two notebooks do not lose each other's lines. A file that
cannot be read is moved aside, and one of a newer llmsys is left alone: neither is overwritten.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: without a lock, the last writer wins
    fcntl = None

from llmsys.course.workspace.notebook import write_text
from llmsys.course.workspace.workspace import MARKER, find

VERSION = 1


@dataclass
class ExerciseProgress:
    """`passed` is when the exercise was first passed (ISO 8601, UTC) or None; `failed` are the fingerprints of the
    wrong answers so far, `hints` how many hints have been shown, `asked` how many of them because they were asked for
    (once, wrong answers showed them, too). `nudge` is the first hint to the property that failed last."""

    passed: str | None = None
    attempts: int = 0
    failed: list[str] = field(default_factory=list)
    hints: int = 0
    asked: int = 0
    nudge: str = ""


@dataclass
class PredictionProgress:
    """A guess, and what was measured since, both in `unit`."""

    guess: float | None = None
    unit: str = ""
    measured: float | None = None


@dataclass
class Progress:
    """The whole file: exercises and predictions by id, best results by the name of a competition (less is better)."""

    exercises: dict[str, ExerciseProgress] = field(default_factory=dict)
    predictions: dict[str, PredictionProgress] = field(default_factory=dict)
    bests: dict[str, float] = field(default_factory=dict)


_in_memory = Progress()  # where there is no workspace


def load(folder: Path | None = None) -> Progress:
    """The progress recorded in that workspace, by default in the current one."""
    folder = folder or find()
    if folder is None:
        return _in_memory
    try:
        return _read(_file(folder))
    except OSError as error:
        warnings.warn(str(error), stacklevel=2)
        return Progress()


def passed(folder: Path | None = None) -> set[str]:
    """The ids of the exercises that have been passed in that workspace."""
    return {id for id, record in load(folder).exercises.items() if record.passed}


def attempt(id: str, fingerprint: str, passed: bool, *, nudge: str = "") -> ExerciseProgress:
    """Record an attempt, and what the first hint says now to who asks for one."""

    def change(progress: Progress) -> ExerciseProgress:
        record = progress.exercises.setdefault(id, ExerciseProgress())
        record.attempts += 1
        record.nudge = nudge
        if passed:
            record.passed = record.passed or datetime.now(UTC).isoformat(timespec="seconds")
        elif fingerprint not in record.failed:
            record.failed = [*record.failed, fingerprint][-50:]
        return record

    return _change(change)


def next_hint(id: str, of: int) -> int:
    """The number of the next hint, from 1 to `of`; recorded as shown."""

    def change(progress: Progress) -> int:
        record = progress.exercises.setdefault(id, ExerciseProgress())
        record.asked += record.hints < of  # the last one, shown again, is not another one
        record.hints = min(record.hints + 1, of)
        return record.hints

    return _change(change)


def prediction(id: str, guess: float | None, unit: str) -> PredictionProgress:
    """Record a guess. A guess of None leaves an earlier one as it is."""

    def change(progress: Progress) -> PredictionProgress:
        if guess is not None or id not in progress.predictions:
            progress.predictions[id] = PredictionProgress(guess, unit)
        return progress.predictions[id]

    return _change(change)


def measurement(id: str, measured: float) -> None:
    """Record what was measured for a prediction, in the prediction's unit."""
    _change(lambda progress: setattr(progress.predictions.setdefault(id, PredictionProgress()), "measured", measured))


def best(id: str, value: float) -> float:
    """Record a result where less is better. Returns the best so far."""

    def change(progress: Progress) -> float:
        progress.bests[id] = min(value, progress.bests.get(id, value))
        return progress.bests[id]

    return _change(change)


def _change(change: Callable[[Progress], object]):
    folder = find()
    if folder is None:
        return change(_in_memory)
    path = _file(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_suffix(".lock")):
            progress = _read(path)
            result = change(progress)
            write_text(path, json.dumps({"version": VERSION} | asdict(progress), indent=1, sort_keys=True) + "\n")
            return result
    except OSError as error:  # a full disk or a read-only folder must not stop the lesson
        warnings.warn(f"your progress could not be recorded in {path}: {error}", stacklevel=4)
        return change(_in_memory)


def _file(folder: Path) -> Path:
    return folder / MARKER / "progress.json"


def _read(path: Path) -> Progress:
    try:
        data = json.loads(path.read_bytes())
        if data["version"] > VERSION:
            raise OSError(f"{path} was written by a newer llmsys and is left as it is: `pip install -U llmsys`")
        return Progress(
            {id: _record(ExerciseProgress, _with_asked(entry)) for id, entry in data["exercises"].items()},
            {id: _record(PredictionProgress, entry) for id, entry in data["predictions"].items()},
            {id: float(value) for id, value in data.get("bests", {}).items()},  # a file of before has none
        )
    except FileNotFoundError:
        return Progress()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        aside = _unused(path)
        os.replace(path, aside)
        warnings.warn(f"{path} cannot be read: it was kept as {aside.name}, and a new one begun", stacklevel=2)
        return Progress()


def _record(kind: type, entry: dict):
    """A record from its entry in the file. What a later version may have added is left out."""
    record = kind(**{each.name: entry[each.name] for each in fields(kind) if each.name in entry})
    for each in fields(kind):
        default, value = getattr(kind(), each.name), getattr(record, each.name)
        if default is not None and type(value) is not type(default):
            raise TypeError(f"{each.name} is a {type(value).__name__}")
    return record


def _with_asked(entry: dict) -> dict:
    """An exercise's entry, which a file of before has without `asked`: each wrong answer had shown a hint at most."""
    if "asked" in entry:
        return entry
    return entry | {"asked": max(0, entry.get("hints", 0) - len(entry.get("failed", [])))}


def _unused(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.stem}.broken-{number}.json")).exists():
        number += 1
    return aside


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
