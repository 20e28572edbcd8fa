"""The four policies as they were measured: rows of `llmsys bench serving`.

Requests come one after the other, the same at the same moments for each policy. On the left tokens a second of all of
them together; in the middle how long one waits for the first token, on the right from one token to the next.
"""

from llmsys.viz.kit.numbers import number, seconds_in_words
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

FIRST = (("ttft_median_ms", "median", "o"), ("ttft_p99_ms", "99%", "|"))
NEXT = (("wait_median_ms", "median", "o"), ("wait_p99_ms", "99%", "|"), ("wait_longest_ms", "longest", "x"))
"""Of a row: what is drawn of the waits for the first token and for each next one, with its marker."""


def measured_policies(record) -> Picture:
    """Throughput, time to the first token, and time from each token to the next, of each policy.

    record    a `llmsys.bench.Record` of the serving benchmark, or its rows

    Raises ValueError where it has no policies.
    """
    import matplotlib.pyplot as plt

    rows = [row for row in getattr(record, "rows", record) if row["sweep"] == "policies"]
    if not rows:
        raise ValueError("record has no rows of policies: take recorded('serving', 'H200')")
    device = getattr(record, "device", "recorded").removeprefix("NVIDIA ")
    names = [row["name"] for row in rows]
    with chart_style():
        figure, (speed, first, next_) = plt.subplots(1, 3, figsize=(7.6, 1.5 + 0.32 * len(rows)), sharey=True)
        places = range(len(rows) - 1, -1, -1)
        speed.barh(places, [row["tokens_per_s"] for row in rows], height=0.6, color=LIGHT["green"])
        for y, row in zip(places, rows, strict=True):
            speed.text(row["tokens_per_s"], y, f"{row['tokens_per_s']:,.0f} ", va="center", ha="right", fontsize=8.5,
                       color=LIGHT["surface"])  # fmt: skip
        speed.set_yticks(places, names)
        speed.set(title="tokens/s", ylim=(-0.6, len(rows) - 0.4))
        speed.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        _waits(first, places, rows, FIRST, "blue")
        first.set_title("to the first token, ms")
        _waits(next_, places, rows, NEXT, "orange")
        next_.set_title("to each next one, ms")
        for axes in (speed, first, next_):
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
    said = "; ".join(
        f"{row['name']} {row['tokens_per_s']:,.0f} tokens a second, first token after {_time(row, 'ttft_median_ms')} "
        f"(99% within {_time(row, 'ttft_p99_ms')}), next ones after {_time(row, 'wait_median_ms')} "
        f"({_time(row, 'wait_p99_ms')}), the longest wait {_time(row, 'wait_longest_ms')}"
        for row in rows
    )
    one = rows[0]
    head = f"{one['requests']} requests, {number(one['rate'])} a second, to {one['model']} on {device}"
    return chart(figure, alt=f"{head}, by each policy: {said}.")


def _waits(axes, places, rows, marks, colour: str) -> None:
    for y, row in zip(places, rows, strict=True):
        values = [row[key] for key, *_ in marks]
        axes.plot(
            [values[0], values[-1]], [y, y], color=LIGHT[f"{colour}-soft"], lw=5, solid_capstyle="round", zorder=1
        )
        for value, (_, _, marker) in zip(values, marks, strict=True):
            axes.plot([value], [y], marker, color=LIGHT[colour], ms=7 if marker != "|" else 11, mew=2, ls="")
    for _, label, marker in marks:
        axes.plot([], [], marker, color=LIGHT[colour], ms=6, mew=2, ls="", label=label)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 1.3, high * 1.3)
    axes.set_xticks(_ticks(low / 1.3, high * 1.3))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    axes.minorticks_off()
    axes.grid(axis="x")
    axes.legend(
        frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, columnspacing=0.8,
        handletextpad=0.1,
    )  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, not many, and two at least."""
    for digits in ((1,), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)):
        found = [digit * 10.0**power for power in range(-3, 7) for digit in digits]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 2:
            break
    return found


def _time(row: dict, key: str) -> str:
    return seconds_in_words(row[key] / 1e3)
