"""Small notebooks of a made-up lesson 91, as a learner hands them in: one exercise is answered, another is not.

notebook(SETUP, DOUBLE, CHECK)      code("mine", "x = 1", "setup")
"""

import sys

from llmsys.course.checking import checks
from llmsys.course.manifest import Exercise, Lesson

RIGHT = "def double(x):\n    return 2 * x\n"
EXERCISES = (
    Exercise("91.double", "double", 2, 1, "", "91"),
    Exercise("91.halve", "halve", 3, 1, "", "91"),
)
LESSON = Lesson("91", "small", "Small", 5, "Test", "", exercises=EXERCISES)


def code(id: str | None, source: str, *roles: str, **metadata) -> dict:
    """A code cell with these roles as its tags; without an id where it is None, as an old editor leaves it."""
    metadata = {"tags": list(roles), **metadata}
    cell = {"cell_type": "code", "source": source, "metadata": metadata, "outputs": [], "execution_count": None}
    return cell | ({"id": id} if id else {})


def notebook(*cells: dict, version: str = "new") -> dict:
    """A notebook of lesson 91 that was laid from that version of it."""
    metadata = {"llmsys": {"lesson": "91", "version": version}}
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


SETUP = code("91-start-1", "import torch", "setup")
DOUBLE = code("91-double", RIGHT, "exercise", exercise="91.double", nbgrader={"grade_id": "91-double"})
HALVE = code("91-halve", "def halve(x): ...", "exercise", exercise="91.halve")
CHECK = code("91-double-check", 'check("91.double", double)', "check", exercise="91.double")


def forget_lesson_91(monkeypatch, module: str) -> None:
    """Forget its checks, and `module`, which has others: this process may have run another file's."""
    for exercise in EXERCISES:
        monkeypatch.delitem(checks._registry, exercise.id, raising=False)
    monkeypatch.delitem(sys.modules, module, raising=False)
