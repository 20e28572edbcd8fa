"""Latent attention over pages in Triton, in its absorbed form: every latent that is loaded is key and value.

A slot has LATENT + ROPE numbers: c, and behind it r. A tile of BLOCK_N slots is loaded as these two parts, neither of
which need be padded far (512 and 64 are powers of two, and 576 is not):

    s = q_c cᵀ + q_r rᵀ          (BLOCK_M, BLOCK_N)
    o = o · shrink + p c         (BLOCK_M, LATENT): c once more, from where it is already

All else is as in `llmsys.attention.paged`: the walk over the pages (`walk`), and the line of all tiles of all
sequences, cut into equal runs, one a program (`split_kernels`). There is one key head, and all query heads of a token
are rows of its tiles, so a decode step has one or two tiles of rows a sequence, and a chunk of a prompt has many.

Where a cut goes through an entry, a tile of rows with all of its keys, both sides leave their parts, (o, lse), and the
program in whose run it begins writes down whose they are, in `cuts`. `merge_kernel` adds them up.
"""

from llmsys.attention.paged.split_kernels import line_ends, line_place
from llmsys.attention.paged.walk import (
    keys_seen,
    load_tile,
    mask_scores,
    rows_of,
    slots_of,
    store_part,
    store_rows,
    weigh,
)
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["S", "W", "table_stride"])
def latent_kernel(
    q_ptr, pages_ptr, o_ptr, lse_ptr, part_ptr, part_lse_ptr, cuts_ptr, starts_ptr, lengths_ptr, table_ptr, tree_ptr,
    q_stride_n, q_stride_h, page_stride, slot_stride, table_stride, S, W, scale_log2,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One run of tiles: o (N, HEADS, LATENT) and lse (N, HEADS) of the entries that lie in it, and parts of the at most
    two that do not. The rest is `merge_kernel`'s.

    Grid: (P,). Part 2p is of an entry that began before program p's run, part 2p + 1 of one that goes on after it: part
    (2P, BLOCK_M, LATENT) and part_lse (2P, BLOCK_M), base two, fp32. cuts (3, P) int32: of the entry that begins in
    program p's run and goes on, the first row of o, how many rows, none where there is no such entry, and the last
    program that has a part. LATENT and ROPE are filled up with zeros to BLOCK_L and BLOCK_R. tree (N, W) bool.
    """
    program = tl.program_id(0)
    ends = line_ends(starts_ptr, lengths_ptr, S, 1, HEADS, 0, BLOCK_S, BLOCK_M, BLOCK_N)
    total = tl.max(ends, 0)
    each = tl.cdiv(total, tl.num_programs(0))
    at = tl.minimum(program * each, total)
    stop = tl.minimum(at + each, total)
    tl.store(cuts_ptr + tl.num_programs(0) + program, 0)  # until an entry is cut
    while at < stop:
        s, start, Tq, length, n, entry, tile = line_place(at, ends, starts_ptr, lengths_ptr, BLOCK_N)
        first_row = entry * BLOCK_M
        take = tl.minimum(n - tile, stop - at)
        q_c, token, head, there, last_key, in_tree = rows_of(
            q_ptr, tree_ptr, q_stride_n, q_stride_h, first_row, start, Tq, length, 0, W, HEADS, LATENT, TREE, BLOCK_M,
            BLOCK_L,
        )  # fmt: skip
        rope = tl.arange(0, BLOCK_R)
        q_r_at = q_ptr + (token * q_stride_n + head * q_stride_h)[:, None] + LATENT + rope[None, :]
        q_r = tl.load(q_r_at, mask=there[:, None] & (rope < ROPE)[None, :], other=0.0)

        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l = tl.zeros((BLOCK_M,), tl.float32)
        o = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
        begin, end = tile * BLOCK_N, (tile + take) * BLOCK_N
        clear, seen = keys_seen(first_row, begin, end, Tq, length, HEADS, TREE, BLOCK_M, BLOCK_N)
        table_at = table_ptr + s.to(tl.int64) * table_stride
        m, l, o = _walk(
            m, l, o, q_c, q_r, token, last_key, in_tree, pages_ptr, table_at, tree_ptr, page_stride, slot_stride,
            begin, clear, length, length - Tq, W, scale_log2,
            LATENT, ROPE, PAGE, TREE, False, BLOCK_N, BLOCK_L, BLOCK_R, PRECISION,
        )  # fmt: skip
        m, l, o = _walk(
            m, l, o, q_c, q_r, token, last_key, in_tree, pages_ptr, table_at, tree_ptr, page_stride, slot_stride,
            clear, seen, length, length - Tq, W, scale_log2,
            LATENT, ROPE, PAGE, TREE, True, BLOCK_N, BLOCK_L, BLOCK_R, PRECISION,
        )  # fmt: skip
        some = tl.where(l > 0, l, 1.0)  # a row without a key: o = 0 / 1
        o = o / some[:, None]
        lse = m + tl.log2(some)
        if take == n:
            store_rows(o_ptr, lse_ptr, o, lse, token, head, there, HEADS, LATENT, BLOCK_L)
        else:
            part = 2 * program + (tile == 0)
            store_part(part_ptr, part_lse_ptr, o, lse, part, there, LATENT, BLOCK_M, BLOCK_L)
            if tile == 0:
                tl.store(cuts_ptr + program, start * HEADS + first_row)
                tl.store(cuts_ptr + tl.num_programs(0) + program, tl.minimum(Tq * HEADS - first_row, BLOCK_M))
                tl.store(cuts_ptr + 2 * tl.num_programs(0) + program, (at + n - 1) // each)
        at += take


@triton.jit
def _walk(
    m, l, o, q_c, q_r, token, last_key, in_tree, pages_ptr, table_at, tree_ptr, page_stride, slot_stride,
    begin, stop, length, computed, W, scale_log2,
    LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state (m, l, o) after the keys from `begin` to `stop`, a tile of BLOCK_N at a time."""
    latent = tl.arange(0, BLOCK_L)
    rope = tl.arange(0, BLOCK_R)
    for key in range(begin, stop, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        written = keys < length
        page, place = slots_of(keys, written, table_at, PAGE, MASKED)
        slot = (pages_ptr + page * page_stride + place * slot_stride)[:, None]
        c = load_tile(slot + latent[None, :], (latent < LATENT)[None, :], written[:, None], LATENT < BLOCK_L, MASKED)
        r = load_tile(slot + LATENT + rope[None, :], (rope < ROPE)[None, :], written[:, None], ROPE < BLOCK_R, MASKED)
        s = tl.dot(q_r, tl.trans(r), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        s = tl.dot(q_c, tl.trans(c), s, input_precision=PRECISION)
        if MASKED:
            s = mask_scores(s, keys, written, last_key, token, in_tree, tree_ptr, computed, W, TREE)
        m, l, p, shrink = weigh(m, l, s, scale_log2, MASKED)
        o = tl.dot(p.to(c.dtype), c, o * shrink[:, None], input_precision=PRECISION)
    return m, l, o
