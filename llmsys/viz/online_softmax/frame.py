"""One frame of the online softmax's stepper: the row (left), ℓ as a stack (right), y, the equations, the passes.

All that is drawn is in the step: only places are computed here.
"""

from dataclasses import dataclass

from llmsys.viz.kit.numbers import number, subscript
from llmsys.viz.kit.svg import Svg

LEFT, RIGHT, ROW_TOP, ROW_BOTTOM = 40, 470, 34, 176
STACK, STACK_WIDTH, OLD_STACK, OLD_WIDTH = 640, 62, 556, 42


@dataclass(frozen=True)
class Step:
    """The state after `read` elements of the row x have been read, and how it came about."""

    x: tuple[float, ...]
    read: int
    m_before: float
    l_before: float
    m: float
    l: float
    factor: float  # e^(m_before − m), by which the sum was scaled down
    terms_before: tuple[float, ...]  # e^(x_j − m_before) of the elements read before
    terms: tuple[float, ...]  # e^(x_j − m) of the elements read
    rescalings: int
    clock: int  # elements read in all, over all passes
    passes: tuple[float, float]  # that the online and the safe softmax make
    y: tuple[float, ...] = ()  # the weights, once the second pass has written them
    top: float = 1.0  # the largest ℓ of all steps, to draw them on one scale

    @property
    def shrinks(self) -> bool:
        """Whether this step scales down what has been summed."""
        return self.m > self.m_before and self.l_before > 0


def draw(step: Step) -> Svg:
    """The picture of a step."""
    svg = Svg(760, 450, alt="")
    _row(svg, step)
    _stack(svg, step)
    _weights(svg, step)
    _equations(svg, step)
    _pass_tracks(svg, step)
    return svg


def _row(svg: Svg, step: Step) -> None:
    finite = [each for each in step.x if each > float("-inf")]
    high, low = max(*finite, 0.0), min(*finite, 0.0)
    scale = (ROW_BOTTOM - ROW_TOP) / ((high - low) or 1.0)
    zero = ROW_TOP + high * scale
    slot = (RIGHT - LEFT) / len(step.x)
    width = min(slot * 0.66, 34.0)
    svg.text(LEFT, 14, "the row x, as it arrives", "bold")
    svg.line((LEFT - 4, zero), (RIGHT, zero))
    for j, value in enumerate(step.x):
        x, now, seen = LEFT + (j + 0.5) * slot, j == step.read - 1 and not step.y, j < step.read
        colour = "orange" if now else "blue" if seen else "line-muted dashed nofill"
        if value > float("-inf"):
            y = min(zero - value * scale, zero)
            svg.rect(x - width / 2, y, width, max(abs(value) * scale, 1.0), colour, rx=1.5)
        ink = "orange bold" if now else "" if seen else "muted"
        svg.text(x, ROW_BOTTOM + 17, number(value), f"middle small {ink}")
        svg.text(x, ROW_BOTTOM + 32, f"x{subscript(j + 1)}", f"middle small {ink}")
    if step.read:
        x = LEFT + (step.read - 0.5) * slot
        if not step.y:
            svg.path([(x, ROW_BOTTOM + 36), (x - 6, ROW_BOTTOM + 45), (x + 6, ROW_BOTTOM + 45)], "orange", close=True)
        edge = LEFT + step.read * slot
        if step.m > float("-inf"):
            y = zero - step.m * scale
            if step.shrinks:
                old = zero - step.m_before * scale
                svg.line((LEFT - 4, old), (edge, old), "line-purple dashed")
                svg.arrow((LEFT + 6, old), (LEFT + 6, y + 1), "purple")
            svg.line((LEFT - 4, y), (edge, y), "line-purple thick")
            svg.text(LEFT - 8, y + 4, "m", "end bold purple")


def _stack(svg: Svg, step: Step) -> None:
    base, scale = ROW_BOTTOM + 14, (ROW_BOTTOM + 14 - ROW_TOP) / step.top
    svg.text(OLD_STACK - 30, 14, ["ℓ, a term for each element: ", (number(step.l), "green")], "bold")
    unit = next(u for u in (0.25, 0.5, 1, 2, 4) if step.top / u <= 5)
    for i in range(int(step.top / unit) + 1):
        y = base - i * unit * scale
        svg.line((OLD_STACK - 8, y), (STACK + STACK_WIDTH + 6, y))
        svg.text(STACK + STACK_WIDTH + 12, y + 4, number(i * unit), "small muted")
    shrunk = step.l_before * step.factor
    if step.shrinks:
        old, new = base - step.l_before * scale, base - shrunk * scale
        inner = OLD_STACK + OLD_WIDTH
        svg.path([(inner, old), (STACK, new), (STACK, base), (inner, base)], "orange-soft", close=True)
        height = 0.0
        for term in step.terms_before:
            height += term
            svg.rect(OLD_STACK, base - height * scale, OLD_WIDTH, term * scale, "blue-soft edged", rx=0)
        svg.text(OLD_STACK + OLD_WIDTH / 2, base + 14, "before", "middle small muted")
        svg.text(STACK - 5, max(old - 6, ROW_TOP - 4), f"× {number(step.factor)}", "end orange bold")
    moves = step.shrinks and step.factor > 1e-3  # what shrinks to less than that, vanishes at once
    height, now = 0.0, len(step.terms) - 1 if step.clock == step.read else -1
    for j, term in enumerate(step.terms):
        y, h = base - (height + term) * scale, term * scale
        if j == now:  # rides down on the stack that it has made shrink
            start = f"--dy:{(shrunk - step.l_before) * scale:.1f}px"
        else:  # the whole stack shrinks around its foot, a block alone would around its own
            start = (
                f"--dy:{height * scale * (1 - 1 / step.factor):.1f}px;--scale:{1 / step.factor:.3f}" if moves else ""
            )
        classes = ("orange" if j == now else "blue") + (" settle" if moves else "") + (" edged" if h > 3 else "")
        svg.rect(STACK, y, STACK_WIDTH, h, classes, rx=0, style=start if moves else "")
        if h >= 12:
            svg.text(STACK + STACK_WIDTH / 2, y + h / 2 + 4, f"x{subscript(j + 1)}", "middle small on")
        height += term
    svg.text(STACK + STACK_WIDTH / 2, base + 14, "ℓ", "middle bold")
    times = "once" if step.rescalings == 1 else f"{step.rescalings} times"
    svg.text(
        OLD_STACK - 30, base + 36, ["rescaled ", (times if step.rescalings else "never", "bold orange"), " so far"]
    )


