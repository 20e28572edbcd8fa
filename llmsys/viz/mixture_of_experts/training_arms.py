"""Four ways to train a mixture of experts: what each costs in loss, and how even loads are, over time and at the end.

Rows of `llmsys bench moe_training`, one for each run.
"""

import statistics
from collections.abc import Mapping, Sequence

import torch

from llmsys.moe import load_statistics
from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

LOOKS = {
    "none": ("purple", (0, (7, 2, 1.5, 2)), "o"),
    "sequence": ("green", (0, (5, 2)), "s"),
    "batch": ("orange", (0, (2, 1.5)), "^"),
    "bias": ("blue", "-", "D"),
}
"""Colour, dashes and marker of each arm."""
CALLED = {"none": "nothing", "sequence": "loss by sequence", "batch": "loss by batch", "bias": "bias"}


def training_arms(record) -> Picture:
    """Above: the loss of training, the mean over seeds and from the lowest to the highest of them; and at the end on
    held-out text, a mark for each seed and a line for their mean. Below: the busiest expert's load by the mean, over
    the steps; and loads at the end, from the busiest expert to the idlest.

    record    a `llmsys.bench.Record` of the moe_training benchmark

    Raises ValueError where it has no run of one of the four arms.
    """
    import matplotlib.pyplot as plt

    arms = runs_of(record)
    with chart_style():
        figure, ((training, losses), (over_time, at_the_end)) = plt.subplots(2, 2, figsize=(7.8, 5.4))
        _training(training, arms)
        _losses(losses, arms)
        _over_time(over_time, arms)
        _at_the_end(at_the_end, arms)
        handles = over_time.get_legend_handles_labels()
        figure.legend(*handles, frameon=False, fontsize=8.5, loc="outside upper left", ncols=4)
    return chart(figure, alt=_in_words(record, arms))


def runs_of(record) -> dict[str, list[Mapping]]:
    """The runs of each arm, by its name, in the order of `LOOKS`."""
    rows = list(getattr(record, "rows", record))
    arms = {arm: [row for row in rows if row["name"] == arm] for arm in LOOKS}
    if missing := [arm for arm, found in arms.items() if not found]:
        raise ValueError(f"record must have runs of {', '.join(LOOKS)}, and has none of {missing[0]}: take "
                         "recorded('moe_training')")  # fmt: skip
    return arms


def sorted_loads(runs: Sequence[Mapping]) -> list[float]:
    """Loads at the end by the mean load, the largest first: the mean over layers and seeds of each place."""
    loads = torch.tensor([row["loads"] for row in runs], dtype=torch.float64)  # (seeds, layers, E)
    return (loads / loads.mean(-1, keepdim=True)).sort(-1, descending=True).values.flatten(0, -2).mean(0).tolist()


def busiest_over_time(runs: Sequence[Mapping]) -> tuple[list[int], list[float]]:
    """Steps, and the busiest expert's load by the mean there: the mean over layers and seeds."""
    busiest = torch.tensor([row["busiest"] for row in runs], dtype=torch.float64).mean((0, 2))  # (points,)
    window = runs[0]["window"]
    return [window * (n + 1) for n in range(len(busiest))], busiest.tolist()


def _training(axes, arms) -> None:
    for arm, runs in arms.items():
        colour, dashes, _ = LOOKS[arm]
        losses = list(zip(*(row["losses"] for row in runs), strict=True))
        steps = [runs[0]["window"] * (n + 1) for n in range(len(losses))]
        axes.fill_between(steps, *zip(*((min(each), max(each)) for each in losses), strict=True), color=LIGHT[colour],
                          alpha=0.15, lw=0)  # fmt: skip
        axes.plot(steps, [statistics.fmean(each) for each in losses], ls=dashes, color=LIGHT[colour], lw=1.6)
    axes.set(xlabel="step", ylabel="nats a byte", yscale="log")
    low, high = axes.get_ylim()
    axes.set_yticks(shown := [each for each in (1, 1.25, 1.5, 2, 3, 4, 5) if low < each < high], map(str, shown))
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.set_title("loss in training")


def _losses(axes, arms) -> None:
    for place, (arm, runs) in enumerate(arms.items()):
        colour, _, marker = LOOKS[arm]
        found = [row["loss"] for row in runs]
        axes.plot([place] * len(found), found, marker, color=LIGHT[colour], ms=5, mfc="none", mew=1.5)
        axes.hlines(statistics.fmean(found), place - 0.3, place + 0.3, color=LIGHT[colour], lw=2)
    axes.set_xticks(range(len(arms)), ["none", "seq.", "batch", "bias"], fontsize=8)
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.grid(axis="y")
    axes.set_title("held-out loss, each seed")
    axes.set_ylabel("nats a byte")


def _over_time(axes, arms) -> None:
    for arm, runs in arms.items():
        colour, dashes, _ = LOOKS[arm]
        axes.plot(*busiest_over_time(runs), ls=dashes, color=LIGHT[colour], lw=1.8, label=CALLED[arm])
    axes.axhline(1, color=LIGHT["muted"], lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="step", ylim=(0, None))
    axes.grid(axis="y")
    axes.set_title("busiest expert × mean")


def _at_the_end(axes, arms) -> None:
    for arm, runs in arms.items():
        colour, dashes, _ = LOOKS[arm]
        loads = sorted_loads(runs)
        axes.plot(range(1, len(loads) + 1), loads, ls=dashes, color=LIGHT[colour], lw=1.8)
    axes.axhline(1, color=LIGHT["muted"], lw=1, ls=(0, (4, 3)))
    axes.set(xlabel="experts, the busiest first", ylim=(0, None))
    axes.grid(axis="y")
    axes.set_title("load × mean, at the end")


def _in_words(record, arms) -> str:
    said = []
    for arm, runs in arms.items():
        losses = [row["loss"] for row in runs]
        loads = torch.tensor([row["loads"] for row in runs])
        end = float(load_statistics(loads).busiest.mean())
        spread = f", from {number(min(losses), 4)} to {number(max(losses), 4)} over seeds" if len(losses) > 1 else ""
        said.append(
            f"{CALLED[arm]}: held-out loss {number(statistics.fmean(losses), 4)}{spread}; at the end the busiest "
            f"expert has {number(end)} times the mean"
        )
    first = next(iter(arms.values()))[0]
    return f"{first['model']}, {first['steps']:,} steps, trained in four ways. {'. '.join(said)}."
