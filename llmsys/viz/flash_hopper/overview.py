"""The opening picture of lesson 06: who does what on an SM of an H100, and what that wins.

Its numbers are the library's: the cut of `hopper_tiles` for heads of 128, and timelines of the model
(`llmsys.hardware.sm`), drawn like those of the lesson's stepper.
"""

from llmsys.attention.hopper.schedule import hopper_tiles
from llmsys.hardware.sm import ORDERS, Timeline, attention_costs, run
from llmsys.viz.flash_hopper.sm_timeline import shares
from llmsys.viz.kit.numbers import size_in_words
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

HEAD, ITEMSIZE = 128, 2
HUES = ("blue", "green")
"""The colours of the two consumers."""
SHARED, CONSUMERS, ENGINES = 220, 424, 634
"""Pixels: the left of shared memory, of the consumers, and of the engines they use."""
STRIPS = 262
"""Pixels: the top of the timelines."""
WINDOW = 6400
"""Cycles of a timeline that are drawn, from its middle."""


def overview() -> Picture:
    """A producer that only starts copies, rings of tiles, two consumers that take turns, and what two orders make of
    the engines."""
    tiles = hopper_tiles(HEAD, 16_384, False)
    costs = attention_costs(64, tiles.block_n, HEAD, ITEMSIZE)
    timelines = {name: run(ORDERS[name](16, tiles.consumers), costs) for name in ("fa2", "overlapped_held")}
    svg = Svg(760, 386, alt=(
        f"One SM of an H100. A producer, one warp with {tiles.producer_registers} registers a thread, starts copies. "
        f"The copy engine brings tiles of K and V from HBM into rings of {tiles.slots} slots in shared memory. A slot "
        "is full when its bytes are there, and empty again when both consumers have given it back. Two consumers, each "
        f"of four warps, with 64 rows of queries and {tiles.consumer_registers} registers a thread, hold S, P and O. "
        "They take turns: while one has the tensor cores, the other computes exponentials. Below, timelines of the "
        "model: where each consumer goes through its steps on its own, the tensor cores have nothing to do while both "
        "compute a softmax; with turns, and the softmax beside the product before it, they are hardly ever idle."
    ))  # fmt: skip
    _memory(svg)
    svg.rect(104, 4, 655, 236, "line-ink", rx=8)
    svg.text(748, 24, "one SM of an H100", "end bold")
    _rings(svg, tiles.slots, tiles.block_n)
    _producer(svg, tiles.producer_registers)
    for j in range(2):
        _consumer(svg, j, tiles.consumer_registers)
    _engines(svg)
    heads = ("each on its own", "with turns and overlap")
    for n, (timeline, head) in enumerate(zip(timelines.values(), heads, strict=True)):
        _strip(svg, 100 + 340 * n, head, timeline)
    for n, name in enumerate(("tensor cores", "softmax")):
        svg.text(92, STRIPS + 44 + 44 * n, name, "end small")
    return svg.picture()


def _memory(svg: Svg) -> None:
    svg.rect(0, 4, 84, 236, "panel", rx=8)
    svg.text(42, 24, "HBM, L2", "middle bold")
    for x, name in ((12, "k"), (48, "v")):
        svg.text(x + 12, 44, name, "middle bold")
        for n in range(6):
            svg.rect(x, 52 + 30 * n, 24, 27, "orange" if (name, n) == ("v", 2) else "blue-soft", rx=2)
    svg.arrow((74, 126), (118, 148), "orange", more="thick")


def _producer(svg: Svg, registers: int) -> None:
    svg.rect(116, 40, 92, 62, "purple-soft", rx=4)
    for n, (line, classes) in enumerate((
        ("producer", "bold"), ("1 warp,", "small"), (f"{registers} registers", "small")
    )):  # fmt: skip
        svg.text(162, 58 + 16 * n, line, f"middle {classes}")
    svg.arrow((162, 104), (162, 134), "purple")
    svg.text(168, 122, "starts", "small")
    svg.rect(120, 136, 84, 40, "orange", rx=4)
    svg.text(162, 160, "copy engine", "middle small bold on")
    svg.arrow((206, 156), (SHARED + 12, 156), "orange", more="thick")
    svg.path([(CONSUMERS + 88, 34), (CONSUMERS + 88, 22), (162, 22), (162, 30)], "line-purple dashed")
    svg.arrow((162, 28), (162, 39), "purple")
    svg.text((SHARED + CONSUMERS) / 2 + 16, 18, "a slot is empty again", "middle small")


