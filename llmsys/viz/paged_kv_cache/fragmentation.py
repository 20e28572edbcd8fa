"""What the slots of a cache are used for, by how its memory is divided: a bar for each way, in shares of the memory.

Nothing is computed here: the shares are handed over, as `fill` of lesson 08 counts them.
"""

from collections.abc import Mapping

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

PARTS = (
    ("kept", "blue", "", "hold a token"),
    ("later", "blue-soft", "line-blue", "will, later"),
    ("never", "orange", "", "never will (internal)"),
    ("holes", "purple-soft", "line-purple", "free, in holes (external)"),
    ("too_few", "panel", "line-rule", "free, too few"),
)
"""Of a bar, from left to right: attribute, colour, outline, meaning."""
LEFT, LONGEST, WIDTH = 176, 424, 760
ROW, HEAD = 25, 30


def fragmentation(shares: Mapping[str, Mapping[str, object]], *, title: str = "What the slots are used for") -> Picture:
    """Bars of a memory's slots: those that hold a token, and four kinds that do not.

    shares    name of a trace -> name of a way to divide the memory -> an object with `kept`, `later`, `never`,
              `holes` and `too_few`, which add up to 1, and `sequences`

    Raises ValueError where there is nothing to draw, or shares do not add up.
    """
    if not shares or not all(shares.values()):
        raise ValueError("shares must have a trace at least, and each a way at least")
    said = []
    for trace, ways in shares.items():
        for way, share in ways.items():
            if abs(sum(getattr(share, part) for part, *_ in PARTS) - 1) > 1e-6:
                raise ValueError(f"shares of {trace}, {way} must add up to 1")
        said.append(f"{trace}: " + ", ".join(f"{way} {_percent(share.kept)}" for way, share in ways.items()))
    height = 48 + sum(HEAD + ROW * len(ways) for ways in shares.values())
    svg = Svg(WIDTH, height, alt=(
        f"Share of a cache's slots that hold a token, by how the memory is divided. {'. '.join(said)}. The rest is "
        "reserved for later, reserved and never used, or free in holes that are too small."
    ))  # fmt: skip
    svg.text(0, 16, title, "bold")
    svg.text(LEFT + LONGEST + 12, 16, "hold a token · sequences", "small muted")
    x = 0.0
    for _, colour, outline, words in PARTS:
        _box(svg, x, 27, 12, 12, colour, outline)
        svg.text(x + 17, 37, words, "small")
        x += 36 + 6.7 * len(words)
    y = 48.0
    for trace, ways in shares.items():
        svg.text(0, y + 19, trace, "bold")
        y += HEAD
        for way, share in ways.items():
            svg.text(LEFT - 10, y + 14, way, "end small")
            left = float(LEFT)
            for part, colour, outline, _ in PARTS:
                width = LONGEST * getattr(share, part)
                if width >= 0.5:
                    _box(svg, left, y, width, 19, colour, outline)
                left += width
            svg.text(LEFT + LONGEST + 12, y + 14, [(_percent(share.kept), "bold blue"),
                                                   (f" · {number(share.sequences)}", "muted")], "small")  # fmt: skip
            y += ROW
    return svg.picture()


def _box(svg: Svg, x: float, y: float, width: float, height: float, colour: str, outline: str) -> None:
    svg.rect(x, y, width, height, colour, rx=1)
    if outline:
        svg.rect(x + 0.5, y + 0.5, max(width - 1, 0), height - 1, outline, rx=1)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"
