"""The opening picture of lesson 02: tiles of a row stream in, each becomes a pair of numbers, and the pairs merge.

The numbers are the library's (`summarize`, `merge`, `online_softmax`).
"""

from functools import reduce

import torch

from llmsys.attention import online
from llmsys.viz.kit.numbers import number, subscript
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg


def overview() -> Picture:
    """Lesson 02 in one picture: tiles stream in, each becomes a pair (m, ℓ), the pairs merge, and give the softmax."""
    draw = torch.randn(4, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    tiles = (draw * 1.3 + 1.6).clamp(min=0.15)
    parts = [online.summarize(tile) for tile in tiles]
    pairs = [online.merge(*parts[:2]), online.merge(*parts[2:])]
    root = reduce(online.merge, parts)
    weights = online.online_softmax(tiles.flatten(), tile=6)

    svg = Svg(760, 376, alt=(
        "What lesson 02 builds, from top to bottom. A row of 24 numbers streams in from memory in four tiles. Each "
        "tile becomes two numbers, its maximum m and its ℓ, the sum of e^(x − m). The pairs are merged two by two, in "
        f"any order, until one pair is left, here m = {number(root.m.item())} and ℓ = {number(root.l.item())}. With "
        "it, a second pass over the row writes the softmax y. Two passes over memory instead of three."
    ))  # fmt: skip
    left, slot, width = 182, 143, 126
    middles = [left + (k + 0.5) * slot for k in range(4)]
    levels = (76, 118, 190, 262, 340)  # the feet of the bars, the middles of three rows of pairs, the feet of y

    steps = (
        (50, "A row streams in", "a tile at a time"),
        (levels[1], "Two numbers a tile", "m, and ℓ = Σ e^{x − m}"),
        (levels[2], "Merge two pairs", "in any order"),
        (levels[3], "The whole row's m, ℓ", "after one pass"),
        (levels[4] - 14, "The softmax", "e^{x − m} / ℓ, a second pass"),
    )
    for i, (y, what, how) in enumerate(steps, start=1):
        svg.circle(12, y - 4, 11, "panel")
        svg.text(12, y, str(i), "middle bold")
        svg.text(30, y - 4, what, "bold")
        svg.text(30, y + 12, how, "small muted")

    fan = [(middles[1] + slot / 2 - 46, levels[3] + 20), (middles[1] + slot / 2 + 46, levels[3] + 20)]
    svg.path(
        [*fan, (middles[3] + width / 2, levels[4] - 34), (middles[0] - width / 2, levels[4] - 34)],
        "green-soft",
        close=True,
    )
    top = tiles.max().item()
    for k, (tile, middle) in enumerate(zip(tiles.tolist(), middles, strict=True)):
        x, bar = middle - width / 2, width / len(tile)
        svg.rect(x - 5, 8, width + 10, levels[0] - 2, "panel", rx=6)
        for i, value in enumerate(tile):
            height = 56 * value / top
            colour = "purple" if value == max(tile) else "blue"
            svg.rect(x + i * bar + 2, levels[0] - height, bar - 4, height, colour, rx=1.5)
            weight = weights[k * 6 + i].item()
            y = max(30 * weight / weights.max().item(), 0.8)
            svg.rect(x + i * bar + 2, levels[4] - y, bar - 4, y, "green", rx=1.5)
        svg.line((x, levels[4]), (x + width, levels[4]))
        svg.arrow((middle, levels[0] + 6), (middle, levels[1] - 18))
        _pair(svg, middle, levels[1], parts[k], f"{subscript(k + 1)}", "blue-soft")
    for k, pair in enumerate(pairs):
        x = (middles[2 * k] + middles[2 * k + 1]) / 2
        for middle in middles[2 * k : 2 * k + 2]:
            svg.curve((middle, levels[1] + 17), (x, levels[2] - 17), "line-orange")
        svg.curve((x, levels[2] + 17), (middles[1] + slot / 2, levels[3] - 17), "line-orange")
        _pair(svg, x, levels[2], pair, "", "orange-soft")
        svg.text(x, levels[2] - 24, "⊕", "middle orange bold")
    svg.text(middles[1] + slot / 2, levels[3] - 24, "⊕", "middle orange bold")
    _pair(svg, middles[1] + slot / 2, levels[3], root, "", "green-soft")
    svg.text(
        (left + 750) / 2,
        368,
        "two passes over memory instead of three; and step 3 is the heart of FlashAttention",
        "middle small muted",
    )
    return svg.picture()


def _pair(svg: Svg, x: float, y: float, part: online.Partial, index: str, fill: str) -> None:
    svg.rect(x - 46, y - 17, 92, 34, "surface", rx=6)
    svg.rect(x - 46, y - 17, 92, 34, fill, rx=6)
    m, l = number(part.m.item()), number(part.l.item())
    svg.text(x, y - 3, [f"m{index} = ", (m, "bold")], "middle small")
    svg.text(x, y + 11, [f"ℓ{index} = ", (l, "bold")], "middle small")
