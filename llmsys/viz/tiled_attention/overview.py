"""The opening picture of lesson 03: what is on the chip, what is not, and what never exists."""

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg


def overview() -> Picture:
    """A tile of queries waits on the chip while keys and values stream by; the scores never leave it."""
    svg = Svg(760, 300, alt=(
        "HBM holds q, k, v and o. The chip holds one tile of q, one of k and v, one tile of scores, and the state m, l "
        "and o. Tiles of k and v stream through the chip; o is stored once; the matrix of scores never exists."
    ))  # fmt: skip
    svg.rect(0, 4, 250, 290, "panel", rx=8)
    svg.text(14, 28, "HBM: 80 GiB, slow", "bold")
    svg.rect(330, 4, 430, 290, "panel", rx=8)
    svg.text(344, 28, "the chip: 227 KiB a program, fast", "bold")
    for x, name, hot in ((22, "q", 1), (80, "k", 2), (138, "v", 2), (196, "o", 1)):
        svg.text(x + 17, 52, name, "middle bold")
        for n in range(6):
            hue = "green-soft" if name == "o" and n < hot else "panel" if name == "o" else "blue-soft"
            hue = "orange" if name != "o" and n == hot else hue
            svg.rect(x, 60 + 36 * n, 34, 33, hue, rx=2)
            svg.rect(x, 60 + 36 * n, 34, 33, "line-rule nofill", rx=2)
    svg.rect(362, 118, 58, 58, "blue-soft")
    svg.text(391, 151, "q tile", "middle small")
    svg.rect(448, 50, 90, 44, "orange-soft")
    svg.text(493, 76, "k tile, v tile", "middle small")
    svg.rect(448, 118, 90, 58, "purple-soft")
    svg.text(493, 144, "scores", "middle small bold")
    svg.text(493, 160, "of this tile", "middle small")
    svg.rect(570, 118, 166, 58, "green-soft")
    svg.text(653, 144, "m, ℓ, o so far", "middle")
    svg.text(653, 162, "two sums under one m", "middle small")
    svg.arrow((420, 147), (446, 147))
    svg.arrow((493, 94), (493, 116), "orange")
    svg.arrow((538, 147), (568, 147), "purple")
    svg.arrow((252, 147), (360, 147), "blue")
    svg.text(306, 139, "once", "middle small")
    svg.arrow((252, 72), (446, 72), "orange")
    svg.text(320, 64, "for each query tile", "middle small")
    svg.path([(653, 176), (653, 236), (258, 236)], "line-green thick")
    svg.arrow((268, 236), (252, 236), "green")
    svg.text(460, 229, "o, once, when the row of tiles is done", "middle small")
    svg.text(545, 274, "the T × T matrix of scores never exists, on either side", "middle small bold purple")
    return svg.picture()
