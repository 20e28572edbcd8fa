"""One frame of the SM's timeline: engines, then warpgroups, along an axis of cycles; below, all orders to compare.

The axis has the same scale for every order, and is as long as the shortest: what does not fit comes into view as the
steps go on. All that is drawn is in the step: only places are computed here.
"""

from dataclasses import dataclass

from llmsys.hardware.sm import ENGINES, Span, Timeline
from llmsys.viz.kit.svg import Svg

LEFT, WIDE = 118, 562  # the axis of cycles; right of it is how busy an engine is
TOP, ENGINE, GAP, PROGRAM = 26, 42, 6, 20
HUES = ("blue", "green", "purple")
"""The colours of the warpgroups. Copies are grey: they are for all."""
SOFT = {"muted": "rule"} | {hue: f"{hue}-soft" for hue in HUES}
SHORT = {"turn": "turn", "beginning": "start"}
ENGINE_NAMES = {"tensor": "tensor cores", "exp": "softmax", "copy": "copy engine"}
KNOWN = {
    "fa1": "one thing after the other",
    "fa2": "warpgroups on their own, copies a tile ahead",
    "independent": "the same, and a producer starts the copies",
    "ping_pong": "turns: one multiplies, the other computes its softmax",
    "overlapped_held": "turns, and the softmax beside the P V before it",
}


@dataclass(frozen=True)
class Share:
    """The part of its engine that a span has: all of it, or less while others use the engine, too."""

    span: Span
    pieces: tuple[tuple[float, float, int, int], ...]
    """(start, end, k, n): in that time it is number k of n that share the engine."""


@dataclass(frozen=True)
class Step:
    """An interval in which nothing changes of one order's timeline, with the timelines of all orders beside it."""

    name: str
    timelines: dict[str, Timeline]
    shares: tuple[Share, ...]
    start: float
    end: float

    @property
    def timeline(self) -> Timeline:
        """The timeline of the order that is shown."""
        return self.timelines[self.name]

    def active(self, engine: str) -> list[Span]:
        """What this engine does in the interval."""
        return [span for span in self.timeline.spans if span.engine == engine and during(span, self.start, self.end)]


def draw(step: Step) -> Svg:
    """The picture of a step."""
    programs = max(len(timeline.names) for timeline in step.timelines.values())
    rows = TOP + len(ENGINES) * (ENGINE + GAP)  # where the programs' rows begin
    below = rows + programs * (PROGRAM + 4)
    svg = Svg(760, below + 60 + 19 * len(step.timelines), alt="")
    view, timeline = View(step), step.timeline
    svg.text(0, 14, [(step.name, "bold"), (f"  {KNOWN[step.name]}" if step.name in KNOWN else "", "muted")])
    svg.text(760, 14, "busy", "end small muted")
    for n, engine in enumerate(ENGINES):
        y = TOP + n * (ENGINE + GAP)
        svg.text(LEFT - 8, y + ENGINE / 2 + 4, ENGINE_NAMES[engine], "end")
        svg.rect(LEFT, y, WIDE, ENGINE, "panel", rx=2)
        svg.text(760, y + ENGINE / 2 + 5, f"{100 * timeline.utilisation(engine):.0f} %", "end big bold")
    left, right = view.x(step.start), view.x(step.end)
    svg.rect(left, TOP - 5, right - left, below - TOP + 2, "orange-soft", rx=2)
    svg.rect(left, TOP - 5, right - left, below - TOP + 2, "line-orange", rx=2)
    for share in step.shares:
        if view.sees(share.span):
            _share(svg, view, share, TOP + ENGINES.index(share.span.engine) * (ENGINE + GAP))
    for number, name in enumerate(timeline.names):
        svg.text(LEFT - 8, rows + number * (PROGRAM + 4) + 14, name, f"end small bold {_hue(step, number)}")
    for wait in timeline.waits:
        if view.sees(wait):
            _wait(svg, view, wait, rows + wait.warpgroup * (PROGRAM + 4))
    _axis(svg, view, below + 12)
    svg.text(0, below + 32, "S, O: the products q kᵀ and P v · P: softmax · K, V: copies · less high: the engine "
             "is shared · outlined: waits for", "small muted")  # fmt: skip
    _orders(svg, step, below + 48)
    return svg


class View:
    """The part of the axis that is seen: as long as the shortest timeline, with the step in its middle if it can be."""

    def __init__(self, step: Step):
        self.step = step
        self.length = min(timeline.cycles for timeline in step.timelines.values())
        self.first = min(max(step.start - self.length / 2, 0), max(step.timeline.cycles - self.length, 0))
        self.last = self.first + self.length

    def x(self, cycle: float) -> float:
        """Where a cycle is; at an end of the axis if it is not seen."""
        if cycle <= self.first:
            return LEFT
        return LEFT + WIDE * (cycle - self.first) / self.length if cycle < self.last else LEFT + WIDE

    def sees(self, span: Span) -> bool:
        """Whether some of it is in view."""
        return span.end > self.first and span.start < self.last


