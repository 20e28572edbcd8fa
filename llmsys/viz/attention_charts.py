"""Charts of attention: how time and memory grow with the tokens, and how bytes fall with the tile."""

from collections.abc import Mapping, Sequence
from math import log10

from llmsys.viz.picture import Picture, chart
from llmsys.viz.style import LIGHT, chart_style
from llmsys.viz.svg import superscript

SERIES = {  # name in the records -> colour, marker
    "naive": ("orange", "s"),
    "tiled": ("purple", "^"),
    "flash": ("green", "D"),
    "sdpa": ("blue", "o"),
}


def attention_growth(record, *, here: Sequence[dict] | None = None) -> Picture:
    """Time and extra memory of each stage against the number of tokens, on logarithmic axes.

    record    a `llmsys.bench.Record` of the attention benchmark (its "growth" rows are drawn), or such rows
    here      rows of this machine, drawn as a third panel: time
    """
    import matplotlib.pyplot as plt

    rows = [row for row in getattr(record, "rows", record) if row["sweep"] == "growth"]
    device = getattr(record, "device", "recorded")
    lines, local = _lines(rows), _lines(here or [])
    if not lines:
        raise ValueError("record has no growth rows: take recorded('attention')")
    with chart_style():
        figure, panels = plt.subplots(1, 3 if local else 2, figsize=(8.2 if local else 7.6, 3.6))
        for axes, key, scale, label in ((panels[0], "ms", 1, "ms"), (panels[1], "extra_bytes", 2**20, "MiB")):
            for name, line in lines.items():
                colour, marker = SERIES.get(name, ("ink", "."))
                points = [(T, row[key] / scale) for T, row in line.items() if row[key]]  # no zero on this axis
                if points:
                    axes.plot(*zip(*points, strict=True), marker=marker, color=LIGHT[colour], label=name)
            axes.set(xscale="log", yscale="log", xlabel="tokens")
            axes.set_ylabel(label)
            axes.grid(axis="y")
            _ticks(axes, {T for line in lines.values() for T in line})
        panels[0].set_title(f"{device.removeprefix('NVIDIA ')}: time")
        panels[1].set_title("extra memory")
        if none := [name for name, line in lines.items() if not any(row["extra_bytes"] for row in line.values())]:
            panels[1].text(0.03, 0.02, f"{', '.join(none)}: none", transform=panels[1].transAxes, color=LIGHT["muted"])
        panels[0].legend(frameon=False, loc="upper left")
        if local:
            for name, line in local.items():
                colour, marker = SERIES.get(name, ("ink", "."))
                panels[2].plot(list(line), [row["ms"] for row in line.values()], marker=marker, color=LIGHT[colour])
            panels[2].set(xscale="log", yscale="log", xlabel="tokens", ylabel="ms")
            panels[2].set_title("here: time")
            panels[2].grid(axis="y")
            _ticks(panels[2], {T for line in local.values() for T in line})
    said = "; ".join(
        f"{name} from {first['ms']:.3g} ms at {min(line):,} tokens to {last['ms']:,.3g} ms at {max(line):,}"
        for name, line in lines.items()
        for first, last in [(line[min(line)], line[max(line)])]
    )
    return chart(figure, alt=f"Time and extra memory of attention against tokens on {device}: {said}.")


def bytes_by_tile(
    predicted: Mapping[int, int], measured: Mapping[int, int], *, naive: int | None = None, once: int | None = None
) -> Picture:
    """HBM bytes against the rows of a query tile: a line predicted, points measured, and the two ends of the scale.

    naive    bytes of naive attention, drawn as a line above
    once     bytes if every tensor crosses once, drawn as a line below
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
        _powers(axes)
        top = max(filter(None, [naive, *predicted.values()]))
        axes.set_ylim(0.6 * min(filter(None, [once, *predicted.values()])), 1.7 * top)
        axes.grid(axis="y")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(0.02, 0.4))
    pairs = ", ".join(f"{block} rows {size:,} bytes" for block, size in predicted.items())
    return chart(figure, alt=f"Bytes through HBM by the rows of a query tile, predicted and measured: {pairs}.")


def _lines(rows: Sequence[dict]) -> dict[str, dict[int, dict]]:
    names = [*SERIES, *dict.fromkeys(row["name"] for row in rows if row["name"] not in SERIES)]
    found = {
        name: {row["T"]: row for row in sorted(rows, key=lambda r: r["T"]) if row["name"] == name} for name in names
    }
    return {name: line for name, line in found.items() if line}


def _ticks(axes, tokens: set[int]) -> None:
    chosen = sorted(tokens)[::2]
    axes.set_xticks(chosen, [f"{T >> 10}k" if T >= 1024 else str(T) for T in chosen])
    _powers(axes)


def _powers(axes) -> None:
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}" if 1 <= y < 1e5 else f"10{superscript(round(log10(y)))}")
    axes.minorticks_off()
