"""Grades as they come, kept in a file: an interrupted run has lost nothing, and the next one goes on from there.

A line of JSON for each exercise that was graded, with a key: a digest of all that its grade depends on, the cells, the
limits and the version of the grader. A later run takes a grade whose key is the same, and grades everything else. The
seed is kept as well, so that all of a class meets the same inputs. When the whole class is graded, the file goes.

In the file is what was graded, not what is to be trusted: who can write to an instructor's folder can write grades.
"""

import contextlib
import hashlib
import json
import threading
from pathlib import Path

from llmsys.course.grading.report import Grade, grader_version
from llmsys.course.grading.submission import Task

NAME = ".llmsys-grades.jsonl"
_KEPT = ("status", "message", "details", "output", "seconds")


class Journal:
    """The grades of an unfinished run in `directory`, for a run with these `settings`. `problem` says why nothing can
    be kept there, "" where it can."""

    def __init__(self, directory: Path, settings: dict):
        self.path, self.problem = directory / NAME, ""
        self.seed: int | None = None
        self._settings = json.dumps({"version": grader_version(), **settings}, sort_keys=True)
        self._known: dict[str, dict] = {}
        self._lock = threading.Lock()
        self._read()

    @property
    def count(self) -> int:
        """How many grades of an earlier run there are."""
        return len(self._known)

    def begin(self, seed: int) -> None:
        """Take note of the seed; what was kept under another one is forgotten."""
        if seed != self.seed:
            self._known, self.seed = {}, seed
            self._write(json.dumps({"seed": seed}), "w")

    def known(self, task: Task) -> Grade | None:
        """The grade that an earlier run gave."""
        entry = self._known.get(self._key(task))
        if entry is None:
            return None
        notes = tuple(entry["notes"])
        return Grade(task.exercise, task.notebook, notes=notes, **{name: entry[name] for name in _KEPT})

    def add(self, task: Task, grade: Grade) -> None:
        entry = {name: getattr(grade, name) for name in _KEPT} | {"notes": grade.notes, "learner": task.learner}
        with self._lock:
            self._write(json.dumps({"key": self._key(task), "exercise": task.exercise.id, **entry}), "a")

    def finish(self) -> None:
        """Everything is graded."""
        self.path.unlink(missing_ok=True)

    def _key(self, task: Task) -> str:
        asked = [task.learner, task.exercise.id, task.job, task.status, task.problem, task.notes]
        return hashlib.sha256(f"{self._settings}{json.dumps(asked, sort_keys=True)}".encode()).hexdigest()

    def _read(self) -> None:
        try:
            first, *lines = self.path.read_text(encoding="utf-8").splitlines()
            self.seed = int(json.loads(first)["seed"])
            for line in lines:
                with contextlib.suppress(ValueError):  # the last one, where the run ended while it was written
                    entry = json.loads(line)
                    if isinstance(entry, dict) and {"key", "notes", *_KEPT} <= entry.keys():
                        self._known[entry["key"]] = entry
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is none, or it is no journal
            self._known, self.seed = {}, None

    def _write(self, line: str, mode: str) -> None:
        if self.problem:
            return
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(f"{line}\n")
        except OSError as error:
            self.problem = f"{self.path.name} cannot be written ({error.strerror}): an interrupted run begins anew"
