"""Bubble against memory: what a schedule needs, and what it gets for it, a point each.

    pareto([Point("1F1B", memory=8, bubble=0.3), …])

Left and below is better. The line joins those that no other point beats in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style
from llmsys.viz.pipeline_schedules.rows import NAMES


@dataclass(frozen=True)
class Point:
    """A schedule. `memory` is the largest peak of a rank in a rank's share of one microbatch's activations, `bubble`
    the share of the time that is idle, `weights` how many copies of the weights the ranks have together."""

    name: str
    memory: float
    bubble: float
    weights: int = 1


def pareto(points: Sequence[Point], *, title: str = "") -> Picture:
    """All points, and the line of the best. Raises ValueError where there is none."""
    import matplotlib.pyplot as plt

    if not points:
        raise ValueError("points must have one at least")
    best = frontier(points)
    widest, highest = max(each.memory for each in points), max(100 * each.bubble for each in points) or 1.0
    with chart_style():
        figure, axes = plt.subplots(figsize=(7.6, 4.2))
        xs, ys = [each.memory for each in best], [100 * each.bubble for each in best]
        axes.step(xs, ys, where="post", color=LIGHT["green"], lw=1.5, zorder=1)
        for weights, marker, colour in ((1, "o", "blue"), (2, "D", "orange")):
            some = [each for each in points if each.weights == weights]
            if some:
                axes.scatter([each.memory for each in some], [100 * each.bubble for each in some], marker=marker,
                             color=LIGHT[colour], s=42, zorder=3, clip_on=False,
                             label="one copy of the weights" if weights == 1 else "two copies")  # fmt: skip
        placed: list[tuple[float, float]] = []
        for (x, y), names in sorted(_labels(points).items(), reverse=True):
            near = any(0 <= px - x < 0.16 * widest and abs(py - y) < 0.035 * highest for px, py in placed)
            left = near or x > 0.85 * widest  # not over its right neighbour's, nor over the edge
            place = {"xytext": (-7, 4), "ha": "right"} if left else {"xytext": (7, 4)}
            axes.annotate(", ".join(names), (x, y), textcoords="offset points", fontsize=8.5, **place)
            placed.append((x, y))
        axes.set(xlabel="activations that a rank keeps at most, in its share of one microbatch",
                 ylabel="bubble, % of the time", xlim=(0, None), ylim=(0, None), title=title)  # fmt: skip
        axes.margins(x=0.14, y=0.12)
        axes.grid(True)
        axes.legend(facecolor=LIGHT["surface"], edgecolor=LIGHT["rule"], framealpha=1, fontsize=8.5, loc="center right")
    said = "; ".join(
        f"{NAMES.get(each.name, each.name)}: keeps {number(each.memory)}, idle {each.bubble:.1%}" for each in points
    )
    return chart(
        figure,
        alt=f"Bubble against memory. {said}. Unbeaten: {', '.join(NAMES.get(each.name, each.name) for each in best)}.",
    )


def frontier(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats: none has both less memory and a smaller bubble, or one of them and the other
    equal. By memory."""
    found: list[Point] = []
    for each in sorted(points, key=lambda point: (point.memory, point.bubble)):
        if not found or each.bubble < found[-1].bubble - 1e-9:
            found.append(each)
    return found


def _labels(points: Sequence[Point]) -> dict[tuple[float, float], list[str]]:
    """The names at each place; points that lie on each other share a label."""
    found: dict[tuple[float, float], list[str]] = {}
    for each in points:
        found.setdefault((each.memory, 100 * each.bubble), []).append(NAMES.get(each.name, each.name))
    return found
