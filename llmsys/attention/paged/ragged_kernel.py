"""Attention over pages where sequences bring many tokens: a program for each tile of rows of each key head.

How many tiles a sequence needs is known on the GPU alone, and how many programs are launched must be known before. A
sequence of R rows needs ceil(R / BLOCK_M) tiles; if its rows begin at row b of all, let its tiles begin at
b // BLOCK_M + i, where i is its number. Then they end before the next one's begin: every sequence has its own tiles, at
most one too many each, and N·G // BLOCK_M + S programs are enough whatever the lengths. A program finds its sequence by
counting those that begin at its own number or before.
"""

from llmsys.attention.paged.walk import attend, rows_of, store_rows
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["S", "W", "table_stride"])
def ragged_kernel(
    q_ptr, key_pages_ptr, value_pages_ptr, o_ptr, lse_ptr, starts_ptr, lengths_ptr, table_ptr, tree_ptr,
    q_stride_n, q_stride_h, k_stride_page, k_stride_slot, k_stride_h, v_stride_page, v_stride_slot, v_stride_h,
    table_stride, Hkv, S, W, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr, FEW: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o and lse of one tile of rows of a sequence that has more than FEW; the others are left to the split kernel.

    Grid: (N · G // BLOCK_M + S, Hkv). starts (S + 1,), lengths (S,), table (S, M), all int32; tree (N, W) bool.
    scale_log2 = scale · log2(e).
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # later tiles see more keys: the longest first
    h = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, BLOCK_S)
    first_tile = tl.load(starts_ptr + i, mask=i < S, other=0) * G // BLOCK_M + i
    s = tl.sum(((i < S) & (first_tile <= tile)).to(tl.int32), 0) - 1
    start = tl.load(starts_ptr + s)
    Tq = tl.load(starts_ptr + s + 1) - start
    first_row = (tile - (start * G // BLOCK_M + s)) * BLOCK_M
    if (first_row < G * Tq) & (G * Tq > FEW):
        length = tl.load(lengths_ptr + s)
        q, token, head, there, last_key, in_tree = rows_of(
            q_ptr, tree_ptr, q_stride_n, q_stride_h, first_row, start, Tq, length, h, W, G, DK, TREE, BLOCK_M, BLOCK_DK
        )
        m, l, o = attend(
            q, token, last_key, in_tree, key_pages_ptr + h * k_stride_h, value_pages_ptr + h * v_stride_h,
            table_ptr + s.to(tl.int64) * table_stride, tree_ptr,
            k_stride_page, k_stride_slot, v_stride_page, v_stride_slot,
            0, length, first_row, Tq, length, W, scale_log2,
            G, DK, DV, PAGE, TREE, BLOCK_M, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
        )  # fmt: skip
        some = tl.where(l > 0, l, 1.0)  # a row without a key: o = 0 / 1
        store_rows(o_ptr, lse_ptr, o / some[:, None], m + tl.log2(some), token, head, there, Hkv * G, DV, BLOCK_DV)
