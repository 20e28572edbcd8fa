"""What tests of pictures share: the texts of an SVG, where they stand, and whether they can be read."""

import itertools
from functools import cache
from xml.etree import ElementTree

import pytest
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from llmsys.viz.kit.style import DARK, LIGHT, contrast

SVG = "{http://www.w3.org/2000/svg}"
SIZES = {"huge": 30, "big": 16, "small": 11, "tiny": 9.5}
FONTS = {
    weight: FT2Font(font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight)))
    for weight in ("normal", "bold")
}


@pytest.fixture
def texts():
    """A function of an SVG (or of a picture, whose SVG it takes): its texts, in the order in which they are drawn."""

    def read(picture) -> list[str]:
        root = ElementTree.fromstring(getattr(picture, "svg", picture))
        return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]

    return read


@pytest.fixture
def words(texts):
    """A function of an SVG or a picture: all its texts as one string, without spaces between them."""
    return lambda picture: "".join(texts(picture))


@pytest.fixture
def assert_legible():
    """A function of an SVG: it fails where a text leaves the picture, lies on another, or is too faint."""

    def check(markup: str) -> None:
        root = ElementTree.fromstring(markup)
        found = boxes(root)
        width, height = (float(n) for n in root.get("viewBox").split()[2:])
        assert outside(found, width, height) == []
        assert overlaps(found) == []
        assert faint(root, found) == []

    return check


Box = tuple[str, float, float, float, float]
"""A text with its left, top, right and bottom."""


def boxes(root: ElementTree.Element) -> list[Box]:
    """The box of each text, in DejaVu Sans, which is wider than most fonts of pages."""
    found = []
    for text in root.iter(f"{SVG}text"):
        classes = text.get("class", "").split()
        size = next((SIZES[name] for name in classes if name in SIZES), 13)
        width = 0.0
        for piece, more in [(text.text, ""), *((span.text, span.get("class", "")) for span in text)]:
            weight = "bold" if "bold" in classes + more.split() else "normal"
            width += width_of(piece or "", size, weight)
        x, y = float(text.get("x")), float(text.get("y"))
        x -= width if "end" in classes else width / 2 if "middle" in classes else 0
        found.append(("".join(text.itertext()), x, y - 0.74 * size, x + width, y + 0.2 * size))
    return found


def outside(found: list[Box], width: float, height: float) -> list[str]:
    """Texts that leave a picture of this size."""
    return [text for text, *box in found if box[0] < -1 or box[1] < -1 or box[2] > width + 1 or box[3] > height]


def overlaps(found: list[Box]) -> list[tuple[str, str]]:
    """Pairs of texts of which one covers more than a pixel of the other."""
    return [
        (one[0], other[0])
        for one, other in itertools.combinations(found, 2)
        if one[1] + 1 < other[3] and other[1] + 1 < one[3] and one[2] + 1 < other[4] and other[2] + 1 < one[4]
    ]


def faint(root: ElementTree.Element, found: list[Box]) -> list[tuple[str, str, str]]:
    """Texts with less than 4.5 : 1 to the shape that they stand on, in either theme: text, colour, ground.

    Ground is the last filled rectangle or polygon drawn before a text that has its middle; the page where there is
    none.
    """
    places = iter(found)
    grounds, faint_ones = [], []
    for shape in root.iter():
        classes = shape.get("class", "").split()
        if shape.tag == f"{SVG}rect" and (fill := next((name for name in classes if name in LIGHT), None)):
            x, y, w, h = (float(shape.get(key)) for key in ("x", "y", "width", "height"))
            grounds.append(([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], fill))
        elif shape.tag == f"{SVG}path" and "Z" in shape.get("d") and "C" not in shape.get("d"):
            corners = [tuple(map(float, corner.split())) for corner in shape.get("d").strip("MZ").split("L")]
            grounds += [(corners, name) for name in classes if name in LIGHT]
        elif shape.tag == f"{SVG}text":
            _, left, top, right, bottom = next(places)
            x, y = (left + right) / 2, (top + bottom) / 2
            ground = next((fill for corners, fill in reversed(grounds) if inside(x, y, corners)), "surface")
            for text, more in [(shape.text, ""), *((span.text, span.get("class", "")) for span in shape)]:
                colour = next((name for name in (classes + more.split())[::-1] if name in LIGHT), "ink")
                colour = "surface" if "on" in classes else colour
                if text and is_faint(colour, ground):
                    faint_ones.append((text, colour, ground))
    return faint_ones


@cache
def is_faint(colour: str, ground: str) -> bool:
    """Whether a colour of the palette has less than 4.5 : 1 to another in one of the themes."""
    return any(contrast(theme[colour], theme[ground]) < 4.5 for theme in (LIGHT, DARK))


def inside(x: float, y: float, corners: list[tuple[float, float]]) -> bool:
    """Whether a polygon has this point: a ray to its right crosses an odd number of edges."""
    if not min(corners)[0] <= x <= max(corners)[0]:
        return False
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    return sum((y1 <= y) != (y2 <= y) and x < x1 + (y - y1) * (x2 - x1) / (y2 - y1) for (x1, y1), (x2, y2) in edges) % 2


@cache  # the same few words, frame after frame
def width_of(text: str, size: float, weight: str) -> float:
    font = FONTS[weight]
    font.set_size(size, 72)
    font.set_text(text)
    return font.get_width_height()[0] / 64
