"""Two GPUs, divided or not, as measured: requests within the limits over the rate, the simulator beside the run, and
what the link carried beside what it carries alone. Rows of `llmsys.bench disaggregate`, whichever a record has."""

from collections.abc import Sequence

from llmsys.bench.disaggregate import share_within
from llmsys.serving.goodput import Limits
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

LOOKS = {"colocated": ("purple", "D"), "divided": ("blue", "o")}


def two_gpus(record, results: Sequence, limits: Limits) -> Picture:
    """Left: for each design the requests a second and GPU that met both limits, measured and simulated. Right: GB/s
    that caches had while they were moved, and that messages have where nothing else is done.

    record     a `llmsys.bench.Record` of the disaggregate benchmark
    results    what a simulator says of each of its `served` rows, in their order: with an `attainment`

    Raises ValueError where there are no such rows, or not one result for each.
    """
    import matplotlib.pyplot as plt

    served = [row for row in record.rows if row["sweep"] == "served"]
    if not served or len(served) != len(results):
        raise ValueError(f"results must be one for each of {len(served)} served rows of record, got {len(results)}")
    said = []
    with chart_style():
        figure, (rates, link) = plt.subplots(1, 2, figsize=(7.6, 3.1), width_ratios=(1.25, 1))
        for name, (colour, marker) in LOOKS.items():
            points = sorted(
                (row["rate"], *(share * row["rate"] / row["gpus"] for share in (share_within(row, limits), of(limits))))
                for row, of in ((row, each.attainment) for row, each in zip(served, results, strict=True))
                if row["name"] == name
            )
            if not points:
                continue
            at, measured, simulated = zip(*points, strict=True)
            rates.plot(at, measured, marker=marker, color=LIGHT[colour], label=name)
            rates.plot(at, simulated, marker=marker, mfc="none", ls=":", color=LIGHT[colour], label="simulated")
            said.append(f"{name} " + ", ".join(
                f"{one:.1f} at {rate:g} a second (simulated {other:.1f})" for rate, one, other in points
            ))  # fmt: skip
        rates.set_title(f"within {1e3 * limits.ttft:g} and {1e3 * limits.tpot:g} ms, a second and GPU")
        rates.set(xlabel="requests a second, both GPUs", ylim=(0, None))
        rates.set_xticks(sorted({row["rate"] for row in served}))
        rates.grid(axis="y")
        rates.legend(frameon=False, fontsize=8)
        said.append(_bars(link, record, served))
    return chart(figure, alt=f"Two of {record.device}. Within the limits, a second and GPU: {'; '.join(said)}.")


def _bars(axes, record, served: list[dict]) -> str:
    """Of the link. What they say, in words."""
    alone = [(f"alone, {_bytes(row['bytes'])}", row["gbps"]) for row in record.rows if row["sweep"] == "link"]
    moved = [(f"caches, {row['rate']:g} a second", row["moved_gbps"]) for row in served if row["moved_bytes"]]
    bars = [*(("green", *each) for each in sorted(alone, key=lambda each: each[1])),
            *(("blue", *each) for each in sorted(moved, key=lambda each: each[0], reverse=True))]  # fmt: skip
    for y, (colour, _, gbps) in enumerate(bars):
        axes.barh(y, gbps, height=0.6, color=LIGHT[colour])
        axes.annotate(f"{gbps:.3g}", (gbps, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(range(len(bars)), [name for _, name, _ in bars], fontsize=8)
    axes.set(title="GB/s from GPU to GPU", xlim=(0, 1.25 * max((each[2] for each in bars), default=1.0)))
    axes.tick_params(axis="y", length=0)
    return "GB/s from GPU to GPU: " + ", ".join(f"{name} {gbps:.3g}" for _, name, gbps in bars)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"
