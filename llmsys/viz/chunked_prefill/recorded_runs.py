"""Runs that were recorded on a GPU, beside what the simulator says of the same requests: who was in time, the waits.

Whatever the record holds is drawn: of several rates, a line for each policy, on a scale of powers of ten where one of
them waits a hundred times as long as another; of a single rate, bars beside each other.
"""

import math
from collections.abc import Callable

from llmsys.serving.goodput import Limits
from llmsys.viz.chunked_prefill.curves import look_of
from llmsys.viz.kit.numbers import number, seconds_in_words
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

WHAT = (
    ("ttft_p90_ms", "to the first token, 90%", lambda result: result.ttft(90)),
    ("tpot_p90_ms", "a token after it, 90%", lambda result: result.tpot(90)),
    ("wait_longest_ms", "longest gap of all", lambda result: longest_gap(result)),
)
"""Of each panel: the record's number, in ms, its title, and the simulator's, in seconds."""


def recorded_runs(
    record, simulated: Callable[[dict], object] | None = None, limits: Limits | None = None
) -> Picture:
    """P90 of TTFT and of TPOT, and the longest gap where it was recorded, of each policy at each rate.

    record       a `llmsys.bench.Record` of the goodput benchmark, or its rows
    simulated    gives the simulator's `Result` for a row; what it says is hollow. None: nothing is beside the runs
    limits       a line across each panel that has one. None: no lines

    Raises ValueError where the record has no runs.
    """
    import matplotlib.pyplot as plt

    limits = limits or Limits()

    rows = sorted(served(record), key=lambda row: (row["name"], row["rate"]))
    if not rows:
        raise ValueError("record has no served runs: take recorded('goodput', 'H200')")
    results = [simulated(row) if simulated else None for row in rows]
    panels = [
        (title, [row[key] for row in rows], [result and 1e3 * says(result) for result in results])
        for key, title, says in WHAT
        if all(key in row for row in rows)
    ]
    one_rate = len({row["rate"] for row in rows}) == 1
    with chart_style():
        figure, all_axes = plt.subplots(1, len(panels), figsize=(7.6, 3.1), squeeze=False)
        for axes, (title, *both) in zip(all_axes[0], panels, strict=True):
            (_bars if one_rate else _lines)(axes, rows, *both)
            axes.set_title(f"{title}, ms")
            wide = max(both[0]) > 100 * min(both[0])
            axes.set_yscale("log" if wide else "linear")
            if not wide:
                axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
            axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
            axes.grid(axis="y")
        for axes, limit in zip(all_axes[0], (limits.ttft, limits.tpot, limits.gap), strict=False):
            if limit < math.inf:
                axes.axhline(1e3 * limit, color=LIGHT["ink"], lw=1, ls="--", label="limit")
        handles, labels = all_axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3)
    said = []
    for n, row in enumerate(rows):
        words = f"{row['name']} at {number(row['rate'])} a second"
        for title, measured, says in panels:
            words += f", {title.removesuffix(', 90%')} {seconds_in_words(measured[n] / 1e3)}"
            if says[n] is not None:
                words += f" (simulated {seconds_in_words(says[n] / 1e3)})"
        said.append(words)
    device = getattr(record, "device", "a GPU").removeprefix("NVIDIA ")
    what = "What 90% of the requests do not exceed" + (", and the longest gap" if len(panels) == len(WHAT) else "")
    return chart(figure, alt=f"{what}, recorded on {device}: {'; '.join(said)}.")


