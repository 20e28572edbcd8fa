"""Attention of the step: a head's new key and value into their slot, and the attention itself, in parts.

A program has one key head of one sequence and one tile of its keys, or every MAX_SPLITS-th where there are more tiles
than that. The tile of pages that it begins with was written by earlier steps, so it is loaded before the wait; the new
key is not: it takes its place in the tile from registers, in all programs whose tile has it, and is written by the one
program that has it. So no program reads what another one writes.

There are two, three or four query heads to a key head and one token, so scores are products and sums, and no matrix
product: tensor cores want sixteen rows, and their operands moved through shared memory, which costs more here than it
saves. A tile's D columns lie in the lanes of one warp; q, k and v are loaded as they lie there, and nothing is moved.

How many programs there are is fixed by the launch, how many of them have work is the sequence's affair: a graph of the
launch serves all lengths. Parts are put together by the kernel that multiplies with them (`products.output_kernel`).
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # noqa: E402


@triton.jit
def attention_kernel(
    qkv_ptr, head_squares_ptr, key_pages_ptr, value_pages_ptr, table_ptr, lengths_ptr, slots_ptr, o_ptr, lse_ptr,
    key_stride_page, key_stride_slot, key_stride_head, value_stride_page, value_stride_slot, value_stride_head,
    table_stride, eps, scale_log2, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr, MAX_SPLITS: tl.constexpr, NORM: tl.constexpr, HEAD_PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Part program_id(0) % MAX_SPLITS of key head program_id(0) // MAX_SPLITS of sequence program_id(1).

    qkv (S, HQ + 2 HKV, D) and head_squares (S, HQ + HKV, HEAD_PARTS) as `products.qkv_kernel` leaves them; pages
    (blocks, PAGE, HKV, D); table (S, …), lengths (S,), the new token included, and slots (S,) int32; o (S, MAX_SPLITS,
    HQ, D); lse (S, MAX_SPLITS, HQ) fp32, to base 2. Slot −1: the key and value are kept nowhere.
    """
    if PDL:
        gdc_launch_dependents()
    G: tl.constexpr = HQ // HKV
    head = tl.program_id(0) // MAX_SPLITS
    split = tl.program_id(0) % MAX_SPLITS
    sequence = tl.program_id(1)
    newest = tl.load(lengths_ptr + sequence) - 1  # the new token's place, −1 where there is no sequence
    first = split * BLOCK_N
    if (first > newest) & (split > 0):
        return
    table_ptr += sequence * table_stride
    key_pages_ptr += head * key_stride_head
    value_pages_ptr += head * value_stride_head
    d = tl.arange(0, D)
    slot = tl.load(slots_ptr + sequence)
    k = load_tile(key_pages_ptr, table_ptr, first, newest, key_stride_page, key_stride_slot, D, PAGE, BLOCK_N)
    v = load_tile(value_pages_ptr, table_ptr, first, newest, value_stride_page, value_stride_slot, D, PAGE, BLOCK_N)
    if PDL:
        gdc_wait()
    qkv_ptr += sequence * ((HQ + 2 * HKV) * D)
    head_squares_ptr += sequence * ((HQ + HKV) * HEAD_PARTS)
    k_new = tl.load(qkv_ptr + (HQ + head) * D + d).to(tl.float32)  # (D,)
    v_new = tl.load(qkv_ptr + (HQ + HKV + head) * D + d).to(v.dtype)
    part = tl.arange(0, HEAD_PARTS)
    queries, squares = (), ()
    for g in tl.static_range(G):
        queries = queries + (tl.load(qkv_ptr + (head * G + g) * D + d).to(tl.float32),)
        if NORM:
            squares = squares + (tl.load(head_squares_ptr + (head * G + g) * HEAD_PARTS + part),)
    if NORM:
        k_squares = tl.load(head_squares_ptr + (HQ + head) * HEAD_PARTS + part)
        k_new *= tl.rsqrt(tl.sum(k_squares) / D + eps)
    k_new = k_new.to(k.dtype)
    if (newest // BLOCK_N % MAX_SPLITS == split) & (slot >= 0):
        page, place = (slot // PAGE).to(tl.int64), slot % PAGE
        tl.store(key_pages_ptr + page * key_stride_page + place * key_stride_slot + d, k_new)
        tl.store(value_pages_ptr + page * value_stride_page + place * value_stride_slot + d, v_new)
    scaled = ()
    for g in tl.static_range(G):
        q = queries[g] * scale_log2
        if NORM:
            q *= tl.rsqrt(tl.sum(squares[g]) / D + eps)
        scaled = scaled + (q,)
    m, l, o = attend_tile(scaled, k, v, k_new, v_new, first, newest, G, BLOCK_N)
    for start in range(first + MAX_SPLITS * BLOCK_N, newest + 1, MAX_SPLITS * BLOCK_N):
        k = load_tile(key_pages_ptr, table_ptr, start, newest, key_stride_page, key_stride_slot, D, PAGE, BLOCK_N)
        v = load_tile(value_pages_ptr, table_ptr, start, newest, value_stride_page, value_stride_slot, D, PAGE, BLOCK_N)
        later = attend_tile(scaled, k, v, k_new, v_new, start, newest, G, BLOCK_N)
        m, l, o = merge(m, l, o, later[0], later[1], later[2], G)
    for g in tl.static_range(G):
        some = tl.where(l[g] > 0, l[g], 1.0)
        row = (sequence * MAX_SPLITS + split) * HQ + head * G + g
        tl.store(o_ptr + row * D + d, (o[g] / some).to(o_ptr.dtype.element_ty))
        tl.store(lse_ptr + row, m[g] + tl.log2(some))


@triton.jit
def load_tile(
    pages_ptr, table_ptr, start, newest, stride_page, stride_slot, D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One head's keys, or values, of tokens `start` on, (BLOCK_N, D): zeros for the newest token and beyond it."""
    token = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, D)
    old = token < newest
    page = tl.load(table_ptr + token // PAGE, mask=old, other=0).to(tl.int64)
    at = page * stride_page + token % PAGE * stride_slot
    return tl.load(pages_ptr + at[:, None] + d[None, :], mask=old[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def attend_tile(queries, k, v, k_new, v_new, start, newest, G: tl.constexpr, BLOCK_N: tl.constexpr):
    """Of each query, over the keys of this tile: the largest score m, l = Σ 2^(s − m) and o = Σ 2^(s − m) v (D,).

    The newest token's key and value are put in their place, if that is in the tile. All scores come before all sums, so
    that the keys' registers are free by then.
    """
    token = start + tl.arange(0, BLOCK_N)
    k = tl.where((token == newest)[:, None], k_new[None, :], k).to(tl.float32)
    scores, largest, shares, sums, outputs = (), (), (), (), ()
    for g in tl.static_range(G):
        scores = scores + (tl.sum(k * queries[g][None, :], axis=1),)
    for g in tl.static_range(G):
        s = tl.where(token <= newest, scores[g], float("-inf"))
        m = tl.maximum(tl.max(s, axis=0), -1e30)  # not −∞, where there is no key
        p = tl.exp2(s - m)
        largest, shares, sums = largest + (m,), shares + (p,), sums + (tl.sum(p, axis=0),)
    v = tl.where((token == newest)[:, None], v_new[None, :], v).to(tl.float32)
    for g in tl.static_range(G):
        outputs = outputs + (tl.sum(shares[g][:, None] * v, axis=0),)
    return largest, sums, outputs


@triton.jit
def merge(m, l, o, later_m, later_l, later_o, G: tl.constexpr):
    """Each query's m, l and o over the keys of two tiles, of which these are the two."""
    largest, sums, outputs = (), (), ()
    for g in tl.static_range(G):
        larger = tl.maximum(m[g], later_m[g])
        a, b = tl.exp2(m[g] - larger), tl.exp2(later_m[g] - larger)
        largest, sums = largest + (larger,), sums + (l[g] * a + later_l[g] * b,)
        outputs = outputs + (o[g] * a + later_o[g] * b,)
    return largest, sums, outputs
