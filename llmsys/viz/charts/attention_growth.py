"""How the time and the extra memory of each attention stage grow with the tokens."""

from collections.abc import Mapping, Sequence
from math import log10

from llmsys.viz.charts.kernels import SERIES, label_powers
from llmsys.viz.kit.numbers import seconds_in_words, size_in_words
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style


def attention_growth(record, *, here: Sequence[dict] | None = None, names: Sequence[str] | None = None) -> Picture:
    """Time and extra memory of each stage against the number of tokens, on logarithmic axes.

    record    a `llmsys.bench.Record` of the attention benchmark (its "growth" rows are drawn), or such rows. Where it
              says that a stage ran out of memory, a cross stands after the stage's last point
    here      rows of this machine, drawn as a third panel: time
    names     the stages to draw, by default all

    Raises ValueError where there are no such rows.
    """
    import matplotlib.pyplot as plt

    rows = [row for row in getattr(record, "rows", record) if row["sweep"] == "growth"]
    device = getattr(record, "device", "recorded")
    lines, local = _lines(rows, names), _lines(here or [], names)
    if not lines:
        wanted = f" of {', '.join(names)}" if names else ""
        raise ValueError(f"record has no growth rows{wanted}: take recorded('attention')")
    full = _out_of_memory(getattr(record, "missing", {}), lines)
    with chart_style():
        figure, panels = plt.subplots(1, 3 if local else 2, figsize=(8.2 if local else 7.6, 3.6))
        for axes, key in ((panels[0], "ms"), (panels[1], "extra_bytes")):
            for name, line in lines.items():
                points = [(T, row[key]) for T, row in line.items() if row[key]]  # no zero on this axis
                if points:
                    _line(axes, name, *zip(*points, strict=True))
                    if name in full:
                        _cross(axes, name, points, full[name], say=key == "extra_bytes")
            _tokens(axes, {T for line in lines.values() for T in line})
        if full:  # room for the words above the cross
            low, top = panels[1].get_ylim()
            panels[1].set_ylim(low, top * (top / low) ** 0.08)
        panels[0].set(title=f"{device.removeprefix('NVIDIA ')}: time", ylabel="ms")
        panels[1].set_title("extra memory")
        _sizes(panels[1])
        if none := [name for name, line in lines.items() if not any(row["extra_bytes"] for row in line.values())]:
            panels[1].text(0.03, 0.02, f"{', '.join(none)}: none", transform=panels[1].transAxes, color=LIGHT["muted"])
        panels[0].legend(frameon=False, loc="upper left")
        if local:
            for name, line in local.items():
                _line(panels[2], name, list(line), [row["ms"] for row in line.values()])
            panels[2].set(title="here: time", ylabel="ms")
            _tokens(panels[2], {T for line in local.values() for T in line})
    said = "; ".join(
        f"{name} from {seconds_in_words(first['ms'] / 1e3)} at {min(line):,} tokens"
        f" to {seconds_in_words(last['ms'] / 1e3)} at {max(line):,}"
        + (f", and out of memory at {full[name]:,}" if name in full else "")
        for name, line in lines.items()
        for first, last in [(line[min(line)], line[max(line)])]
    )
    return chart(figure, alt=f"Time and extra memory of attention against tokens on {device}: {said}.")


def _lines(rows: Sequence[dict], names: Sequence[str] | None) -> dict[str, dict[int, dict]]:
    names = names or [*SERIES, *dict.fromkeys(row["name"] for row in rows if row["name"] not in SERIES)]
    found = {
        name: {row["T"]: row for row in sorted(rows, key=lambda r: r["T"]) if row["name"] == name} for name in names
    }
    return {name: line for name, line in found.items() if line}


def _out_of_memory(missing: Mapping[str, str], lines: Mapping[str, Mapping[int, dict]]) -> dict[str, int]:
    """The fewest tokens at which each stage did not fit, as the benchmark notes it: "naive at (B, H, T, D)"."""
    found: dict[str, int] = {}
    for what, why in missing.items():
        name, _, shape = what.partition(" at ")
        if name in lines and "out of memory" in why:
            T = int(shape.strip("()").split(",")[2])
            found[name] = min(T, found.get(name, T))
    return found


def _line(axes, name: str, tokens: Sequence[int], values: Sequence[float]) -> None:
    colour, marker = SERIES.get(name, ("ink", "."))
    axes.plot(tokens, values, marker=marker, color=LIGHT[colour], label=name)


def _cross(axes, name: str, points: Sequence[tuple[int, float]], T: int, *, say: bool) -> None:
    """A dashed line from the last point to a cross at the tokens that did not fit, as steep as the last two points.

    With `say`, "out of memory" is written beside the cross.
    """
    colour = LIGHT[SERIES.get(name, ("ink", "."))[0]]
    (before, low), (last, high) = points[-2:] if len(points) > 1 else (points[0], points[0])
    slope = log10(high / low) / log10(last / before) if last > before else 2
    end = high * (T / last) ** slope
    axes.plot([last, T], [high, end], color=colour, lw=1.2, ls=(0, (3, 2)))
    axes.plot([T], [end], marker="x", ms=8, mew=2, color=colour)
    if say:  # above the line, which rises
        axes.annotate(
            "out of memory", (T, end), (4, 9), textcoords="offset points", color=colour, ha="right", fontsize=8
        )


def _tokens(axes, tokens: set[int]) -> None:
    """Make both axes logarithmic, and label every other number of tokens."""
    axes.set(xscale="log", yscale="log", xlabel="tokens")
    axes.grid(axis="y")
    chosen = sorted(tokens)[::2]
    axes.set_xticks(chosen, [f"{T >> 10}k" if T >= 1024 else str(T) for T in chosen])
    label_powers(axes)
    low, high = axes.get_ylim()
    if high / low < 100:  # hardly a power of ten in sight
        ticks = [d * 10.0**p for p in range(-6, 9) for d in (1, 2, 5) if low <= d * 10.0**p <= high]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()


def _sizes(axes) -> None:
    low, high = axes.get_ylim()
    ticks = [2**p for p in range(0, 60, 5) if low <= 2**p <= high]
    axes.set_yticks(ticks, [size_in_words(tick) for tick in ticks])
    axes.minorticks_off()
