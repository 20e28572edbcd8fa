"""Attention of the step: the norms of q's and k's heads, their rotation, the new key and value into their slot, and the
attention itself, in one kernel, in parts.

A program has one key head of one sequence and every SPLITS-th tile of its keys; the query heads that share the head are
its rows. The tile of pages that it begins with was written by earlier steps, so it is loaded before the wait; the new
key is not: it is computed by all programs of its head, takes its place in the tile from registers, and is written by
the one program that has it. So no program reads what another one writes.

Parts are put together by the kernel that multiplies with them (`products.output_kernel`, with several sequences
`merge_kernel`). How many there are is fixed by the launch; how many tiles a part has is the sequence's affair, and a
graph of the launch serves all lengths.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # noqa: E402


@triton.jit
def attention_kernel(
    qkv_ptr, q_scale_ptr, k_scale_ptr, cos_ptr, sin_ptr, key_pages_ptr, value_pages_ptr, table_ptr, lengths_ptr,
    slots_ptr, o_ptr, lse_ptr, width, key_stride_page, key_stride_slot, key_stride_head, value_stride_page,
    value_stride_slot, value_stride_head, table_stride, eps, scale_log2, HQ: tl.constexpr, HKV: tl.constexpr,
    D: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, NORM: tl.constexpr,
    BLOCK_G: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Part program_id(0) % SPLITS of key head program_id(0) // SPLITS of sequence program_id(1).

    qkv (S, (HQ + 2 HKV) · D) fp32; cos and sin (S, D / 2) fp32; pages (blocks, PAGE, HKV, D); table (S, width),
    lengths (S,), the new token included, and slots (S,) int32; o (S, SPLITS, HQ, D); lse (S, SPLITS, HQ) fp32, to base
    2.
    A sequence of length 0 has o = 0; slot −1: its key and value are kept nowhere.
    """
    if PDL:
        gdc_launch_dependents()
    G: tl.constexpr = HQ // HKV
    HALF: tl.constexpr = D // 2
    head = tl.program_id(0) // SPLITS
    split = tl.program_id(0) % SPLITS
    sequence = tl.program_id(1)
    table_ptr += sequence * table_stride
    key_pages_ptr += head * key_stride_head
    value_pages_ptr += head * value_stride_head
    d = tl.arange(0, D)
    other = (d + HALF) % D  # the other element of its pair
    g = tl.arange(0, BLOCK_G)
    newest = tl.load(lengths_ptr + sequence) - 1  # the new token's place, −1 where there is no sequence
    slot = tl.load(slots_ptr + sequence)
    first = split * BLOCK_N
    k = load_tile(key_pages_ptr, table_ptr, width, first, newest, key_stride_page, key_stride_slot, D, PAGE, BLOCK_N)
    v = load_tile(
        value_pages_ptr, table_ptr, width, first, newest, value_stride_page, value_stride_slot, D, PAGE, BLOCK_N
    )
    if NORM:
        q_scale, q_scale_other = tl.load(q_scale_ptr + d).to(tl.float32), tl.load(q_scale_ptr + other).to(tl.float32)
        k_scale, k_scale_other = tl.load(k_scale_ptr + d).to(tl.float32), tl.load(k_scale_ptr + other).to(tl.float32)
    if PDL:
        gdc_wait()
    # x, and `other`, which has the pairs' halves exchanged: loaded twice instead of moved between threads
    qkv_ptr += sequence * ((HQ + 2 * HKV) * D)
    rows = qkv_ptr + (head * G + g)[:, None] * D
    there = (g < G)[:, None] & (d < D)[None, :]
    q = tl.load(rows + d[None, :], mask=there, other=0.0)  # (BLOCK_G, D)
    q_other = tl.load(rows + other[None, :], mask=there, other=0.0)
    k_new = tl.load(qkv_ptr + (HQ + head) * D + d)  # (D,)
    k_other = tl.load(qkv_ptr + (HQ + head) * D + other)
    v_new = tl.load(qkv_ptr + (HQ + HKV + head) * D + d).to(v.dtype)
    cos = tl.load(cos_ptr + sequence * HALF + d % HALF)
    sin = tl.load(sin_ptr + sequence * HALF + d % HALF) * tl.where(d < HALF, -1.0, 1.0)
    if NORM:
        q_rms = tl.rsqrt(tl.sum(q * q, axis=1) / D + eps)[:, None]
        k_rms = tl.rsqrt(tl.sum(k_new * k_new) / D + eps)
        q = (q * (q_scale * cos)[None, :] + q_other * (q_scale_other * sin)[None, :]) * q_rms
        k_new = (k_new * (k_scale * cos) + k_other * (k_scale_other * sin)) * k_rms
    else:
        q = q * cos[None, :] + q_other * sin[None, :]
        k_new = k_new * cos + k_other * sin
    q, k_new = q.to(k.dtype), k_new.to(k.dtype)
    if (newest // BLOCK_N % SPLITS == split) & (slot >= 0):
        page, place = (slot // PAGE).to(tl.int64), slot % PAGE
        tl.store(key_pages_ptr + page * key_stride_page + place * key_stride_slot + d, k_new)
        tl.store(value_pages_ptr + page * value_stride_page + place * value_stride_slot + d, v_new)

    m = tl.full((BLOCK_G,), -1e30, tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    o = tl.zeros((BLOCK_G, D), tl.float32)
    m, l, o = attend_tile(q, k, v, k_new, v_new, m, l, o, first, newest, scale_log2, BLOCK_N)
    for start in range((SPLITS + split) * BLOCK_N, newest + 1, SPLITS * BLOCK_N):
        k = load_tile(
            key_pages_ptr, table_ptr, width, start, newest, key_stride_page, key_stride_slot, D, PAGE, BLOCK_N
        )
        v = load_tile(
            value_pages_ptr, table_ptr, width, start, newest, value_stride_page, value_stride_slot, D, PAGE, BLOCK_N
        )
        m, l, o = attend_tile(q, k, v, k_new, v_new, m, l, o, start, newest, scale_log2, BLOCK_N)
    some = tl.where(l > 0, l, 1.0)
    rows = (sequence * SPLITS + split) * HQ + head * G + g
    tl.store(o_ptr + rows[:, None] * D + d[None, :], (o / some[:, None]).to(o_ptr.dtype.element_ty), mask=there)
    tl.store(lse_ptr + rows, tl.where(l > 0, m + tl.log2(some), -1e30), mask=g < G)


@triton.jit
def load_tile(
    pages_ptr, table_ptr, width, start, newest, stride_page, stride_slot, D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One head's keys, or values, of tokens `start` on, (BLOCK_N, D): zeros for the newest token and beyond it.

    The table is read as far as it goes, `width`, and not as far as the length says: so the length need not be there
    before the table is asked for.
    """
    token = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, D)
    old = token < newest
    page = tl.load(table_ptr + token // PAGE, mask=token // PAGE < width, other=0).to(tl.int64)
    at = page * stride_page + token % PAGE * stride_slot
    return tl.load(pages_ptr + at[:, None] + d[None, :], mask=old[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def attend_tile(q, k, v, k_new, v_new, m, l, o, start, newest, scale_log2, BLOCK_N: tl.constexpr):
    """One step of online softmax: m, l and o after the keys of this tile, in which the newest token's are put."""
    token = start + tl.arange(0, BLOCK_N)
    is_new = (token == newest)[:, None]
    k = tl.where(is_new, k_new[None, :], k)
    v = tl.where(is_new, v_new[None, :], v)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # (BLOCK_G, BLOCK_N)
    s = tl.where((token <= newest)[None, :], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, axis=1))
    p = tl.exp2(s - m_new[:, None])
    shrink = tl.exp2(m - m_new)
    l = l * shrink + tl.sum(p, axis=1)
    o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")
    return m_new, l, o
