"""How fast each softmax moves its bytes, beside a plain copy."""

from collections.abc import Sequence

import torch

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

FORMATS = {torch.float16: "orange", torch.bfloat16: "purple", torch.float32: "blue"}
SERIES = {  # name in the records -> colour, marker
    "copy": ("muted", ""),
    "torch.compile": ("purple", "s"),
    "torch.softmax": ("orange", "^"),
    "llmsys (Triton)": ("blue", "o"),
}
BARS = {"three passes": "orange", "two passes": "blue"}


def bandwidth(recorded, measured_here: Sequence[dict] | None = None, *, dtype: str = "float32") -> Picture:
    """GB/s of each softmax against row length, beside a plain copy's; and two passes against three on very long rows.

    recorded         a `llmsys.bench.Record`, or a list of dicts with "name", "rows", "cols", "dtype" and "gbps"
    measured_here    such a list from this machine, drawn beside it on a scale of its own

    Raises ValueError where there is no row of that dtype.
    """
    import matplotlib.pyplot as plt

    rows, device = getattr(recorded, "rows", recorded), getattr(recorded, "device", "recorded")
    lines, bars = _lines(rows, dtype), _bars(rows, dtype)
    if not lines:
        known = ", ".join(sorted({row["dtype"] for row in rows})) or "none"
        raise ValueError(f"no recorded row has dtype {dtype!r}; there are: {known}")
    here = _lines(measured_here or [], dtype)
    widths = [3.4] + [1.5] * bool(bars) + [2.4] * bool(here)
    with chart_style():
        figure, panels = plt.subplots(1, len(widths), figsize=(7.8, 3.7), width_ratios=widths, squeeze=False)
        panels = list(panels[0])
        _draw_lines(panels[0], lines)
        panels[0].set_title(f"{device}, {dtype}")
        panels[0].set_ylabel("GB/s, read once and written once")
        if bars:
            columns = next(iter(bars.values()))["cols"]
            _draw_bars(panels[1], bars, lines)
            panels[1].set_title(f"rows of {columns:,}")
        if here:
            _draw_lines(panels[-1], here)
            panels[-1].set_title("here")
    return chart(figure, alt=_in_words(lines, bars, here, device, dtype))


def _draw_lines(axes, lines: dict[str, dict[int, dict]]) -> None:
    top = max(row["gbps"] for line in lines.values() for row in line.values())
    axes.set(xscale="log", ylim=(0, 1.16 * top), xlabel="columns in a row")
    axes.grid(axis="y")
    for name, line in lines.items():
        colour, marker = SERIES.get(name, ("ink", "."))
        columns, gbps = list(line), [row["gbps"] for row in line.values()]
        style = {"ls": (0, (4, 2)), "lw": 1.5} if name == "copy" else {}
        axes.plot(columns, gbps, marker=marker, color=LIGHT[colour], label=name, **style)
    columns = sorted({columns for line in lines.values() for columns in line})
    ticks = [c for c in columns if c & (c - 1) == 0][::2] or columns
    axes.set_xticks(ticks, [_short(c) for c in ticks])
    axes.minorticks_off()
    axes.margins(x=0.03)
    axes.legend(loc="lower left", frameon=False, ncols=1, handlelength=2.4, labelspacing=0.3)


def _draw_bars(axes, bars: dict[str, dict], lines: dict[str, dict[int, dict]]) -> None:
    top = max(row["gbps"] for line in lines.values() for row in line.values())
    for i, (name, row) in enumerate(bars.items()):
        axes.bar(i, row["gbps"], width=0.66, color=LIGHT[BARS[name]])
        axes.text(i, row["gbps"] + 0.015 * top, f"{row['gbps']:,.0f}", ha="center", va="bottom", fontweight="bold")
    if len(bars) == 2:
        three, two = (bars[name]["gbps"] for name in BARS)
        axes.text(
            0.5, 0.9 * top, f"{two / three:.2f} ×", ha="center", fontsize=13, fontweight="bold", color=LIGHT["green"]
        )
    axes.set(ylim=(0, 1.16 * top), xlim=(-0.6, len(bars) - 0.4))
    axes.set_xticks(range(len(bars)), [name.replace(" ", "\n") for name in bars])
    axes.tick_params(axis="x", length=0, labelcolor=LIGHT["ink"])
    axes.grid(axis="y")
    axes.set_yticklabels([])


def _lines(rows: Sequence[dict], dtype: str) -> dict[str, dict[int, dict]]:
    """The rows drawn as lines: name -> columns -> row, those of `SERIES` first. Rows drawn as bars are left out."""
    long_rows = {row["cols"] for row in rows if row["name"] in BARS}
    names = [*SERIES, *dict.fromkeys(row["name"] for row in rows if row["name"] not in SERIES)]
    kept = [row for row in rows if row["dtype"] == dtype and row["name"] not in BARS and row["cols"] not in long_rows]
    found = {
        name: {row["cols"]: row for row in sorted(kept, key=lambda r: r["cols"]) if row["name"] == name}
        for name in names
    }
    return {name: line for name, line in found.items() if line}


def _bars(rows: Sequence[dict], dtype: str) -> dict[str, dict]:
    found = {row["name"]: row for row in rows if row["dtype"] == dtype and row["name"] in BARS}
    return {name: found[name] for name in BARS if name in found}


def _in_words(lines, bars, here, device: str, dtype: str) -> str:
    def span(line: dict[int, dict]) -> str:
        values = [row["gbps"] for row in line.values()]
        return f"{min(values):,.0f} to {max(values):,.0f}"

    columns = sorted({c for line in lines.values() for c in line})
    said = [f"{name} {span(line)} GB/s" for name, line in lines.items()]
    text = f"Softmax on {device}, {dtype}, rows of {columns[0]:,} to {columns[-1]:,} columns: {', '.join(said)}."
    if len(bars) == 2:
        three, two = (bars[name]["gbps"] for name in BARS)
        length = next(iter(bars.values()))["cols"]
        text += (
            f" On rows of {length:,} columns, two passes reach {two:,.0f} GB/s and three passes {three:,.0f}: "
            f"{number(two / three)} times as fast."
        )
    if here:
        text += " Measured here: " + ", ".join(f"{name} {span(line)} GB/s" for name, line in here.items()) + "."
    return text


def _short(columns: int) -> str:
    return f"{columns >> 20}M" if columns >= 1 << 20 else f"{columns >> 10}k" if columns >= 1 << 10 else str(columns)
