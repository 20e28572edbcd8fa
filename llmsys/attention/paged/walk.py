"""What the attention kernels over pages share: a tile's rows, and the walk over a sequence's keys, page after page.

The walk is the flash kernel's loop (`llmsys.attention.flash.kernels`). One thing is new: key j of a sequence is not at
j · stride, but in place j % PAGE of page table[j // PAGE]. The ids of a tile's pages are loaded first, and then its
keys from there. A page's number times its stride passes 2^31 in any cache of a few GB, so that is counted in 64 bits.

Whatever the length does not reach is not read: neither entries of the table, which may be −1 or anything, nor slots,
which may hold NaN, and 0 · NaN is NaN.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def rows_of(
    q_ptr, tree_ptr, q_stride_n, q_stride_h, first_row, start, Tq, length, h, W,
    G: tl.constexpr, DK: tl.constexpr, TREE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DK: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of a sequence from `first_row` on: row r is query r // G of head r % G of key head h's group.

    Returns q, then for each row its token among the step's, its head, whether there is such a row, the last key that
    it sees, and whether its token is in a tree.
    """
    rows = first_row + tl.arange(0, BLOCK_M)
    dk = tl.arange(0, BLOCK_DK)
    query = rows // G
    head = h * G + rows % G
    there = query < Tq
    token = (start + query).to(tl.int64)
    q_at = q_ptr + token[:, None] * q_stride_n + head[:, None] * q_stride_h + dk[None, :]
    q = tl.load(q_at, mask=there[:, None] & (dk < DK)[None, :], other=0.0)
    in_tree = there
    if TREE:  # a token of a tree sees itself
        in_tree = tl.load(tree_ptr + token * W + query, mask=there & (query < W), other=0) != 0
    return q, token, head, there, query + (length - Tq), in_tree


