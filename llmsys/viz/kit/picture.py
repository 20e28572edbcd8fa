"""What a notebook shows: an SVG that follows the page's theme, and the words for those who do not see it.

`Picture` is what every function of `llmsys.viz` that draws something returns. `chart` makes one of a matplotlib figure:

    with chart_style():
        figure, axes = plt.subplots()
        axes.plot(lengths, gbps, color=LIGHT["blue"])
    return chart(figure, alt="…")

A figure is saved as SVG, and the values of the style's colours are replaced by the names that the page's theme defines.
An image file could not know the theme, and a transparent one that is readable on white is not readable on black.
"""

import hashlib
import io
import re
from html import escape
from pathlib import Path

from llmsys.viz.kit.style import LIGHT, ROOT, chart_style, stylesheet


class Picture:
    """An SVG and its alt text. In a notebook it shows itself; in a terminal it says what it shows.

    `figure` is the matplotlib figure of a chart, for those who want to change or save it, otherwise None.
    """

    def __init__(self, svg: str, alt: str, figure=None):
        if not alt.strip():
            raise ValueError("alt must say in words what the picture shows, for those who do not see it; it is empty")
        self.svg, self.alt, self.figure = svg, alt, figure

    def html(self) -> str:
        """The picture as a piece of HTML that needs nothing else."""
        return self.svg.replace("</svg>", f"<style>{stylesheet()}</style></svg>")

    def save(self, path: str | Path) -> Path:
        """Write an SVG file, in the colours of the reader's browser, light or dark. Returns its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html().replace(f'class="{ROOT}"', f'class="{ROOT} alone"', 1) + "\n", encoding="utf-8")
        return path

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.alt}

    def __repr__(self) -> str:
        return self.alt


def chart(figure, alt: str) -> Picture:
    """A matplotlib figure, drawn under `chart_style`, as a picture in the colours of the page's theme."""
    import matplotlib.pyplot as plt

    file = io.StringIO()
    with chart_style():  # how text is written is decided only now
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    plt.close(figure)  # or the notebook's inline backend would show it a second time
    markup = file.getvalue()
    width, height = (float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', markup).groups())
    body = markup[markup.index(">", markup.index("<svg")) + 1 : markup.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    for name, value in LIGHT.items():
        body = body.replace(value, f"var(--{name})")
    body = re.sub(r"font: (?:(\d+|bold) )?([\d.]+)px [^;\"]*", _font, body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)  # the page's
    body = _with_own_ids(body)
    points = 4 / 3  # an SVG of matplotlib counts in points, the page in pixels
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="{ROOT}" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width * points:.0f}px" aria-label="{escape(alt)}">'
        f"{body.strip()}</svg>",
        alt,
        figure,
    )


def _font(match: re.Match) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"


def _with_own_ids(body: str) -> str:
    """The SVG with ids that no other picture on the page has, and without those that nothing refers to."""
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    mark = hashlib.sha256(body.encode()).hexdigest()[:8]
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{mark}-{m[1]}"' if m[1] in used else "", body)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{mark}-", body)
