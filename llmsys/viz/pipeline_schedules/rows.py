"""The rows of a timeline: a box an action, as wide as it takes long, with its microbatch's number.

    blue    F          orange    B, or I          green    W          both, one above the other: an overlapped pair

A rank that has two stages draws the second one's actions in the strong colour; of two replicas, which run in opposite
directions, the second is strong, and each counts its microbatches from 0. What stays grey is the bubble.
"""

from collections.abc import Iterable, Sequence

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.timeline import Event, Timeline
from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.svg import Svg

COLOURS = {Kind.F: "blue", Kind.B: "orange", Kind.I: "orange", Kind.W: "green"}
ROW, BOX = 24, 20
"""From one row to the next, and the height of a box."""
LEFT, RIGHT = 50, 664
"""Where time begins and ends in a picture that is 760 wide."""
NUMBERED = 6.2
"""Pixels that a digit needs."""

NAMES = {
    "gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved 1F1B", "chimera": "Chimera", "zb-h1": "ZB-H1",
    "zb-h2": "ZB-H2", "zb-v": "ZB-V", "v-half": "V-Half", "v-min": "V-Min", "dualpipe": "DualPipe",
    "dualpipe-v": "DualPipeV",
}  # fmt: skip
"""What the library's schedules are called in texts."""

Rows = Sequence[Sequence[Event]]


def rows(svg: Svg, top: float, events: Rows, second: set[tuple[int, int]], scale: float, width: float) -> None:
    """Every rank's row from `top` on. `second` are the (stage, replica) drawn strong, `scale` pixels a unit of time."""
    first = _first_microbatches(events)
    for rank, row in enumerate(events):
        y = top + ROW * rank
        svg.text(LEFT - 8, y + 14, f"rank {rank}", "end small muted")
        svg.rect(LEFT, y, width, BOX, "panel", rx=0)
        for event in row:
            _event(svg, LEFT + scale * event.start, y, scale * event.duration, event.action, second, first)


def second_stages(events: Rows) -> set[tuple[int, int]]:
    """(stage, replica) of the second replica's stages; where there is one replica only, of those that a rank begins
    later than its first one."""
    met = [list(dict.fromkeys((h.stage, h.replica) for each in row for h in each.action.halves)) for row in events]
    other = {stage for stages in met for stage in stages if stage[1]}
    return other or {stage for stages in met for stage in stages[1:]}


def numbers(svg: Svg, top: float, timeline: Timeline) -> None:
    """At the right of each row, how long the rank is idle and how much it keeps at most."""
    for rank in range(timeline.num_ranks):
        y = top + ROW * rank + 14
        svg.text(RIGHT + 42, y, number(timeline.bubble(rank)), "end small bold")
        svg.text(760, y, number(timeline.peak(rank)), "end small bold purple")


def heads(svg: Svg, y: float) -> None:
    """What the numbers at the right are."""
    svg.text(RIGHT + 42, y, "idle", "end tiny muted")
    svg.text(760, y, "keeps", "end tiny purple")


def axis(svg: Svg, y: float, makespan: float, scale: float) -> None:
    """Ticks below the rows, and the makespan's number at its end."""
    step = next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 1e9) if makespan / step <= 14)
    n = 0
    while n * step < makespan - 0.4 * step:
        svg.text(LEFT + scale * n * step, y, number(n * step), "middle tiny muted")
        n += 1
    svg.text(LEFT + scale * makespan, y, number(makespan), "middle tiny bold")


def key(svg: Svg, y: float, kinds: Iterable[Kind], *, strong: str = "") -> None:
    """What the colours mean, of the kinds that are there."""
    kinds = set(kinds)
    x = float(LEFT) if Kind.FB not in kinds else 4.0
    words = {Kind.F: "F, forward", Kind.B: "B, backward", Kind.I: "I, for the input", Kind.W: "W, for the weights"}
    for kind in (Kind.F, Kind.B, Kind.I, Kind.W):
        if kind not in kinds or (kind is Kind.I and Kind.B in kinds):
            continue
        said = "B or I, backward" if kind is Kind.B and Kind.I in kinds else words[kind]
        svg.rect(x, y - 10, 12, 12, f"{COLOURS[kind]}-soft", rx=2)
        svg.rect(x, y - 10, 12, 12, f"line-{COLOURS[kind]}", rx=2)
        svg.text(x + 17, y, said, "small")
        x += 24 + 6.1 * len(said)
    if Kind.FB in kinds:
        svg.rect(x, y - 10, 12, 6, "blue-soft", rx=1)
        svg.rect(x, y - 4, 12, 6, "orange-soft", rx=1)
        svg.text(x + 17, y, "overlapped", "small")
        x += 90
    if strong:
        svg.rect(x, y - 10, 12, 12, "blue", rx=2)
        svg.text(x + 17, y, f"strong: {strong}", "small")
        x += 70 + 5.7 * len(strong)
    svg.rect(x, y - 10, 12, 12, "panel", rx=0)
    svg.rect(x, y - 10, 12, 12, "line-rule thin", rx=0)
    svg.text(x + 17, y, "idle", "small")


def kinds_of(events: Rows) -> set[Kind]:
    """The kinds of action that are there; of a pair, its own and those of its halves."""
    actions = [event.action for row in events for event in row]
    return {half.kind for action in actions for half in (action, *action.halves)}


def _first_microbatches(events: Rows) -> dict[int, int]:
    """Of each replica, so that each counts from 0."""
    first: dict[int, int] = {}
    for row in events:
        for half in (half for event in row for half in event.action.halves):
            first[half.replica] = min(half.microbatch, first.get(half.replica, half.microbatch))
    return first if len(first) > 1 else dict.fromkeys(first, 0)


def _event(
    svg: Svg,
    x: float,
    y: float,
    width: float,
    action: Action,
    second: set[tuple[int, int]],
    first: dict[int, int],
) -> None:
    halves = action.halves
    height = BOX / len(halves)
    for n, half in enumerate(halves):
        colour = COLOURS[half.kind]
        strong = (half.stage, half.replica) in second
        svg.rect(x + 0.5, y + n * height, max(width - 1, 0.5), height, colour if strong else f"{colour}-soft", rx=1)
        text = str(half.microbatch - first[half.replica])
        if NUMBERED * len(text) + 1 <= width:
            classes = "middle tiny" + (" on" if strong else "")
            svg.text(x + width / 2, y + n * height + height / 2 + 3.5, text, classes)
    if not all((half.stage, half.replica) in second for half in halves) and width > 4:
        svg.rect(x + 0.5, y, width - 1, BOX, f"line-{COLOURS[halves[-1].kind]} thin", rx=1)
