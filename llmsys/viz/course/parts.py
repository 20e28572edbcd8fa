"""The parts of the course, as the map of lessons and the README's picture both draw them."""

from collections.abc import Iterable
from typing import Protocol

NUMERALS = ("I", "II", "III", "IV", "V", "VI")
START = "Start"
"""The part of the lesson that stands before all parts. It is drawn as the first lesson of the first part."""


class Entry(Protocol):
    """A lesson, there or planned, as the course's manifest describes it."""

    number: str
    title: str
    part: str


def in_parts(lessons: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Title of a part -> its lessons, all in the order of the lessons' numbers."""
    found: dict[str, list[Entry]] = {}
    for lesson in sorted(lessons, key=lambda lesson: lesson.number):
        found.setdefault(lesson.part, []).append(lesson)
    if START in found and len(found) > 1:
        start = found.pop(START)
        first = next(iter(found))
        found[first] = start + found[first]
    return found
