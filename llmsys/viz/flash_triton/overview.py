"""Two drawings of lesson 04: one program of the flash kernel among all of them, and the tiles under a causal mask."""

from llmsys.attention.flash.tiles import TileConfig
from llmsys.hardware.devices import DEVICES
from llmsys.viz.flash_triton.kernel_sweep import Configuration, recorded
from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg
from llmsys.viz.memory_wall.overview import size_in_words

HEAD = 64
TILES = TileConfig(64, 64, 4, 3)
"""What the opening picture shows: heads of 64 in bf16, cut as the library does."""
WORDS = (  # lesson 03's words -> the kernel's
    ("for q_start in range(…)", "tl.program_id(0)"),
    ("hbm.load(k[…])", "tl.load(k_at, mask=…)"),
    ("State(m, l, o)", "m, l, o: registers"),
    ("hbm.store(o[…], tile)", "tl.store(o_at, o, …)"),
)

MINE = 5
"""The tile of queries that the program drawn has, of `ROWS`; the grid has as many `COLUMNS` as heads."""
ROWS, COLUMNS = 7, 8
KEYS = 2
"""The tile of keys in use."""
SIDE = 38
"""Pixels of a tile of 64 × 64 elements on the chip."""


def flash_overview() -> Picture:
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


def causal_tiles(Tq: int = 64, Tk: int = 64, block_q: int = 16, block_k: int = 16) -> Picture:
    """The tiles of a causal score matrix: those that need no mask, those that the mask cuts, and those never loaded.

    The mask is aligned bottom-right: query i sees the keys up to i + Tk − Tq. Beside each row of tiles stands where its
    program's two loops end: the first, without a mask, and the second, with one.

    Raises ValueError where a number is not positive.
    """
    if min(Tq, Tk, block_q, block_k) < 1:
        raise ValueError(f"Tq, Tk, block_q and block_k must be positive, got {Tq}, {Tk}, {block_q} and {block_k}")
    loops = [_loops(row, min(row + block_q, Tq), Tq, Tk, block_k) for row in range(0, Tq, block_q)]
    across = -(-Tk // block_k)
    full = sum(clear // block_k for clear, _ in loops)
    masked = sum(-(-(stop - clear) // block_k) for clear, stop in loops)
    skipped = across * len(loops) - full - masked
    scale = min(WIDE / Tk, HIGH / Tq)
    svg = Svg(760, TOP + max(scale * Tq, 216) + 4, alt=(
        f"The scores of {Tq:,} queries and {Tk:,} keys under a causal mask, in tiles of {block_q} × {block_k}: "
        f"{full:,} are seen as a whole and need no mask, {masked:,} are cut by the mask or the end, and {skipped:,} "
        "are seen by no query: neither loaded nor computed."
    ))  # fmt: skip
    svg.text(LEFT, 28, f"keys: {Tk:,}", "small")
    svg.text(LEFT - 10, TOP + 12, "queries:", "end small")
    svg.text(LEFT - 10, TOP + 26, f"{Tq:,}", "end small")
    for hue in ("rule", "blue", "purple"):  # outlines of masked tiles last, on top
        for row, (clear, stop) in zip(range(0, Tq, block_q), loops, strict=True):
            reached = min(-(-stop // block_k) * block_k, Tk)
            keys = {"rule": range(reached, Tk), "blue": range(clear), "purple": range(clear, reached)}[hue]
            _row_of_tiles(svg, scale, hue, range(row, min(row + block_q, Tq)), keys, block_k, Tk - Tq)
    right = LEFT + scale * Tk
    if scale * min(block_q, Tq) >= 13:  # there is room for numbers
        svg.text(right + 12, 28, "clear", "small blue")
        svg.text(right + 52, 28, "stop", "small purple")
        for row, (clear, stop) in zip(range(0, Tq, block_q), loops, strict=True):
            y = TOP + scale * (row + min(row + block_q, Tq)) / 2 + 4
            svg.text(right + 12, y, f"{clear}", "small bold blue")
            svg.text(right + 52, y, f"{stop}", "small bold purple")
    for n, (count, hue, head, more) in enumerate((
        (full, "blue", "without a mask", "every query of the tile sees every key"),
        (masked, "purple", "with a mask", "the diagonal or the end cuts through"),
        (skipped, "rule", "skipped", "no query sees a key: never loaded"),
    )):  # fmt: skip
        y = TOP + 4 + 58 * n
        svg.rect(LEGEND, y, 30, 30, SOFT[hue], rx=0)
        svg.rect(LEGEND, y, 30, 30, EDGE[hue], rx=0)
        svg.text(LEGEND + 42, y + 13, f"{count:,} {head}", "bold")
        svg.text(LEGEND + 42, y + 29, more, "small")
    svg.text(LEGEND, TOP + 200, f"of {across * len(loops):,} tiles, {full + masked:,} are computed", "bold")
    return svg.picture()


LEFT, TOP, WIDE, HIGH, LEGEND = 92, 38, 290, 250, 482
"""Pixels: the left and top of the map, the most that it may be wide and high, and the left of the legend."""
SOFT = {"rule": "panel", "blue": "blue-soft", "purple": "purple-soft"}
EDGE = {"rule": "line-rule dashed", "blue": "line-blue", "purple": "line-purple"}


def _loops(first: int, last: int, Tq: int, Tk: int, block_k: int) -> tuple[int, int]:
    """Where the kernel's two loops end for the queries from `first` to before `last`."""
    stop = max(min(last + Tk - Tq, Tk), 0)
    return max(min(first + 1 + Tk - Tq, Tk), 0) // block_k * block_k, stop


def _row_of_tiles(svg: Svg, scale: float, hue: str, queries: range, keys: range, block_k: int, offset: int) -> None:
    """The tiles of one kind in a row, side by side; of those with a mask, what is seen, query by query."""
    if not keys:
        return
    large = scale * min(block_k, len(keys)) >= 6  # enough for outlines
    y, height = TOP + scale * queries.start, scale * len(queries)
    x, width = LEFT + scale * keys.start, scale * len(keys)
    if hue == "purple":
        steps = [(x, y + height), (x, y)]
        for query in queries:
            seen = max(min(query + offset + 1, keys.stop) - keys.start, 0)
            steps += [(x + scale * seen, y + scale * (query - queries.start + n)) for n in (0, 1)]
        svg.path(steps, SOFT[hue] if large else hue, close=True)
    else:
        svg.rect(x, y, width, height, SOFT[hue], rx=0)
    for start in range(keys.start, keys.stop, block_k) if large else ():
        wide = scale * (min(start + block_k, keys.stop) - start)
        svg.rect(LEFT + scale * start, y, wide, height, EDGE[hue], rx=0)


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
