"""Timelines below one another, to one scale: what each rank does when, what is idle, what it keeps."""

from collections.abc import Sequence

from llmsys.parallel.pipeline.timeline import Timeline
from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg
from llmsys.viz.pipeline_schedules.rows import (
    LEFT,
    NAMES,
    RIGHT,
    ROW,
    axis,
    heads,
    key,
    kinds_of,
    numbers,
    rows,
    second_stages,
)


def timelines(*shown: Timeline, notes: Sequence[str] = ()) -> Picture:
    """One timeline, or several to compare; `notes` stand beside their names, and say how idle they are if not given.

    Raises ValueError where there is none, one has no event, or there are not as many notes.
    """
    if not shown or not all(any(each.events) for each in shown):
        raise ValueError("timelines takes one timeline at least, and each must have events")
    notes = list(notes) or [f"idle {each.bubble_share:.1%} of the time" for each in shown]
    if len(notes) != len(shown):
        raise ValueError(f"notes must be one for each of the {len(shown)} timelines, got {len(notes)}")
    longest = max(each.makespan for each in shown)
    scale = (RIGHT - LEFT) / longest
    height = 24 + sum(ROW * each.num_ranks + 54 for each in shown)
    svg = Svg(760, height, alt=". ".join(map(in_words, shown)))
    kinds = set().union(*(kinds_of(each.events) for each in shown))
    seconds = [second_stages(each.events) for each in shown]
    y = 14.0
    for timeline, second, note in zip(shown, seconds, notes, strict=True):
        name = NAMES.get(timeline.name, timeline.name)
        svg.text(0, y, [(name, "bold"), (f" · {note}", "muted")])
        heads(svg, y + 6)
        rows(svg, y + 12, timeline.events, second, scale, scale * timeline.makespan)
        numbers(svg, y + 12, timeline)
        y += 12 + ROW * timeline.num_ranks
        axis(svg, y + 10, timeline.makespan, scale)
        y += 42
    copies = any(replica for second in seconds for _, replica in second)
    strong = "the other direction" if copies else "the other stage of a rank" if any(seconds) else ""
    key(svg, height - 8, kinds, strong=strong)
    return svg.picture()


def in_words(timeline: Timeline) -> str:
    """A timeline for those who do not see it: how long, how idle, and each rank's order."""
    idle = ", ".join(map(number, timeline.bubbles))
    keeps = ", ".join(map(number, timeline.peaks))
    orders = "; ".join(
        f"rank {rank}: {' '.join(str(event.action) for event in row)}" for rank, row in enumerate(timeline.events)
    )
    return (
        f"{NAMES.get(timeline.name, timeline.name)}: {number(timeline.makespan)} in all, idle "
        f"{timeline.bubble_share:.1%} of the time; ranks are idle for {idle}, and keep at most {keeps} activations. In "
        f"order, {orders}"
    )