@triton.jit
def attend(
    q, token, last_key, in_tree, k_at, v_at, table_at, tree_ptr,
    k_stride_page, k_stride_slot, v_stride_page, v_stride_slot,
    begin, end, first_row, Tq, length, W, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """m (base two), l and o of a tile's rows over the sequence's keys from `begin`, a multiple of BLOCK_N, to `end`."""
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    computed = length - Tq
    clear, stop = keys_seen(first_row, begin, end, Tq, length, G, TREE, BLOCK_M, BLOCK_N)
    m, l, o = _walk(
        m, l, o, q, token, last_key, in_tree, k_at, v_at, table_at, tree_ptr,
        k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, begin, clear, length, computed, W, scale_log2,
        DK, DV, PAGE, TREE, False, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip
    return _walk(
        m, l, o, q, token, last_key, in_tree, k_at, v_at, table_at, tree_ptr,
        k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, clear, stop, length, computed, W, scale_log2,
        DK, DV, PAGE, TREE, True, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip


@triton.jit
def _walk(
    m, l, o, q, token, last_key, in_tree, k_at, v_at, table_at, tree_ptr,
    k_stride_page, k_stride_slot, v_stride_page, v_stride_slot, begin, stop, length, computed, W, scale_log2,
    DK: tl.constexpr, DV: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state (m, l, o) after the keys from `begin` to `stop`, a tile of BLOCK_N at a time."""
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    for key in range(begin, stop, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        written = keys < length
        page, place = slots_of(keys, written, table_at, PAGE, MASKED)
        k_tile = k_at + (page * k_stride_page + place * k_stride_slot)[None, :] + dk[:, None]
        k = load_tile(k_tile, (dk < DK)[:, None], written[None, :], DK < BLOCK_DK, MASKED)  # (BLOCK_DK, BLOCK_N)
        s = tl.dot(q, k, input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        if MASKED:
            s = mask_scores(s, keys, written, last_key, token, in_tree, tree_ptr, computed, W, TREE)
        m, l, p, shrink = weigh(m, l, s, scale_log2, MASKED)
        o = o * shrink[:, None]
        v_tile = v_at + (page * v_stride_page + place * v_stride_slot)[:, None] + dv[None, :]
        v = load_tile(v_tile, (dv < DV)[None, :], written[:, None], DV < BLOCK_DV, MASKED)  # (BLOCK_N, BLOCK_DV)
        o = tl.dot(p.to(v.dtype), v, o, input_precision=PRECISION)
    return m, l, o


@triton.jit
def keys_seen(
    first_row, begin, end, Tq, length, G: tl.constexpr, TREE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of a sequence's keys from `begin` to `end`: before which one all are seen by every row of a tile, in whole tiles
    of keys, and before which one any is seen at all."""
    computed = length - Tq
    last_query = tl.minimum((first_row + BLOCK_M - 1) // G, Tq - 1)
    stop = tl.minimum(tl.maximum(tl.minimum(last_query + 1 + computed, length), 0), end)
    clear = first_row // G + 1 + computed
    if TREE:
        clear = computed
    clear = tl.minimum(tl.maximum(clear, 0), stop) // BLOCK_N * BLOCK_N
    return tl.maximum(clear, begin), stop


@triton.jit
def slots_of(keys, written, table_at, PAGE: tl.constexpr, MASKED: tl.constexpr):
    """In which page each of a sequence's keys lies, and in which place there, in 64 bits."""
    if MASKED:
        page = tl.load(table_at + keys // PAGE, mask=written, other=0)
    else:
        page = tl.load(table_at + keys // PAGE)
    return page.to(tl.int64), (keys % PAGE).to(tl.int64)


@triton.jit
def mask_scores(s, keys, written, last_key, token, in_tree, tree_ptr, computed, W, TREE: tl.constexpr):
    """The scores s (BLOCK_M, BLOCK_N), −∞ where a row does not see a key."""
    seen = written[None, :] & (keys[None, :] <= last_key[:, None])
    if TREE:
        own = keys - computed  # the number among the step's tokens, below 0 for those from before
        there = in_tree[:, None] & ((own >= 0) & (own < W))[None, :]
        related = tl.load(tree_ptr + token[:, None] * W + own[None, :], mask=there, other=0) != 0
        seen = seen & (related | (own < 0)[None, :] | (in_tree == 0)[:, None])
    return tl.where(seen, s, float("-inf"))


@triton.jit
def weigh(m, l, s, scale_log2, MASKED: tl.constexpr):
    """One step of the online softmax in base two: the new m and l, the weights p of the scores s, and by what o, the
    sum up to here, has to shrink."""
    m_new = tl.maximum(m, tl.max(s, axis=1) * scale_log2)
    shift = m_new
    if MASKED:  # a row may have seen no key yet, and −∞ − (−∞) is NaN
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s * scale_log2 - shift[:, None])
    shrink = tl.exp2(m - shift)
    return m_new, l * shrink + tl.sum(p, axis=1), p, shrink


@triton.jit
def load_tile(at, in_head, written, RAGGED_HEAD: tl.constexpr, RAGGED_KEYS: tl.constexpr):
    """A tile with zeros beyond the head's size and the last key. Where nothing is ragged, there is no mask at all."""
    if RAGGED_HEAD or RAGGED_KEYS:
        return tl.load(at, mask=in_head & written, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def store_rows(
    o_ptr, lse_ptr, o, lse, token, head, there, Hq, DV: tl.constexpr, BLOCK_DV: tl.constexpr
):  # fmt: skip
    """o (N, Hq, DV) and lse (N, Hq), both contiguous, of a tile's rows. lse comes in base two."""
    dv = tl.arange(0, BLOCK_DV)
    row = token * Hq + head
    at = o_ptr + row[:, None] * DV + dv[None, :]
    tl.store(at, o.to(o_ptr.dtype.element_ty), mask=there[:, None] & (dv < DV)[None, :])
    tl.store(lse_ptr + row, lse * 0.6931471805599453, mask=there)  # ln 2: to natural logarithms


@triton.jit
def store_part(
    part_ptr, part_lse_ptr, o, lse, part, there, DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr
):  # fmt: skip
    """o and lse, base two, of a tile's rows as part number `part` of what is added up later: fp32."""
    dv = tl.arange(0, BLOCK_DV)
    row = part * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(part_ptr + row[:, None] * DV + dv[None, :], o, mask=there[:, None] & (dv < DV)[None, :])
    tl.store(part_lse_ptr + row, lse, mask=there)
