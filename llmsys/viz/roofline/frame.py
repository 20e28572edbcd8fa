"""One frame of the roofline explorer: the roofline (left), the step's time by operation (right), its sum (below).

All that is drawn is in the scene: only places are computed here.
"""

from dataclasses import dataclass

from llmsys.hardware.devices import DeviceSpec
from llmsys.models.shapes import ModelShape
from llmsys.viz.kit.numbers import number, seconds_in_words
from llmsys.viz.kit.svg import Svg
from llmsys.viz.roofline.axes import BOUNDS, WAITS, Axes, Dot
from llmsys.viz.roofline.names import Names, draw_dots

PLOT = (48, 42, 468, 338)
"""Left, top, right and bottom of the roofline in the picture."""
NAMES, BARS, TIMES = 490, 588, 760


@dataclass(frozen=True)
class Scene:
    """One step of a model on a device: every operation with its place on the roofline and its time."""

    shape: ModelShape
    device: DeviceSpec
    phase: str
    batch: int
    context: int
    axes: Axes
    dots: tuple[Dot, ...]
    names: tuple[Names, ...]
    start: tuple[Dot, ...]  # the dots of the first frame
    growing: str  # "batch" or "context"
    memory: float  # bytes of weights and cache

    @property
    def seconds(self) -> float:
        """The least time of the step."""
        return sum(dot.seconds for dot in self.dots)

    @property
    def tokens(self) -> int:
        """New tokens in the step."""
        return self.batch * (1 if self.phase == "decode" else self.context)

    @property
    def waiting(self) -> dict[str, float]:
        """What the step waits for -> the share of its time, in the order of `WAITS`."""
        shares = {bound: sum(dot.share for dot in self.dots if dot.bound == bound) for bound in WAITS}
        return {bound: share for bound, share in shares.items() if share}


def draw(scene: Scene) -> Svg:
    """One step of the model as a picture."""
    svg = Svg(760, 456, alt="")
    _headline(svg, scene)
    scene.axes.draw(svg)
    if scene.dots is not scene.start:
        now = {dot.op.name for dot in scene.dots}
        for dot in scene.start:
            if dot.op.name in now:
                svg.circle(*dot.at, 3, "surface")
                svg.circle(*dot.at, 3, "line-muted")
    draw_dots(svg, scene.dots, scene.names)
    _times(svg, scene)
    _sum(svg, scene)
    return svg


def _headline(svg: Svg, scene: Scene) -> None:
    batch, context = f"batch {scene.batch:,}", f"context {tokens(scene.context)}"
    now, other = (batch, context) if scene.growing == "batch" else (context, batch)
    svg.text(0, 14, [(f"{scene.shape.name}, {scene.phase}: ", "bold"), (now, "bold orange"), f", {other}"])
    svg.text(TIMES, 14, scene.device.name, "end bold")


def _times(svg: Svg, scene: Scene) -> None:
    svg.text(NAMES, PLOT[1], "time by operation, all layers", "small muted")
    longest = max(dot.share for dot in scene.dots)
    height = min(24.0, (PLOT[3] - PLOT[1] - 8) / len(scene.dots))
    for i, dot in enumerate(scene.dots):
        y = PLOT[1] + 8 + i * height
        svg.text(NAMES, y + height / 2 + 4, dot.op.name, "small")
        width = max((TIMES - 56 - BARS) * dot.share / longest, 1)
        svg.rect(BARS, y + 3, width, height - 6, BOUNDS[dot.bound], rx=2)
        svg.text(TIMES, y + height / 2 + 4, seconds_in_words(dot.seconds), "end small")


def _sum(svg: Svg, scene: Scene) -> None:
    svg.rect(0, 382, 760, 74, "panel", rx=6)
    x, width = 14.0, 732.0
    for bound, share in scene.waiting.items():
        svg.rect(x, 390, max(width * share, 1), 16, BOUNDS[bound], rx=0)
        words = f"{100 * share:.0f}% {WAITS[bound]}"
        if width * share > 8 * len(words) + 8:
            svg.text(x + 6, 402, words, "small bold on")
        x += width * share
    svg.text(
        14,
        426,
        [
            "the step takes at least ", (seconds_in_words(scene.seconds), "bold"), ", that is ",
            (f"{scene.tokens / scene.seconds:,.0f} tokens/s", "bold green"),
        ],
    )  # fmt: skip
    need, have = scene.memory / 1e9, scene.device.memory_bytes / 1e9
    note = f"weights and cache: {number(need)} GB" if need < 999.5 else f"weights and cache: {need:,.0f} GB"
    tail = f" of {number(have)} GB" if need <= have else f": {number(have)} GB are here, as if there were more"
    svg.text(14, 445, [note, (tail, "" if need <= have else "orange")], "small muted")
    svg.text(746, 445, f"○ where it stood at {_first(scene)}", "end small muted")


def _first(scene: Scene) -> str:
    return "batch 1" if scene.growing == "batch" else "context 1k"


def tokens(count: int) -> str:
    """A number of tokens as text: "1k" for 1024."""
    return f"{count >> 10}k" if count >= 1024 and count % 1024 == 0 else f"{count:,}"
