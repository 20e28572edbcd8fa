"""A roofline drawn: logarithmic axes, the roofs of a device, and where operations stand on them.

The chart of a few operations and the explorer both draw it with this. `llmsys.viz.roofline.names` finds places for the
names of the operations.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from llmsys.hardware.devices import DeviceSpec
from llmsys.hardware.roofline import Operation, attainable_flops, estimate
from llmsys.viz.kit.numbers import number, rate
from llmsys.viz.kit.svg import Svg

BOUNDS = {"HBM": "orange", "compute": "green", "L2": "purple", "SRAM": "purple", "exponentials": "purple"}
"""What an operation waits for, as `hardware.roofline.estimate` names it, and its colour in all rooflines."""
WAITS = {
    "HBM": "memory", "compute": "arithmetic", "L2": "the L2 cache", "SRAM": "SRAM", "exponentials": "exponentials"
}  # fmt: skip
LOWEST, HIGHEST = 0.1, 1e5  # FLOP a byte
LINE = 12.0  # pixels, of the small text
ABOVE = 25  # pixels from the roof to the words above it, for discs that stand on it

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Dot:
    """An operation on the roofline: what it is, how long it takes at least, and where it is drawn."""

    op: Operation
    seconds: float  # all executions
    share: float  # of all dots' time
    bound: str
    at: tuple[float, float]
    radius: float


@dataclass(frozen=True)
class Axes:
    """A plot of FLOP/s against FLOP a byte, both logarithmic, from `left` to `right` and `top` to `bottom` in pixels.

    Its roofs are those of a device for inputs of `dtype`.
    """

    device: DeviceSpec
    dtype: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def peak(self) -> float:
        """The most FLOP/s of the device with inputs of `dtype`."""
        return self.device.flops[self.dtype]

    @property
    def lower_roof(self) -> bool:
        """Whether arithmetic in float32, which a softmax and a norm do, has a roof of its own."""
        return self.device.flops.get("float32", self.peak) < 0.9 * self.peak

    @property
    def ceiling(self) -> float:
        """The highest FLOP/s on the axis: the same for all large GPUs, so that one can compare them."""
        return 5e15 / 10 ** max(math.floor(math.log10(5e14 / self.peak)), 0)

    def x(self, intensity: float) -> float:
        """Pixels from the left of the picture, for FLOP a byte."""
        place = math.log10(min(max(intensity, LOWEST), HIGHEST) / LOWEST) / math.log10(HIGHEST / LOWEST)
        return self.left + place * (self.right - self.left)

    def y(self, flops: float) -> float:
        """Pixels from the top of the picture, for FLOP/s."""
        place = math.log10(max(flops, self.ceiling / 5e4) / self.ceiling) / math.log10(5e4)
        return self.top - place * (self.bottom - self.top)

    def roof(self, dtype: str) -> list[tuple[float, float]]:
        """The roof for inputs of `dtype`, as three points in pixels: a slope up to the ridge, then a flat end."""
        peak, bandwidth = self.device.flops[dtype], self.device.bandwidth
        ends = (LOWEST, min(max(peak / bandwidth, LOWEST), HIGHEST), HIGHEST)
        return [(self.x(i), self.y(attainable_flops(i, peak_flops=peak, bandwidth=bandwidth))) for i in ends]

    def dots(self, operations: Iterable[Operation], *, area: float = 1200.0) -> list[Dot]:
        """Where operations stand: at their intensity, and at the FLOP/s that they reach in the least time they take.

        The area of a disc is the operation's share of the time of all; the whole of it would be `area` square pixels.
        """
        found = [(op, estimate(op, self.device)) for op in operations]
        total = sum(op.count * each.seconds for op, each in found)
        dots = []
        for op, each in found:
            seconds = op.count * each.seconds
            at = (self.x(op.intensity), self.y(op.flops / each.seconds))
            radius = max(math.sqrt(area * seconds / total / math.pi), 2.5)
            dots.append(Dot(op, seconds, seconds / total, each.bound, at, radius))
        return dots

    def draw(self, svg: Svg) -> None:
        """Draw the grid, the axes and the roofs, with their words."""
        for power in range(math.ceil(math.log10(LOWEST)), math.floor(math.log10(HIGHEST)) + 1):
            x = self.x(10.0**power)
            svg.line((x, self.bottom), (x, self.bottom + 4))
            svg.text(x, self.bottom + 17, _intensity(10.0**power), "middle small muted")
        for power in range(math.ceil(math.log10(self.ceiling / 5e4)), math.floor(math.log10(self.ceiling)) + 1):
            y = self.y(10.0**power)
            svg.line((self.left, y), (self.right, y), "line-rule thin dashed")
            svg.text(self.left - 6, y + 4, rate(10.0**power, unit=""), "end small muted")
        svg.path([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)])
        svg.text(self.left - 38, self.top - 8, "FLOP/s", "small muted")
        svg.text(self.right, self.bottom + 32, "intensity: FLOP for each byte of HBM traffic", "end small muted")
        if self.lower_roof:
            svg.path(self.roof("float32"), "line-muted dashed")
            words = f"{rate(self.device.flops['float32'])} float32"
            svg.text(self.right, self.y(self.device.flops["float32"]) - 5, words, "end small muted")
        roof = self.roof(self.dtype)
        x, y = roof[1]
        svg.line((x, y), (x, self.bottom), "line-purple dashed")
        svg.text(x + 5, self.bottom - 6, f"ridge: {number(self.peak / self.device.bandwidth)}", "small purple")
        svg.path(roof, "line-ink thick")
        svg.text(self.right, y - ABOVE, [(rate(self.peak), "bold"), f" {self.dtype}"], "end small")
        speed = self.device.bandwidth
        words = f"{number(speed / 1e12)} TB/s" if speed >= 1e12 else f"{number(speed / 1e9)} GB/s"
        svg.text(*self._slope(), words, "end small bold")

    def words(self) -> list[Box]:
        """The boxes of the words that `draw` writes inside the plot."""
        _, (ridge, peak), _ = self.roof(self.dtype)
        (u, v), above = self._slope(), peak - ABOVE
        found = [(u - 52, v - LINE, u, v + 3), (self.right - 132, above - LINE, self.right, above + 3)]
        found.append((ridge - 2, self.bottom - 18, ridge + 75, self.bottom))
        if self.lower_roof:
            y = self.y(self.device.flops["float32"])
            found.append((self.right - 130, y - 16, self.right, y + 2))
        return found

    def lines(self) -> list[Box]:
        """The boxes that the roof and the ridge cover; the slope is covered by a row of small ones."""
        (x, y), (ridge, peak), _ = self.roof(self.dtype)
        slope = [((ridge - x) * k / 40 + x, (peak - y) * k / 40 + y) for k in range(41)]
        found = [(x - 4, y - 4, x + 4, y + 4) for x, y in slope]
        return [*found, (ridge, peak - 3, self.right, peak + 3), (ridge - 1, peak, ridge + 1, self.bottom)]

    def _slope(self) -> tuple[float, float]:
        """The point at which the words on the slope end, in pixels."""
        (x, y), (ridge, peak), _ = self.roof(self.dtype)
        part = min(max(0.3, 78 / (ridge - x)), 1)
        return x + part * (ridge - x) - 12, y + part * (peak - y) - 8


def model_dtype(device: DeviceSpec) -> str:
    """The type in which a model runs on a device: bfloat16 where it has that, else float16, else float32."""
    return next(dtype for dtype in ("bfloat16", "float16", "float32") if dtype in device.flops)


def _intensity(value: float) -> str:
    return f"{value / 1000:,.0f}k" if value >= 1000 else f"{value:g}"
