"""The chart of lesson 06 on eight bits: what a number loses, and what an outlier costs those that share its scale.

Both panels are measured in the call, with `llmsys.precision.fp8` or a function of the learner's own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.precision.fp8 import LARGEST, ROWS, dequantize_blocks, quantize_blocks
from llmsys.viz.kit.numbers import number, superscript
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

NORMAL = 2.0**-6
"""The smallest code with all bits of its mantissa."""
SIZES = tuple(10.0 ** (n / 2) for n in range(13))
"""Sizes of the outlier, as multiples of the other numbers' standard deviation: 1 to 10⁶."""


def fp8_error(
    quantize: Callable[[Tensor, int], tuple[Tensor, Tensor]] = quantize_blocks,
    *,
    T: int = 4096,
    D: int = 128,
    rows: int = ROWS,
    seed: int = 0,
) -> Picture:
    """What e4m3 loses of a number, by its size, and of a tensor with one outlier, by the outlier's.

    On the left, the error of a single number as a part of it, against its size as a part of the largest that has the
    same scale. On the right, the root mean square error of all numbers but the outlier, as a part of theirs, for normal
    numbers (T, D) with one outlier: with one scale for the tensor, and with one for each `rows` rows.

    quantize    has the contract of `llmsys.precision.fp8.quantize_blocks`
    """
    import matplotlib.pyplot as plt

    whole, blocks = (outlier_errors(quantize, T, D, each, seed) for each in (T, rows))
    with chart_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.8, 3.9))
        _draw_numbers(left, quantize)
        _draw_outliers(right, whole, blocks, rows)
    least, most = (f"{100 * value:.2g} %" for value in (whole[SIZES[0]], whole[SIZES[-1]]))
    kept = f"{100 * blocks[SIZES[-1]]:.2g} %"
    return chart(figure, alt=(
        "Left: the error of a number in e4m3, as a part of it, is at most 1/16 down to 2⁻⁶ / 448 of the largest number "
        "with the same scale; below that it grows, up to the whole number, which becomes zero. Right: the error of all "
        f"other numbers of a tensor of {T:,} × {D} with one outlier. With one scale for the tensor it is {least} as "
        f"long as the outlier is small and {most} when it is {number(SIZES[-1])} times their standard deviation; with "
        f"a scale for each {rows} rows, {kept}."
    ))  # fmt: skip


def outlier_errors(quantize: Callable, T: int, D: int, rows: int, seed: int = 0) -> dict[float, float]:
    """What an outlier costs the other numbers, for each of `SIZES`.

    A tensor (T, D) of normal numbers has one outlier of that size, and a scale for each `rows` rows. The cost is the
    root mean square error of the other numbers, divided by their root mean square.
    """
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(seed))
    row, column = T // 3, D // 3
    others = torch.ones_like(x, dtype=torch.bool)
    others[row, column] = False
    found = {}
    for size in SIZES:
        x[row, column] = size
        error = (dequantize_blocks(*quantize(x, rows), rows) - x)[others]
        found[size] = (error.square().mean() / x[others].square().mean()).sqrt().item()
    return found


def number_errors(quantize: Callable = quantize_blocks, bins: int = 208) -> tuple[Tensor, Tensor]:
    """What a number loses, by its size: the middles of bins between 2⁻²⁶ and 1, and the largest error in each bin.

    Errors are divided by the number. The largest of all numbers, which sets the scale, is 1.
    """
    x = torch.logspace(-26, 0, 32 * bins, base=2.0)
    stored = dequantize_blocks(*quantize(x[:, None], len(x)), len(x))[:, 0]
    error = (stored - x).abs() / x
    return x.view(bins, 32).log2().mean(1).exp2(), error.view(bins, 32).amax(1)


def _draw_numbers(axes, quantize: Callable) -> None:
    x, error = number_errors(quantize)
    limit = NORMAL / LARGEST
    axes.fill_between(x, error, 1e-4, facecolor=LIGHT["blue-soft"], edgecolor=LIGHT["blue"], lw=1)
    bound = torch.maximum(torch.full_like(x, 1 / 16), 1 / LARGEST / 1024 / x).clamp(max=1)
    axes.plot(x, bound, color=LIGHT["orange"], lw=1.8)
    axes.axvline(limit, color=LIGHT["muted"], lw=1, ls=(0, (4, 3)))
    axes.text(1.3 * limit, 1.05 / 16, "at most 1/16", color=LIGHT["ink"], va="bottom", fontweight="bold", fontsize=8.5)
    axes.text(1.3 * limit, 1.05, "2⁻⁶ / 448", color=LIGHT["muted"], va="bottom", fontsize=8.5)
    axes.text(1.3 * 2.0**-26, 1.12, "stored as 0", color=LIGHT["ink"], va="bottom", fontweight="bold", fontsize=8.5)
    axes.set(xscale="log", yscale="log", ylim=(1e-2, 2.4), xlim=(2.0**-26, 1))
    axes.set_xticks([10.0**n for n in (-7, -5, -3, -1)], [f"10{superscript(n)}" for n in (-7, -5, -3, -1)])
    axes.set_yticks([1e-2, 1e-1, 1], ["1 %", "10 %", "100 %"])
    axes.minorticks_off()
    axes.set_title("What a number loses")
    axes.set_xlabel("number / largest with the same scale")
    axes.set_ylabel("error / number")


def _draw_outliers(axes, whole: dict[float, float], blocks: dict[float, float], rows: int) -> None:
    for errors, colour, marker, name in (
        (whole, "orange", "o", "one scale a tensor"),
        (blocks, "blue", "s", f"one scale for {rows} rows"),
    ):
        axes.plot(list(errors), list(errors.values()), color=LIGHT[colour], marker=marker, label=name)
        size, last = list(errors.items())[-1]
        axes.text(1.6 * size, last, f"{100 * last:.0f} %", color=LIGHT[colour], va="center", fontweight="bold")
    axes.set(xscale="log", yscale="log", ylim=(1e-2, 4), xlim=(0.6, 40 * SIZES[-1]))
    axes.set_xticks([10.0**n for n in (0, 2, 4, 6)], ["1", "100", f"10{superscript(4)}", f"10{superscript(6)}"])
    axes.set_yticks([1e-2, 1e-1, 1], ["1 %", "10 %", "100 %"])
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.legend(loc="upper left", frameon=False, labelcolor="linecolor")
    axes.set_title("What an outlier costs the others")
    axes.set_xlabel("outlier / standard deviation")
    axes.set_ylabel("rms error of the others")
