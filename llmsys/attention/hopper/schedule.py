"""The hopper kernel's schedule: which program computes which tile of queries, and when. It is data, made on the host.

One program runs on each SM, and works through a list of tiles. Two things decide what is a good list:

- *Balance.* With a causal mask, the last tile of a sequence sees all keys and the first one tile of them. So the
  longest go first, each to the program that will be free first, and the short ones fill the gaps at the end: the greedy
  rule "longest processing time first" (R. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969).
- *Cache.* All tiles of a head read the same keys and values. If all heads' longest tiles went first, the programs would
  at any time read all heads' keys, more than the L2 cache holds. So key heads are taken in groups whose K and V fit
  into a part of it, and the longest go first within a group.

The schedule of a shape is made once and remembered: its greedy loop takes about a microsecond a tile.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ROWS = 64
"""Rows of queries of one consumer: what one wgmma instruction multiplies."""


@dataclass(frozen=True)
class HopperTiles:
    """How the forward kernel is cut into tiles.

    consumers            warpgroups that compute; a tile of queries has 64 rows for each
    block_n              keys of a tile
    slots                tiles in the ring of keys, and in that of values
    consumer_registers   registers of a thread of a consumer
    producer_registers   registers of a thread of the producer's warpgroup; with those of all consumers at most 65,536
    """

    consumers: int
    block_n: int
    slots: int
    consumer_registers: int
    producer_registers: int

    @property
    def block_m(self) -> int:
        """Rows of a tile of queries."""
        return ROWS * self.consumers


TWO = {64: HopperTiles(2, 128, 4, 240, 24), 128: HopperTiles(2, 128, 2, 240, 24)}
THREE = HopperTiles(3, 128, 4, 160, 32)


def hopper_tiles(D: int, Tq: int, causal: bool) -> HopperTiles:
    """The tiles for heads of D, 64 or 128.

    A consumer holds 64 · D numbers of O and 64 · 128 of S in fp32, 64 · 128 of P in half precision: with D = 128 that
    is 160 registers a thread, and two consumers fit; with D = 64 it is 128, and three fit into 160 registers each.
    Three read K and V less often; but their tile of 192 rows wastes more of a short triangle.
    """
    if D == 128 or (causal and Tq <= 2048):
        return TWO[D]
    return THREE


@lru_cache(maxsize=256)
def hopper_schedule(
    B: int, Hq: int, Hkv: int, Tq: int, Tk: int, D: int, causal: bool,
    tiles: HopperTiles, programs: int, device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """The programs' lists of tiles as a table, int64 (rounds + 2, programs), a column for each program.

    Row 0 holds the length of the program's list, row r its r-th tile (`packed`), 0 beyond the end. The last row is all
    0, so that a program may ask for the tile after its last.
    """
    if Hq > MOST_HEADS:
        raise ValueError(f"q must have at most {MOST_HEADS:,} heads for stage hopper, got {Hq}; stage flash takes more")
    lists = [[] for _ in range(programs)]
    free = [(0, program) for program in range(programs)]
    for tile, cost in _tiles_in_order(B, Hq, Hkv, Tq, Tk, D, causal, tiles):
        time, program = heapq.heappop(free)
        lists[program].append(tile)
        heapq.heappush(free, (time + cost, program))
    rounds = max(map(len, lists)) + 1
    table = [[len(x) for x in lists], *([x[r] if r < len(x) else 0 for x in lists] for r in range(rounds))]
    return torch.tensor(table, dtype=torch.int64, device=device)


MOST_HEADS = 2**16 - 1


def packed(b: int, h: int, n: int) -> int:
    """The n-th tile of head h of sequence b, as one number, which a kernel unpacks with three shifts.

    A head has 16 bits, n has 24. If tiles were simply numbered, the kernel would need two divisions at the beginning of
    every tile.
    """
    return b << 40 | h << 24 | n


CACHE = {64: 8 << 20, 128: 16 << 20}
"""Bytes of K and V that the heads of a group may have together, by D: measured on an H100, whose L2 cache has 50 MB."""


def _tiles_in_order(
    B: int, Hq: int, Hkv: int, Tq: int, Tk: int, D: int, causal: bool, tiles: HopperTiles
) -> Iterator[tuple[int, int]]:
    """Tiles (`packed`) in the order in which they are given to programs, and the cost of each, in tiles of keys."""
    a_head = -(-Tq // tiles.block_m)
    group = max(1, CACHE[D] // (Tk * D * 2 * 2)) if causal else 1  # key heads, of all sequences together
    G = Hq // Hkv
    for start in range(0, B * Hkv, group):
        heads = range(start * G, min(start + group, B * Hkv) * G)
        for head in heads if not causal else (None,):
            for n in reversed(range(a_head)):
                cost = 1 + _key_tiles(n, Tq, Tk, causal, tiles)  # 1: to begin and to end it
                for each in heads if causal else (head,):
                    yield packed(*divmod(each, Hq), n), cost


def _key_tiles(n: int, Tq: int, Tk: int, causal: bool, tiles: HopperTiles) -> int:
    """How many tiles of keys the n-th tile of queries needs."""
    seen = min(max((n + 1) * tiles.block_m + Tk - Tq, 0), Tk) if causal else Tk
    return max(-(-seen // tiles.block_n), 1)
