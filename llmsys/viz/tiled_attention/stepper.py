"""The stepper of lesson 03: tiled attention at work, transfer by transfer.

Its frames are the transfers that the two-level machine (`llmsys.hardware.memory.HBM`) recorded while a tiled attention,
the reader's own or the library's, ran on it, grouped into steps: nothing is drawn that did not happen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from llmsys.attention.tiled import tiled_attention
from llmsys.hardware.memory import HBM, Transfer
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.kit.svg import Svg

D = 16
MAP, LEFT, TOP = 224, 96, 66  # the score matrix in pixels, and where it is
STATE = {"m", "l"}


@dataclass(frozen=True)
class Step:
    """One step: the transfers that make it, and what is known after it."""

    Tq: int
    Tk: int
    block_q: int
    block_k: int
    causal: bool
    order: str
    moved: tuple[Transfer, ...]
    queries: tuple[int, int] | None
    """The query tile on the chip, (start, stop)."""
    keys: tuple[int, int] | None
    done: frozenset[tuple[int, int]]
    """Score tiles that have been computed, by (query start, key start)."""
    now: tuple[int, int] | None
    stored: frozenset[int]
    """Query tiles whose o is in HBM, finished."""
    bytes: int
    naive_bytes: int


def stepper(
    order: str = "query", causal: bool = False, tile: str = "16 × 16", *, attention: Callable = tiled_attention
) -> Stepper:
    """Step through tiled attention of one small head: what is loaded, what is on the chip, what has crossed so far.

    `attention` runs with queries outside, and has the arguments of `tiled_attention` but for `order`; with keys outside
    it is the library's.
    """
    return Stepper(
        partial(steps, attention=attention),
        draw,
        title="Tiled attention",
        describe=describe,
        controls=[
            Choice("order", "Outer loop", {"queries (FA2)": "query", "keys (FA1)": "key"}, order),
            Choice("causal", "Causal", {"no": False, "yes": True}, causal),
            Choice("tile", "Tile", {t: t for t in ("16 × 16", "32 × 16", "16 × 32", "8 × 16")}, tile),
            Choice("length", "Length", {"64": "64", "60, ragged": "60", "24 queries, 64 keys": "24 of 64"}),
        ],
        static=lambda frames: 2 * len(frames) // 3,
        interval=700,
    )


def steps(
    order: str, causal: bool, tile: str, length: str = "64", *, attention: Callable = tiled_attention
) -> list[Step]:
    """Run tiled attention on the machine that records transfers, and make a step of each group of them."""
    block_q, block_k = (int(n) for n in tile.split(" × "))
    Tq, Tk = (24, 64) if length == "24 of 64" else (int(length), int(length))
    q, k, v = (torch.zeros(1, 1, T, D) for T in (Tq, Tk, Tk))
    with HBM(sram=None, q=q, k=k, v=v) as hbm:
        run = attention if order == "query" else partial(tiled_attention, order=order)
        run(q, k, v, causal=causal, block_q=block_q, block_k=block_k, hbm=hbm)
    naive = 4 * (2 * (Tq + Tk) * D + 4 * Tq * Tk)
    queries = keys = now = None
    done: set[tuple[int, int]] = set()
    stored: set[int] = set()
    total, found = 0, []
    for moved in _grouped(hbm.transfers):
        first = moved[0]
        span = (first.start[-2] if first.tensor not in ("lse", *STATE) else first.start[-1],)
        span = (span[0], span[0] + first.shape[-2 if first.tensor not in ("lse", *STATE) else -1])
        now = None
        if first.kind == "load" and first.tensor == "q":
            queries = span
        elif first.kind == "load" and first.tensor == "k":
            keys = span
        if first.kind == "load" and queries and keys:
            inner = "k" if order == "query" else "q"
            if first.tensor == inner:
                now = (queries[0], keys[0])
                done.add(now)
        finished = first.kind == "store" and any(t.tensor == "lse" for t in moved)
        if finished:
            stored.add(span[0])
        total += sum(t.bytes for t in moved)
        found.append(Step(
            Tq, Tk, block_q, block_k, causal, order, moved, queries, keys, frozenset(done), now, frozenset(stored),
            total, naive,
        ))  # fmt: skip
        if finished:
            queries = None
        if order == "query" and finished:
            keys = None
    return found


def describe(step: Step) -> str:
    """The caption of a step: what is loaded or stored, and how many bytes have crossed so far."""
    names = " and ".join(dict.fromkeys(t.tensor for t in step.moved))
    first = step.moved[0]
    what = {"load": f"Load a tile of {names}", "store": f"Store {names}"}[first.kind]
    if step.now:
        what += ", and compute a tile of scores that never leaves the chip"
    share = step.bytes / step.naive_bytes
    return f"{what}. So far {step.bytes:,} bytes have crossed, {share:.0%} of what naive attention moves in all."


def draw(step: Step) -> Svg:
    """A step as a picture: HBM with the matrix in tiles (left), the chip (right), bytes so far (below)."""
    svg = Svg(760, 372, alt="")
    _map(svg, step)
    _chip(svg, step)
    _meter(svg, step)
    return svg


def tile_kind(i: int, j: int, step: Step) -> str:
    """What the causal mask makes of the tile of scores (i, j): "full", "masked" (the diagonal cuts it) or "skipped"."""
    if not step.causal:
        return "full"
    offset = step.Tk - step.Tq
    last_row, last_column = min(i + step.block_q, step.Tq) - 1, min(j + step.block_k, step.Tk) - 1
    if j > last_row + offset:
        return "skipped"
    return "full" if last_column <= i + offset else "masked"


def _map(svg: Svg, step: Step) -> None:
    unit = MAP / step.Tk
    height = step.Tq * unit
    loads = {t.tensor for t in step.moved if t.kind == "load"}
    stores = {t.tensor for t in step.moved if t.kind == "store"}
    svg.text(LEFT, 16, "HBM", "bold")
    svg.text(LEFT + 40, 16, "what is loaded in this step is orange", "small muted")
    for row, name in enumerate(("k", "v")):
        y = 26 + 17 * row
        svg.text(LEFT - 8, y + 11, name, "end bold")
        for j in range(0, step.Tk, step.block_k):
            w = (min(j + step.block_k, step.Tk) - j) * unit
            hot = name in loads and step.keys and step.keys[0] == j
            svg.rect(LEFT + j * unit + 0.5, y, w - 1, 14, "orange" if hot else "blue-soft", rx=2)
    for x, name in ((LEFT - 46, "q"), (LEFT + MAP + 8, "o")):
        svg.text(x + 8, TOP + height + 16, name, "middle bold")
        for i in range(0, step.Tq, step.block_q):
            h = (min(i + step.block_q, step.Tq) - i) * unit
            hot = name in (loads if name == "q" else stores) and step.queries and step.queries[0] == i
            hue = "orange" if hot else "blue-soft" if name == "q" else "green-soft" if i in step.stored else "panel"
            svg.rect(x, TOP + i * unit + 0.5, 16, h - 1, hue, rx=2)
    for i in range(0, step.Tq, step.block_q):
        for j in range(0, step.Tk, step.block_k):
            w, h = (min(j + step.block_k, step.Tk) - j) * unit, (min(i + step.block_q, step.Tq) - i) * unit
            x, y, kind = LEFT + j * unit, TOP + i * unit, tile_kind(i, j, step)
            now, done = step.now == (i, j), (i, j) in step.done
            hue = "orange" if now else "blue-soft" if done else "panel"
            svg.rect(x + 0.5, y + 0.5, w - 1, h - 1, hue, rx=2)
            if kind == "masked":  # above the diagonal the tile is computed and hidden
                svg.line((x + 2, y + 2), (x + w - 2, y + h - 2), "line-purple")
            elif kind == "skipped":
                svg.text(x + w / 2, y + h / 2 + 4, "·", "middle muted")
    seen = "dots: skipped; purple: masked" if step.causal else "the scores, tile by tile"
    svg.text(LEFT, TOP + height + 16, seen, "small muted")


def _chip(svg: Svg, step: Step) -> None:
    x = 410
    svg.rect(x, 8, 350, 236, "panel", rx=8)
    svg.text(x + 14, 30, "on the chip", "bold")
    held = []
    if step.queries:
        rows = step.queries[1] - step.queries[0]
        held += [(f"q, rows {step.queries[0]}–{step.queries[1] - 1}", rows * D * 4, "q")]
        held += [("m, ℓ, o of these rows", rows * (D + 2) * 4, "o")]
    if step.keys:
        keys = step.keys[1] - step.keys[0]
        held += [(f"k and v, rows {step.keys[0]}–{step.keys[1] - 1}", 2 * keys * D * 4, "k")]
    if step.now:
        rows, keys = step.queries[1] - step.queries[0], step.keys[1] - step.keys[0]
        held += [("scores of the tile", rows * keys * 4, "s")]
    loaded = {t.tensor for t in step.moved if t.kind == "load"}
    for n, (what, size, name) in enumerate(held):
        y = 44 + 34 * n
        hot = name in loaded or name == "s"
        svg.rect(x + 14, y, max(size / 40, 6), 24, "orange-soft" if hot else "blue-soft", rx=3)
        svg.text(x + 20, y + 16, f"{what}: {size:,} B", "small")
    first = step.moved[0]
    lines = [f"{t.kind} {t.tensor}: {t.bytes:,} B" for t in step.moved]
    svg.text(x + 14, 196, "this step", "small muted")
    svg.text(x + 14, 214, ",  ".join(lines[:3]), "small bold" + (" orange" if first.kind == "load" else " green"))
    if len(lines) > 3:
        svg.text(x + 14, 230, ",  ".join(lines[3:]), "small bold")


def _meter(svg: Svg, step: Step) -> None:
    scale = 590 / max(step.naive_bytes, step.bytes)
    rows = (("tiled, so far", step.bytes, "blue"), ("naive, in all", step.naive_bytes, "muted"))
    for n, (name, size, hue) in enumerate(rows):
        y = 314 + 28 * n
        svg.text(92, y + 14, name, "end small")
        svg.rect(100, y, max(size * scale, 1), 20, hue, rx=2)
        end, inside = 100 + size * scale, size * scale > 120
        svg.text(end + (-6 if inside else 6), y + 14, f"{size:,} B", "small end on" if inside else "small")


def _grouped(transfers: list[Transfer]) -> list[tuple[Transfer, ...]]:
    """Transfers that belong together: k with v, a query tile with its state, o with lse, a state's parts."""
    groups: list[list[Transfer]] = []
    for transfer in transfers:
        last = groups[-1][-1] if groups else None
        joined = last is not None and last.kind == transfer.kind and (
            (last.tensor, transfer.tensor)
            in {("k", "v"), ("o", "lse"), ("lse", "o"), ("m", "l"), ("l", "o"), ("q", "o"), ("o", "m")}
        )  # fmt: skip
        groups[-1].append(transfer) if joined else groups.append([transfer])
    return [tuple(group) for group in groups]
