"""What surrounds the MLA decode kernel for Hopper: what it takes, descriptors, the launch.

How fast it is, the merge included, on an H200 (bf16, pages of 64, 128 sequences; torch 2.11.0+cu130, triton 3.6.0,
2026-11-29, from the record of `llmsys.bench.mla_decode`). With 16 heads as a part of what torch's copy reads and
writes, 4.0 to 4.3 TB/s; with 128 heads in TFLOP/s:

                     1k      4k      8k      1k to 32k
    16 heads         0.77    0.89    0.93    0.97
    128 heads        422     512     557     577

Targets were 0.80 at 1k and 0.95 from 4k on, 400 TFLOP/s at 1k and 560 at 8k. So 16 heads fall short at each of the
three lengths, and 128 heads a little at 8k. The record before it, of another H200, without the merge's early launch,
had 0.77, 0.92 and 0.96, 418, 511 and 563: at 4k and 8k it matters more which GPU of a kind one has than that launch.

Alone, without the merge that follows, this kernel takes 45.4 of 47.5 µs with 16 heads at 1k, 152 of 154 at 4k, 293 of
298 at 8k; 497 of 511 with 128 heads there; and 12.8 of 18.1 with one sequence of 8k and 16 heads, whose parts are many
(in one process, on a third H200). Before the merge was launched early, kernel and merge took 49.3, 160.5, 302, 512 and
20.5 µs in that process. Before there was a merge, whoever came last added up the parts in this kernel, as in
`llmsys.attention.paged.hopper`: that took 352 µs with 16 heads and 561 with 128, at 8k.

By count, and at 1.6 GHz, the tensor cores need two thirds of a tile's time. What limits is the way of a slot: a copy,
scores, softmax, values; and two slots are all that fits. Tried on it, in turns, at 8k: half tiles that are given back
apart, the two halves of the values one after the other, half of Q in registers, fewer registers for those who copy.
Each came within 1.2% of this form with 128 heads, and within 2.5% with 16.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.hopper.descriptors import ALIGNED, tiles_descriptor
from llmsys.hardware.tier import interpreting

LATENT, ROPE = 512, 64
ROWS = TILE = 64
"""Rows of queries a program has, and keys of a tile."""
MOST_HEADS = 128
MOST_MEMBERS = 4
MOST_SEQUENCES = 4096
PAGES = (16, 32, 64, 128, 256)


def hopper_takes(q: Tensor, pages: Tensor, latent: int, block_table: Tensor) -> bool:
    """Whether the kernel is for this step: on a Hopper GPU, in half precision, DeepSeek's sizes, pages in a row.

    What comes out is right for any number of tokens a sequence.
    """
    num_blocks, page, width = pages.shape
    return (
        q.is_cuda and not interpreting() and torch.cuda.get_device_capability(q.device) == (9, 0)
        and q.dtype in (torch.float16, torch.bfloat16) and (latent, width) == (LATENT, LATENT + ROPE)
        and q.shape[1] <= MOST_HEADS and len(block_table) <= MOST_SEQUENCES
        and page in PAGES and num_blocks * page <= 2**30 and _one_after_another(pages)
    )  # fmt: skip


def members_for(Hq: int, max_query_len: int) -> int:
    """Programs that read the same pages at the same time: enough for a sequence's rows, as far as four go."""
    return min(-(-Hq * max(max_query_len, 1) // ROWS), MOST_MEMBERS)


def hopper_latent_decode(
    q: Tensor, pages: Tensor, o: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, cuts: Tensor,
    query_start_loc: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float, members: int,
    kernel: Callable | None = None,
) -> None:  # fmt: skip
    """Compute o (N, Hq, 512) and lse (N, Hq), both contiguous, but for what `merge_kernel` does: rows
    in `cuts`, whose parts are left, and rows of no sequence.

    Arguments have been checked, and `hopper_takes` them. As many programs run as `cuts` has columns, a multiple of
    `members`. `kernel`: one with this kernel's arguments, in its place.
    """
    if kernel is None:
        from llmsys.attention.latent.hopper.kernel import latent_decode_kernel as kernel  # Triton: not before now

    positional, named = decode_arguments(
        q, pages, o, lse, part, part_lse, cuts, query_start_loc, seq_lens, block_table, scale, members
    )
    kernel[(cuts.shape[1],)](*positional, **named, num_warps=4)


def decode_arguments(
    q: Tensor, pages: Tensor, o: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, cuts: Tensor,
    query_start_loc: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float, members: int,
    describe: Callable = tiles_descriptor,
) -> tuple[list, dict[str, int]]:  # fmt: skip
    """The kernel's arguments: those that are given by their place, and its constants by name."""
    N, Hq, width = q.shape
    num_blocks, page, _ = pages.shape
    S = seq_lens.shape[0]
    if not q.is_contiguous() or q.data_ptr() % ALIGNED:
        q = q.clone(memory_format=torch.contiguous_format)
    queries = describe(q, [N * Hq, width], [width, 1], [ROWS, 64])
    described = describe(pages, [num_blocks * page, width], [pages.stride(1), 1], [min(page, TILE), 64])
    positional = [
        queries, described, o, lse, part, part_lse, cuts, query_start_loc, seq_lens, block_table,
        block_table.stride(0), S, scale * LOG2_E,
    ]  # fmt: skip
    return positional, kernel_constants(Hq, members, page, S)


def kernel_constants(heads: int, members: int, page: int, S: int) -> dict[str, int]:
    """The kernel's constants, for steps of at most so many sequences, or a power of two more."""
    return dict(
        HEADS=heads, MEMBERS=members, PAGE=page, BLOCK_S=max(128, 1 << (S - 1).bit_length()), ACCUMULATE_REGISTERS=168,
        COPY_REGISTERS=40 if page >= TILE else 56,
    )  # fmt: skip


def _one_after_another(pages: Tensor) -> bool:
    """Whether the copy engine sees the pages as rows of slots."""
    _, page, width = pages.shape
    slot = pages.stride(1)
    return (
        pages.stride(2) == 1 and slot >= width and slot * pages.element_size() % ALIGNED == 0
        and pages.stride(0) == page * slot and pages.data_ptr() % ALIGNED == 0
    )  # fmt: skip