def _share(svg: Svg, view: View, share: Share, y: float) -> None:
    """What a span has of its engine, as one shape: lower where it shares."""
    step, span = view.step, share.span
    hue = _hue(step, span.warpgroup) if span.engine != "copy" else "muted"
    now = span.start <= step.start and step.end <= span.end + 1e-3
    fill = hue if now else SOFT[hue]
    upper, lower, widest = [], [], (0.0, 0.0, 0.0)
    for start, end, k, n in share.pieces:
        left, right = view.x(start), view.x(end)
        top, bottom = y + ENGINE * k / n, y + ENGINE * (k + 1) / n
        upper += [(left, top), (right, top)]
        lower += [(left, bottom), (right, bottom)]
        widest = max(widest, (right - left, (left + right) / 2, (top + bottom) / 2))
    width, x, middle = widest
    if len(share.pieces) == 1:
        svg.rect(left, top, width, bottom - top, f"{fill} edged", rx=0)
    else:
        svg.path(upper + lower[::-1], f"{fill} edged", close=True)
    if size := _fits(span.label, width):
        svg.text(x, middle + 4, span.label, f"middle {size} on bold" if now else f"middle {size}")


def _wait(svg: Svg, view: View, wait: Span, y: float) -> None:
    """A program's wait: for something of an engine, for its turn, for a slot. While it waits for P, it computes it."""
    left, right = view.x(wait.start), view.x(wait.end)
    computes = wait.label.startswith("P")
    box = f"{SOFT[_hue(view.step, wait.warpgroup)]} edged" if computes else "line-rule"
    svg.rect(left, y, right - left, PROGRAM, box, rx=2)
    for text in (wait.label, SHORT.get(wait.label.split()[-1], "slot" if " slot " in wait.label else wait.label)):
        if size := _fits(text, right - left):
            svg.text((left + right) / 2, y + 14, text, f"middle {size}")
            return


def _axis(svg: Svg, view: View, y: float) -> None:
    tick = next(size for size in (100, 200, 500, 1000, 2000, 5000, 10_000, 10**9) if view.length / size <= 8)
    cycle = -(-view.first // tick) * tick
    while cycle <= view.first + view.length:
        x = view.x(cycle)
        svg.line((x, y - 10), (x, y - 6), "line-muted")
        if x < LEFT + WIDE - 20:
            svg.text(x, y + 3, f"{cycle:,.0f}", "middle small muted")
        cycle += tick
    svg.text(760, y + 3, "cycles", "end small muted")


def _orders(svg: Svg, step: Step, y: float) -> None:
    """Every order as a bar, as long as it takes, filled as far as its tensor cores are busy."""
    longest = max(timeline.cycles for timeline in step.timelines.values())
    scale = (WIDE - 200) / longest
    for n, (name, timeline) in enumerate(step.timelines.items()):
        top, shown = y + 19 * n, name == step.name
        width = scale * timeline.cycles
        short = name if len(name) <= 15 else f"{name[:14]}…"
        svg.text(LEFT - 8, top + 12, short, f"end small {'bold' if shown else ''}")
        svg.rect(LEFT, top, width, 15, "rule" if shown else "panel", rx=2)
        svg.rect(LEFT, top, width * timeline.utilisation("tensor"), 15, "ink" if shown else "muted", rx=2)
        svg.text(LEFT + width + 8, top + 12, f"{timeline.cycles:,.0f} cycles, tensor cores busy "
                 f"{100 * timeline.utilisation('tensor'):.0f} %", f"small {'bold' if shown else ''}")  # fmt: skip
    at = LEFT + scale * step.start
    top = y + 19 * list(step.timelines).index(step.name)
    svg.line((at, top - 2), (at, top + 17), "line-orange thick")


def _hue(step: Step, program: int) -> str:
    return HUES[program % len(HUES)] if step.timeline.names[program] != "producer" else "muted"


def _fits(text: str, width: float) -> str:
    """The largest size in which a text has room, or nothing."""
    return "small" if width >= 7.2 * len(text) + 1 else "tiny" if width >= 6.2 * len(text) + 1 else ""


def during(span: Span, start: float, end: float) -> bool:
    """Whether a span is under way in an interval in which nothing begins or ends."""
    return span.start < (start + end) / 2 < span.end
