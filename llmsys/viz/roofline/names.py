"""The names of a roofline's dots: beside their dots, and clear of each other.

The operations of a model crowd on the roof. Dots that nearly touch share a block of names. Each block then tries
places further and further from its dot, and takes the first that covers nothing; if there is none, the first that
covers at least no words.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmsys.viz.kit.svg import Svg
from llmsys.viz.roofline.axes import BOUNDS, LINE, Axes, Box, Dot

LETTER = 7.3  # pixels, of the small bold text
TOUCHING = 14  # pixels between two dots, at which they share a block
NEAR = 40  # pixels between a name and its dot, within which it may follow the dot

Point = tuple[float, float]


@dataclass(frozen=True)
class Names:
    """The names of one dot, or of several that nearly touch: where the first starts, and a line to the dot if any."""

    dots: tuple[Dot, ...]
    at: Point
    line: tuple[Point, Point] | None

    @property
    def key(self) -> tuple[str, ...]:
        """The names of its operations, which tell a block from others in every frame."""
        return tuple(dot.op.name for dot in self.dots)

    @property
    def offset(self) -> Point:
        """How far the first name is from its dot, in pixels."""
        return self.at[0] - self.dots[0].at[0], self.at[1] - self.dots[0].at[1]


def place(axes: Axes, dots: Sequence[Dot], before: Mapping[tuple[str, ...], Point] | None = None) -> tuple[Names, ...]:
    """Find places for the names of dots; large blocks choose first.

    `before` are offsets of blocks in another frame, by their keys: a place that is near and still free is kept, so that
    a name moves with its dot.
    """
    words = axes.words()
    taken = words + axes.lines() + [_around(dot.at, dot.radius) for dot in dots]
    found = []
    for group in sorted(_groups(dots), key=len, reverse=True):
        key = tuple(dot.op.name for dot in group)
        point, radius = group[0].at, group[0].radius
        size = max(map(len, key)) * LETTER, LINE * len(group)
        tried = [*_places(radius, *size)]
        if before and key in before and math.hypot(*before[key]) < NEAR + size[0]:
            tried.insert(0, before[key])
        boxes = [(at, box) for at in tried for box in [_box(point, at, *size)] if _inside(axes, box)]
        at, box = next(
            (each for each in boxes if _free(each[1], taken) and not _crosses(point, each[1], words)),
            next((each for each in boxes if _free(each[1], words)), boxes[0]),
        )
        near = _nearest(point, box)
        line = (point, near) if math.dist(near, point) > radius + 8 else None
        words.append(box)
        taken.append(box)
        if line:
            taken += [_around(each, 1) for each in _along(*line)]
        found.append(Names(group, (point[0] + at[0], point[1] + at[1]), line))
    return tuple(found)


def draw_dots(svg: Svg, dots: Sequence[Dot], names: Sequence[Names]) -> None:
    """Draw the dots, the largest at the bottom, and their names, with a line to a name that is not beside its dot."""
    for block in names:
        if block.line:
            svg.line(*block.line, "line-muted thin")
    for dot in sorted(dots, key=lambda dot: -dot.radius):
        svg.circle(*dot.at, dot.radius, f"{BOUNDS[dot.bound]} edged")
    for block in names:
        for i, dot in enumerate(block.dots):
            svg.text(block.at[0], block.at[1] + i * LINE, dot.op.name, f"small bold {BOUNDS[dot.bound]}")


def _groups(dots: Sequence[Dot]) -> list[tuple[Dot, ...]]:
    """Dots that nearly touch their neighbour and wait for the same, the longest operation of each group first."""
    groups: list[list[Dot]] = []
    for dot in sorted(dots, key=lambda dot: dot.at):
        last = groups[-1][-1] if groups else None
        if last and last.bound == dot.bound and math.dist(last.at, dot.at) < TOUCHING:
            groups[-1].append(dot)
        else:
            groups.append([dot])
    return [tuple(sorted(group, key=lambda dot: -dot.share)) for group in groups]


def _places(radius: float, width: float, height: float) -> Iterator[Point]:
    """Offsets to try, from a dot to the start of the first baseline: right, left, below, above, nearest first."""
    for out in range(0, 200, 12):
        for lift in (0.0, 0.5, -0.5, 1.0, -1.0):
            y = lift * (height / 2 + radius + out) - height / 2 + 10
            yield radius + 6 + out, y
            yield -radius - 6 - out - width, y
        yield -width / 2, radius + 14 + out
        yield -width / 2, LINE - radius - 6 - out - height


def _box(point: Point, offset: Point, width: float, height: float) -> Box:
    x, y = point[0] + offset[0], point[1] + offset[1]
    return x - 2, y - LINE + 1, x + width + 2, y + 3 + height - LINE


def _around(point: Point, radius: float) -> Box:
    return point[0] - radius, point[1] - radius, point[0] + radius, point[1] + radius


def _inside(axes: Axes, box: Box) -> bool:
    return box[0] > axes.left + 2 and box[1] > axes.top - 4 and box[2] < axes.right and box[3] < axes.bottom - 3


def _free(box: Box, taken: Sequence[Box]) -> bool:
    x1, y1, x2, y2 = box
    return not any(x1 < b[2] and b[0] < x2 and y1 < b[3] and b[1] < y2 for b in taken)


def _crosses(point: Point, box: Box, words: Sequence[Box]) -> bool:
    """Whether the line from a point to a box goes through words."""
    return any(b[0] < x < b[2] and b[1] < y < b[3] for x, y in _along(point, _nearest(point, box)) for b in words)


def _along(start: Point, end: Point) -> list[Point]:
    return [tuple(a + (b - a) * k / 8 for a, b in zip(start, end, strict=True)) for k in range(1, 8)]


def _nearest(point: Point, box: Box) -> Point:
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])