def _rings(svg: Svg, slots: int, block_n: int) -> None:
    tile = block_n * HEAD * ITEMSIZE
    svg.rect(SHARED, 34, 180, 196, "panel", rx=6)
    svg.text(SHARED + 10, 51, "shared memory", "small bold")
    svg.text(SHARED + 10, 222, f"a tile: {block_n} rows, {size_in_words(tile)}", "small")
    for row, name in enumerate("KV"):
        for slot in range(slots):
            x, y = SHARED + 14 + 78 * slot, 62 + 76 * row
            coming = row == 1 and slot == 0
            svg.rect(x, y, 72, 40, "orange-soft" if coming else "blue-soft", rx=2)
            svg.rect(x, y, 72, 40, "line-orange dashed" if coming else "line-blue", rx=2)
            svg.text(x + 36, y + 25, f"{name}{2 + slot if row == 0 or coming else slot}", "middle bold")
            svg.text(x + 36, y + 54, "being copied" if coming else "full", "middle small")


def _consumer(svg: Svg, j: int, registers: int) -> None:
    y, hue = 34 + 102 * j, HUES[j]
    svg.rect(CONSUMERS, y, 176, 94, f"{hue}-soft", rx=4)
    svg.rect(CONSUMERS, y, 176, 94, f"line-{hue}", rx=4)
    svg.text(CONSUMERS + 10, y + 18, f"consumer {j}", "bold")
    svg.text(CONSUMERS + 10, y + 34, f"4 warps, {registers} registers", "small")
    for n, name in enumerate("SPO"):
        now = name == ("S", "P")[j] or (name == "O" and j == 0)
        x = CONSUMERS + 14 + 52 * n
        svg.rect(x, y + 44, 42, 40, hue if now else "surface", rx=2)
        svg.text(x + 21, y + 69, name, "middle bold on" if now else "middle bold")
    svg.arrow((SHARED + 182, y + 64), (CONSUMERS - 2, y + 64), hue)


def _engines(svg: Svg) -> None:
    for j, (name, what) in enumerate((("tensor cores", "S = q kᵀ,  O += P v"), ("exponentials", "P = 2^{S − m}"))):
        y = 44 + 102 * j
        svg.rect(ENGINES, y, 118, 74, "panel", rx=4)
        svg.rect(ENGINES, y, 118, 74, f"line-{HUES[j]}", rx=4)
        svg.text(ENGINES + 59, y + 30, name, "middle bold")
        svg.text(ENGINES + 59, y + 52, what, "middle small")
        svg.arrow((CONSUMERS + 178, y + 37), (ENGINES - 2, y + 37), HUES[j], more="thick")
    svg.arrow((CONSUMERS + 178, 104), (ENGINES - 2, 160), "muted", more="dashed")
    svg.arrow((CONSUMERS + 178, 160), (ENGINES - 2, 104), "muted", more="dashed")
    svg.text(ENGINES + 59, 136, "in turns", "middle small")


def _strip(svg: Svg, left: float, head: str, timeline: Timeline) -> None:
    """What the two engines do in the middle of a timeline, as the frames of `sm_timeline` draw it."""
    first, width, height = timeline.cycles / 2 - WINDOW / 2, 320, 38
    svg.text(left, STRIPS + 10, head, "bold")
    for row, engine in enumerate(("tensor", "exp")):
        y = STRIPS + 20 + 44 * row
        svg.rect(left, y, width, height, "panel", rx=2)
        for share in shares(timeline):
            if share.span.engine != engine:
                continue
            hue = HUES[share.span.warpgroup]
            for start, end, k, n in share.pieces:
                a, b = (left + width * min(max((t - first) / WINDOW, 0), 1) for t in (start, end))
                if b - a > 0.5:
                    svg.rect(a, y + height * k / n, b - a, height / n, f"{hue} edged", rx=0)
                if b - a > 18:
                    svg.text((a + b) / 2, y + height * (k + 0.5) / n + 4, share.span.label, "middle small bold on")
    svg.text(left, STRIPS + 120, f"{WINDOW:,} cycles of the model", "small muted")
