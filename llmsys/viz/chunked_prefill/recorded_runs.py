"""Runs that were recorded on a GPU, beside what the simulator says of the same requests.

Whatever the record holds is drawn: a policy has a line through its rates, and where there is one rate, a point.
"""

from collections.abc import Callable

from llmsys.viz.chunked_prefill.curves import look_of
from llmsys.viz.kit.numbers import number, seconds_in_words
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import chart_style

WHAT = (("ttft", "to the first token, ms"), ("tpot", "a token after it, ms"))
SHARES = (50, 90)


def recorded_runs(record, simulated: Callable[[dict], object] | None = None) -> Picture:
    """P90 of TTFT and of TPOT, of each policy at each rate that was recorded.

    record       a `llmsys.bench.Record` of the goodput benchmark, or its rows
    simulated    gives the simulator's `Result` for a row; its points are hollow. None: nothing is beside the runs

    Raises ValueError where the record has no runs.
    """
    import matplotlib.pyplot as plt

    rows = sorted(served(record), key=lambda row: (row["name"], row["rate"]))
    if not rows:
        raise ValueError("record has no served runs: take recorded('goodput', 'H200')")
    names = list(dict.fromkeys(row["name"] for row in rows))
    results = [simulated(row) if simulated else None for row in rows]
    with chart_style():
        figure, both = plt.subplots(1, 2, figsize=(7.6, 3.1))
        for axes, (what, title) in zip(both, WHAT, strict=True):
            for name in names:
                mine = [(row, result) for row, result in zip(rows, results, strict=True) if row["name"] == name]
                style = look_of(name)
                rates = [row["rate"] for row, _ in mine]
                axes.plot(rates, [row[f"{what}_p90_ms"] for row, _ in mine], label=f"{name}, recorded", **style)
                if simulated:
                    values = [1e3 * getattr(result, what)(90) for _, result in mine]
                    axes.plot(rates, values, label=f"{name}, simulated", ls=":", mfc="none", ms=9, mew=1.5, **style)
            low, high = min(row["rate"] for row in rows), max(row["rate"] for row in rows)
            axes.set(title=f"{title}, 90%", xlabel="requests a second", xlim=(0.8 * low, 1.2 * high))
            axes.set_xticks(sorted({row["rate"] for row in rows}))
            axes.set_ylim(0, 1.25 * axes.get_ylim()[1])
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.grid(axis="y")
        handles, labels = both[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=2)
    said = []
    for row, result in zip(rows, results, strict=True):
        words = f"{row['name']} at {number(row['rate'])} a second"
        for what, title in WHAT:
            words += f", {title.removesuffix(', ms')} {seconds_in_words(row[f'{what}_p90_ms'] / 1e3)}"
            if result is not None:
                words += f" (simulated {seconds_in_words(getattr(result, what)(90))})"
        said.append(words)
    device = getattr(record, "device", "a GPU").removeprefix("NVIDIA ")
    return chart(figure, alt=f"What 90% of the requests do not exceed, recorded on {device}: {'; '.join(said)}.")


def served(record) -> list[dict]:
    """The rows of a record that are runs."""
    return [row for row in getattr(record, "rows", record) if row["sweep"] == "served"]
