"""How the bytes that tiled attention moves fall with the size of its query tile."""

from collections.abc import Mapping

from llmsys.viz.charts.kernels import label_powers
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style


def bytes_by_tile(
    predicted: Mapping[int, int], measured: Mapping[int, int], *, naive: int | None = None, once: int | None = None
) -> Picture:
    """HBM bytes against the rows of a query tile: a line predicted, points measured.

    predicted, measured    rows of the tile -> bytes
    naive                  bytes of naive attention, drawn as a line above
    once                   bytes if every tensor crosses once, drawn as a line below
    """
    import matplotlib.pyplot as plt

    with chart_style():
        figure, axes = plt.subplots(figsize=(7.2, 3.4))
        axes.plot(list(predicted), list(predicted.values()), color=LIGHT["blue"], label="predicted")
        axes.plot(list(measured), list(measured.values()), "o", color=LIGHT["orange"], label="measured")
        for value, name in ((naive, "naive attention"), (once, "every tensor once")):
            if value:
                axes.axhline(value, color=LIGHT["muted"], lw=1.2, ls=(0, (4, 3)))
                axes.text(min(predicted), value / 1.06, name, color=LIGHT["muted"], va="top")
        axes.set(xscale="log", yscale="log", xlabel="rows of a query tile", ylabel="bytes through HBM")
        axes.set_xticks(list(predicted), [f"{n}" for n in predicted])
        label_powers(axes)
        top = max(filter(None, [naive, *predicted.values()]))
        axes.set_ylim(0.6 * min(filter(None, [once, *predicted.values()])), 1.7 * top)
        axes.grid(axis="y")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.4))
    pairs = ", ".join(f"{block} rows {size:,} bytes" for block, size in predicted.items())
    return chart(figure, alt=f"Bytes through HBM by the rows of a query tile, predicted and measured: {pairs}.")
