"""The stepper of lesson 14: the sum grows, a tile at a time."""

from dataclasses import dataclass

from torch import Tensor

from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg


@dataclass(frozen=True)
class Frame:
    """The moment after a tile was added: the row, where the tile begins and ends, and the sum so far."""

    row: tuple[float, ...]
    start: int
    stop: int
    total: float


def stepper(x: Tensor, *, tile: int) -> Stepper:
    """Step through the sum of e^x over a row x (T,), `tile` numbers at a time."""
    return Stepper(frames(x, tile), draw, title="A sum, a tile at a time", describe=describe)


def frames(x: Tensor, tile: int) -> list[Frame]:
    """One frame for each tile, computed as the exercise asks for it."""
    found, total = [], 0.0
    for start in range(0, len(x), tile):
        part = x[start : start + tile]
        total += part.exp().sum().item()
        found.append(Frame(tuple(x.tolist()), start, start + len(part), total))
    return found


def draw(frame: Frame) -> Svg:
    svg = Svg(640, 110, alt=describe(frame))
    width = 600 / len(frame.row)
    for n, value in enumerate(frame.row):
        colour = "orange-soft" if frame.start <= n < frame.stop else "panel" if n < frame.stop else "blue-soft"
        svg.rect(20 + width * n, 20, width - 4, 36, colour)
        svg.text(20 + width * n + (width - 4) / 2, 43, f"{value:.1f}", "middle small")
    svg.text(320, 90, f"total = {frame.total:.2f}", "middle bold")
    return svg


def describe(frame: Frame) -> str:
    return f"After {frame.stop} of {len(frame.row)} numbers the total is {frame.total:.2f}."
