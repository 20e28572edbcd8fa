"""The opening picture of lesson 05: what the forward pass keeps for the backward pass, and what is made again. How many
products that takes, and how many bytes are kept, the lesson asks right below it: the picture does not say."""

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

ROW = 176
"""Pixels from one way to the other."""
KEPT, BACK = 292, 474
"""The left of what is kept, and of the backward pass."""
SIDE = 92
"""Pixels of T."""


def overview() -> Picture:
    """Two ways to the same gradients: P kept as a whole, or o and the log-sum-exp kept and P made again in tiles."""
    svg = Svg(760, 2 * ROW + 22, alt=(
        "Two ways from the forward pass to the gradients dQ, dK and dV. Naive attention keeps the matrix P for its "
        "backward pass. Tiled attention keeps the output o and the log-sum-exp, one number a row, and its backward "
        "pass makes P again, a tile at a time, as e to the power of S minus the log-sum-exp."
    ))  # fmt: skip
    for x, name in ((12, "forward pass"), (KEPT, "kept until then"), (BACK, "backward pass")):
        svg.text(x, 14, name, "bold")
    _way(svg, 26, "naive", ("S = q kᵀ", "P = softmax(S)", "o = P v"))
    svg.rect(KEPT + 14, 58, SIDE, SIDE, "orange-soft", rx=2)
    svg.rect(KEPT + 14, 58, SIDE, SIDE, "line-orange", rx=2)
    svg.text(KEPT + 14 + SIDE / 2, 108, "P", "middle big bold")
    svg.text(KEPT + 14 + SIDE / 2, 166, "all of it, every head", "middle small")
    _gradients(svg, 26, ("P is there", "dQ, dK and dV from it"))
    top = 26 + ROW
    _way(svg, top, "tiled", ("S, a tile at a time", "m, ℓ, o rescaled", "lse = m + ln ℓ"))
    svg.rect(KEPT + 36, top + 32, 20, SIDE, "green-soft", rx=2)
    svg.rect(KEPT + 36, top + 32, 20, SIDE, "line-green", rx=2)
    svg.text(KEPT + 46, top + 82, "o", "middle bold")
    svg.rect(KEPT + 78, top + 32, 4, SIDE, "green", rx=1)
    svg.text(KEPT + 88, top + 82, "lse", "bold")
    svg.text(KEPT + 14 + SIDE / 2, top + 140, "a few columns", "middle small")
    _gradients(svg, top, ("P again, by tiles", "dQ, dK and dV from it"))
    for n in range(16):  # a tile of the matrix that is not there
        svg.rect(BACK + 178 + 20 * (n % 4), top + 38 + 20 * (n // 4), 18, 18, "orange" if n == 9 else "line-rule", rx=1)
    svg.text(BACK + 217, top + 132, "P = e^{S − lse}", "middle small bold")
    return svg.picture()


def _way(svg: Svg, y: float, name: str, lines: tuple[str, ...]) -> None:
    svg.rect(0, y, 196, 150, "panel", rx=8)
    svg.text(12, y + 22, [("attention, ", ""), (name, "bold")])
    for n, line in enumerate(lines):
        svg.text(12, y + 54 + 26 * n, line, "bold" if n == 2 else "")
    svg.arrow((200, y + 78), (KEPT - 8, y + 78), "blue", more="thick")
    svg.arrow((KEPT + 118, y + 78), (BACK - 6, y + 78), "blue", more="thick")
    svg.rect(BACK, y, 760 - BACK, 150, "panel", rx=8)


def _gradients(svg: Svg, y: float, lines: tuple[str, ...]) -> None:
    for n, line in enumerate(lines):
        made_again = "again" in line
        svg.text(BACK + 12, y + 54 + 26 * n, line, "bold orange" if made_again else "")
