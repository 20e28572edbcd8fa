"""An order of computing and sending as two lanes: what the GPU does, and what the link does."""

from collections.abc import Sequence

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

LEFT, RIGHT, HIGH = 84, 752, 26
Bar = tuple[str, int, float, float]
"""("compute" or "link", layer, start, end)."""


def order(found: Sequence[tuple[str, Sequence[Bar]]]) -> Picture:
    """Orders below each other, on one axis of time.

    found      (a name, its bars) each: `lanes` of the lesson's package makes them

    Raises ValueError where there is none.
    """
    if not found:
        raise ValueError("found must have at least one order")
    found = [(name, [tuple(bar) for bar in bars]) for name, bars in found]
    most = max(end for _, bars in found for *_, end in bars)
    scale = (RIGHT - LEFT) / most
    words = "; ".join(f"{name}: {max(bar[3] for bar in bars):g}" for name, bars in found)
    svg = Svg(760, 92 * len(found) + 4, alt=f"When the last layer has come, in units of a layer's computing. {words}.")
    for n, (name, bars) in enumerate(found):
        y = 92 * n
        end = max(bar[3] for bar in bars)
        svg.text(0, y + 16, [(name, "bold"), (f" · all there at {end:g}", "muted")])
        for lane, top in (("compute", y + 24), ("link", y + 24 + HIGH + 4)):
            svg.text(LEFT - 10, top + 18, lane, "end small muted")
            svg.rect(LEFT, top, RIGHT - LEFT, HIGH, "panel", rx=2)
            for kind, layer, start, stop in bars:
                if kind == lane:
                    x, width = LEFT + scale * start, max(scale * (stop - start) - 1, 1)
                    colour = "orange" if lane == "compute" else "green"
                    svg.rect(x, top, width, HIGH, f"{colour}-soft")
                    svg.rect(x, top, width, HIGH, f"line-{colour}")
                    if width > 16:
                        svg.text(LEFT + scale * (start + stop) / 2, top + 18, str(layer), "middle small bold")
    return svg.picture()
