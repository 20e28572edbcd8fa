"""Attention over pages in its first form: one new token a sequence, and nothing in it but the walk through the table.

The loop is `llmsys.attention.one_head`'s. A program has the G query heads of one key head of one sequence as its rows,
which share every key that it loads. Key j lies in place j % PAGE of page table[j // PAGE], so a tile begins with the
ids of its pages. Nothing beyond the sequence's length is read: there the table may hold anything, and slots NaN.

`llmsys.attention.paged.walk` is the same walk with what a server needs: several tokens a sequence, trees, values of
another size than keys, and a second loop, so that whole tiles need no mask.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def one_token_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, table_ptr, lengths_ptr,
    k_stride_page, k_stride_slot, k_stride_head, v_stride_page, v_stride_slot, v_stride_head, table_stride, scale_log2,
    G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """o and lse of the G query heads that share key head program_id(1), for the token of sequence program_id(0).

    Grid: (S, Hkv). q and o (S, Hkv · G, D) and lse (S, Hkv · G) are contiguous; k and v (blocks, PAGE, Hkv, D), the D
    elements adjacent; table (S, M) and lengths (S,) int32. scale_log2 = scale · log2(e). BLOCK_G and BLOCK_D are the
    next powers of two from G and D, 16 at least.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    rows = (sequence * tl.num_programs(1) + head) * G + g  # (BLOCK_G,) of q, o and lse
    inside = (g < G)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + rows[:, None] * D + d[None, :], mask=inside, other=0.0)  # (BLOCK_G, BLOCK_D)
    m = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    o = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    length = tl.load(lengths_ptr + sequence)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        written = keys < length
        page = tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=written, other=0).to(tl.int64)
        slot = keys % PAGE
        there = written[:, None] & (d < D)[None, :]
        k_at = page * k_stride_page + slot * k_stride_slot + head * k_stride_head  # (BLOCK_N,), in 64 bits
        k = tl.load(k_ptr + k_at[:, None] + d[None, :], mask=there, other=0.0)  # (BLOCK_N, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # (BLOCK_G, BLOCK_N)
        s = tl.where(written[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v_at = page * v_stride_page + slot * v_stride_slot + head * v_stride_head
        v = tl.load(v_ptr + v_at[:, None] + d[None, :], mask=there, other=0.0)  # (BLOCK_N, BLOCK_D)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    some = tl.where(l > 0, l, 1.0)  # a sequence without a key: o = 0 / 1, lse = −∞
    tl.store(o_ptr + rows[:, None] * D + d[None, :], (o / some[:, None]).to(o_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + rows, (m + tl.log2(some)) * 0.6931471805599453, mask=g < G)  # ln 2: to natural logarithms
