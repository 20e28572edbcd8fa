"""Lines of the library's `one_head_kernel`, which mistakes of lesson 04 have otherwise."""

SHRINK_O = "o * shrink[:, None]"
SHRINK_L = "l = l * shrink + tl.sum(p, axis=1)"
S = 's = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2'
O = 'o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")'
K_TILE = "k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)"
V_TILE = "v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)"
STOP = "stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk)"
SEEN = "keys[None, :] <= rows[:, None] + Tk - Tq"
HIDDEN = 's = tl.where(seen, s, float("-inf"))'
Q_TILE = "q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq, other=0.0)"
STORE = "o.to(o_ptr.dtype.element_ty), mask=rows[:, None] < Tq)"
Q_BARE = (Q_TILE, "q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])")
STORE_BARE = (STORE, "o.to(o_ptr.dtype.element_ty))")
ROWS = "rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)"
TRANSPOSED = (S, 's = tl.dot(q, k, input_precision="ieee") * scale_log2')
K_MASK = "mask=keys[None, :] < Tk, other=0.0)"
SHIFT = 'shift = tl.where(m_new == float("-inf"), 0.0, m_new)'
DIVIDE = "o = o / tl.where(l > 0, l, 1.0)[:, None]"

# As a first solution writes them: nothing guards a row without a key, so what is wrong shows as NaN, and not as 0.
PLAIN = (
    ('shift = tl.where(m_new == float("-inf"), 0.0, m_new)', "shift = m_new"),
    ("o = o / tl.where(l > 0, l, 1.0)[:, None]", "o = o / l[:, None]"),
)
