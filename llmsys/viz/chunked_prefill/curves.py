"""The curves of lesson 10: who is within the limits at which rate, and what a budget costs and gives."""

from collections.abc import Mapping, Sequence

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

COLOURS = {"stall-free": "blue", "orca": "orange", "alternating": "purple", "static": "green"}
MARKERS = {"stall-free": "o", "orca": "s", "alternating": "D", "static": "^"}
"""Of each policy, in all charts; one of the reader's own is in ink, with a plus."""


def look_of(policy: str) -> dict[str, str]:
    """The colour and the marker of a policy."""
    return {"color": LIGHT[COLOURS.get(policy, "ink")], "marker": MARKERS.get(policy, "P")}


def attained(panels: Mapping[str, Mapping[str, Mapping[float, float]]], *, share: float = 0.9) -> Picture:
    """The share of requests within the limits, by rate; a panel for each set of limits, a line for each policy.

    panels    title -> policy -> {requests a second: share from 0 to 1}
    """
    import matplotlib.pyplot as plt

    if not panels or not all(all(lines.values()) and lines for lines in panels.values()):
        raise ValueError("panels must have a panel at least, and a line with points in each")
    said = []
    with chart_style():
        figure, all_axes = plt.subplots(1, len(panels), figsize=(7.6, 3.1), sharey=True, squeeze=False)
        for axes, (title, lines) in zip(all_axes[0], panels.items(), strict=True):
            for name, points in lines.items():
                axes.plot(list(points), [100 * each for each in points.values()], label=name, **look_of(name))
                said.append(f"{title}, {name}: " + ", ".join(f"{y:.0%} at {number(x)}" for x, y in points.items()))
            axes.axhline(100 * share, color=LIGHT["ink"], lw=1, ls=(0, (4, 3)))
            axes.set(title=title, xlabel="requests a second", ylim=(-3, 105))
            axes.grid(axis="y")
        all_axes[0][0].yaxis.set_major_formatter(lambda y, _: f"{y:.0f}%")
        all_axes[0][0].set_ylabel("within the limits")
        handles, labels = all_axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    return chart(figure, alt=f"The share of requests within the limits; dashed, {share:.0%}. {'; '.join(said)}.")


def stalls(rows: Sequence[tuple[int, float, float]]) -> Picture:
    """What a budget does to one prompt: the longest step that whoever decodes waits for, and when the prompt is read.

    rows    (budget, seconds of the longest step, seconds of all steps), budgets growing
    """
    import matplotlib.pyplot as plt

    if not rows:
        raise ValueError("rows must have a budget at least")
    budgets = [budget for budget, *_ in rows]
    with chart_style():
        figure, axes = plt.subplots(figsize=(7.6, 3.0))
        axes.plot(budgets, [1e3 * all_ for *_, all_ in rows], "o-", color=LIGHT["blue"])
        axes.plot(budgets, [1e3 * longest for _, longest, _ in rows], "s-", color=LIGHT["orange"])
        for n, words, colour in ((2, "the prompt is read", "blue"), (1, "the longest stall", "orange")):
            axes.annotate(words, (budgets[0], 1e3 * rows[0][n]), (0, 9), textcoords="offset points",
                          color=LIGHT[colour])  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set(title="ms, one prompt beside those that decode", xlabel="tokens of a step",
                 ylim=(0, 1.18e3 * max(all_ for *_, all_ in rows)))  # fmt: skip
        axes.set_xticks(budgets, [f"{each:,}" for each in budgets])
        axes.minorticks_off()
        axes.grid(axis="y")
    said = "; ".join(f"{b:,} tokens: stall {1e3 * longest:.0f} ms, read after {1e3 * a:.0f}" for b, longest, a in rows)
    return chart(figure, alt=f"A prompt in pieces, by the tokens of a step: {said}.")


def budgets(rates: Mapping[int, float]) -> Picture:
    """The highest rate within the limits, by budget; 0 is drawn where none is.

    rates    {tokens of a step: requests a second}
    """
    import matplotlib.pyplot as plt

    if not rates:
        raise ValueError("rates must have a budget at least")
    best = max(rates, key=rates.get)
    with chart_style():
        figure, axes = plt.subplots(figsize=(7.6, 2.6))
        places = range(len(rates))
        colours = [LIGHT["green" if budget == best else "blue"] for budget in rates]
        axes.bar(places, list(rates.values()), width=0.6, color=colours)
        for x, rate in zip(places, rates.values(), strict=True):
            axes.annotate(f"{rate:.1f}" if rate else "none", (x, rate), (0, 3), textcoords="offset points", ha="center")
        axes.set_xticks(places, [f"{each:,}" for each in rates])
        axes.set(title="highest rate within the limits, requests a second", xlabel="tokens of a step",
                 ylim=(0, 1.2 * max(max(rates.values()), 1e-9)))  # fmt: skip
        axes.tick_params(axis="x", length=0)
    said = ", ".join(f"{budget:,}: {number(rate)}" for budget, rate in rates.items())
    alt = f"The highest rate within the limits, in requests a second, by the tokens of a step: {said}."
    return chart(figure, alt=f"{alt} The best is {best:,}.")
