"""Pipeline schedules: one object that is validated, simulated, drawn and executed.

    from llmsys.parallel.pipeline import Costs, draw, one_f_one_b, simulate, validate
    schedule = one_f_one_b(num_ranks=4, num_microbatches=8)
    print(validate(schedule))
    timeline = simulate(schedule, Costs(F=1, I=1, W=1, transfer=0.1))
    timeline.bubble_share, timeline.peaks
    print(draw(timeline))

`F`, `B`, `I`, `W`, `pair`       actions: forward; backward; its halves for input and weights; an overlapped F and B
`Placement`                      which rank has which stage: `linear`, `looped`, `v_shaped`, `bidirectional`
`Schedule`                       for each rank its actions in order
`dependencies`                   what must be done before an action
`SCHEDULES`, `make_schedule`     the generators by their names: gpipe, 1f1b, interleaved, chimera, zb-h1, zb-h2, zb-v,
                                 v-half, v-min, dualpipe, dualpipe-v
`validate`                       is it one? if not, what is missing, or who waits for whom
`simulate`, `Costs`              when is what done, at which costs: a `Timeline`, with bubbles and memory
`costs_of`                       what the actions of a timeline took, to simulate another with
`draw`                           a timeline as text
`to_text`, `to_csv`              and back: `from_text`, `from_csv`, in torch's notation
`programs`, `circle`             sends and receives between actions; can blocking ones hang?
`waiting_beside`                 beside which actions of a run did transfers wait for the other rank?
`split_layers`                   which layers go into which stage

To run one on a real model: `llmsys.parallel.execute`.
"""

from collections.abc import Callable

from llmsys.parallel.pipeline.actions import Action, B, F, I, Kind, W, pair
from llmsys.parallel.pipeline.chimera import chimera
from llmsys.parallel.pipeline.communication import Exchange, Transfer, Wait, circle, programs, waiting_beside
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import Rule, dependencies, where_done
from llmsys.parallel.pipeline.draw import draw
from llmsys.parallel.pipeline.dualpipe import dualpipe
from llmsys.parallel.pipeline.dualpipe_v import dualpipe_v, fold
from llmsys.parallel.pipeline.gpipe import gpipe
from llmsys.parallel.pipeline.interleaved import interleaved
from llmsys.parallel.pipeline.layers import split_layers
from llmsys.parallel.pipeline.one_f_one_b import one_f_one_b
from llmsys.parallel.pipeline.order import InvalidSchedule, blocked
from llmsys.parallel.pipeline.placement import Placement, bidirectional, linear, looped, v_shaped
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.simulate import simulate
from llmsys.parallel.pipeline.text import from_csv, from_text, parse, to_csv, to_text
from llmsys.parallel.pipeline.timeline import Event, Timeline, costs_of
from llmsys.parallel.pipeline.v_half import v_half, v_min
from llmsys.parallel.pipeline.validate import Problem, Report, validate
from llmsys.parallel.pipeline.zb_v import zb_v
from llmsys.parallel.pipeline.zero_bubble import zb_h1, zb_h2

SCHEDULES: dict[str, Callable[[int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "chimera": chimera,
    "zb-h1": zb_h1,
    "zb-h2": zb_h2,
    "zb-v": zb_v,
    "v-half": v_half,
    "v-min": v_min,
    "dualpipe": dualpipe,
    "dualpipe-v": dualpipe_v,
}
"""Name → generator, called with (num_ranks, num_microbatches)."""


def make_schedule(name: str, num_ranks: int, num_microbatches: int) -> Schedule:
    """The schedule of that name. ValueError for a name that is none, or numbers that it cannot be made for."""
    if name not in SCHEDULES:
        raise ValueError(f"name must be one of {', '.join(SCHEDULES)}; got {name!r}")
    return SCHEDULES[name](num_ranks, num_microbatches)


__all__ = [
    "SCHEDULES",
    "Action",
    "B",
    "Costs",
    "Event",
    "Exchange",
    "F",
    "I",
    "InvalidSchedule",
    "Kind",
    "Placement",
    "Problem",
    "Report",
    "Rule",
    "Schedule",
    "Timeline",
    "Transfer",
    "W",
    "Wait",
    "bidirectional",
    "blocked",
    "chimera",
    "circle",
    "costs_of",
    "dependencies",
    "draw",
    "dualpipe",
    "dualpipe_v",
    "fold",
    "from_csv",
    "from_text",
    "gpipe",
    "interleaved",
    "linear",
    "looped",
    "make_schedule",
    "one_f_one_b",
    "pair",
    "parse",
    "programs",
    "simulate",
    "split_layers",
    "to_csv",
    "to_text",
    "v_half",
    "v_min",
    "v_shaped",
    "validate",
    "waiting_beside",
    "where_done",
    "zb_h1",
    "zb_h2",
    "zb_v",
]
