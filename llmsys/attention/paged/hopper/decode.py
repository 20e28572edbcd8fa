"""What surrounds the paged decode kernel for Hopper: what it takes, descriptors, scratch memory, the launch.

How fast it reads keys and values, as a part of what torch's copy reads and writes, timed in turns with it on an H200,
which copies 4.2 TB/s (bf16, pages of 16; torch 2.11.0+cu130, triton 3.6.0, 2026-11-28):

    32 heads of 128 on 8     16 × 1k  0.82    64 × 1k  0.91    64 × 8k  1.01    256 × 64 to 4k  0.98
    9 heads of 64 on 3      128 × 1k  0.83                                      256 × 64 to 4k  0.88

Copies alone, without a consumer, came to 0.90, 0.96 and 0.91 where lengths are 1k. Of the rest, most was cutting heads
in parts that somebody has to add up: where all have one length, whole heads (`line`) took 21.4 µs in place of 25.3,
69.9 in place of 72.2, and 30.6 in place of 34.6. A second consumer, on alternate tiles, gained nothing that counts,
although a tile is a long chain of steps; nor did rings of more than 128 KB, or page ids that are asked for earlier. A
launch that may begin before the one before it has ended (programmatic dependent launch) gained 1 µs at most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.hopper.descriptors import ALIGNED, tiles_descriptor
from llmsys.attention.paged.hopper.counters import counters_for
from llmsys.hardware.tier import interpreting

HEADS = (64, 128)
MOST_QUERIES = 32
"""Query heads of a group, the columns of a product. There are no registers for more."""
MOST_SEQUENCES = 4096
SHORTEST_UNIT = 16


@dataclass(frozen=True)
class DecodeTiles:
    """How the kernel is cut into tiles.

    block_n    rows of a tile of keys, 64 or 128
    slots      tiles in the ring
    unit       rows that one copy fetches; it divides a page
    together   whether the heads of a slot are one group
    registers  of a thread of the producer
    """

    block_n: int
    slots: int
    unit: int = SHORTEST_UNIT
    together: bool = False
    registers: int = 64


def decode_tiles(D: int, Hq: int, Hkv: int, page: int) -> DecodeTiles:
    """The tiles for heads of D, 64 or 128, Hq of queries on Hkv of keys, and pages of so many keys.

    A copy takes what lies in a page, as far as that does not cut the line into too few units.
    """
    unit = 64 if page % 64 == 0 else SHORTEST_UNIT
    if Hq // Hkv > MOST_QUERIES // 2:  # larger tiles would need more registers than there are
        return DecodeTiles(64, 4, unit)
    if D == 128:
        return DecodeTiles(128, 2, unit)
    return DecodeTiles(128, 3, unit, together=1 < Hkv <= 4 and Hq <= 16)


def hopper_takes(
    q: Tensor, key_pages: Tensor, value_pages: Tensor, block_table: Tensor, max_query_len: int, tree: bool
) -> bool:
    """Whether the kernel is for this step: a decode on a Hopper GPU, in half precision, pages lying one after another.

    What comes out is right for sequences that bring many tokens, too, each of which then reads all keys: so
    `max_query_len` is advice here, as everywhere.
    """
    num_blocks, page, Hkv, D = key_pages.shape
    S, M = block_table.shape
    return (
        q.is_cuda and not interpreting() and torch.cuda.get_device_capability(q.device) == (9, 0)
        and max_query_len <= 1 and not tree and S <= MOST_SEQUENCES
        and q.dtype in (torch.float16, torch.bfloat16) and D in HEADS and value_pages.shape[3] == D
        and q.shape[1] // Hkv <= MOST_QUERIES
        and page % SHORTEST_UNIT == 0 and page & (page - 1) == 0 and num_blocks * page * Hkv < 2**31
        and q.shape[0] * Hkv * max(M, 1) * page < 2**31 * SHORTEST_UNIT
        and all(_one_after_another(x) for x in (key_pages, value_pages))
    )  # fmt: skip


def hopper_decode(
    q: Tensor, key_pages: Tensor, value_pages: Tensor, o: Tensor, lse: Tensor,
    query_start_loc: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float, programs: int,
    tiles: DecodeTiles | None = None, kernel: Callable | None = None,
) -> None:  # fmt: skip
    """Compute o (N, Hq, D) and lse (N, Hq), both contiguous. Arguments have been checked, and `hopper_takes` them.

    `programs` is the number of SMs; `kernel` one with this kernel's arguments, in its place.
    """
    if kernel is None:
        from llmsys.attention.paged.hopper.kernel import paged_decode_kernel as kernel  # Triton: not before now

    positional, named = decode_arguments(
        q, key_pages, value_pages, o, lse, query_start_loc, seq_lens, block_table, scale, programs,
        counters_for(q.device, programs), tiles or decode_tiles(q.shape[2], q.shape[1], *key_pages.shape[2:0:-1]),
    )  # fmt: skip
    with torch.cuda.device_of(q):
        kernel[(programs,)](*positional, **named, num_warps=4)


def decode_arguments(
    q: Tensor, key_pages: Tensor, value_pages: Tensor, o: Tensor, lse: Tensor,
    query_start_loc: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float, programs: int, counters: Tensor,
    tiles: DecodeTiles, describe: Callable = tiles_descriptor,
) -> tuple[list, dict[str, int]]:  # fmt: skip
    """The kernel's arguments: those that are given by their place, and its constants by name."""
    N, Hq, D = q.shape
    num_blocks, page, Hkv, _ = key_pages.shape
    S = seq_lens.shape[0]
    together = Hkv if tiles.together else 1
    groups, heads = Hkv // together, Hq // Hkv * together
    rows, width = num_blocks * page * together, groups * D
    columns = max(8, 1 << (heads - 1).bit_length())
    if not _rows_of_heads(q):
        q = q.clone(memory_format=torch.contiguous_format)
    queries = describe(q, [N, groups, heads, D], [q.stride(0), heads * D, D, 1], [1, 1, columns, D])
    pages = [describe(x, [rows, width], [width, 1], [tiles.unit, 64]) for x in (key_pages, value_pages)]
    part = torch.empty(2 * programs, D, columns, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(2 * programs, columns, dtype=torch.float32, device=q.device)
    positional = [
        queries, *pages, o, lse, part, part_lse, counters, query_start_loc, seq_lens, block_table,
        block_table.stride(0), S, N, groups, rows, scale * LOG2_E,
    ]  # fmt: skip
    return positional, dict(
        HEADS=heads, TOGETHER=together, PAGE=page, BLOCK_S=max(128, 1 << (S - 1).bit_length()), BLOCK_N=tiles.block_n,
        SLOTS=tiles.slots, PRODUCER_REGISTERS=tiles.registers,
    )  # fmt: skip


def _rows_of_heads(q: Tensor) -> bool:
    """Whether the copy engine can read q (N, Hq, D) as it lies: a token's heads side by side, tokens apart."""
    Hq, D = q.shape[1:]
    return (
        q.stride(2) == 1 and q.stride(1) == D and q.stride(0) >= Hq * D
        and q.stride(0) * q.element_size() % ALIGNED == 0 and q.data_ptr() % ALIGNED == 0
    )  # fmt: skip


def _one_after_another(pages: Tensor) -> bool:
    """Whether the copy engine sees the pages as rows of slots, with the heads of a slot side by side."""
    _, page, Hkv, D = pages.shape
    slot = pages.stride(1)
    return (
        pages.stride(3) == 1 and (Hkv == 1 or pages.stride(2) == D) and slot == Hkv * D
        and pages.stride(0) == page * slot and pages.data_ptr() % ALIGNED == 0
    )  # fmt: skip
