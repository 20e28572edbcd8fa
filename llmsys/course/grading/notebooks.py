"""Where in a submission the notebooks are: by what they say of themselves, under any name, wherever they lie.

A lesson's notebook has the lesson's number in its metadata, and keeps it when it is renamed, moved or copied. One whose
metadata are gone is known by its file's name. Where a lesson is there more than once, the one counts that lies where a
workspace has it, then the one in which most is written; a remark says so.

A submission is a stranger's folder: links that lead out of it are not followed, its hidden folders are left alone, and
of a fork of the course neither are the pristine lessons and solutions anybody's work.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmsys.course.grading.words import shown_name
from llmsys.course.manifest import Lesson
from llmsys.course.workspace.notebook import NotebookError, read_notebook
from llmsys.course.workspace.workspace import MARKER

NOTEBOOK_LIMIT = 64 << 20  # bytes of a notebook's file
MOST = 1000  # notebooks that are looked into, and twenty times as many folders


@dataclass(frozen=True)
class Found:
    """A lesson's notebook in a submission, and what else might have been meant. `problem` where none can be graded."""

    path: Path
    problem: str = ""
    notes: tuple[str, ...] = ()


def workspace_in(folder: Path, lessons: Sequence[Lesson]) -> Path:
    """Where in a learner's submission the notebooks are: where a workspace is marked, else where most lessons are, not
    counting a fork's pristine lessons and solutions; the folder itself where there are none."""
    candidates = [folder, folder / "work", *sorted(each for each in folder.glob("[!.]*") if each.is_dir())]
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


def find_notebooks(folder: Path, lessons: Sequence[Lesson]) -> dict[str, Found]:
    """The notebook of each lesson, by the lesson's number; a missing one is expected where a workspace has it.

    Raises OSError where the folder cannot be read.
    """
    os.scandir(folder).close()
    work = workspace_in(folder, lessons)
    by_number: dict[str, list[Path]] = {}
    for path in _notebooks(folder):
        if number := _lesson_of(path, lessons):
            by_number.setdefault(number, []).append(path)
    return {each.number: _chosen(each, by_number.get(each.number, []), folder, work) for each in lessons}


def lesson_of_file(path: Path, lessons: Sequence[Lesson]) -> Lesson | None:
    """The lesson of a notebook: by its metadata, or else by its name."""
    number = _lesson_of(path, lessons)
    return next((each for each in lessons if each.number == number), None)


def _chosen(lesson: Lesson, paths: list[Path], folder: Path, work: Path) -> Found:
    usual = work / lesson.notebook
    if _leads_out(usual, folder):
        return Found(usual, f"{lesson.notebook} is a link out of the submission, and is not followed")
    if usual in paths or not paths:
        best = usual
    else:
        best = max(paths, key=lambda path: (_written(path), path.parent == work, -len(path.parts)))
    others = [shown_name(str(each.relative_to(folder))) for each in paths if each != best]
    notes = []
    if best != usual:
        notes.append(f"its notebook is {shown_name(str(best.relative_to(folder)))}")
    if others:
        notes.append(f"of lesson {lesson.number} there are more notebooks, not graded: {', '.join(others[:3])}")
    return Found(best, notes=tuple(notes))


def _notebooks(folder: Path) -> list[Path]:
    """The notebooks in a folder, in order; those of the course's own repository left out."""
    found, seen = [], 0
    for place, folders, files in os.walk(folder):
        seen += 1
        if seen > 20 * MOST:
            break
        own = {"lessons", "solutions"} if (Path(place) / "llmsys" / "course").is_dir() else set()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in own)
        for name in sorted(files):
            path = Path(place) / name
            if name.endswith(".ipynb") and not name.startswith(".") and path.is_file() and not _leads_out(path, folder):
                found.append(path)
    return found[:MOST]


def _leads_out(path: Path, folder: Path) -> bool:
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _lesson_of(path: Path, lessons: Sequence[Lesson]) -> str | None:
    try:
        if path.stat().st_size > NOTEBOOK_LIMIT:
            raise NotebookError("it is too large")
        said = read_notebook(path)["metadata"].get("llmsys")
        number = said.get("lesson") if isinstance(said, dict) else None
    except (OSError, ValueError, RecursionError):  # which is said where it is graded
        number = None
    by_name = (each.number for each in lessons if path.name == each.notebook)
    return next((each.number for each in lessons if number == each.number), None) if number else next(by_name, None)


def _written(path: Path) -> int:
    """How much of a notebook's exercises is written."""
    try:
        cells = read_notebook(path)["cells"]
    except (OSError, ValueError):
        return -1
    exercises = [cell["source"] for cell in cells if "exercise" in cell["metadata"].get("tags", ())]
    return sum("raise NotImplementedError" not in source for source in exercises)
