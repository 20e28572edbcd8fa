"""One frame of the goodput explorer as a picture: the timeline of a stall, three histograms, and what the step did."""

import math
from collections.abc import Sequence
from functools import lru_cache

from llmsys.viz.chunked_prefill.explored import Frame, Row
from llmsys.viz.kit.numbers import number, seconds_in_words
from llmsys.viz.kit.svg import Svg

WIDTH, HEIGHT = 760, 452
LEFT, RIGHT = 150, 750
"""Where the window begins and ends."""
TOP, ROW, CELL = 58, 23, 17
ROWS = 6
AXIS = TOP + ROW * ROWS + 6
BARS, LOW = 292, 356
"""The histograms' top and their ground."""
BINS = 26
PANELS = (("ttft", "to the first token", 0.01, 100.0), ("tpot", "a token after it, mean", 0.003, 0.3),
          ("gap", "the longest gap", 0.003, 3.0))  # fmt: skip
"""Of each histogram: a latency and a limit's name, its title, and seconds at its two ends."""
PANEL, APART = 226, 41


def draw(frame: Frame) -> Svg:
    """The steps of the window so far, and the latencies of all requests."""
    svg = Svg(WIDTH, HEIGHT, alt="")
    _key(svg)
    for n, row in enumerate(frame.rows):
        _row(svg, TOP + ROW * n, row, frame)
    _stall(svg, frame)
    _axis(svg, frame)
    for n, (name, title, low, high) in enumerate(PANELS):
        values = getattr(frame.latencies, name)
        _histogram(svg, n * (PANEL + APART), title, values, getattr(frame.limits, name), low, high)
    svg.rect(0, HEIGHT - 62, WIDTH, 62, "panel", rx=6)
    svg.text(14, HEIGHT - 38, head(frame), "bold")
    svg.text(14, HEIGHT - 15, tail(frame))
    return svg


def head(frame: Frame) -> str:
    """How the whole run was."""
    return (
        f"{frame.policy}, {frame.budget:,} tokens a step, {number(frame.rate)} requests a second: "
        f"{frame.latencies.met:.0%} are within all limits"
    )


def tail(frame: Frame) -> str:
    """What the last step of the frame did."""
    now = frame.now
    said = f"{_count(len(now.decodes), 'token')} of answers" if now.decodes else "no token of any answer"
    pieces = sum(now.pieces.values())
    read = f", {_count(pieces, 'token')} of {_count(len(now.pieces), 'prompt')}" if pieces else ""
    return f"This step, {seconds_in_words(now.seconds)}: {said}{read}."


def share(part: float) -> str:
    """A share in percent, of which little is not nothing."""
    return "under 1%" if 0 < part < 0.005 else f"{part:.0%}"


def _x(frame: Frame, time: float) -> float:
    share = (time - frame.start) / frame.seconds
    return LEFT + (RIGHT - LEFT) * min(max(share, 0.0), 1.0)


def _row(svg: Svg, y: float, row: Row, frame: Frame) -> None:
    what = {"stalled": "stalled", "answers": "answers", "reads": f"prompt of {row.prompt:,}"}[row.why]
    svg.text(0, y + 13, [(f"request {row.name}", "bold"), (f" · {what}", "muted")], "tiny")
    svg.line((LEFT, y + CELL + 2), (RIGHT, y + CELL + 2))
    for each in frame.past:
        x = _x(frame, each.start)
        width = max(1.0, _x(frame, each.end) - x - 1)
        colour = "orange" if each is frame.now else "blue"
        if row.name in each.decodes:
            svg.rect(x, y, width, CELL, colour, rx=1)
        elif row.name in each.pieces:
            svg.rect(x, y, width, CELL, f"{colour}-soft", rx=1)
            svg.rect(x, y, width, CELL, f"line-{colour}", rx=1)
            words = f"{each.pieces[row.name]:,}"
            if width > 6 * len(words) + 5:
                svg.text(x + width / 2, y + 12.5, words, "middle tiny bold")


