"""Where the exponential leaves what a number format can hold: to infinity above, to zero below."""

import math
from collections.abc import Sequence

import torch

from llmsys.viz.kit.numbers import superscript
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

FORMATS = {torch.float16: "orange", torch.bfloat16: "purple", torch.float32: "blue"}


def exp_overflow(dtypes: Sequence[torch.dtype] = (torch.float16, torch.bfloat16, torch.float32)) -> Picture:
    """e^x against what each floating-point format can hold: a box from its smallest number to its largest.

    On a logarithmic axis e^x is a straight line, and each box's corner is where it leaves: at ln(largest) to infinity,
    at ln(smallest) to zero. Subtracting the row's maximum first leaves only x ≤ 0, where nothing overflows.
    """
    import matplotlib.pyplot as plt

    ends = {dtype: _ends(dtype) for dtype in dtypes}
    with chart_style():
        figure, axes = plt.subplots(figsize=(7.6, 4.3))
        low, high = -118, 112
        axes.set(xlim=(low, high), ylim=(low / math.log(10), high / math.log(10)))
        axes.axvspan(low, 0, color=LIGHT["green-soft"], lw=0)
        axes.text(low + 31, 33, "after subtracting the maximum:\nx − m ≤ 0, and e^(x − m) ≤ 1",
                  color=LIGHT["green"], va="top", fontweight="bold")  # fmt: skip
        axes.axline((0, 0), slope=1 / math.log(10), color=LIGHT["ink"], lw=1.5)
        for dtype, (first, last) in ends.items():
            colour = LIGHT[FORMATS.get(dtype, "muted")]
            bottom, top = (x / math.log(10) for x in (first, last))
            axes.fill_between([first, last], bottom, top, facecolor="none", edgecolor=colour, lw=1.8)
            axes.plot([last], [top], "o", color=colour, ms=7)
        for last, names in _by_end(ends).items():
            colour = LIGHT[FORMATS.get(names[-1], "muted")]
            said = f"{' and '.join(map(_name, names))}:\ne^x is inf from x = {last}"
            x, top = float(last), float(last) / math.log(10)
            if x < high / 2:  # beside the corner, or above it
                axes.text(x + 12, top - 3, said, color=colour, va="top", fontweight="bold")
            else:
                axes.text(
                    x, top + 1.5, said.replace("\n", " "), color=colour, ha="right", va="bottom", fontweight="bold"
                )
        for dtype, (first, _) in ends.items():
            said = f"{_name(dtype)}: 0 below {first:.2f}".replace("-", "−")
            axes.text(
                3, first / math.log(10) - 0.8, said, color=LIGHT[FORMATS.get(dtype, "muted")], va="top", fontsize=8.5
            )
        axes.plot([20, 20], [20 / math.log(10), 25], color=LIGHT["muted"], lw=1, ls=(0, (4, 3)))
        axes.text(20, 26, "a logit of 20", color=LIGHT["muted"], ha="center")
        axes.set_xlabel("x")
        axes.set_ylabel("e^x, logarithmic")
        axes.set_yticks(range(-40, 41, 20), [f"10{superscript(p)}" if p else "1" for p in range(-40, 41, 20)])
        limits = "; ".join(f"{_name(d)} holds e^x from x = {a:.2f} to x = {b:.2f}" for d, (a, b) in ends.items())
    return chart(figure, alt=(
        "On a logarithmic axis e^x is a straight line, and each number format is a box that it leaves at a corner: "
        f"{limits}. Above that e^x is infinite, below it is zero. After subtracting the maximum, only x ≤ 0 is left, "
        "and e^x ≤ 1."
    ))  # fmt: skip


def _ends(dtype: torch.dtype) -> tuple[float, float]:
    """The smallest and the largest x for which e^x is neither 0 nor infinite in a format.

    Below half of the smallest number e^x is rounded to 0.
    """
    info = torch.finfo(dtype)
    return math.log(info.smallest_normal * info.eps / 2), math.log(info.max)


def _by_end(ends: dict[torch.dtype, tuple[float, float]]) -> dict[str, list[torch.dtype]]:
    """Formats that overflow at the same x, to two decimals, share a label: that x as text -> the formats."""
    found: dict[str, list[torch.dtype]] = {}
    for dtype, (_, last) in ends.items():
        found.setdefault(f"{last:.2f}", []).append(dtype)
    return found


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
