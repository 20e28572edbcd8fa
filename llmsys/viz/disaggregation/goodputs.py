"""Placements by their goodput per GPU, with what they reached of both limits."""

from collections.abc import Sequence

from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Placed
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style


def goodputs(found: Sequence[tuple[str, Placed]], limits: Limits) -> Picture:
    """Bars of goodput, and dots of TTFT and TPOT at that rate as shares of their limits.

    found      (a name, what it reached) each

    Raises ValueError where there are none, or a limit is infinite.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    if not found:
        raise ValueError("found must have at least one placement")
    if not max(limits.ttft, limits.tpot) < float("inf"):
        raise ValueError("limits must have a TTFT and a TPOT, to be shown as shares of them")
    with chart_style():
        figure, (rate, used) = plt.subplots(1, 2, figsize=(7.6, 1.1 + 0.36 * len(found)), sharey=True)
        places = range(len(found) - 1, -1, -1)
        for y, (_, each) in zip(places, found, strict=True):
            rate.barh(y, each.goodput, height=0.6, color=LIGHT["purple" if each.placement.colocated else "blue"])
            rate.annotate(f"{each.goodput:.1f}", (each.goodput, y), (4, 0), textcoords="offset points", va="center",
                          fontsize=8.5)  # fmt: skip
        shares = [(each.ttft / limits.ttft, (each.tpot or 0) / limits.tpot) for _, each in found]
        used.plot([each[0] for each in shares], places, "o", color=LIGHT["orange"], ls="", label="TTFT")
        used.plot([each[1] for each in shares], places, "D", color=LIGHT["green"], ls="", label="TPOT")
        used.axvline(1, color=LIGHT["ink"], lw=1)
        used.set(title="share of its limit, at that rate", xlim=(0, max(1.2, *(max(each) * 1.1 for each in shares))))
        used.xaxis.set_major_locator(MaxNLocator(5))
        used.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        used.legend(frameon=False, fontsize=8)
        rate.set_yticks(places, [name for name, _ in found])
        rate.set(title="requests a second and GPU", xlim=(0, 1.15 * max(max(each.goodput for _, each in found), 0.1)))
        for axes in (rate, used):
            axes.tick_params(axis="y", length=0)
    said = "; ".join(
        f"{name}: {each.goodput:.1f} a second and GPU, at {ttft:.0%} of the limit to TTFT and {tpot:.0%} of TPOT's"
        for (name, each), (ttft, tpot) in zip(found, shares, strict=True)
    )
    return chart(figure, alt=f"Goodput of placements. {said}.")
