"""The byte leaderboard of lesson 03: the fewest bytes between HBM and a chip of a given size.

    byte_leaderboard(tiled_attention, block_q=64, block_k=48)

The learner's tiled attention runs on the two-level machine (`llmsys.hardware.memory`) with tiles of their choice. What
it keeps alive must fit the chip, so an implementation that works in place can take larger tiles, and larger tiles of
queries move fewer bytes. Beside it stand naive attention, the library's own tiled attention with several tiles and in
both orders, and the end of that road: q, k, v, o and the log-sum-exp, each once. The best is kept with the learner's
progress.
"""

from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch

from llmsys.attention import naive_attention, tiled_attention
from llmsys.attention.cost import naive_cost, tiled_bytes
from llmsys.course import display
from llmsys.course.workspace import progress
from llmsys.hardware.memory import HBM, KIB, SRAMOverflow

YOURS, BEST = "yours", "your best so far"
_COLOURS = {YOURS: "#0072b2", BEST: "#56b4e9"}
_OTHERS = "#999999"


@dataclass(frozen=True)
class Entry:
    """One line: the bytes that crossed and the most that was on the chip; or no bytes, and in `note` the reason."""

    name: str
    bytes: int | None
    sram_peak: int | None = None
    note: str = ""
    block_q: int | None = None
    block_k: int | None = None

    @property
    def ok(self) -> bool:
        """Whether it is ranked."""
        return self.bytes is not None


@dataclass(frozen=True)
class Board:
    """The entries, the fewest bytes first; what could not be ranked comes last."""

    title: str
    entries: tuple[Entry, ...]

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    def __repr__(self) -> str:
        lines, width = [self.title], max(26, *(len(entry.name) for entry in self.entries))
        for entry in self.entries:
            size = f"{entry.bytes:,} B" if entry.ok else "not ranked"
            lines.append(f"{entry.name:{width}} {size:>14}   {_remark(entry)}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        ranked = [entry for entry in self.entries if entry.ok]
        most = max(entry.bytes for entry in ranked)
        rows = [(e.name, f"{e.bytes:,} B", e.bytes / most, _COLOURS.get(e.name, _OTHERS)) for e in ranked]
        refused = [f"Not ranked: {entry.name}. {entry.note}." for entry in self.entries if not entry.ok]
        mine = [f"Yours: {_remark(entry)}." for entry in ranked if entry.name == YOURS]
        note = " ".join([*refused, *mine])
        return display.bars_html(f"{self.title}: bytes that crossed, fewer is better", rows, note)


def byte_leaderboard(
    attention: Callable, *, block_q: int, block_k: int, sram: int = 128 * KIB, T: int = 1024, D: int = 64
) -> Board:
    """Run `attention` (the contract of exercise 03.tiled_attention) with these tiles: one head, fp32, not causal.

    What overflows the chip, raises, is wrong or never reaches HBM is not ranked, and the board says why.
    """
    yours = _run(YOURS, attention, block_q, block_k, sram, T, D)
    entries = [yours, *_others(sram, T, D)]
    game = f"03.bytes of {T} x {D} on {sram}"
    before = progress.load().bests.get(game)
    if yours.ok:
        progress.best(game, yours.bytes)
    if before is not None and (not yours.ok or before < yours.bytes):
        entries.append(Entry(BEST, int(before)))
    entries.sort(key=lambda entry: (not entry.ok, entry.bytes or 0))
    return Board(f"{T} tokens, one head of {D}, a chip of {sram / KIB:g} KiB", tuple(entries))


def _run(name: str, attention: Callable, block_q: int, block_k: int, sram: int, T: int, D: int) -> Entry:
    *inputs, exact = _problem(T, D)
    q, k, v = (x.clone() for x in inputs)  # what is stored into them must not be the next run's problem
    tiles = f"tiles of {block_q} × {block_k}"
    refused = partial(Entry, name, None, block_q=block_q, block_k=block_k)
    try:
        with HBM(sram=sram, q=q, k=k, v=v) as hbm:
            o = attention(q, k, v, block_q=block_q, block_k=block_k, hbm=hbm)
        # fp32 is within 1e-6 of exact; what is kept in 16 bits, to cross at half the price, is not within 1e-5
        right, arrived = torch.allclose(o.double(), exact, atol=1e-5), hbm.home(o) is not None
    except SRAMOverflow as error:
        return refused(note=f"{tiles} do not fit: {str(error).rstrip('.')}")
    except Exception as error:  # it is the learner's code: whatever it raises, the board is shown
        return refused(note=f"{tiles} raised {type(error).__name__}: {str(error).rstrip('.')}")
    if not right:
        return refused(note=f"with {tiles} the result is wrong: does it pass its check?")
    if not arrived:
        return refused(note=f"with {tiles} the result is on the chip: store it into a tensor that hbm.empty made")
    return Entry(name, hbm.bytes, hbm.sram_peak, tiles, block_q, block_k)


@cache
def _problem(T: int, D: int) -> tuple[torch.Tensor, ...]:
    """q, k, v (1, 1, T, D), the same for everyone, and the exact o in float64."""
    q, k, v = (torch.randn(1, 1, T, D, generator=torch.Generator().manual_seed(i)) for i in range(3))
    return q, k, v, naive_attention(q.double(), k.double(), v.double())


@cache
def _others(sram: int, T: int, D: int) -> tuple[Entry, ...]:
    """What the learner's entry is ranked against."""
    entries = [
        Entry("naive, S and P in HBM", naive_cost(1, 1, T, D, itemsize=4).hbm_bytes),
        Entry("every tensor once", tiled_bytes(T, T, D, D, block_q=T), note="on a chip that holds all of q"),
    ]
    for order, name in (("query", "queries outside"), ("key", "keys outside")):
        peaks = partial(_peak, order=order, sram=sram, D=D)
        blocks = range(8, T + 1, 8)
        fitting = bisect(blocks, False, key=lambda block, peaks=peaks: peaks(block) is None)
        if not fitting:
            continue
        largest = blocks[fitting - 1]
        tiles = {largest: "the library's largest"}
        if order == "query":
            tiles = {largest // 4: "", largest // 2: ""} | tiles
        for block, note in tiles.items():
            size = tiled_bytes(T, T, D, D, block_q=block, order=order)
            entries.append(Entry(f"{name}, {block} × {block}", size, peaks(block), note, block, block))
    return tuple(entries)


def _peak(block: int, *, order: str, sram: int, D: int) -> int | None:
    """What the library's own keeps on the chip with such tiles; None where they do not fit. Two tiles show it."""
    attention = partial(tiled_attention, order=order)
    return _run("", attention, block, block, sram, 2 * block, D).sram_peak


def _remark(entry: Entry) -> str:
    peak = "" if entry.sram_peak is None else f"{entry.sram_peak / KIB:.1f} KiB on the chip"
    return ", ".join(filter(None, (entry.note, peak)))
