"""The opening picture of lesson 20: the same work in three orders, simulated."""

from llmsys.parallel.pipeline.gpipe import gpipe
from llmsys.parallel.pipeline.one_f_one_b import one_f_one_b
from llmsys.parallel.pipeline.simulate import simulate
from llmsys.parallel.pipeline.zero_bubble import zb_h1
from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg
from llmsys.viz.pipeline_schedules.rows import LEFT, RIGHT, ROW, heads, key, kinds_of, numbers, rows
from llmsys.viz.pipeline_schedules.timelines import in_words

RANKS, MICROBATCHES = 4, 6
WAYS = (
    (gpipe, "GPipe", "all forwards, then all backwards"),
    (one_f_one_b, "1F1B", "a backward as soon as there can be one: as idle, and less to keep"),
    (zb_h1, "ZB-H1", "the backward in two halves; the one that nobody waits for goes into the gaps"),
)


def overview() -> Picture:
    """Four ranks with a quarter of the layers each, six microbatches, three schedules."""
    runs = [simulate(make(RANKS, MICROBATCHES)) for make, *_ in WAYS]
    scale = (RIGHT - LEFT) / max(run.makespan for run in runs)
    svg = Svg(760, 492, alt=f"{RANKS} ranks, {MICROBATCHES} microbatches. " + ". ".join(map(in_words, runs)))
    y = 16.0
    for run, (_, name, words) in zip(runs, WAYS, strict=True):
        svg.text(0, y, [(name, "bold"), (f" · {words}", "muted")])
        heads(svg, y + 6)
        rows(svg, y + 12, run.events, set(), scale, scale * run.makespan)
        numbers(svg, y + 12, run)
        y += ROW * RANKS + 38
    key(svg, y, set().union(*(kinds_of(run.events) for run in runs)))
    lengths = ", ".join(f"{name} {number(run.makespan)}" for run, (_, name, _) in zip(runs, WAYS, strict=True))
    svg.rect(0, 444, 760, 48, "panel", rx=6)
    svg.text(14, 463, [("The same work in another order. ", "bold"), f"Time in forwards of a stage: {lengths}."])
    svg.text(
        14, 482, "Idle: from the first start to the last end. Keeps: microbatches whose activations are there, at most."
    )
    return svg.picture()
