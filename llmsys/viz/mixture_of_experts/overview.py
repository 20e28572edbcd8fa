"""The opening picture of lesson 14: what will be built, at one glance."""

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg


def overview() -> Picture:
    """A row goes by in tiles; one number is kept."""
    svg = Svg(640, 120, alt="A row of numbers goes by in tiles; of each, only the sum of its exponentials is kept.")
    for n in range(4):
        svg.rect(20 + 100 * n, 30, 90, 40, "orange-soft" if n == 1 else "blue-soft")
        svg.text(65 + 100 * n, 55, f"tile {n + 1}", "middle")
    svg.arrow((430, 50), (490, 50))
    svg.rect(500, 30, 120, 40, "green-soft")
    svg.text(560, 55, "total", "middle bold")
    svg.text(320, 105, "one tile at a time; what has gone by is forgotten, but for its sum", "middle small")
    return svg.picture()
