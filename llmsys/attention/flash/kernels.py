"""The kernel of stage 4: FlashAttention's forward pass in Triton.

One program has one tile of queries and walks over the keys that they see. What lesson 03 loads and stores explicitly
are pointers here; what it keeps on the chip are the variables of a program: the scores, m, l and o live in registers
while tiles of K and V pass through shared memory, where on Hopper q waits, too. Four things make it fast:

- *Base two.* The hardware computes 2^x. So log2(e) goes into the scale, and e^(s − m) is one multiply-add and one exp2.
- *Two loops.* A causal mask cuts through few tiles, those on the diagonal, and a ragged end through one. All tiles
  before those are computed in a loop that knows no mask.
- *Packed groups.* The G query heads of a key head are rows of one tile: row r is query r // G of head r % G. So each
  tile of K is loaded once for all of them; and when one token is decoded, they fill a tile that would have one row.
- *The longest first.* With a causal mask, later queries see more keys. Programs start in order of their number, so the
  first is given the last tile: the short ones fill the gaps at the end.

(https://arxiv.org/abs/2307.08691, section 3; the division by l is left to the end as in its equation for O.)
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def flash_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    q_stride_b, q_stride_h, q_stride_t,
    k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t,
    o_stride_b, o_stride_h, o_stride_t,
    Hkv, Tq, Tk, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """o and lse of one tile of BLOCK_M rows: G query heads of one key head, their queries interleaved.

    Grid: (ceil(G · Tq / BLOCK_M), B · Hkv). q (B, G·Hkv, Tq, DK), k (B, Hkv, Tk, DK), v (B, Hkv, Tk, DV), o as q with
    DV, all with unit stride in the last dimension; lse (B, G·Hkv, Tq) fp32, contiguous. scale_log2 = scale · log2(e).
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    b = (tl.program_id(1) // Hkv).to(tl.int64)
    h = (tl.program_id(1) % Hkv).to(tl.int64)
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    query = rows // G
    head = h * G + rows % G
    row_exists = rows < G * Tq
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)

    q_at = q_ptr + b * q_stride_b + head[:, None] * q_stride_h + query[:, None] * q_stride_t + dk[None, :]
    q = tl.load(q_at, mask=row_exists[:, None] & (dk < DK)[None, :], other=0.0)  # (BLOCK_M, BLOCK_DK)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)

    last_key = query + (Tk - Tq)  # (BLOCK_M,): bottom-right
    stop = Tk
    clear = Tk  # keys before it are seen by every row
    if CAUSAL:
        last_query = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // G, Tq - 1)
        stop = tl.maximum(tl.minimum(last_query + 1 + Tk - Tq, Tk), 0)
        clear = tl.maximum(tl.minimum(tile * BLOCK_M // G + 1 + Tk - Tq, Tk), 0)
    clear = clear // BLOCK_N * BLOCK_N
    k_at = k_ptr + b * k_stride_b + h * k_stride_h
    v_at = v_ptr + b * v_stride_b + h * v_stride_h
    m, l, o = _absorb(
        m, l, o, q, k_at, v_at, k_stride_t, v_stride_t, 0, clear, Tk, last_key, scale_log2,
        DK, DV, CAUSAL, False, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip
    m, l, o = _absorb(
        m, l, o, q, k_at, v_at, k_stride_t, v_stride_t, clear, stop, Tk, last_key, scale_log2,
        DK, DV, CAUSAL, True, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip

    some = tl.where(l > 0, l, 1.0)  # a row without a key: o = 0 / 1
    o_at = o_ptr + b * o_stride_b + head[:, None] * o_stride_h + query[:, None] * o_stride_t + dv[None, :]
    tl.store(o_at, (o / some[:, None]).to(o_ptr.dtype.element_ty), mask=row_exists[:, None] & (dv < DV)[None, :])
    lse = (m + tl.log2(some)) * 0.6931471805599453  # ln 2: back to natural logarithms
    tl.store(lse_ptr + (b * Hkv * G + head) * Tq + query, lse, mask=row_exists)


@triton.jit
def _absorb(
    m, l, o, q, k_at, v_at, k_stride_t, v_stride_t, start, stop, Tk, last_key, scale_log2,
    DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state (m, l, o) after the keys from `start` to `stop`, a tile of BLOCK_N at a time; m is in base two."""
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    for key in range(start, stop, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        k_tile = k_at + keys[None, :] * k_stride_t + dk[:, None]  # (BLOCK_DK, BLOCK_N): transposed by its strides
        k = _load(k_tile, (dk < DK)[:, None], (keys < Tk)[None, :], DK < BLOCK_DK, MASKED)
        s = tl.dot(q, k, input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        if MASKED:
            seen = (keys < Tk)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= last_key[:, None])
            s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1) * scale_log2)
        shift = m_new
        if MASKED:  # a row may have seen no key yet, and −∞ − (−∞) is NaN
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s * scale_log2 - shift[:, None])
        shrink = tl.exp2(m - shift)
        l = l * shrink + tl.sum(p, axis=1)
        o = o * shrink[:, None]
        v_tile = v_at + keys[:, None] * v_stride_t + dv[None, :]  # (BLOCK_N, BLOCK_DV)
        v = _load(v_tile, (dv < DV)[None, :], (keys < Tk)[:, None], DV < BLOCK_DV, MASKED)
        o = tl.dot(p.to(v.dtype), v, o, input_precision=PRECISION)
        m = m_new
    return m, l, o


@triton.jit
def _load(at, in_head, in_keys, RAGGED_HEAD: tl.constexpr, RAGGED_KEYS: tl.constexpr):
    """A tile with zeros beyond the head's size and the last key. Where nothing is ragged, there is no mask at all."""
    if RAGGED_HEAD or RAGGED_KEYS:
        return tl.load(at, mask=in_head & in_keys, other=0.0)
    else:
        return tl.load(at)
