"""How the loss of training runs goes down, and how far runs that should agree are apart."""

import itertools
from collections.abc import Mapping, Sequence

from llmsys.viz.kit.numbers import number, superscript
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import HUES, LIGHT, chart_style

DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
SMALLEST = 1e-9
"""Differences below are drawn here: a logarithmic axis has no place for 0."""


def loss_curves(
    runs: Mapping[str, Sequence[float]], *, held_out: Mapping[str, Mapping[int, float]] | None = None
) -> Picture:
    """The loss of each step of each run, and a running mean where there are many; beside it, with more than one run,
    how far each is from the first, step by step.

    runs        name -> loss of steps 1, 2, …, like `Run.losses` of `llmsys.training`
    held_out    name -> loss on held-out text, by how many steps had been taken, like `Run.held_out`

    Where lines would hide each other the first is the widest, and each further one is narrower and dashed otherwise.
    Raises ValueError where there is no run, or one without a loss.
    """
    import matplotlib.pyplot as plt

    runs = {name: [float(loss) for loss in losses] for name, losses in runs.items()}
    if not runs or not all(runs.values()):
        empty = next((repr(name) for name, losses in runs.items() if not losses), "no run")
        raise ValueError(f"runs must have at least one run, and each at least one loss; got {empty} without any")
    looks = dict(zip(runs, zip(itertools.cycle(HUES), itertools.cycle(DASHES), strict=False), strict=False))
    with chart_style():
        figure, panels = plt.subplots(
            1, 1 + (len(runs) > 1), figsize=(7.8, 3.7), width_ratios=[1.7, 1][: 1 + (len(runs) > 1)], squeeze=False
        )
        _draw_losses(panels[0][0], runs, held_out or {}, looks)
        if len(runs) > 1:
            _draw_differences(panels[0][1], runs, looks)
    return chart(figure, alt=_in_words(runs, held_out or {}))


def running_mean(losses: Sequence[float]) -> list[float]:
    """For each step the mean of the losses up to it, of so many as are a twentieth of all steps."""
    last = max(len(losses) // 20, 1)
    sums = [0.0, *itertools.accumulate(losses)]
    return [(sums[i] - sums[max(i - last, 0)]) / min(i, last) for i in range(1, len(sums))]


def differences(runs: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """For each run but the first, how far its loss is from the first run's, step by step, as far as both have steps."""
    first, *others = runs
    return {name: [abs(loss - other) for loss, other in zip(runs[name], runs[first], strict=False)] for name in others}


def _draw_losses(axes, runs, held_out, looks) -> None:
    widths = itertools.chain((4.5, 2.5), itertools.repeat(1.5)) if len(runs) > 1 else itertools.repeat(2)
    for (name, losses), width in zip(runs.items(), widths, strict=False):
        (hue, dashes), numbers = looks[name], range(1, len(losses) + 1)
        mean = running_mean(losses)
        if mean != list(losses):
            axes.plot(numbers, losses, color=LIGHT[hue], lw=0.6, alpha=0.5)
        style = {"marker": "o"} if len(losses) == 1 else {"ls": dashes}
        axes.plot(numbers, mean, color=LIGHT[hue], lw=width, label=name, **style)
        if apart := held_out.get(name):
            axes.plot(list(apart), list(apart.values()), "D", ms=5, mfc=LIGHT["surface"], color=LIGHT[hue],
                      label=f"{name}, held out")  # fmt: skip
    axes.grid(axis="y")
    axes.margins(x=0.02)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="step", ylabel="loss, nats a token")
    axes.set_title("Loss")
    axes.legend(facecolor=LIGHT["surface"], edgecolor="none", framealpha=1)


def _draw_differences(axes, runs, looks) -> None:
    for name, apart in differences(runs).items():
        hue, dashes = looks[name]
        style = {"marker": "o"} if len(apart) == 1 else {"ls": dashes}
        axes.plot(range(1, len(apart) + 1), [max(each, SMALLEST) for each in apart], color=LIGHT[hue], lw=1.3, **style)
    axes.set(yscale="log", ylim=(SMALLEST / 2, 10), xlabel="step")
    powers = (-8, -6, -4, -2, 0)
    axes.set_yticks(
        [SMALLEST, *(10.0**n for n in powers)], ["0", *(f"10{superscript(n)}" if n else "1" for n in powers)]
    )
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.margins(x=0.03)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(f"Distance from {next(iter(runs))}")


def _in_words(runs, held_out) -> str:
    def ends(losses: Sequence[float]) -> str:
        return f"{number(losses[0], 4)} to {number(running_mean(losses)[-1], 4)} in {len(losses):,} steps"

    said = [f"{name} from {ends(losses)}" for name, losses in runs.items()]
    text = f"Training loss: {'; '.join(said)}."
    for name, apart in held_out.items():
        first, last = min(apart), max(apart)
        text += f" {name}, on held-out text: {number(apart[first], 4)} at first, {number(apart[last], 4)} at the end."
    if len(runs) > 1:
        first = next(iter(runs))
        most = [f"{name} is never further than {number(max(apart))}" for name, apart in differences(runs).items()]
        text += f" From {first}, {'; '.join(most)}."
    return text
