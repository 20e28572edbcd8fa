"""Goodput per GPU of more and more engines, by who is asked: one chart for each trace."""

from llmsys.bench.record import Record
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

LOOKS = (("orange", "s", ":"), ("purple", "D", "--"), ("green", "^", "-"), ("blue", "o", "-"))


def cluster(record: Record) -> Picture:
    """Lines over the number of engines, one for each route.

    record      of `llmsys.bench.routing`

    Raises ValueError where it has no rows, or more routes than there are looks for.
    """
    import matplotlib.pyplot as plt

    traces = list(dict.fromkeys(row["sweep"] for row in record.rows))
    routes = list(dict.fromkeys((row["name"], row.get("weight")) for row in record.rows))
    if not traces or len(routes) > len(LOOKS):
        raise ValueError(f"record must have rows of 1 to {len(LOOKS)} routes, got {len(routes)}")
    said = []
    with chart_style():
        figure, all_axes = plt.subplots(1, len(traces), figsize=(7.6, 3.4), squeeze=False)
        for axes, trace in zip(all_axes[0], traces, strict=True):
            for (colour, marker, line), route in zip(LOOKS, routes, strict=False):
                rows = [row for row in record.rows if row["sweep"] == trace and _route(row) == route]
                rows.sort(key=lambda row: row["engines"])
                x, y = [row["engines"] for row in rows], [row["goodput"] for row in rows]
                axes.plot(x, y, line, marker=marker, color=LIGHT[colour], label=route_name(*route))
                said.append(
                    f"{trace}, {route_name(*route)}: {y[0]:.2f} requests a second and GPU of {x[0]} engine"
                    f"{'s' if x[0] > 1 else ''}, {y[-1]:.2f} of {x[-1]}, where {rows[-1]['hit_share']:.0%} of the "
                    "prompts' tokens are in the cache"
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(x, [str(n) for n in x])
            axes.minorticks_off()
            axes.set(title=trace, xlabel="engines, one GPU each", ylim=(0, None))
            axes.grid(axis="y")
        all_axes[0][0].set_ylabel("requests a second and GPU")
        handles = all_axes[0][0].get_legend_handles_labels()
        figure.legend(*handles, frameon=False, loc="outside lower center", ncols=len(routes))
    return chart(figure, alt=f"Goodput per GPU by who is asked, {record.device}. {'; '.join(said)}.")


def route_name(name: str, weight: float | None) -> str:
    return name if weight is None else f"{name}, w = {weight:g}"


def _route(row: dict) -> tuple[str, float | None]:
    return row["name"], row.get("weight")
