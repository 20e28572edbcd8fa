"""The memory as an area: what lies in it, and what of that a step reads, to scale.

The area is filled column by column, each from its foot up, as a row of measuring glasses. So a part has exactly its
share of the area, a small one is a small rectangle and no hair-thin line, and a column has a round number of bytes.
"""

import math
from dataclasses import dataclass

from llmsys.viz.kit.svg import Svg
from llmsys.viz.kv_cache.step_cost import StepCost

COLUMNS = 20
LEAST, MOST = 5.0, 128
"""Sequences are drawn apart from each other if each has so many pixels of a column, and there are no more than that."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Glasses:
    """A row of columns in a box of `width` × `height` pixels with its corner (x, y); a column holds `column` bytes."""

    x: float
    y: float
    width: float
    height: float
    column: float

    @property
    def pitch(self) -> float:
        """Pixels of a column's width."""
        return self.width / COLUMNS

    def place(self, size: float) -> tuple[int, float]:
        """The column in which the byte `size` from the start lies, and how far up, in pixels from the top."""
        index = min(int(size / self.column), COLUMNS - 1)
        return index, self.y + self.height * (1 - min(size / self.column - index, 1))

    def area(self, start: float, stop: float) -> list[Point]:
        """The corners of the area of the bytes from `start` to `stop`."""
        (first, low), (last, high) = self.place(start), self.place(stop)
        left, right = self.x + first * self.pitch, self.x + last * self.pitch
        foot, end = self.y + self.height, right + self.pitch
        if first == last:
            return [(left, low), (left, high), (end, high), (end, low)]
        inner = left + self.pitch
        return [(left, low), (left, self.y), (right, self.y), (right, high), (end, high), (end, foot), (inner, foot),
                (inner, low)]  # fmt: skip

    def edge(self, size: float) -> list[Point]:
        """The line at which the bytes up to `size` end, from the top of the box to its foot."""
        index, height = self.place(size)
        left, right, foot = self.x + index * self.pitch, self.x + (index + 1) * self.pitch, self.y + self.height
        if height > foot - 0.05:  # between two columns
            return [(left, self.y), (left, foot)]
        return [(left, self.y), (left, height), (right, height), (right, foot)]


def glasses(cost: StepCost, *, x: float, y: float, width: float, height: float) -> Glasses:
    """The box for a step: it is the memory, or where more is needed, two, four, eight … times the memory."""
    times = 2 ** max(math.ceil(math.log2(cost.needed / cost.memory)), 0)
    return Glasses(x, y, width, height, times * cost.memory / COLUMNS)


def draw_memory(svg: Svg, cost: StepCost, box: Glasses) -> None:
    """Draw the areas: weights blue, the cache orange and divided into sequences; what is not read is pale.

    What has no place in the memory is pale, too, behind a line that says where the memory ends.
    """
    svg.rect(box.x, box.y, box.width, box.height, "panel", rx=0)
    read, held, needed = cost.products.bytes, cost.weights_held, cost.needed
    fits = max(min(needed, cost.memory), held)
    svg.path(box.area(0, read), "blue", close=True)
    if held > read:
        svg.path(box.area(read, held), "blue-soft", close=True)
    if fits > held:
        svg.path(box.area(held, fits), "orange", close=True)
    if needed > fits:
        svg.path(box.area(fits, needed), "orange-soft", close=True)
    if cost.batch <= MOST and box.height * cost.sequence_bytes / box.column >= LEAST:
        for n in range(1, cost.batch):
            index, height = box.place(held + n * cost.sequence_bytes)
            left = box.x + index * box.pitch
            svg.line((left, height), (left + box.pitch, height), "line-surface thin")
    for n in range(1, COLUMNS):
        svg.line((box.x + n * box.pitch, box.y), (box.x + n * box.pitch, box.y + box.height), "line-surface thin")
    if needed > cost.memory:
        svg.path(box.edge(cost.memory), "line-purple thick")
    svg.rect(box.x, box.y, box.width, box.height, "line-rule", rx=0)
