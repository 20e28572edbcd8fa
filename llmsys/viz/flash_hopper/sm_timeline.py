"""The stepper of lesson 06: what the engines of an SM do, cycle by cycle, in one order of the work or another.

Its frames are a `Timeline` of the model (`llmsys.hardware.sm`), cut wherever an engine begins or ends something.
Between two cuts nothing changes, so a frame is an interval. Warpgroups that want one engine at the same time share it
evenly; each then gets its part of the row's height, so that an area is an amount of work (`shares`).
"""

from collections.abc import Sequence

from llmsys.hardware.sm import ENGINES, ORDERS, Costs, Span, Timeline, attention_costs, run
from llmsys.viz.flash_hopper.sm_timeline_frame import ENGINE_NAMES, Share, Step, draw, during
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper


def sm_timeline(
    programs: dict[str, Timeline] | None = None,
    *,
    order: str | None = None,
    tiles: int = 6,
    warpgroups: int = 2,
    costs: Costs | None = None,
) -> Stepper:
    """Step through the timeline of an order: what each engine works on, what each warpgroup waits for.

    programs     timelines of your own by name, {"mine": run(…)}; they come first in the list of orders
    order        which to show first; if nothing is said, the first of yours, or else "overlapped_held"
    tiles, warpgroups, costs    of the library's `ORDERS`, which are there to compare with: take those of your own
                                timelines. Costs are those of `attention_costs()` if nothing is said

    Raises ValueError where a timeline is none, or empty, or there is no such order.
    """
    costs = costs or attention_costs()
    timelines = dict(programs or {})
    for name, timeline in timelines.items():
        if not isinstance(timeline, Timeline) or not timeline.spans:
            raise ValueError(
                f"programs[{name!r}] must be a timeline in which something happens, which llmsys.hardware.sm.run "
                f"returns; got {timeline!r:.80}"
            )
    for name, make in ORDERS.items():
        timelines.setdefault(name, run(make(tiles, warpgroups), costs))
    first = order or next(iter(programs or ()), "overlapped_held")
    return Stepper(
        lambda order: steps(timelines, order),
        draw,
        title="One SM, engine by engine",
        describe=describe,
        controls=[Choice("order", "Order", {name: name for name in timelines}, first)],
        static=most_telling,
        interval=700,
    )


def steps(timelines: dict[str, Timeline], name: str) -> list[Step]:
    """A step for each interval of the timeline of that name in which nothing begins or ends."""
    timeline = timelines[name]
    cuts = _cuts(timeline.spans)
    parts = shares(timeline)
    return [Step(name, timelines, parts, start, end) for start, end in zip(cuts, cuts[1:], strict=False)]


def shares(timeline: Timeline) -> tuple[Share, ...]:
    """For each span of a timeline, what part of its engine it has and when. Spans at the same time share it evenly."""
    pieces: dict[Span, list[tuple[float, float, int, int]]] = {span: [] for span in timeline.spans}
    for engine in ENGINES:
        spans = [span for span in timeline.spans if span.engine == engine]
        cuts = _cuts(spans)
        for start, end in zip(cuts, cuts[1:], strict=False):
            here = sorted((span for span in spans if during(span, start, end)), key=lambda span: span.warpgroup)
            for k, span in enumerate(here):
                found = pieces[span]
                same = bool(found) and found[-1][2:] == (k, len(here))
                found[-1:] = [(found[-1][0], end, k, len(here))] if same else [*found[-1:], (start, end, k, len(here))]
    return tuple(Share(span, tuple(found)) for span, found in pieces.items())


def most_telling(frames: Sequence[Step]) -> int:
    """The step that stands for all: one that is long enough to be seen, in which most engines work, near the middle."""
    middle, visible = len(frames) // 2, frames[0].timeline.cycles / 100

    def tells(n: int) -> tuple:
        busy = sum(bool(frames[n].active(engine)) for engine in ENGINES)
        return frames[n].end - frames[n].start >= visible, busy, -abs(n - middle)

    return max(range(len(frames)), key=tells)


def describe(step: Step) -> str:
    """The caption of a step: what each engine works on."""
    said = []
    for engine in ENGINES:
        spans = sorted(step.active(engine), key=lambda span: span.warpgroup)
        what = " and ".join(f"{span.label} of {step.timeline.names[span.warpgroup]}" for span in spans)
        if engine == "copy":
            what = " and ".join(span.label for span in spans)
        said.append(f"{ENGINE_NAMES[engine]}: {what or 'idle'}{', shared' if len(spans) > 1 else ''}")
    return f"{step.name}, cycles {step.start:,.0f} to {step.end:,.0f}. {'; '.join(said)}."


def _cuts(spans: Sequence[Span]) -> list[float]:
    """The moments in which a span begins or ends. Moments less than a thousandth of a cycle apart count as one."""
    found: list[float] = []
    for moment in sorted({moment for span in spans for moment in (span.start, span.end)}):
        if not found or moment - found[-1] > 1e-3:
            found.append(moment)
    return found
