"""Goodput per GPU of more and more engines, and how much of the prompts they find in their caches, by who is asked: a
column for each trace."""

from llmsys.bench.record import Record
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

LOOKS = (("orange", "s", ":"), ("purple", "D", "--"), ("green", "^", "-"), ("blue", "o", "-"))


def cluster(record: Record) -> Picture:
    """Lines over the number of engines, one for each route: above requests a second and GPU, below the share of the
    prompts' tokens that was in a cache. Both rows have one scale for all traces.

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
        figure, grid = plt.subplots(
            2, len(traces), figsize=(7.6, 5.2), height_ratios=(1.4, 1), sharex=True, sharey="row", squeeze=False
        )
        for (upper, lower), trace in zip(grid.T, traces, strict=True):
            for (colour, marker, line), route in zip(LOOKS, routes, strict=False):
                rows = [row for row in record.rows if row["sweep"] == trace and _route(row) == route]
                rows.sort(key=lambda row: row["engines"])
                x, y, hits = ([row[key] for row in rows] for key in ("engines", "goodput", "hit_share"))
                look = dict(marker=marker, ls=line, color=LIGHT[colour])
                upper.plot(x, y, label=route_name(*route), **look)
                lower.plot(x, [100 * share for share in hits], **look)
                said.append(
                    f"{trace}, {route_name(*route)}: {y[0]:.2f} requests a second and GPU of {x[0]} engine"
                    f"{'s' if x[0] > 1 else ''}, {y[-1]:.2f} of {x[-1]}, where {hits[-1]:.0%} of the "
                    "prompts' tokens are in the cache"
                )
            for axes in (upper, lower):
                axes.set_xscale("log", base=2)
                axes.set_xticks(x, [str(n) for n in x])
                axes.minorticks_off()
                axes.grid(axis="y")
            upper.set_title(f"{trace}, simulated")
            lower.set_xlabel("engines, one GPU each")
        for first in grid[:, 0]:  # of a row, which has one scale; once all of it is drawn, for a limit ends autoscaling
            first.set_ylim(0, None)
        grid[0][0].set_ylabel("requests a second and GPU")
        grid[1][0].set_ylabel("tokens hit, %")
        handles = grid[0][0].get_legend_handles_labels()
        figure.legend(*handles, frameon=False, loc="outside lower center", ncols=len(routes))
    return chart(figure, alt=f"Goodput per GPU by who is asked, {record.device}. {'; '.join(said)}.")


def route_name(name: str, weight: float | None) -> str:
    """In the lesson's words: with a weight it is the cost (5)."""
    said = {"random": "at random", "fewest-tokens": "by load alone", "prefix-aware": "by (5)"}.get(name, name)
    return said if weight is None else f"{said}, w = {weight:g}"


def _route(row: dict) -> tuple[str, float | None]:
    return row["name"], row.get("weight")
