"""One frame of the timeline: a row for each request and a column for each step, below them the tokens of each step and
the blocks in use, and at the bottom what the last step did.

All that is drawn is in the frame: only places are computed here.
"""

from llmsys.viz.continuous_batching.stepped import Frame, Row
from llmsys.viz.continuous_batching.timeline import Part, Step
from llmsys.viz.kit.svg import Svg

WIDTH = 760
LEFT, RIGHT = 118, 664
"""Where the columns begin and end."""
TOP, ROW, CELL = 44, 25, 19
LANE, BETWEEN = 46, 22
"""The height of the two lanes of bars, and the space above each."""
WIDEST, NUMBERED = 22.0, 13.0
"""A column's width at most, and the least in which a number of two digits can be read."""


def draw(frame: Frame) -> Svg:
    """The steps so far, as a picture."""
    rows = len(frame.rows)
    lanes = TOP + ROW * rows + BETWEEN
    height = lanes + 2 * LANE + BETWEEN + 18 + 62
    svg = Svg(WIDTH, height, alt="")
    column = min(WIDEST, (RIGHT - LEFT) / len(frame.steps))
    _key(svg)
    svg.text(RIGHT + 8, TOP - 8, "found", "tiny green")
    svg.text(WIDTH, TOP - 8, "lost", "end tiny purple")
    for n, step in enumerate(frame.past):
        if step.number % 5 == 0 or step is frame.now:
            if step is frame.now or frame.now.number - step.number > 1:
                classes = "middle tiny bold orange" if step is frame.now else "middle tiny muted"
                svg.text(LEFT + column * n + column / 2 - 1, TOP - 8, str(step.number), classes)
    svg.text(LEFT - 6, TOP - 8, "step", "end tiny muted")
    for n, row in enumerate(frame.rows):
        _row(svg, TOP + ROW * n, row, frame, column)
    tokens = [(step.decodes, step.prompt_tokens) for step in frame.past]
    top = max(frame.budget, max(step.tokens for step in frame.steps))
    _lane(svg, lanes, column, tokens, top, ("tokens of", "the step"), f"budget {frame.budget}",
          LANE * (1 - frame.budget / top))  # fmt: skip
    blocks = [(step.blocks_used, 0) for step in frame.past]
    full = frame.steps[0].blocks
    _lane(svg, lanes + LANE + BETWEEN, column, blocks, full, ("blocks", "in use"), f"all {full}", 0)
    _sums(svg, lanes + 16, frame)
    svg.rect(0, height - 62, WIDTH, 62, "panel", rx=6)
    svg.text(14, height - 39, frame.head, "bold")
    svg.text(14, height - 15, frame.tail)
    return svg


def _row(svg: Svg, y: float, row: Row, frame: Frame, column: float) -> None:
    """A request's name and lengths, what it did in each step, and what it found and lost so far."""
    lengths = f"{row.prompt}" if row.output is None else f"{row.prompt} + {row.output}"
    unit = " tokens" if len(row.name) < 4 else ""  # there is no room for it beside a longer name
    svg.text(0, y + 14, [(row.name, "bold"), (f" · {lengths}{unit}", "muted")], "small")
    for n, step in enumerate(frame.past):
        _cell(svg, LEFT + n * column, y, column - 2, row.name, step, frame)
    found = sum(step.admitted.get(row.name, 0) for step in frame.past)
    lost = sum(step.preempted.get(row.name, 0) for step in frame.past)
    if found:
        svg.text(RIGHT + 8, y + 14, str(found), "small bold green")
    if lost:
        svg.text(WIDTH, y + 14, str(lost), "end small bold purple")


def _cell(svg: Svg, x: float, y: float, width: float, name: str, step: Step, frame: Frame) -> None:
    """What one request did in one step."""
    state = frame.state(name, step)
    if state == "computes":
        part = next(part for part in step.parts if part.request == name)
        _computed(svg, x, y, width, part, now=step is frame.now)
    elif name in step.preempted:
        svg.text(x + width / 2, y + 14, "×", "middle bold purple")
    elif state == "idle":
        svg.rect(x, y, width, CELL, "line-muted dashed", rx=2)
    elif state == "waits":
        svg.rect(x, y + CELL / 2 - 1, width, 2, "muted", rx=0)
    if step.admitted.get(name):
        svg.rect(x - 1.5, y - 1, 3, CELL + 2, "green", rx=1)


def _computed(svg: Svg, x: float, y: float, width: float, part: Part, *, now: bool) -> None:
    colour = "orange" if now else "blue"
    if part.decode:
        svg.rect(x, y, width, CELL, colour, rx=2)
        return
    svg.rect(x, y, width, CELL, f"{colour}-soft", rx=2)
    svg.rect(x, y, width, CELL, f"line-{colour}", rx=2)
    if width + 2 >= NUMBERED:
        svg.text(x + width / 2, y + 13, str(part.tokens), "middle tiny bold")


def _lane(svg: Svg, y: float, column: float, bars, top: int, name: tuple[str, str], limit: str, at: float) -> None:
    """Bars of what each step had, in two parts, to the scale of `top`, and a dashed line at a limit."""
    svg.text(0, y + LANE / 2 - 1, name[0], "small bold")
    svg.text(0, y + LANE / 2 + 13, name[1], "small bold")
    for n, (lower, upper) in enumerate(bars):
        now = n == len(bars) - 1
        colour = "orange" if now else "blue"
        x, low, high = LEFT + n * column, LANE * lower / top, LANE * upper / top
        if lower:
            svg.rect(x, y + LANE - low, column - 2, low, colour, rx=0)
        if upper:
            svg.rect(x, y + LANE - low - high, column - 2, high, f"{colour}-soft", rx=0)
            svg.rect(x, y + LANE - low - high, column - 2, high, f"line-{colour}", rx=0)
    svg.line((LEFT, y + LANE), (RIGHT, y + LANE))
    svg.line((LEFT, y + at), (RIGHT, y + at), "line-ink dashed thin")
    svg.text(LEFT - 6, y + at + 4, limit, "end tiny muted")


def _sums(svg: Svg, y: float, frame: Frame) -> None:
    used = sum(len(step.parts) for step in frame.past) / (frame.places * len(frame.past))
    for n, (number, words) in enumerate(
        ((frame.computed, "computed"), (frame.found, "found"), (frame.lost, "lost"), (f"{used:.0%}", "of places"))
    ):
        svg.text(RIGHT + 36, y + 19 * n, [(str(number), "bold")], "end small")
        svg.text(RIGHT + 42, y + 19 * n, words, "tiny muted")


def _key(svg: Svg) -> None:
    x = 0.0
    for ground, outline, words, width in (
        ("blue", "", "a token", 72),
        ("blue-soft", "line-blue", "so many of a prompt", 138),
        ("orange", "", "this step", 78),
        ("", "line-muted dashed", "has blocks, computes nothing", 188),
    ):
        if ground:
            svg.rect(x, 4, 12, 12, ground, rx=2)
        if outline:
            svg.rect(x, 4, 12, 12, outline, rx=2)
        svg.text(x + 17, 14, words, "small")
        x += width
    svg.rect(x, 9, 12, 2, "muted", rx=0)
    svg.text(x + 17, 14, "waits", "small")
    svg.text(x + 64, 15, "×", "bold purple")
    svg.text(x + 77, 14, "preempted", "small")
    svg.rect(x + 152, 3, 3, 14, "green", rx=1)
    svg.text(x + 160, 14, "comes in with a hit", "small")
