"""The opening picture of lesson 14: six tokens, eight experts in four groups, two experts each.

Scores and choice are those of the library's router, the order of the rows is that of its sort.
"""

import torch
from torch import Tensor

from llmsys.moe import Routing, route_sigmoid
from llmsys.moe.experts import Groups, group_by_expert
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

TOKENS = ("the", "mass", "of", "an", "up", "quark")
E, K, GROUPS, KEPT = 8, 2, 4, 2
CELL, ROW, LEFT, TOP = 30, 30, 62, 62
RIGHT = 400


def example() -> tuple[Routing, Groups]:
    """Where the six tokens go, and the same sorted by expert."""
    logits = torch.randn(len(TOKENS), E, generator=torch.Generator().manual_seed(15))
    logits[:, 5] += 1.0  # an expert that many like
    routing = route_sigmoid(logits, K, groups=GROUPS, kept_groups=KEPT)
    return routing, group_by_expert(routing.experts, E)


def kept_groups(routing: Routing) -> Tensor:
    """(N, groups): which groups a token may go to, those with the best two experts together."""
    best = routing.scores.view(-1, GROUPS, E // GROUPS).topk(2).values.sum(-1)
    return torch.zeros_like(best, dtype=torch.bool).scatter(1, best.topk(KEPT).indices, True)


def overview() -> Picture:
    """Scores and choice on the left; the same assignments sorted by expert on the right, ragged."""
    routing, groups = example()
    loads = routing.loads.tolist()
    svg = Svg(760, 372, alt=_in_words(routing, loads))
    svg.text(0, 16, [("The router", "bold"), (" · scores of 8 experts in 4 groups", "muted")])
    _scores(svg, routing)
    svg.text(RIGHT - 34, 16, [("The experts", "bold"), (" · each has the rows that it was given", "muted")])
    _rows(svg, groups, loads)
    y = TOP + len(TOKENS) * ROW + 34
    svg.text(0, y, [("1", "bold blue"), "  A token's best groups are chosen, and in them its"])
    svg.text(18, y + 18, "best two experts. Pale cells are groups that are out.")
    svg.text(0, y + 42, [("2", "bold blue"), "  Sorted by expert, rows of one matrix lie together."])
    svg.text(18, y + 60, "Results go back to their tokens, and are summed.")
    return svg.picture()


def _scores(svg: Svg, routing: Routing) -> None:
    kept = kept_groups(routing)
    for e in range(E):
        svg.text(_x(e) + CELL / 2, TOP - 10, str(e), "middle small muted")
    for n, name in enumerate(TOKENS):
        y, chosen = TOP + ROW * n, routing.experts[n].tolist()
        svg.text(LEFT - 10, y + 18, name, "end small")
        for e in range(E):
            score = float(routing.scores[n, e])
            if e in chosen:
                svg.rect(_x(e), y, CELL - 3, ROW - 5, "orange")
                svg.text(_x(e) + (CELL - 3) / 2, y + 17, f".{100 * score:02.0f}", "middle small on")
            else:
                inside = kept[n, e // (E // GROUPS)]
                svg.rect(_x(e), y, CELL - 3, ROW - 5, "blue-soft" if inside else "panel")
                svg.text(_x(e) + (CELL - 3) / 2, y + 17, f".{100 * score:02.0f}", "middle small" if inside else
                         "middle small muted")  # fmt: skip


def _rows(svg: Svg, groups: Groups, loads: list[int]) -> None:
    mean, starts = len(TOKENS) * K / E, groups.starts.tolist()
    svg.text(RIGHT - 10, TOP - 10, "expert", "end small muted")
    for e in range(E):
        y = TOP + ROW * e
        svg.text(RIGHT - 10, y + 18, str(e), "end small")
        svg.line((RIGHT, y + ROW - 3), (758, y + ROW - 3), "line-rule thin")
        for place, row in enumerate(range(starts[e], starts[e + 1])):
            name = TOKENS[int(groups.order[row]) // K]
            svg.rect(RIGHT + 4 + 50 * place, y, 47, ROW - 5, "blue-soft" if loads[e] <= 2 * mean else "orange-soft")
            svg.text(RIGHT + 4 + 50 * place + 23, y + 17, name, "middle small")
        if not loads[e]:
            svg.text(RIGHT + 6, y + 18, "nobody", "small muted")
    y = TOP + ROW * E
    svg.text(RIGHT - 34, y + 26, [("3", "bold blue"), f"  The mean is {mean:g} rows, and the busiest expert has "
                                  f"{max(loads)}. On"])  # fmt: skip
    svg.text(RIGHT - 16, y + 44, "many GPUs, all wait for it: loads must be kept even.")


def _x(e: int) -> float:
    return LEFT + CELL * e + 8 * (e // (E // GROUPS))


def _in_words(routing: Routing, loads: list[int]) -> str:
    said = "; ".join(f"{name} to {' and '.join(map(str, sorted(experts)))}" for name, experts in
                     zip(TOKENS, routing.experts.tolist(), strict=True))  # fmt: skip
    return (
        f"Six tokens and eight experts in four groups. Each token chooses its best two groups and in them its best two "
        f"experts: {said}. Sorted by expert, the experts have {', '.join(map(str, loads))} rows; the mean is "
        f"{len(TOKENS) * K / E:g}."
    )
