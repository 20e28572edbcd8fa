"""Where the texts of an SVG stand: for tests that none leaves the picture, and that no two overlap."""

import itertools
from xml.etree import ElementTree

import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

SIZES = {"huge": 30, "big": 16, "small": 11, "tiny": 9.5}
_FONTS = {
    weight: FT2Font(font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight)))
    for weight in ("normal", "bold")
}


@pytest.fixture
def assert_legible():
    """A function of an SVG: it fails where a text leaves the picture, or lies on another."""

    def check(markup: str) -> None:
        assert outside(markup) == []
        assert overlaps(markup) == []

    return check


def boxes(markup: str) -> list[tuple[str, float, float, float, float]]:
    """Each text with its left, top, right and bottom, in DejaVu Sans, which is wider than most fonts of pages."""
    found = []
    for text in ElementTree.fromstring(markup).iter("{http://www.w3.org/2000/svg}text"):
        classes = text.get("class", "").split()
        size = next((SIZES[name] for name in classes if name in SIZES), 13)
        width = 0.0
        for piece, more in [(text.text, ""), *((span.text, span.get("class", "")) for span in text)]:
            weight = "bold" if "bold" in classes + more.split() else "normal"
            width += _width(piece or "", size, weight)
        x, y = float(text.get("x")), float(text.get("y"))
        x -= width if "end" in classes else width / 2 if "middle" in classes else 0
        found.append(("".join(text.itertext()), x, y - 0.74 * size, x + width, y + 0.2 * size))
    return found


def overlaps(markup: str) -> list[tuple[str, str]]:
    """Pairs of texts of which one covers more than a pixel of the other."""
    return [
        (one[0], other[0])
        for one, other in itertools.combinations(boxes(markup), 2)
        if one[1] + 1 < other[3] and other[1] + 1 < one[3] and one[2] + 1 < other[4] and other[2] + 1 < one[4]
    ]


def outside(markup: str) -> list[str]:
    """Texts that leave the picture."""
    width, height = (float(n) for n in ElementTree.fromstring(markup).get("viewBox").split()[2:])
    return [text for text, *box in boxes(markup) if box[0] < -1 or box[1] < -1 or box[2] > width + 1 or box[3] > height]


def _width(text: str, size: float, weight: str) -> float:
    font = _FONTS[weight]
    font.set_size(size, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64
