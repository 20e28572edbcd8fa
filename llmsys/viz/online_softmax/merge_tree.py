"""Merging partial results as a tree: whichever two are merged next, the root is the same.

A leaf is a tile's summary (m, ℓ), a node the merge of two. A tree is a list of pairs: the pair (i, j) makes the next
node out of the nodes i and j, counting the leaves first. All numbers come from the library's `summarize` and `merge`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmsys.attention import online
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg

TILES, WIDTH = 8, 4
TREES = {
    "balanced: many processors": "balanced",
    "left to right: a fold": "left",
    "right to left": "right",
    "random": "random",
    "another random one": "random 2",
}
ROWS = {
    "ordinary logits": "ordinary",
    "two tiles masked: nothing but −∞": "masked",
    "one huge logit": "outlier",
}


def merge_tree(tree: str = "balanced", row: str = "ordinary", *, merge=online.merge) -> Stepper:
    """Step through the merges of eight tiles' summaries, in the order of a tree: "balanced", "left", "right", "random"
    or "random 2", over a row that is "ordinary", has "masked" tiles or an "outlier". `merge`, by which they are merged,
    has the contract of `online.merge`: it takes two pairs (m, l), and gives one.

    Raises ValueError for another tree or row.
    """
    return Stepper(
        lambda tree, row: steps(tiles_of(row), pairs_of(tree, TILES), merge),
        draw,
        title="Merging partial results: a tree over tiles",
        describe=describe,
        controls=[Choice("tree", "Tree", TREES, start=tree), Choice("row", "Row", ROWS, start=row)],
        interval=1200,
    )


@dataclass(frozen=True)
class Step:
    """The tree after the first merges: how many, `done` says."""

    tiles: tuple[tuple[float, ...], ...]
    pairs: tuple[tuple[int, int], ...]
    nodes: tuple[tuple[float, float], ...]  # (m, ℓ): the leaves, then the merges done
    whole: tuple[float, float]  # the summary of the whole row, computed at once

    @property
    def done(self) -> int:
        """How many merges have been done."""
        return len(self.nodes) - len(self.tiles)


def steps(tiles: Sequence[Sequence[float]], pairs: Sequence[tuple[int, int]], merge=online.merge) -> list[Step]:
    """The tree before the first merge, and after each."""
    parts = [online.summarize(torch.tensor(tile, dtype=torch.float64)) for tile in tiles]
    for i, j in pairs:
        parts.append(online.Partial(*merge(parts[i], parts[j])))
    whole = _floats(online.summarize(torch.tensor(tiles, dtype=torch.float64).flatten()))
    nodes = tuple(_floats(part) for part in parts)
    shown = tuple(tuple(tile) for tile in tiles)
    return [Step(shown, tuple(pairs), nodes[:n], whole) for n in range(len(tiles), len(nodes) + 1)]


def pairs_of(tree: str, leaves: int) -> list[tuple[int, int]]:
    """The pairs of nodes that a tree over so many leaves merges, in order. `tree` is one of `TREES`' values."""
    rng = random.Random(tree)
    open_, pairs = list(range(leaves)), []
    while len(open_) > 1:
        if tree == "balanced":
            i, j = open_.pop(0), open_.pop(0)
        elif tree == "left":
            i, j = open_.pop(0), open_.pop(0)
            open_.insert(0, leaves + len(pairs))
            pairs.append((i, j))
            continue
        elif tree == "right":
            j, i = open_.pop(), open_.pop()
        else:
            i, j = sorted(open_.pop(rng.randrange(len(open_))) for _ in range(2))
        open_.append(leaves + len(pairs))
        pairs.append((i, j))
    return pairs


