"""A few operations on a device's roofline: what each can reach, and how much of the time it takes."""

from collections.abc import Sequence

from llmsys.hardware.devices import DeviceSpec
from llmsys.hardware.roofline import Operation
from llmsys.viz.kit.numbers import number, rate, seconds_in_words
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg
from llmsys.viz.roofline.axes import BOUNDS, WAITS, Axes, model_dtype
from llmsys.viz.roofline.names import draw_dots, place


def chart(points: Sequence[Operation], device: DeviceSpec) -> Picture:
    """Draw operations on the roofline of a device.

    A disc stands at its operation's intensity, as high as the FLOP/s that its least time allows; its area is its share
    of the time that all of them take. Beside it that time, and the part of the peak that is reached.

    Raises ValueError where there is no operation, or the device has no figure for the dtype of one.
    """
    if not points:
        raise ValueError("points must have at least one Operation, got none")
    axes = Axes(
        device, next((op.dtype for op in points if op.dtype != "float32"), model_dtype(device)), 48, 34, 508, 330
    )
    dots = axes.dots(points)
    total = sum(dot.seconds for dot in dots)
    said = "; ".join(
        f"{dot.op.name} has {number(dot.op.intensity)} FLOP a byte, takes {seconds_in_words(dot.seconds)} and waits "
        f"for {WAITS[dot.bound]}"
        for dot in dots
    )
    ridge = number(axes.peak / device.bandwidth)
    svg = Svg(760, 366, alt=(
        f"The roofline of {device.name}: up to {ridge} FLOP a byte the FLOP/s rise with the intensity, from there on "
        f"they stay at {rate(axes.peak)}. On it: {said}. Together {seconds_in_words(total)}."
    ))  # fmt: skip
    axes.draw(svg)
    svg.text(508, 14, device.name, "end bold")
    draw_dots(svg, dots, place(axes, dots))
    svg.text(530, 14, "at the least", "bold")
    pitch = min(62.0, 290 / len(dots))
    for i, dot in enumerate(dots):
        y = 34 + i * pitch
        colour = BOUNDS[dot.bound]
        svg.rect(530, y, max(230 * dot.share, 1), 8, colour, rx=2)
        svg.text(530, y + 23, [(dot.op.name, f"bold {colour}"), f" · {seconds_in_words(dot.seconds)}"])
        if pitch > 40:
            words = f"{number(100 * dot.op.count * dot.op.flops / dot.seconds / axes.peak, 2)}% of the peak; waits for"
            svg.text(530, y + 38, f"{words} {WAITS[dot.bound]}", "small muted")
    svg.text(530, 34 + len(dots) * pitch + 14, [(seconds_in_words(total), "bold"), " together"])
    return svg.picture()
