"""The opening picture of lesson 04: one program of the flash kernel, among all of the grid."""

from llmsys.attention.flash.tiles import TileConfig
from llmsys.hardware.devices import DEVICES
from llmsys.viz.flash_triton.kernel_sweep import Configuration, recorded
from llmsys.viz.kit.numbers import size_in_words
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg

HEAD = 64
TILES = TileConfig(64, 64, 4, 3)
"""What the opening picture shows: heads of 64 in bf16, cut as the library does."""
WORDS = (  # lesson 03's words -> the kernel's
    ("for i in range(0, Tq, …)", "tl.program_id(0)"),
    ("hbm.load(k[…])", "tl.load(k_at, mask=…)"),
    ("m, l, O on the chip", "m, l, o: registers"),
    ("hbm.store(o[…], …)", "tl.store(o_at, o, …)"),
)

MINE = 5
"""The tile of queries that the program drawn has, of `ROWS`; the grid has as many `COLUMNS` as heads."""
ROWS, COLUMNS = 7, 8
KEYS = 2
"""The tile of keys in use."""
SIDE = 38
"""Pixels of a tile of 64 × 64 elements on the chip."""


def overview() -> Picture:
    """Lesson 04 in one picture: what a program holds and where, the keys and values that stream by, and the grid.

    The sizes are the compiler's, for Hopper (`llmsys.viz.flash_triton.kernel_sweep`).
    """
    device = DEVICES["H100 SXM"]
    compiled = recorded()[Configuration(HEAD, TILES.block_m, TILES.block_n, TILES.num_warps, TILES.num_stages)]
    threads, at_once = 32 * TILES.num_warps, compiled.occupancy(TILES.num_warps).programs
    registers, shared = size_in_words(4 * threads * compiled.registers), size_in_words(compiled.shared_bytes)
    svg = Svg(760, 400, alt=(
        f"One program of the flash kernel. It has one tile of {TILES.block_m} queries of one head. In shared memory, "
        f"{shared}, are that tile of q and {TILES.num_stages} tiles each of k and v: one in use, the others on their "
        f"way from HBM. In registers, {registers}, are the scores of one tile and the state m, l and o. At the end o "
        f"is stored once. The grid has a program for each tile of queries of each head; an H100 runs "
        f"{at_once * device.sms} of them at a time. Lesson 03's words and the kernel's: "
        f"{'; '.join(f'{before} is {after}' for before, after in WORDS)}."
    ))  # fmt: skip
    _memory(svg)
    svg.rect(212, 4, 334, 300, "line-ink", rx=8)
    svg.text(226, 25, [("one program", "bold"), f" · {TILES.block_m} queries, {TILES.num_warps} warps"])
    _shared(svg, f"shared memory: {shared}")
    _registers(svg, f"registers: {registers}, {compiled.registers} a thread")
    svg.arrow((150, 66), (220, 66), "blue")
    svg.text(181, 60, "once", "middle small")
    svg.arrow((150, 100), (220, 100), "orange", more="thick")
    svg.text(181, 92, "stream", "middle small bold orange")
    _grid(svg, at_once, device.sms)
    _words(svg)
    return svg.picture()


def _memory(svg: Svg) -> None:
    svg.rect(0, 4, 150, 300, "panel", rx=8)
    svg.text(12, 25, [("HBM", "bold"), " · one head"])
    for i, name in enumerate("qkvo"):
        x = 10 + 34 * i
        svg.text(x + 14, 50, name, "middle bold")
        for n in range(ROWS):
            if name == "q":
                hue = "blue" if n == MINE else "blue-soft"
            elif name == "o":
                hue = "green" if n == MINE else "surface"
            else:
                hue = "orange" if n == KEYS else "orange-soft" if KEYS < n < KEYS + TILES.num_stages else "blue-soft"
            svg.rect(x, 58 + 34 * n, 28, 31, hue, rx=2)
            svg.rect(x, 58 + 34 * n, 28, 31, "line-rule", rx=2)


def _shared(svg: Svg, title: str) -> None:
    svg.rect(222, 36, 314, 96, "panel", rx=6)
    svg.text(232, 52, title, "small bold")
    svg.rect(230, 62, SIDE, SIDE, "blue", rx=2)
    svg.text(249, 86, "q", "middle bold on")
    for stage in range(TILES.num_stages):
        x = 280 + 86 * stage
        for i, name in enumerate("kv"):
            left = x + i * (SIDE + 2)
            svg.rect(left, 62, SIDE, SIDE, "orange" if stage == 0 else "orange-soft", rx=2)
            svg.text(left + SIDE / 2, 86, name, "middle bold on" if stage == 0 else "middle bold")
        svg.text(x + SIDE + 1, 118, "on their way" if stage else "in use", "middle small")


def _registers(svg: Svg, title: str) -> None:
    svg.rect(222, 158, 314, 138, "panel", rx=6)
    svg.text(232, 290, title, "small bold")
    svg.text(256, 150, "q kᵀ", "end small")
    svg.arrow((249, 102), (290, 186), "blue")
    svg.arrow((299, 102), (299, 186), "orange")
    svg.arrow((339, 102), (452, 188), "orange")
    svg.rect(280, 188, SIDE, SIDE, "purple-soft", rx=2)
    svg.text(299, 212, "s, p", "middle bold")
    svg.arrow((320, 207), (416, 207), "purple")
    svg.text(366, 201, "p v", "middle small")
    svg.text(299, 242, "this tile's scores", "middle small")
    for x, width, name in ((420, 6, "m"), (434, 6, "ℓ"), (448, SIDE, "o")):
        svg.rect(x, 190, width, SIDE, "green-soft", rx=1)
        svg.rect(x, 190, width, SIDE, "line-green", rx=1)
        svg.text(x + width / 2, 214 if name == "o" else 242, name, "middle bold")
    svg.text(492, 214, "so far", "small")
    svg.path([(467, 229), (467, 266), (181, 266), (181, 244), (150, 244)], "line-green thick")
    svg.arrow((160, 244), (142, 244), "green", more="thick")
    svg.text(350, 259, "o / ℓ, once, after the last tile of keys", "middle small")


def _grid(svg: Svg, at_once: int, sms: int) -> None:
    svg.text(570, 25, "the grid", "bold")
    svg.text(570, 43, "a program for each tile of", "small")
    svg.text(570, 57, "queries (down) and head", "small")
    for n in range(ROWS):
        for h in range(COLUMNS):
            mine = (n, h) == (MINE, 0)
            svg.rect(590 + 20 * h, 72 + 22 * n, 17, 19, "ink" if mine else "blue-soft", rx=2)
    svg.line((546, 72 + 22 * MINE + 10), (590, 72 + 22 * MINE + 10), "line-ink")
    svg.text(570, 248, f"An H100 runs {at_once * sms} at a time:", "small bold")
    svg.text(570, 264, f"{at_once} on each of {sms} SMs, in any", "small")
    svg.text(570, 280, "order; none waits for another.", "small")


def _words(svg: Svg) -> None:
    svg.rect(0, 354, 760, 28, "panel", rx=6)
    svg.text(8, 338, "lesson 03", "small muted")
    svg.text(8, 372, "here", "small bold")
    for i, (before, after) in enumerate(WORDS):
        x = 84 + 174 * i
        svg.text(x, 338, before, "mono small muted")
        svg.text(x, 372, after, "mono small bold")
        svg.arrow((x + 30, 343), (x + 30, 360))
