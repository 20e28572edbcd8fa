"""The byte leaderboard of lesson 03: the fewest bytes between HBM and a chip of a given size.

    byte_leaderboard(tiled_attention, block_q=64, block_k=48)

The learner's tiled attention runs on the two-level machine (`llmsys.hardware.memory`) with tiles of their choice. What
it keeps alive must fit the chip, so an implementation that works in place can take larger tiles, and larger tiles of
queries move fewer bytes. Beside it stand naive attention, the library's own with the largest square tiles that fit, in
both orders, and what cannot be undercut: every tensor once. The best entry is kept with the learner's progress.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from llmsys.attention import naive_attention, tiled_attention
from llmsys.attention.cost import naive_cost, tiled_bytes
from llmsys.course import cards, progress
from llmsys.hardware.memory import HBM, KIB, SRAMOverflow

_COLOURS = {"yours": "#0072b2", "your best": "#56b4e9"}


@dataclass(frozen=True)
class Entry:
    """One line: the bytes that crossed and the chip's peak, or in `note` why there are none."""

    name: str
    bytes: int | None
    sram_peak: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Board:
    """The entries, the fewest bytes first, and those that were not entered last."""

    title: str
    entries: tuple[Entry, ...]

    def __repr__(self) -> str:
        lines = [self.title]
        for entry in self.entries:
            bytes_ = "–" if entry.bytes is None else f"{entry.bytes:,}"
            peak = "" if entry.sram_peak is None else f"{entry.sram_peak / KIB:.1f} KiB on the chip"
            lines.append(f"{entry.name:34} {bytes_:>12} B   {'; '.join(filter(None, (peak, entry.note)))}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        ranked = [entry for entry in self.entries if entry.bytes is not None]
        most = max(entry.bytes for entry in ranked)
        rows = [(e.name, f"{e.bytes:,} B", e.bytes / most, _COLOURS.get(e.name, "#999999")) for e in ranked]
        refused = [f"{entry.name}: {entry.note}" for entry in self.entries if entry.bytes is None]
        note = " ".join(refused) or "Bytes that crossed between HBM and the chip. Shorter is better."
        return cards.bars_html(self.title, rows, note)


def byte_leaderboard(
    attention: Callable, *, block_q: int, block_k: int, sram: int = 128 * KIB, T: int = 1024, D: int = 64
) -> Board:
    """Run `attention` (the contract of exercise 03.tiled_attention) with these tiles, one head, fp32, not causal.

    An entry that overflows the chip, or is wrong, is not ranked, and the board says why.
    """
    entries = [_run("yours", attention, block_q, block_k, sram, T, D), *_others(sram, T, D)]
    key = f"03.leaderboard {sram} B, T = {T}, D = {D}"
    record = progress.load().predictions.get(key)
    best = record.measured if record else None
    if entries[0].bytes is not None and (best is None or entries[0].bytes < best):
        progress.prediction(key, None, "B")
        progress.measurement(key, entries[0].bytes)
    elif best is not None:
        entries.append(Entry("your best", int(best)))
    entries.sort(key=lambda entry: (entry.bytes is None, entry.bytes or 0))
    return Board(f"{T} tokens, a head of {D}, a chip of {sram / KIB:g} KiB", tuple(entries))


def _run(name: str, attention: Callable, block_q: int, block_k: int, sram: int, T: int, D: int) -> Entry:
    q, k, v, exact = _problem(T, D)
    try:
        with HBM(sram=sram, q=q, k=k, v=v) as hbm:
            o = attention(q, k, v, block_q=block_q, block_k=block_k, hbm=hbm)
    except SRAMOverflow as error:
        return Entry(name, None, note=f"tiles of {block_q} × {block_k} do not fit: {error}")
    except Exception as error:  # the learner's own code: whatever it raises, the board goes on
        return Entry(name, None, note=f"{type(error).__name__}: {error}")
    if not torch.allclose(o.double(), exact, atol=1e-4):
        return Entry(name, None, note="the result is wrong: the check above says where")
    return Entry(name, hbm.bytes, hbm.sram_peak, f"tiles of {block_q} × {block_k}")


@cache
def _problem(T: int, D: int):
    q, k, v = (torch.randn(1, 1, T, D, generator=torch.Generator().manual_seed(i)) for i in range(3))
    return q, k, v, naive_attention(q.double(), k.double(), v.double())


@cache
def _others(sram: int, T: int, D: int) -> tuple[Entry, ...]:
    naive = Entry("naive: S and P in HBM", naive_cost(1, 1, T, D, itemsize=4).hbm_bytes)
    bound = Entry("every tensor once", tiled_bytes(T, T, D, D, block_q=T), note="on a chip that holds all of q")
    return naive, *(_largest_that_fits(order, sram, T, D) for order in ("query", "key")), bound


def _largest_that_fits(order: str, sram: int, T: int, D: int) -> Entry:
    def attention(*args, **options):
        return tiled_attention(*args, order=order, **options)

    name = {"query": "the library, queries outside", "key": "the library, keys outside"}[order]
    for block in range(T // 8 * 8, 0, -8):  # from above: what does not fit overflows in its first tiles
        entry = _run(name, attention, block, block, sram, T, D)
        if entry.bytes is not None:
            return entry
    return Entry(name, None, note="no tile fits")
