"""A timeline as text: a row a rank, time to the right, and at the end how long each rank is idle and what it keeps.

            rank 0  F0 F1 F2 F3 .  .  .  B0    F4 B1    F5 …    idle 9, keeps 4
            rank 1  .  F0 F1 F2 .  B0    F3 B1    …             idle 9, keeps 3

Where a rank has several stages, the stage comes first, as in 4F0; a pair is 4F0&3B1. For pictures see `llmsys.viz`.
"""

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.simulate import simulate
from llmsys.parallel.pipeline.timeline import Timeline

MOST_COLUMNS = 10_000


def draw(shown: Timeline | Schedule, *, tick: float | None = None) -> str:
    """The picture as lines of text. A schedule is simulated with unit costs.

    `tick` is the time of one column, by default that of the shortest action.
    """
    timeline = simulate(shown) if isinstance(shown, Schedule) else shown
    events = [event for row in timeline.events for event in row]
    lasting = [event.duration for event in events if event.duration > 0]
    if not lasting:
        raise ValueError("the timeline must have at least one action that takes time")
    if tick is not None and not 0 < tick < float("inf"):
        raise ValueError(f"tick must be above 0 and finite, the time of one column, got {tick}")
    tick = tick or min(lasting)
    if timeline.makespan / tick > MOST_COLUMNS:
        raise ValueError(
            f"tick must be at least {timeline.makespan / MOST_COLUMNS:.3g}, or a row has more than {MOST_COLUMNS} "
            f"columns; it is {tick}" + (", the shortest action's time" if tick == min(lasting) else "")
        )
    several = any(len({(half.stage, half.replica) for event in row for half in event.action.halves}) > 1
                  for row in timeline.events)  # fmt: skip
    columns = {id(event): _columns(event.start - timeline.start, event.end - timeline.start, tick) for event in events}
    width = max(
        -(-(len(_label(event.action, several)) + 1) // max(1, columns[id(event)][1] - columns[id(event)][0]))
        for event in events
    )
    total = round(timeline.makespan / tick)
    lines = []
    for rank, row in enumerate(timeline.events):
        cells = list(".".ljust(width) * total)
        for event in row:
            first, last = columns[id(event)]
            room = (last - first) * width
            cells[first * width : last * width] = _label(event.action, several).ljust(room)[:room]
        bubble, peak = timeline.bubble(rank), timeline.peak(rank)
        lines.append(f"rank {rank}".ljust(8) + "".join(cells) + f"  idle {float(bubble):.4g}, keeps {float(peak):.4g}")
    return "\n".join(lines)


def _columns(start: float, end: float, tick: float) -> tuple[int, int]:
    return round(start / tick), round(end / tick)


def _label(action: Action, several: bool) -> str:
    if action.kind is Kind.FB:
        return "&".join(_label(half, several) for half in action.halves)
    return f"{action.stage if several else ''}{action.kind}{action.microbatch}"
