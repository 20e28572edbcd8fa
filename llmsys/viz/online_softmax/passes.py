"""What a pass over memory is: each time that a softmax reads or writes its row, drawn as it was counted."""

import math
from collections.abc import Mapping

from llmsys.viz.kit.numbers import number
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

FOUND = {3: ("m", "ℓ", "y"), 2: ("m and ℓ", "y"), 1: ("y",)}
"""What each pass of a softmax finds out, by their number."""


def passes(passes: Mapping[str, float], *, writes: float = 1) -> Picture:
    """What each softmax moves between the big memory and the chip.

    passes    name of a softmax -> how often it reads its row, as counted
    writes    how often each of them writes its row

        softmax_passes({"safe softmax": 3.0, "online softmax": 2.0})

    Raises ValueError where there is nothing to draw.
    """
    if not passes or min(passes.values()) < 0:
        raise ValueError(
            f"passes must name the counted passes of at least one softmax, such as {{'mine': 2.0}}; got {passes}"
        )
    totals = {name: reads + writes for name, reads in passes.items()}
    most = max(totals.values())
    said = [
        f"{name} reads the row {_times(reads)}, writes it {_times(writes)}: {number(totals[name])} transfers an element"
        for name, reads in passes.items()
    ]
    svg = Svg(760, PANEL * len(passes) + 26, alt="; ".join(said) + ".")
    for i, (name, reads) in enumerate(passes.items()):
        with svg.group(y=PANEL * i):
            _traffic(svg, name, reads, writes, most)
    first, last = list(totals.values())[0], list(totals.values())[-1]
    if last != first:
        share = abs(1 - last / first)
        way = "less" if last < first else "more"
        change = f"{number(first)} transfers an element → {number(last)}: {100 * share:.0f}% {way}"
        svg.text(LEFT, PANEL * len(passes) + 12, change, "bold")
    return svg.picture()


PANEL, LEFT, CELLS, CHIP = 132, 130, 8, 40


def _traffic(svg: Svg, name: str, reads: float, writes: float, most: float) -> None:
    """One softmax: a beam for each time that the row crosses between the memory (top) and the chip (bottom)."""
    svg.text(0, 53, name, "bold")
    svg.text(0, 71, [(number(reads + writes), "bold"), " transfers"])
    svg.text(0, 19, "the row in memory", "small muted")
    svg.text(0, 100, "on the chip", "small muted")
    slots = math.ceil(most)
    slot = min((760 - LEFT) / slots, 160)
    whole = math.ceil(reads)
    found = FOUND.get(whole, [str(k + 1) for k in range(whole)]) if reads == whole else [""] * whole
    for k in range(whole):
        _beam(svg, LEFT + k * slot, slot - 12, min(reads - k, 1), "blue", f"read {k + 1}", found[k])
    for k in range(math.ceil(writes)):
        _beam(svg, LEFT + (whole + k) * slot, slot - 12, min(writes - k, 1), "green", "write", "y", up=True)
    for k in range(whole + math.ceil(writes), slots):
        x = LEFT + k * slot
        svg.rect(x, 8, slot - 12, 104, "line-rule dashed", rx=6)
        svg.text(x + (slot - 12) / 2, 64, "saved", "middle muted")


def _beam(
    svg: Svg, x: float, width: float, share: float, colour: str, what: str, found: str, *, up: bool = False
) -> None:
    cell, middle, top, chip = width / CELLS, x + width / 2, 24, 82
    for k in range(CELLS):
        fill = colour if k < share * CELLS else "panel"
        svg.rect(x + k * cell + 1, 8, cell - 2, 14, fill, rx=2)
    svg.path(
        [(x, top), (x + share * width, top), (middle + CHIP / 2, chip), (middle - CHIP / 2, chip)],
        f"{colour}-soft",
        close=True,
    )
    svg.text(middle, 46, what, "middle small")
    tip, foot = ((middle, 54), 62) if up else ((middle, 64), 56)
    svg.path([tip, (middle - 6, foot), (middle + 6, foot)], colour, close=True)
    svg.rect(middle - max(CHIP, 11 * len(found)) / 2, chip, max(CHIP, 11 * len(found)), 28, "surface", rx=5)
    svg.rect(middle - max(CHIP, 11 * len(found)) / 2, chip, max(CHIP, 11 * len(found)), 28, f"line-{colour}", rx=5)
    svg.text(middle, chip + 19, found, "middle bold")


def _times(count: float) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{number(count)} times")
