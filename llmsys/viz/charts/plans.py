"""Plans by their goodput per GPU."""

from collections.abc import Sequence

from llmsys.serving.goodput import Limits
from llmsys.serving.planning import Planned
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

MOST = 14
"""Plans that are shown."""


def plans(found: Sequence[Planned], limits: Limits) -> Picture:
    """A bar for each plan, the best first: filled as far as it takes requests, outlined as far as its bound says.

    found      as `llmsys.serving.planning.plan` returns them; the first MOST are drawn

    Raises ValueError where there are none.
    """
    import matplotlib.pyplot as plt

    if not found:
        raise ValueError("found must have at least one plan")
    shown = list(found)[:MOST]
    with chart_style():
        figure, axes = plt.subplots(figsize=(7.6, 1.2 + 0.34 * len(shown)))
        for y, each in zip(range(len(shown), 0, -1), shown, strict=True):
            bound, reached = each.bound / each.candidate.gpus, each.goodput or 0.0
            axes.barh(y, bound, height=0.62, facecolor="none", edgecolor=LIGHT["rule"], lw=1, ls="--")
            axes.barh(y, reached, height=0.62, color=LIGHT["blue" if each.candidate.divided else "purple"])
            note = f"{reached:.3g}" if each.rate is not None else f"at most {bound:.3g}"
            axes.annotate(note, (max(bound, reached), y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        names = [f"{each.candidate}{' *' if each.modelled else ''}" for each in shown]
        axes.set_yticks(range(len(shown), 0, -1), names)
        most = max(max(each.bound, each.rate or 0.0) / each.candidate.gpus for each in shown)
        axes.set_xlim(0, 1.2 * (most or 1.0))
        axes.set_xlabel("requests a second and GPU; dashed: what either kind takes alone")
        title = f"within TTFT {limits.ttft:g} s and TPOT {1e3 * limits.tpot:g} ms"
        modelled = any(each.modelled for each in shown)
        axes.set_title(title + ("; * modelled, not measured" if modelled else ""), fontsize=10)
        axes.tick_params(axis="y", length=0)
    return chart(figure, alt=f"Goodput of plans for {shown[0].candidate.gpus} GPUs. {'; '.join(map(str, shown))}.")
