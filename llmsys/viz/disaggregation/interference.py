"""How long a token takes, and how long the longest one, while prompts of others come: lines over prompts a second."""

from collections.abc import Mapping, Sequence

from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

LOOKS = (("orange", "s"), ("purple", "D"), ("green", "^"), ("blue", "o"))


def interference(rates: Sequence[float], found: Mapping[str, Sequence[tuple[float, float]]]) -> Picture:
    """Two charts beside each other: time per output token, and the longest wait for one.

    rates      prompts a second
    found      by a design's name, for each rate (seconds per token, seconds of the longest wait)

    Raises ValueError where a design has not one pair for each rate.
    """
    import matplotlib.pyplot as plt

    for name, pairs in found.items():
        if len(pairs) != len(rates):
            raise ValueError(f"found[{name!r}] must have a pair for each of {len(rates)} rates, got {len(pairs)}")
    with chart_style():
        figure, (mean, longest) = plt.subplots(1, 2, figsize=(7.6, 3.1))
        for (colour, marker), (name, pairs) in zip(LOOKS, found.items(), strict=False):
            for axes, at in ((mean, 0), (longest, 1)):
                axes.plot(rates, [1e3 * pair[at] for pair in pairs], marker=marker, color=LIGHT[colour], label=name)
        mean.set(title="time per token, ms", xlabel="prompts a second", ylim=(0, None))
        longest.set(title="longest wait for one, ms", xlabel="prompts a second", ylim=(0, None))
        for axes in (mean, longest):
            axes.grid(axis="y")
        figure.legend(*mean.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    said = "; ".join(
        f"{name}: {1e3 * pairs[0][0]:.1f} ms a token at {rates[0]:g} prompts a second, {1e3 * pairs[-1][0]:.1f} at "
        f"{rates[-1]:g}, where the longest wait is {1e3 * pairs[-1][1]:.0f} ms"
        for name, pairs in found.items()
    )
    return chart(figure, alt=f"What answers wait while prompts come. {said}.")