def recorded_goodput(
    record, simulated: Callable[[dict], object] | None = None, *, share: float = 0.9
) -> Picture:
    """The share of the requests that were within the record's limits to TTFT and TPOT, by rate, a line for each policy.

    record       a `llmsys.bench.Record` of the goodput benchmark, or its rows
    simulated    gives the simulator's `Result` for a row; what it says is hollow. None: nothing is beside the runs
    share        a dashed line: where it is crossed is what a service can be sold for

    Raises ValueError where the record has no runs, or says of none who was in time.
    """
    import matplotlib.pyplot as plt

    rows = sorted((row for row in served(record) if "attained" in row), key=lambda row: (row["name"], row["rate"]))
    if not rows:
        raise ValueError("record has no served runs with `attained`: take recorded('goodput', 'H200')")
    limits = Limits(*rows[0]["attained_of"])
    measured = [100 * row["attained"] for row in rows]
    says = [100 * simulated(row).attainment(limits) if simulated else None for row in rows]
    with chart_style():
        figure, axes = plt.subplots(figsize=(7.6, 3.4))
        axes.axhline(100 * share, color=LIGHT["ink"], lw=1, ls=(0, (4, 3)))
        _lines(axes, rows, measured, says)
        axes.set(ylabel="within both limits", ylim=(-3, 105))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:.0f}%")
        axes.grid(axis="y")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    said = []
    for row, was, would in zip(rows, measured, says, strict=True):
        words = f"{row['name']} at {number(row['rate'])} a second, {was:.0f}%"
        said.append(words if would is None else f"{words} (simulated {would:.0f}%)")
    what = f"The share of requests within {1e3 * limits.ttft:.0f} ms to the first token and "
    what += f"{1e3 * limits.tpot:.0f} ms a token"
    device = getattr(record, "device", "a GPU").removeprefix("NVIDIA ")
    return chart(figure, alt=f"{what}, recorded on {device}; dashed, {share:.0%}: {'; '.join(said)}.")


def served(record) -> list[dict]:
    """The rows of a record that are runs."""
    return [row for row in getattr(record, "rows", record) if row["sweep"] == "served"]


def longest_gap(result) -> float:
    """Seconds of the longest gap of all requests. Raises ValueError where the simulator was not asked for gaps."""
    found = [each.longest_gap for each in result.requests if each.longest_gap is not None]
    if not found:
        raise ValueError("simulated must find the requests' gaps, too: simulated(row, times, gaps=True)")
    return max(found)


def _bars(axes, rows: list[dict], measured: list[float], says: list[float | None]) -> None:
    """A single rate: for each policy two bars, and their numbers above them."""
    names = [row["name"] for row in rows]
    wide = 0.36 if says[0] is not None else 0.6
    for n, (name, *both) in enumerate(zip(names, measured, says, strict=True)):
        colour = look_of(name)["color"]
        shown = [each for each in both if each is not None]
        for place, value in enumerate(shown):
            x = n + (wide + 0.04) * (place - (len(shown) - 1) / 2)
            look = {"fc": "none", "ec": colour, "ls": ":"} if place else {"fc": colour, "ec": colour}
            axes.bar(x, value, width=wide, lw=1.5, **look)
            axes.annotate(f"{value:.0f}", (x, value), (0, 3), textcoords="offset points", ha="center", fontsize=8.5)
    axes.bar([0], [0], fc=LIGHT["ink"], ec=LIGHT["ink"], label="recorded")  # for the legend: they have no height
    if says[0] is not None:
        axes.bar([0], [0], fc="none", ec=LIGHT["ink"], ls=":", lw=1.5, label="simulated")
    axes.set(xlabel=f"{rows[0]['rate']:g} requests a second", xlim=(-0.6, len(names) - 0.4))
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", length=0)


def _lines(axes, rows: list[dict], measured: list[float], says: list[float | None]) -> None:
    """Several rates: for each policy a line through its rates, and hollow marks where the simulator sees them."""
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [n for n, row in enumerate(rows) if row["name"] == name]
        rates, style = [rows[n]["rate"] for n in mine], look_of(name)
        axes.plot(rates, [measured[n] for n in mine], label=f"{name}, recorded", **style)
        if says[0] is not None:
            axes.plot(rates, [says[n] for n in mine], **style | dict(ls="none", mfc="none", ms=10, mew=1.2))
    if says[0] is not None:
        axes.plot([], [], "o", mfc="none", mec=LIGHT["ink"], ms=10, mew=1.2, label="simulated")
    rates = sorted({row["rate"] for row in rows})
    axes.set(xlabel="requests a second", xlim=(0, 1.08 * rates[-1]))
    axes.set_xticks(rates if len(rates) < 5 else [rate for rate in rates if rate >= rates[-1] / 6])
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
