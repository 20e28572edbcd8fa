"""A step's tokens, grouped by expert: which row of the grouped order is whose. Made once a step, used by every kernel.

Token n goes to K experts: N · K *assignments*, numbered n · K + j. Sorted by expert, they are *rows*, and those of an
expert lie together, ragged, for experts have as many as they were given:

    experts   [[2, 0], [2, 3], [0, 2]]      N = 3, K = 2, E = 4
    order     1 4 | | 0 2 5 | 3             the assignment of each row
    starts    0 2 2 5 6                     where each expert's rows begin; the last is their number
    rows      [[2, 0], [3, 5], [1, 4]]      the row of each assignment: the other way round

A matrix product works on tiles of rows, and no tile may have rows of two experts, for they have different matrices. How
many tiles there are depends on the loads; how many there may be does not: R // block_m full ones and a ragged one for
each expert that has a row. So a launch has that many programs, those beyond the last tile do nothing, and the host
never asks how many tokens an expert got: nothing waits for the GPU, and a CUDA graph serves any loads.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int
from torch import Tensor

BLOCKS_M = (16, 32, 64, 128)
"""Rows of a tile: the fewest that hold what an expert has on average."""


@dataclass(frozen=True)
class Groups:
    """N · K = R assignments, sorted by expert. All tensors int32, on the experts' device."""

    order: Int[Tensor, " R"]
    """The assignment of each row, which is expert order % K of token order // K. From row starts[E] on, those of −1."""
    rows: Int[Tensor, "N K"]
    """The row of each assignment; −1 where its expert is −1."""
    starts: Int[Tensor, " E1"]
    """(E + 1,): expert e has the rows from starts[e] to below starts[e + 1]."""
    tile_expert: Int[Tensor, " tiles"]
    """The expert of each tile; E beyond the last tile."""
    tile_row: Int[Tensor, " tiles"]
    """The first row of each tile."""
    block_m: int
    """Rows of a tile."""

    @property
    def experts(self) -> int:
        """E."""
        return len(self.starts) - 1

    @property
    def top(self) -> int:
        """K, the experts of a token."""
        return self.rows.shape[1]

    @cached_property
    def tiles(self) -> Int[Tensor, "1"]:
        """How many tiles there are."""
        return (self.tile_expert < self.experts).sum(dtype=torch.int32).view(1)

    @cached_property
    def by_load(self) -> Int[Tensor, " E"]:
        """The experts, those with most rows first."""
        return self.starts.diff().argsort(descending=True).int()


def group_by_expert(experts: Int[Tensor, "N K"], count: int, *, block_m: int | None = None) -> Groups:
    """Sort assignments by expert; those of an expert stay in the order of the tokens.

    Parameters
    ----------
    experts
        Of 0 to `count` − 1; −1 is no expert: one that is on another rank, or the place of a token that is none.
    count
        E, the experts that are here.
    block_m
        Rows of a tile, by default the smallest of BLOCKS_M that holds R / E.

    Raises
    ------
    ValueError
        Wrong shape or type; or an expert's number that is none (seen on a CPU).
    """
    if experts.dim() != 2 or experts.is_floating_point() or experts.shape[1] < 1:
        raise ValueError(f"experts must be whole numbers (N, K), got {experts.dtype} of shape {tuple(experts.shape)}")
    if count < 1:
        raise ValueError(f"count must be at least 1 expert, got {count}")
    if experts.device.type == "cpu" and ((experts < -1) | (experts >= count)).any():
        raise ValueError(f"experts must be of 0 to {count - 1}, or −1 for none, got {experts.min()} to {experts.max()}")
    R, device = experts.numel(), experts.device
    keys = torch.where(experts < 0, count, experts).flatten().long()  # those of no expert come last
    order = keys.sort(stable=True).indices
    numbers = torch.arange(R, device=device)
    rows = torch.empty_like(numbers).scatter_(0, order, numbers).view_as(experts)
    counts = torch.zeros(count + 1, dtype=torch.int64, device=device).scatter_add_(0, keys, torch.ones_like(keys))
    counts = counts[:count]
    starts = torch.zeros(count + 1, dtype=torch.int64, device=device)
    torch.cumsum(counts, 0, out=starts[1:])

    block_m = block_m or next((m for m in BLOCKS_M if R <= m * count), BLOCKS_M[-1])
    tiles = (counts + block_m - 1) // block_m  # (E,)
    ends = tiles.cumsum(0)
    tile = torch.arange(R // block_m + min(count, R), device=device)
    tile_expert = torch.searchsorted(ends, tile, right=True)
    at = tile_expert.clamp(max=count - 1)
    tile_row = starts[at] + (tile - (ends - tiles)[at]) * block_m
    return Groups(
        order.int(), torch.where(experts < 0, -1, rows).int(), starts.int(), tile_expert.int(), tile_row.int(), block_m
    )
