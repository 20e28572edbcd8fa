"""Which of the kernels over pages a call launches, with which tiles, in how many programs.

The ids of a tile's pages must be there before its keys can be asked for. To have two tiles of keys on the way at the
same time, Triton's pipeline therefore needs five stages where the flash kernel needs three. The tables were chosen by
what compiles for the GPU without spilling registers, and fits on a multiprocessor as often as said. For decoding on
Hopper they were chosen by measuring: there, tiles of 128 keys without a pipeline win, and what is on the way while a
tile is computed are those of the SM's other programs.
"""

from dataclasses import dataclass

from llmsys.attention.flash.tiles import TileConfig

FEW_ROWS = 64
"""Rows a key head, G · Tq, up to which a tile of the split kernel has all of a sequence."""
LARGE_SMS = ("sm_80", "sm_90", "sm_100")
"""Those with 164 KiB of shared memory at least; others have 99 KiB."""


@dataclass(frozen=True)
class Plan:
    """Which kernels a call launches, and how."""

    split: TileConfig
    programs: int  # P, of the split kernel
    ragged: TileConfig | None = None  # None: the split kernel takes every sequence
    few: int = 0  # rows up to which a sequence is the split kernel's; 0 where all are


def plan_for(
    N: int, S: int, G: int, Hkv: int, D: int, itemsize: int, max_query_len: int, tree: bool, target: str, SMs: int
) -> Plan:
    """The plan for N tokens of S sequences, G query heads on each of Hkv key heads of size D (the larger of Dk and Dv).

    `max_query_len` is the most tokens that a sequence brings, as far as is known: what comes out does not depend on it.
    """
    rows = G * max(max_query_len, 1)
    ragged = ragged_tiles_for(D, itemsize, tree, target)
    fills_the_gpu = N * G // ragged.block_m * Hkv >= 2 * SMs
    alone = max_query_len <= 1 or rows <= FEW_ROWS or not fills_the_gpu
    block_m = min(FEW_ROWS, max(16, 1 << ((rows if alone else G) - 1).bit_length()))
    split, an_sm = split_tiles_for(D, itemsize, block_m, tree, target)
    if alone:
        return Plan(split, an_sm * SMs)
    return Plan(split, an_sm * SMs, ragged, few=max(block_m, G))


def ragged_tiles_for(D: int, itemsize: int, tree: bool, target: str) -> TileConfig:
    """The ragged kernel's tiles for heads of D and elements of `itemsize` bytes, with or without a tree mask."""
    if itemsize == 4:
        return TileConfig(32, 16, 4, 2) if D <= 64 else TileConfig(16, 16, 4, 2)
    if target not in LARGE_SMS:
        return TileConfig(64, 32, 4, 5) if D <= 64 else TileConfig(64 if D <= 128 else 32, 32, 8, 3)
    if D <= 64 or D <= 128 and not tree:
        return TileConfig(64, 64, 4, 5)
    return TileConfig(64, 16 if D > 128 and tree else 32, 8, 5)


def split_tiles_for(D: int, itemsize: int, block_m: int, tree: bool, target: str) -> tuple[TileConfig, int]:
    """The split kernel's tiles for `block_m` rows and heads of D, and how many of its programs an SM is given."""
    large, few = target in LARGE_SMS, block_m == 16
    if itemsize == 4:
        return TileConfig(block_m, 16, 4 if D <= 128 else 8, 3), 2
    if target == "sm_90" and few and not tree and D <= 128:  # measured on an H200
        return (TileConfig(block_m, 128, 4, 4), 3) if D <= 64 else (TileConfig(block_m, 128, 4, 3), 2)
    if D <= 64:
        return TileConfig(block_m, 64, 4, 5), 4 if large and few and not tree else 2
    if D <= 128:
        return TileConfig(block_m, 64 if large and few and not tree else 32, 4 if few else 8, 5), 2
    return TileConfig(block_m, 32 if large else 16, 4 if few else 8, 5 if large else 3), 2 if large and few else 1
