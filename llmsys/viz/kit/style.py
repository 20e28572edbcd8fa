"""One look for all pictures: colours with a meaning, readable in the light and in the dark theme.

Four hues and what they stand for, in every lesson:

    blue      data, and what has been done with it
    orange    what happens in this step
    purple    what governs it: a maximum, a decision, an index
    green     the result; what is right

and greys: `ink` for text, `muted` for what is secondary or still to come, `rule` for lines, `panel` for backgrounds.
Each hue has a strong form, for text, lines and small shapes, and a soft one (`blue-soft`) for areas under ink. Strong
forms have a contrast of at least 4.5 : 1 with the page and with a panel, and stay apart under the three kinds of colour
blindness (tests/viz/test_style.py computes both). Still, no colour says anything alone: a label or a shape does, too.

The hues start from Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), darkened for a white page and lightened
for a black one, because their orange and green are too pale for text on white. A picture names colours, never values;
the page's theme decides which set it gets: JupyterLab's, VS Code's or Colab's, and for a file on its own the browser's.
"""

from collections.abc import Iterator
from contextlib import contextmanager

HUES = ("blue", "orange", "purple", "green")
GREYS = ("ink", "muted", "rule", "panel", "surface")
LIGHT = {
    "ink": "#212121", "muted": "#646a70", "rule": "#c4cad0", "panel": "#f3f5f7", "surface": "#ffffff",
    "blue": "#0b6bbf", "orange": "#b85000", "purple": "#852080", "green": "#005f49",
    "blue-soft": "#d3e6f7", "orange-soft": "#fde0c8", "purple-soft": "#f0d9f0", "green-soft": "#cdeee0",
}  # fmt: skip
DARK = {
    "ink": "#e0e0e0", "muted": "#9aa2aa", "rule": "#4a525a", "panel": "#1f252b", "surface": "#111111",
    "blue": "#49a2f9", "orange": "#ff9837", "purple": "#e995de", "green": "#30dfaf",
    "blue-soft": "#173a56", "orange-soft": "#56321a", "purple-soft": "#4a2450", "green-soft": "#124638",
}  # fmt: skip
FONT = "var(--jp-ui-font-family,system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif)"
MONO = "var(--jp-code-font-family,menlo,consolas,'DejaVu Sans Mono',monospace)"
ROOT = "llmsys-viz"
"""The class of every picture's root, under which all rules of its style sheet stand."""


def stylesheet() -> str:
    """The CSS of every picture. It is part of each, so that a picture can stand alone, and is the same in all."""
    dark = _variables(DARK)
    hues = "".join(
        f".{ROOT} .{name}{{fill:var(--{name})}}.{ROOT} .line-{name}{{stroke:var(--{name});fill:none}}" for name in LIGHT
    )
    return (
        f".{ROOT}{{{_variables(LIGHT)};display:block;width:100%;height:auto;margin:4px 0;"
        f"font-family:{FONT};font-size:13px;font-variant-numeric:tabular-nums}}"
        f'[data-jp-theme-light="false"] .{ROOT},.vscode-dark .{ROOT},[theme="dark"] .{ROOT}{{{dark}}}'
        f".{ROOT}.alone{{margin:0}}@media (prefers-color-scheme:dark){{.{ROOT}.alone{{{dark}}}}}"
        f".{ROOT} text{{fill:var(--ink);stroke:none}}"
        f".{ROOT} .on{{fill:var(--surface)}}"
        f".{ROOT} .huge{{font-size:30px}}.{ROOT} .big{{font-size:16px}}.{ROOT} .small{{font-size:11px}}"
        f".{ROOT} .tiny{{font-size:9.5px}}.{ROOT} .bold{{font-weight:600}}"
        f".{ROOT} .mono{{font-family:{MONO};white-space:pre}}"
        f".{ROOT} .middle{{text-anchor:middle}}.{ROOT} .end{{text-anchor:end}}"
        f".{ROOT} .thin{{stroke-width:1}}.{ROOT} .thick{{stroke-width:2.5}}"
        f".{ROOT} .edged{{stroke:var(--surface);stroke-width:1}}"
        f".{ROOT} .dashed{{stroke-dasharray:4 3}}.{ROOT} .nofill{{fill:none}}"
        f"{hues}"
        # A shape that carries --dy or --scale starts there and settles where it stands: motion, for those who want it.
        f"@keyframes llmsys-settle{{from{{transform:translateY(var(--dy,0)) scaleY(var(--scale,1))}}}}"
        f".{ROOT} .settle{{transform-box:fill-box;transform-origin:bottom;animation:llmsys-settle .5s ease-out}}"
        f"@media (prefers-reduced-motion:reduce){{.{ROOT} .settle{{animation:none}}}}"
    )


@contextmanager
def chart_style() -> Iterator[None]:
    """Inside the block, matplotlib draws in the course's look.

    Colours go by `LIGHT[name]`; `picture.chart` turns those into the theme's own.
    """
    import matplotlib
    from cycler import cycler

    c = LIGHT
    settings = {
        "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
        "figure.figsize": (7.6, 3.6), "figure.dpi": 100, "figure.constrained_layout.use": True,
        "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": c["ink"], "text.parse_math": False,
        "axes.edgecolor": c["rule"], "axes.labelcolor": c["ink"], "axes.titlesize": 10, "axes.titlelocation": "left",
        "axes.titleweight": "bold", "axes.titlecolor": c["ink"],
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "axes.prop_cycle": cycler(color=[c[hue] for hue in HUES]),
        "xtick.color": c["rule"], "ytick.color": c["rule"], "xtick.labelcolor": c["muted"],
        "ytick.labelcolor": c["muted"], "grid.color": c["rule"], "grid.linewidth": 0.6, "lines.linewidth": 2,
        "lines.markersize": 5, "svg.fonttype": "none", "svg.hashsalt": "llmsys",
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        yield


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours, from 1 to 21; text should have 4.5 (https://www.w3.org/TR/WCAG22/)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """The relative luminance of "#rrggbb", from 0 to 1."""
    r, g, b = linear(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def linear(colour: str) -> tuple[float, float, float]:
    """Red, green and blue of "#rrggbb" in proportion to light, from 0 to 1 (sRGB's curve undone)."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)


def _variables(colours: dict[str, str]) -> str:
    # JupyterLab's own text and page colours where there are some: third-party themes have others.
    page = {"ink": "--jp-ui-font-color1", "surface": "--jp-layout-color0"}
    return ";".join(
        f"--{name}:var({page[name]},{value})" if name in page else f"--{name}:{value}"
        for name, value in colours.items()
    )
