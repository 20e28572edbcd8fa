"""Where the reader is: the lessons of the course in their parts, those that can be opened and those to come."""

from collections.abc import Iterable

from llmsys.viz.course.parts import NUMERALS, Entry, in_parts
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

COLUMN, TOP, PITCH, LEGEND = 190, 48, 42, 24
"""Pixels: the width of a part, the top of its first lesson, from one lesson to the next, and a line of the legend."""
READY, DONE, WRITTEN = ("blue-soft", "line-blue"), ("green-soft", "line-green"), ("", "line-rule dashed")
"""How a lesson is filled and outlined that can be opened, is done, or is not there yet."""


def lesson_map(lessons: Iterable[Entry] = (), done: Iterable[str] = (), planned: Iterable[Entry] = ()) -> Picture:
    """The lessons of the course, a column for each part.

    lessons    those that can be opened, objects with `number`, `title` and `part`: `lessons()` of the manifest
    done       the numbers of those that the learner has finished
    planned    those that are not there yet: `planned()` of the manifest. Where there are no others, all are drawn alike

    Raises ValueError where there is no lesson at all.
    """
    lessons, planned, done = list(lessons), list(planned), set(done)
    if not lessons and not planned:
        raise ValueError("lessons and planned are empty: give lesson_map the manifest's lessons() and planned()")
    parts, ready = in_parts([*lessons, *planned]), {each.number for each in lessons}
    columns = max(len(parts), 4)
    rows = [len(each) for each in parts.values()] + [0] * (columns - len(parts))
    shortest = max(range(columns), key=lambda column: (-rows[column], -column))
    legend = [(READY, "ready: open it"), *([(DONE, "done")] if done else []), (WRITTEN, "being written")]
    below = TOP + PITCH * (rows[shortest] + 1)  # the legend, where there is room for it
    height = max(TOP + PITCH * max(rows) + 12, below + LEGEND * len(legend))
    svg = Svg(COLUMN * columns, height, alt=_in_words(parts, lessons, done))
    for part, title in enumerate(parts):
        x = part * COLUMN
        right = x + COLUMN - 4
        svg.path(
            [(x, 4), (right - 12, 4), (right - 2, 20), (right - 12, 36), (x, 36), (x + 10, 20)], "panel", close=True
        )
        svg.text(x + 18, 25, f"{NUMERALS[part]}  {title}", "bold")
    for part, members in enumerate(parts.values()):
        for row, each in enumerate(members):
            x, y = part * COLUMN + 2, TOP + PITCH * row
            state = {"done": each.number in done, "here": each.number in ready, "plan": not ready}
            _lesson(svg, x, y, COLUMN - 16, each.number, each.title, **state)
    if ready:
        x = shortest * COLUMN + 2
        for row, ((fill, line), what) in enumerate(legend):
            y = below + LEGEND * row
            if fill:
                svg.rect(x, y, 26, 16, fill, rx=4)
            svg.rect(x, y, 26, 16, line, rx=4)
            svg.text(x + 36, y + 13, what, "small")
    return svg.picture()


def _lesson(
    svg: Svg, x: float, y: float, width: float, number: str, title: str, *, done: bool, here: bool, plan: bool
) -> None:
    fill, line = DONE if done else READY if here else WRITTEN
    if plan:
        fill, line = "panel", "line-rule"
    if fill:
        svg.rect(x, y, width, 36, fill, rx=6)
    svg.rect(x, y, width, 36, line, rx=6)
    ink = "" if here or plan else "muted"
    svg.text(x + 9, y + 23, number, f"bold {ink}")
    first, second = split(title, 22)
    if second:
        svg.text(x + 34, y + 15, first, f"small {ink}")
        svg.text(x + 34, y + 29, second, f"small {ink}")
    else:
        svg.text(x + 34, y + 22, first, f"small {ink}")
    if done:
        svg.text(x + width - 8, y + 23, "✓", "end bold green")


def split(title: str, longest: int) -> tuple[str, str]:
    """A title in one line if it is no longer than `longest`, or else in two that are about as long as each other."""
    if len(title) <= longest:
        return title, ""
    words = title.split()
    cuts = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return min(cuts, key=lambda cut: max(map(len, cut)), default=(title, ""))


def _in_words(parts: dict[str, list[Entry]], lessons: list[Entry], done: set[str]) -> str:
    said = ", ".join(f"{title} (lessons {each[0].number} to {each[-1].number})" for title, each in parts.items())
    many = {1: "one part", 2: "two parts", 3: "three parts", 4: "four parts"}.get(len(parts), f"{len(parts)} parts")
    text = f"The map of the course, {sum(map(len, parts.values()))} lessons in {many}: {said}."
    if lessons:
        ready = sorted((each.number, each.title) for each in lessons)
        text += f" Ready: {', '.join(f'{number} {title}' for number, title in ready)}."
    if done:
        text += f" Done: {', '.join(sorted(done))}."
    return text
