"""The tiles of scores under a causal mask: which are computed, which need the mask, and which are skipped."""

from llmsys.viz.kit.picture import Picture
from llmsys.viz.kit.svg import Svg


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
    full = sum(whole // block_k for whole, _ in loops)
    masked = sum(-(-(stop - whole) // block_k) for whole, stop in loops)
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
        for row, (whole, stop) in zip(range(0, Tq, block_q), loops, strict=True):
            reached = min(-(-stop // block_k) * block_k, Tk)
            keys = {"rule": range(reached, Tk), "blue": range(whole), "purple": range(whole, reached)}[hue]
            _row_of_tiles(svg, scale, hue, range(row, min(row + block_q, Tq)), keys, block_k, Tk - Tq)
    right = LEFT + scale * Tk
    if scale * min(block_q, Tq) >= 13:  # there is room for numbers
        svg.text(right + 12, 28, "whole", "small blue")
        svg.text(right + 52, 28, "stop", "small purple")
        for row, (whole, stop) in zip(range(0, Tq, block_q), loops, strict=True):
            y = TOP + scale * (row + min(row + block_q, Tq)) / 2 + 4
            svg.text(right + 12, y, f"{whole}", "small bold blue")
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