def tiles_of(row: str) -> list[list[float]]:
    """Eight tiles of four logits; `row` is one of `ROWS`' values."""
    draw = torch.randn(TILES, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 1.5
    tiles = [[round(each, 1) for each in tile] for tile in draw.tolist()]
    if row == "masked":
        tiles[3] = tiles[6] = [float("-inf")] * WIDTH
    elif row == "outlier":
        tiles[5][1] = 14.0
    return tiles


def describe(step: Step) -> str:
    """The caption of a step."""
    if step.done == 0:
        return "Each tile has been summarised as its maximum m and its sum ℓ = Σ e^(x − m); nothing is merged yet."
    i, j = step.pairs[step.done - 1]
    (m, l), other = step.nodes[i], step.nodes[j]
    new = step.nodes[-1]
    what = f"({number(m)}, {number(l)}) and ({number(other[0])}, {number(other[1])})"
    merged = f"Merging {what} gives m = {number(new[0])} and ℓ = {number(new[1])}."
    if step.done < len(step.pairs):
        return merged
    error = abs(new[1] - step.whole[1]) / step.whole[1]
    same = "the same as" if new[0] == step.whole[0] and error < 1e-12 else "not the same as"
    return f"{merged} That is the root: {same} the summary of the whole row, computed at once."


def _floats(part: online.Partial) -> tuple[float, float]:
    return part.m.item(), part.l.item()


# The drawing: tiles on top, the tree growing downwards, a node as low as its deeper child allows.

SLOT, BOX, HEIGHT, LEVEL, LEAVES = 95, 86, 38, 56, 64


def draw(step: Step) -> Svg:
    """The picture of a step."""
    places = _places(step)
    depth = max(level for _, level in places)
    foot = LEAVES + HEIGHT + depth * LEVEL + 16
    svg = Svg(760, foot + 46, alt="")
    leaves = len(step.tiles)
    used = {child for pair in step.pairs[: step.done] for child in pair}
    now = step.pairs[step.done - 1] if step.done else ()
    for n, (i, j) in enumerate(step.pairs, start=leaves):
        future = n >= len(step.nodes)
        for child in (i, j):
            classes = (
                "line-rule dashed" if future else "line-orange thick" if n == len(step.nodes) - 1 else "line-muted"
            )
            (x1, y1), (x2, y2) = _centre(places[child]), _centre(places[n])
            svg.curve((x1, y1 + HEIGHT / 2), (x2, y2 - HEIGHT / 2), classes)
    for k, tile in enumerate(step.tiles):
        _tile(svg, k, tile, step, places[k][0])
    for n, place in enumerate(places):
        last = n == len(places) - 1
        x, y = _centre(place)
        x, y = x - BOX / 2, y - HEIGHT / 2
        if n >= len(step.nodes):
            svg.rect(x, y, BOX, HEIGHT, "surface", rx=6)
            svg.rect(x, y, BOX, HEIGHT, "line-rule dashed", rx=6)
            svg.text(x + BOX / 2, y + 24, "⊕", "middle muted")
            continue
        new = n == len(step.nodes) - 1 and step.done
        fill = "green-soft" if last else "orange-soft" if new else "blue-soft" if n not in used else "panel"
        svg.rect(x, y, BOX, HEIGHT, "surface", rx=6)
        svg.rect(x, y, BOX, HEIGHT, fill, rx=6)
        if new or n in now:
            svg.rect(x, y, BOX, HEIGHT, "line-green thick" if last else "line-orange thick", rx=6)
        m, l = step.nodes[n]
        svg.text(x + BOX / 2, y + 16, ["m ", (number(m), "bold")], "middle small")
        svg.text(x + BOX / 2, y + 31, ["ℓ ", (number(l), "bold")], "middle small")
    _equation(svg, step, foot)
    return svg


def _tile(svg: Svg, k: int, tile: Sequence[float], step: Step, middle: float) -> None:
    finite = [each for tile in step.tiles for each in tile if each > float("-inf")]
    low, high = min(finite), max(finite)
    x, base, width = middle - BOX / 2, LEAVES - 14, BOX / len(tile)
    svg.line((x, base), (x + BOX, base))
    svg.text(x, 11, f"tile {k + 1}", "small muted")
    if max(tile) == float("-inf"):
        svg.text(middle, base - 4, "all −∞", "middle small muted")
    for i, value in enumerate(tile):
        centre = x + (i + 0.5) * width
        if value == float("-inf"):
            continue
        height = 2 + 30 * (value - low) / ((high - low) or 1.0)
        colour = "purple" if value == max(tile) else "blue"
        svg.rect(centre - width * 0.35, base - height, width * 0.7, height, colour, rx=1)
    svg.line((middle, base + 2), (middle, LEAVES), "line-muted")


def _equation(svg: Svg, step: Step, y: float) -> None:
    svg.rect(0, y, 760, 44, "panel", rx=6)
    if not step.done:
        svg.text(14, y + 28, "(m₁, ℓ₁) ⊕ (m₂, ℓ₂) = (m, ℓ₁ e^{m₁ − m} + ℓ₂ e^{m₂ − m}), with m = max(m₁, m₂)", "big")
        return
    (m1, l1), (m2, l2) = (step.nodes[child] for child in step.pairs[step.done - 1])
    m, l = step.nodes[-1]
    root = step.done == len(step.pairs)
    svg.text(14, y + 28, ["m = ", (number(m), "purple bold")], "big")
    if m == float("-inf"):
        sum_ = f"{number(l1)} + {number(l2)}"
    else:
        sum_ = f"{number(l1)} · {_power(m1, m)} + {number(l2)} · {_power(m2, m)}"
    svg.text(120, y + 28, [f"ℓ = {sum_} = ", (number(l), "green bold")], "big")
    if root:
        m_whole, l_whole = step.whole
        ok = m == m_whole and abs(l - l_whole) <= 1e-12 * l_whole
        svg.text(
            746,
            y + 28,
            ("✓ the whole row's" if ok else "✗ not the whole row's"),
            f"end bold {'green' if ok else 'orange'}",
        )


def _power(part: float, m: float) -> str:
    def inside(value: float) -> str:
        return f"({number(value)})" if float("-inf") < value < 0 else number(value)

    return f"e^{{{inside(part)} − {inside(m)}}}"


def _places(step: Step) -> list[tuple[float, int]]:
    """The place of each node: its x in pixels and its level. Leaves stand in the tree's order, so that no two lines
    cross; a node stands between its children, one level below the lower of them."""
    leaves = len(step.tiles)

    def below(node: int) -> list[int]:
        if node < leaves:
            return [node]
        left, right = sorted((below(child) for child in step.pairs[node - leaves]), key=min)
        return left + right

    order = below(leaves + len(step.pairs) - 1)
    places = [((order.index(k) + 0.5) * SLOT, 0) for k in range(leaves)]
    for i, j in step.pairs:
        places.append(((places[i][0] + places[j][0]) / 2, max(places[i][1], places[j][1]) + 1))
    return places


def _centre(place: tuple[float, int]) -> tuple[float, float]:
    return place[0], LEAVES + HEIGHT / 2 + place[1] * LEVEL