def _weights(svg: Svg, step: Step) -> None:
    top, bottom = 234, 262
    svg.text(LEFT - 8, bottom - 2, "y", "end bold green")
    svg.line((LEFT - 4, bottom), (RIGHT, bottom))
    if not step.y:
        svg.text(
            (LEFT + RIGHT) / 2, bottom - 8, "not yet: y = e^{x − m} / ℓ needs the final m and ℓ", "middle small muted"
        )
        return
    slot = (RIGHT - LEFT) / len(step.y)
    for j, weight in enumerate(step.y):
        height = (bottom - top) * weight / max(step.y)
        svg.rect(LEFT + (j + 0.5) * slot - slot * 0.33, bottom - height, slot * 0.66, height, "green", rx=1)
    svg.text(OLD_STACK - 30, bottom - 8, ["sum of y: ", (number(sum(step.y), 6), "bold green")])


def _equations(svg: Svg, step: Step) -> None:
    svg.rect(0, 276, 760, 62, "panel", rx=6)
    m, before, l = number(step.m), number(step.m_before), number(step.l)
    if step.y:
        svg.text(14, 301, ["m = ", (m, "purple"), f"  and  ℓ = {l}  are final"], "big")
        largest = max(range(len(step.y)), key=step.y.__getitem__)
        x, y = number(step.x[largest]), number(step.y[largest])
        name = f"y{subscript(largest + 1)}"
        svg.text(14, 326, [f"{name} = e^{{{x} − {m}}} / {l} = ", (y, "green"), "  is the largest weight"], "big")
        return
    if step.read == 0:
        svg.text(14, 301, ["m = ", ("−∞", "purple"), "  the largest of nothing"], "big")
        svg.text(14, 326, "ℓ = 0  the sum of nothing", "big")
        return
    x = number(step.x[step.read - 1])
    note = "  it rises" if step.m > step.m_before else "  it stays"
    svg.text(
        14, 301, [f"m = max({_in(before)}, ", (_in(x), "orange"), ") = ", (m, "purple bold"), (note, "muted")], "big"
    )
    if step.m == float("-inf"):
        svg.text(14, 326, "ℓ = 0 + 0 = 0", "big")
        return
    old, factor, term = number(step.l_before), number(step.factor), number(step.terms[-1])
    svg.text(
        14, 326,
        [
            f"ℓ = {old} · e^{{{_in(before)} − {_in(m)}}} + ", (f"e^{{{_in(x)} − {_in(m)}}}", "orange"),
            f" = {old} · ", (factor, "bold" if step.shrinks else ""), " + ", (term, "orange"), " = ", (l, "green bold"),
        ],
        "big",
    )  # fmt: skip


def _in(text: str) -> str:
    """A number inside an expression: negative ones in parentheses."""
    return f"({text})" if text.startswith("−") and text != "−∞" else text


def _pass_tracks(svg: Svg, step: Step) -> None:
    n, left, width = len(step.x), 130, 616
    unit = width / (max(step.passes) * n)
    rows = (("online softmax", step.passes[0], ("m and ℓ", "y")), ("safe softmax", step.passes[1], ("m", "ℓ", "y")))
    svg.text(0, 362, ["reads of memory: ", (f"{step.clock}", "bold")])
    for i, (name, passes, found) in enumerate(rows):
        y = 372 + 38 * i
        done = step.clock >= passes * n
        svg.text(0, y + 19, [name, ("  ✓", "green bold") if done else ""])
        for k in range(round(passes)):
            x, span = left + k * n * unit, n * unit
            filled = min(max(step.clock - k * n, 0), n) * unit
            svg.rect(x + 1, y, span - 2, 28, "panel", rx=4)
            if filled:
                svg.rect(x + 1, y, max(filled - 2, 1), 28, "green-soft" if done else "blue-soft", rx=4)
            what = f"pass {k + 1}: {found[k]}" if len(found) == round(passes) else f"pass {k + 1}"
            svg.text(x + span / 2, y + 18, what, "middle small")
    x = left + step.clock * unit
    for tip, foot in ((371, 363), (439, 447)):
        svg.path([(x, tip), (x - 5, foot), (x + 5, foot)], "orange", close=True)