def _stall(svg: Svg, frame: Frame) -> None:
    """A bracket over the longest stall, as soon as it is over."""
    if frame.gap is None or frame.now.end < frame.gap.end - 1e-9:
        return
    left, right = _x(frame, frame.gap.start), _x(frame, frame.gap.end)
    svg.path([(left, TOP - 3), (left, TOP - 8), (right, TOP - 8), (right, TOP - 3)], "line-purple thick")
    svg.text(left, TOP - 14, f"from one token to the next: {seconds_in_words(frame.gap.seconds)}", "small bold purple")


def _axis(svg: Svg, frame: Frame) -> None:
    svg.text(0, AXIS + 12, f"from {frame.start:.2f} s on", "tiny muted")
    for n in range(7):
        x = LEFT + (RIGHT - LEFT) * n / 6
        svg.line((x, AXIS - 2), (x, AXIS + 2))
        end = "end" if n == 6 else "middle"
        svg.text(min(x, WIDTH), AXIS + 13, f"{1e3 * frame.seconds * n / 6:,.0f}" + (" ms" if n == 6 else ""),
                 f"{end} tiny muted")  # fmt: skip


@lru_cache(maxsize=64)
def counted(values: tuple[float, ...], limit: float, low: float, high: float) -> tuple[tuple[int, int], ...]:
    """How many values each of BINS bins has, (within the limit, beyond it); the bins are equally wide in logarithms,
    and what is outside of the ends is counted in the first or the last one."""
    found = [[0, 0] for _ in range(BINS)]
    for value in values:
        place = BINS * math.log(max(value, 1e-12) / low) / math.log(high / low)
        found[min(max(int(place), 0), BINS - 1)][value > limit] += 1
    return tuple((within, beyond) for within, beyond in found)


def _histogram(svg: Svg, x: float, title: str, values: Sequence[float], limit: float, low: float, high: float) -> None:
    bins = counted(tuple(values), limit, low, high)
    late = sum(value > limit for value in values) / max(1, len(values))
    svg.text(x, BARS - 42, title, "small bold")
    words = "no limit" if math.isinf(limit) else f"limit {seconds_in_words(limit)}: {share(late)} beyond it"
    svg.text(x, BARS - 26, words, "small orange" if late else "small muted")
    top, wide = max(sum(each) for each in bins), PANEL / BINS
    for n, (within, beyond) in enumerate(bins):
        a, b = (LOW - BARS) * within / top, (LOW - BARS) * beyond / top
        if within:
            svg.rect(x + wide * n, LOW - a, wide - 1, a, "blue", rx=0)
        if beyond:
            svg.rect(x + wide * n, LOW - a - b, wide - 1, b, "orange", rx=0)
    svg.line((x, LOW), (x + PANEL, LOW))
    if limit < math.inf:
        at = x + PANEL * math.log(limit / low) / math.log(high / low)
        svg.line((at, BARS - 8), (at, LOW + 4), "line-ink dashed thin")
    decades = round(math.log10(high / low))
    for n in range(decades + 1):
        value = low * 10**n
        at = x + PANEL * n / decades
        anchor = " end" if n == decades else " middle" if n else ""
        svg.text(at, LOW + 15, seconds_in_words(value), f"tiny muted{anchor}")


def _key(svg: Svg) -> None:
    x = 0.0
    for ground, outline, words, width in (
        ("blue", "", "a token of an answer", 146),
        ("blue-soft", "line-blue", "so many tokens of a prompt", 188),
        ("orange", "", "the newest step; in the histograms, beyond the limit", 320),
    ):
        svg.rect(x, 4, 12, 12, ground, rx=2)
        if outline:
            svg.rect(x, 4, 12, 12, outline, rx=2)
        svg.text(x + 17, 14, words, "small")
        x += width


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
