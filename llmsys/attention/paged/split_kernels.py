"""Attention over pages where sequences bring few tokens, as in decoding: the keys are divided among the programs.

One new token has G rows a key head, and reads every key and value once: the time is that of the reading, if all of the
GPU reads. A program for each sequence and key head would be too few where the batch is small, and would wait for the
longest where lengths differ. So all tiles of keys form one line,

    sequence 0: head 0 ■■■■■ head 1 ■■■■■ | sequence 1: head 0 ■■ head 1 ■■ | …
                program 0 ──────┤ program 1 ─────────┤ program 2 …

and the line is cut into equal runs, one a program. Nothing is left over and nobody waits, whatever the lengths are; and
the grid is the number of programs that the GPU holds, so a CUDA graph of it serves any batch. Where a cut goes through
a head, each side leaves its part (o, lse), and `merge_kernel` adds the parts up: lesson 02's merge.

A *unit* is what would be one program elsewhere: a tile of rows of one key head of one sequence, BLOCK_N keys at a time.
"""

from llmsys.attention.paged.walk import attend, rows_of, store_part, store_rows
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["S", "W", "table_stride"])
def split_kernel(
    q_ptr, key_pages_ptr, value_pages_ptr, o_ptr, lse_ptr, part_ptr, part_lse_ptr, starts_ptr, lengths_ptr, table_ptr,
    tree_ptr, q_stride_n, q_stride_h, k_stride_page, k_stride_slot, k_stride_h, v_stride_page, v_stride_slot,
    v_stride_h, table_stride, Hkv, S, W, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr, FEW: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr,
    BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One run of tiles: o and lse of the units that lie in it, and the parts of the at most two that do not.

    Grid: (P,). Part 2p is of a unit that began before program p's run, part 2p + 1 of one that goes on after it: part
    (2P, BLOCK_M, DV) and part_lse (2P, BLOCK_M), base two, fp32. FEW > 0: sequences with more rows are somebody
    else's. The other arguments are `ragged_kernel`'s.
    """
    program = tl.program_id(0)
    ends = line_ends(starts_ptr, lengths_ptr, S, Hkv, G, FEW, BLOCK_S, BLOCK_M, BLOCK_N)
    total = tl.max(ends, 0)
    each = tl.cdiv(total, tl.num_programs(0))
    at = tl.minimum(program * each, total)
    stop = tl.minimum(at + each, total)
    while at < stop:
        s, start, Tq, length, n, unit, tile = line_place(at, ends, starts_ptr, lengths_ptr, BLOCK_N)
        h = (unit % Hkv).to(tl.int64)
        first_row = unit // Hkv * BLOCK_M
        take = tl.minimum(n - tile, stop - at)
        q, token, head, there, last_key, in_tree = rows_of(
            q_ptr, tree_ptr, q_stride_n, q_stride_h, first_row, start, Tq, length, h, W, G, DK, TREE, BLOCK_M, BLOCK_DK
        )
        m, l, o = attend(
            q, token, last_key, in_tree, key_pages_ptr + h * k_stride_h, value_pages_ptr + h * v_stride_h,
            table_ptr + s.to(tl.int64) * table_stride, tree_ptr,
            k_stride_page, k_stride_slot, v_stride_page, v_stride_slot,
            tile * BLOCK_N, (tile + take) * BLOCK_N, first_row, Tq, length, W, scale_log2,
            G, DK, DV, PAGE, TREE, BLOCK_M, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
        )  # fmt: skip
        some = tl.where(l > 0, l, 1.0)
        o = o / some[:, None]
        lse = m + tl.log2(some)
        if take == n:
            store_rows(o_ptr, lse_ptr, o, lse, token, head, there, Hkv * G, DV, BLOCK_DV)
        else:
            part = 2 * program + (tile == 0)
            store_part(part_ptr, part_lse_ptr, o, lse, part, there, DV, BLOCK_M, BLOCK_DV)
        at += take


@triton.jit(do_not_specialize=["S", "N"])
def merge_kernel(
    o_ptr, lse_ptr, part_ptr, part_lse_ptr, starts_ptr, lengths_ptr, Hkv, S, N,
    G: tl.constexpr, DV: tl.constexpr, FEW: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """The sum of the parts of one unit: the one that begins in this program's run and goes on after it, if there is
    one. Beside that, zeros for tokens that belong to no sequence.

    Grid: (P,), as that of `split_kernel`, with whose arguments it must be launched.
    """
    program = tl.program_id(0)
    dv = tl.arange(0, BLOCK_DV)
    ends = line_ends(starts_ptr, lengths_ptr, S, Hkv, G, FEW, BLOCK_S, BLOCK_M, BLOCK_N)
    total = tl.max(ends, 0)
    each = tl.cdiv(total, tl.num_programs(0))
    last = program * each + each - 1  # of this run
    if last < total - 1:
        s, start, Tq, length, n, unit, tile = line_place(last, ends, starts_ptr, lengths_ptr, BLOCK_N)
        if (tile < each) & (tile < n - 1):
            rows = unit // Hkv * BLOCK_M + tl.arange(0, BLOCK_M)
            there = rows < G * Tq
            inside = there[:, None] & (dv < DV)[None, :]
            m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            l = tl.zeros((BLOCK_M,), tl.float32)
            o = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
            for p in range(program, (last - tile + n - 1) // each + 1):
                row = (2 * p + (p == program)) * BLOCK_M + tl.arange(0, BLOCK_M)
                lse = tl.load(part_lse_ptr + row, mask=there, other=float("-inf"))
                part = tl.load(part_ptr + row[:, None] * DV + dv[None, :], mask=inside, other=0.0)
                m_new = tl.maximum(m, lse)
                shift = tl.where(m_new == float("-inf"), 0.0, m_new)
                weight = tl.exp2(lse - shift)
                shrink = tl.exp2(m - shift)
                l = l * shrink + weight
                o = o * shrink[:, None] + part * weight[:, None]
                m = m_new
            some = tl.where(l > 0, l, 1.0)
            token = (start + rows // G).to(tl.int64)
            head = (unit % Hkv) * G + rows % G
            store_rows(o_ptr, lse_ptr, o / some[:, None], m + tl.log2(some), token, head, there, Hkv * G, DV, BLOCK_DV)
    for row in range(tl.load(starts_ptr + S) * G * Hkv + program, N * G * Hkv, tl.num_programs(0)):
        tl.store(o_ptr + tl.cast(row, tl.int64) * DV + dv, tl.zeros((BLOCK_DV,), o_ptr.dtype.element_ty), mask=dv < DV)
        tl.store(lse_ptr + row, float("-inf"))


@triton.jit
def line_ends(
    starts_ptr, lengths_ptr, S, Hkv, G: tl.constexpr, FEW: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Where each sequence's tiles end in the line, (BLOCK_S,). Rows that see no key have a tile, too: their o is 0."""
    i = tl.arange(0, BLOCK_S)
    rows = G * (tl.load(starts_ptr + i + 1, mask=i < S, other=0) - tl.load(starts_ptr + i, mask=i < S, other=0))
    length = tl.load(lengths_ptr + i, mask=i < S, other=0)
    tiles = tl.maximum(tl.cdiv(length, BLOCK_N), 1) * tl.cdiv(rows, BLOCK_M) * Hkv
    if FEW > 0:
        tiles = tl.where(rows <= FEW, tiles, 0)
    return tl.cumsum(tiles, 0)


@triton.jit
def line_place(at, ends, starts_ptr, lengths_ptr, BLOCK_N: tl.constexpr):
    """What tile `at` of the line belongs to: the sequence s, its first token, its tokens and keys; how many tiles a
    unit of it has; the number of the unit among its own, and the tile's in the unit."""
    before = ends <= at
    s = tl.sum(before.to(tl.int32), 0)
    start = tl.load(starts_ptr + s)
    Tq = tl.load(starts_ptr + s + 1) - start
    length = tl.load(lengths_ptr + s)
    n = tl.maximum(tl.cdiv(length, BLOCK_N), 1)
    along = at - tl.max(tl.where(before, ends, 0), 0)
    return s, start, Tq, length, n, along // n, along % n
