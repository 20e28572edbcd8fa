"""A small SVG builder: shapes with classes of the course's style sheet, text that is escaped, arrows and brackets.

    drawing = Svg(320, 80, alt="Two tiles become one pair.")
    drawing.rect(10, 20, 60, 40, "blue-soft")
    drawing.text(40, 45, "m₁, ℓ₁", "middle")
    drawing.arrow((74, 40), (120, 40))
    drawing.picture()

Coordinates are pixels at full size, y downwards; the picture shrinks with its column and never grows beyond it. Classes
are those of `style`: a colour's name fills, `line-` and the name draws an outline. In a text, `e^{x − m}` is set as a
power, and a list gives pieces classes of their own: `["m = ", ("3", "purple bold")]`.

Everything is a string that grows, so that a frame of a stepper costs well under a millisecond.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from html import escape

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.style import ROOT

Text = str | Sequence[str | tuple[str, str]]


class Svg:
    """A drawing of width × height pixels. `alt` says in words what it shows."""

    def __init__(self, width: float, height: float, *, alt: str):
        self.width, self.height, self.alt = width, height, alt
        self._parts: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, classes: str, *, rx: float = 3, style: str = "") -> None:
        """A rectangle with its corner (x, y) at the top left."""
        self._add(f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(w)}" height="{_n(h)}" rx="{_n(rx)}"', classes, style)

    def circle(self, x: float, y: float, r: float, classes: str) -> None:
        """A disc around (x, y)."""
        self._add(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"', classes)

    def line(self, start: tuple[float, float], end: tuple[float, float], classes: str = "line-rule") -> None:
        """A straight line."""
        self._add(f'<line x1="{_n(start[0])}" y1="{_n(start[1])}" x2="{_n(end[0])}" y2="{_n(end[1])}"', classes)

    def path(self, points: Sequence[tuple[float, float]], classes: str = "line-rule", *, close: bool = False) -> None:
        """A line through points, or with `close` the area that they enclose."""
        steps = "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        self._add(f'<path d="M{steps}{"Z" if close else ""}"', classes)

    def curve(self, start: tuple[float, float], end: tuple[float, float], classes: str = "line-rule") -> None:
        """A line that leaves `start` and reaches `end` vertically."""
        (x1, y1), (x2, y2) = start, end
        y = (y1 + y2) / 2
        self._add(f'<path d="M{_n(x1)} {_n(y1)}C{_n(x1)} {_n(y)} {_n(x2)} {_n(y)} {_n(x2)} {_n(y2)}"', classes)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], colour: str = "muted", *, more: str = ""
    ) -> None:
        """An arrow in a colour of the style; `more` are further classes of its shaft ("dashed", "thick")."""
        (x1, y1), (x2, y2) = start, end
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        size = min(7.0, length)
        bx, by = x2 - size * dx, y2 - size * dy
        self.line(start, (bx, by), f"line-{colour} {more or 'thin'}")
        self.path(
            [end, (bx - dy * size / 2, by + dx * size / 2), (bx + dy * size / 2, by - dx * size / 2)],
            colour,
            close=True,
        )

    def bracket(
        self, x1: float, x2: float, y: float, label: Text = "", classes: str = "muted", *, below: bool = True
    ) -> None:
        """A bracket from x1 to x2 that opens away from its label, which stands below it or above it."""
        tick = -5 if below else 5
        colour = classes.split()[0]
        self.path([(x1, y + tick), (x1, y), (x2, y), (x2, y + tick)], f"line-{colour}")
        if label:
            self.text((x1 + x2) / 2, y + 15 if below else y - 6, label, f"middle small {classes}")

    def text(self, x: float, y: float, text: Text, classes: str = "") -> None:
        """Text whose baseline starts at (x, y), or with "middle" or "end" is centred or ends there."""
        plain = isinstance(text, str) and "^{" not in text  # most are
        inside = escape(text) if plain else _spans((text,) if isinstance(text, str) else text)
        self._parts.append(f'<text x="{_n(x)}" y="{_n(y)}"{_attribute("class", classes)}>{inside}</text>')

    @contextmanager
    def group(self, *, x: float = 0, y: float = 0, classes: str = "") -> Iterator[None]:
        """What is drawn inside is moved by (x, y)."""
        self._parts.append(f'<g transform="translate({_n(x)} {_n(y)})"{_attribute("class", classes)}>')
        yield
        self._parts.append("</g>")

    def picture(self) -> Picture:
        """The drawing as something a notebook shows."""
        return Picture(self.markup(), self.alt)

    def markup(self) -> str:
        """The <svg> element, without the style sheet."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="{ROOT}" role="img" viewBox="0 0 {_n(self.width)} '
            f'{_n(self.height)}" style="max-width:{_n(self.width)}px" aria-label="{escape(self.alt)}">'
            f"{''.join(self._parts)}</svg>"
        )

    def _add(self, start: str, classes: str, style: str = "") -> None:
        self._parts.append(f"{start}{_attribute('class', classes)}{_attribute('style', style)}/>")


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@lru_cache(maxsize=4096)  # the same few classes, over and over
def _attribute(name: str, value: str) -> str:
    return f' {name}="{escape(value)}"' if value else ""


def _spans(pieces: Sequence[str | tuple[str, str]]) -> str:
    out, raised = [], False
    for piece in pieces:
        text, classes = piece if isinstance(piece, tuple) else (piece, "")
        for i, part in enumerate(re.split(r"\^\{([^}]*)\}", text) if "^{" in text else (text,)):
            if not part:
                continue
            power = i % 2 == 1
            attributes = _attribute("class", classes)
            if power:
                attributes += ' dy="-5" font-size="80%"'
            elif raised:
                attributes += ' dy="5"'
            raised = power
            out.append(f"<tspan{attributes}>{escape(part)}</tspan>" if attributes else escape(part))
    return "".join(out)
