"""What the charts of attention share: each kernel's colour and marker, and how a logarithmic axis is labelled."""

from math import log10

from llmsys.viz.kit.numbers import superscript

SERIES = {  # name in the records -> colour, marker
    "naive": ("orange", "s"),
    "tiled": ("purple", "^"),
    "flash": ("green", "D"),
    "hopper": ("green", "*"),
    "sdpa": ("blue", "o"),
    "cuDNN": ("blue", "P"),
    "FA2": ("orange", "v"),
    "FlexAttention": ("purple", "X"),
}


def label_powers(axes) -> None:
    """Label the logarithmic y axis of a chart: "1" to "10,000" in full, and otherwise powers of ten."""
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if 1 <= y < 1e5 else f"10{superscript(round(log10(y)))}")
    axes.minorticks_off()
