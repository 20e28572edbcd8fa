"""Policies on the same requests: how many requests compute at each moment, and who waits longest for a next token.

    policies({"static": steps, "orca": …}, seconds=lambda step: …, places=32)

On the left the whole service, on the right the part of it in which somebody who was answering waited longest. How long
a step takes is handed over as a function: a roofline's answer, say, or what was measured.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from llmsys.viz.continuous_batching.timeline import Step
from llmsys.viz.kit.numbers import number, seconds_in_words
from llmsys.viz.kit.picture import Picture, chart
from llmsys.viz.kit.style import LIGHT, chart_style

BINS = 240
"""Of the whole service, in which places are averaged."""


@dataclass(frozen=True)
class Wait:
    """Between two tokens of a request, in seconds on a clock that begins with the first step."""

    request: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def longest_wait(steps: Sequence[Step], seconds: Callable[[Step], float]) -> Wait | None:
    """The longest time from a token of a request to its next one. None where nobody has two tokens."""
    return max(waits(steps, seconds), key=lambda wait: wait.seconds, default=None)


def waits(steps: Sequence[Step], seconds: Callable[[Step], float]) -> list[Wait]:
    """The time from each token to the next one of the same request."""
    last: dict[str, float] = {}
    found = []
    for step, now in zip(steps, accumulate(map(seconds, steps)), strict=True):
        for request in step.said:
            if request in last:
                found.append(Wait(request, last[request], now))
            last[request] = now
    return found


def policies(
    timelines: Mapping[str, Sequence[Step]], seconds: Callable[[Step], float], *, places: int, around: float = 0.3
) -> Picture:
    """Places that compute against time, a row for each policy.

    timelines    name -> the steps of its log (`timeline.read`)
    seconds      how long a step takes
    places       requests side by side at most
    around       seconds of the enlarged part

    Raises ValueError where there is nothing to draw.
    """
    import matplotlib.pyplot as plt

    if not timelines or not all(timelines.values()):
        raise ValueError("timelines must have a policy at least, and each a step at least")
    whole = {name: sum(map(seconds, steps)) for name, steps in timelines.items()}
    said = []
    with chart_style():
        figure, panels = plt.subplots(
            len(timelines), 2, figsize=(7.6, 1.55 * len(timelines) + 0.5), squeeze=False, width_ratios=(1.7, 1),
            sharey=True, sharex="col",
        )  # fmt: skip
        for (left, right), (name, steps) in zip(panels, timelines.items(), strict=True):
            wait = longest_wait(steps, seconds)
            _whole(left, steps, seconds, max(whole.values()))
            left.set(title=f"{name}: {len(steps):,} steps, {seconds_in_words(whole[name])}", ylim=(0, 1.12 * places))
            left.set_yticks([0, places])
            _part(right, steps, seconds, wait, around, places)
            longest = "nobody waits" if wait is None else f"the longest wait: {seconds_in_words(wait.seconds)}"
            right.set_title(longest, fontweight="normal")
            said.append(
                f"{name}: {len(steps):,} steps in {seconds_in_words(whole[name])}, the longest wait between two tokens "
                f"{'none' if wait is None else seconds_in_words(wait.seconds)}"
            )
        figure.supylabel("requests that compute", fontsize=9.5)
        panels[-1][0].set(xlabel="seconds", xlim=(0, max(whole.values())))
        panels[-1][1].set(xlabel="ms, around the longest wait", xlim=(0, 1e3 * around))
        handles = [plt.Rectangle((0, 0), 1, 1, color=LIGHT[colour]) for colour in ("blue", "orange")]
        figure.legend(handles, ["only tokens of answers in the step", "a prompt, or a piece of one, in the step"],
                      loc="outside upper left", ncols=2, frameon=False, fontsize=8.5)  # fmt: skip
    return chart(figure, alt=f"Requests that compute at each moment, of {number(places)} places. {'. '.join(said)}.")


def averaged(
    steps: Sequence[Step], seconds: Callable[[Step], float], end: float, bins: int = BINS
) -> tuple[list[float], list[float]]:
    """Requests that compute in each of `bins` equal parts of the time from 0 to `end`, averaged over it: in steps
    without a prompt, and in steps with one."""
    width = end / bins
    found = ([0.0] * bins, [0.0] * bins)
    now = 0.0
    for step in steps:
        then, kind = now + seconds(step), found[step.prompt_tokens > 0]
        for n in range(int(now / width), min(bins, int(then / width) + 1)):
            shared = min(then, (n + 1) * width) - max(now, n * width)
            kind[n] += max(shared, 0.0) * len(step.parts) / width
        now = then
    return found


def _whole(axes, steps: Sequence[Step], seconds: Callable[[Step], float], end: float) -> None:
    decodes, prompts = averaged(steps, seconds, end)
    edges = [end * n / BINS for n in range(BINS + 1)]
    both = [a + b for a, b in zip(decodes, prompts, strict=True)]
    axes.stairs(decodes, edges, fill=True, color=LIGHT["blue"])
    axes.stairs(both, edges, baseline=decodes, fill=True, color=LIGHT["orange"])


def _part(axes, steps, seconds, wait: Wait | None, around: float, places: int) -> None:
    middle = around / 2 if wait is None else (wait.start + wait.end) / 2
    first = max(middle - around / 2, 0.0)
    bars: dict[str, list[tuple[float, int, float]]] = {"blue": [], "orange": []}
    now = 0.0
    for step in steps:
        then = now + seconds(step)
        if then > first and now < first + around:
            left, right = max(now, first) - first, min(then, first + around) - first
            bars["orange" if step.prompt_tokens else "blue"].append((1e3 * left, len(step.parts), 1e3 * (right - left)))
        now = then
    for colour, found in bars.items():
        if found:
            axes.bar(*zip(*found, strict=True), align="edge", color=LIGHT[colour], edgecolor=LIGHT["surface"],
                     linewidth=0.4)  # fmt: skip
    if wait is not None:
        y = 1.05 * places
        ends = [1e3 * (max(wait.start, first) - first), 1e3 * (min(wait.end, first + around) - first)]
        axes.plot(ends, [y, y], color=LIGHT["purple"], lw=2, marker="|", ms=6)
