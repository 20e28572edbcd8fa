"""The kernels of flash's backward pass: gradients without the stored matrix.

The forward pass kept o and one number a row, the log-sum-exp. That number is enough to make any tile of P again,

    P_ij = exp(s_ij − lse_i),    s_ij = scale · q_i·k_j

with no running maximum and nothing to rescale, for the sum over the whole row is known by now. From dO, the gradient of
o, and with delta_i = Σ_d dO_id o_id, which stands for the sum over a row in the softmax's derivative, follow

    dV_j = Σ_i P_ij dO_i        dP_ij = dO_i·v_j        dS_ij = P_ij (dP_ij − delta_i)
    dQ_i = scale · Σ_j dS_ij k_j            dK_j = scale · Σ_i dS_ij q_i

(https://arxiv.org/abs/2205.14135, appendix B.2 and B.4; https://arxiv.org/abs/2307.08691, section 3.1.2). Where lse
itself is used, its gradient dlse adds P_ij · dlse_i to dS_ij: it is subtracted from delta_i, and no other line knows
of it.

The sums run in two directions, and that decides the kernels. dK and dV of a key are sums over queries: one program has
a tile of keys and walks over the queries that see them. dQ is a sum over keys: one program has a tile of queries, and
walks as the forward pass does. So each makes P and dP for itself, and a tile of scores costs seven matrix products
where five would do. In return nobody adds to what another program writes: there are no atomic additions, the order of
every sum is fixed, and the same inputs give the same gradients, bit for bit.

From the forward kernel (`kernels`) come base two, packed groups (row r is query r // G of head r % G: dK and dV
are summed over the heads of a group within one program) and a loop without a mask beside the ones with it.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def flash_delta_kernel(
    o_ptr, do_ptr, lse_ptr, dlse_ptr, delta_ptr, lse_log2_ptr,
    o_stride_b, o_stride_h, o_stride_t,
    do_stride_b, do_stride_h, do_stride_t,
    Hq, Tq,
    DV: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """What both of the other kernels want of a row: delta − dlse, and lse in base two.

    Grid: (ceil(Tq / BLOCK_M), B · Hq). o and do (B, Hq, Tq, DV); the rest (B, Hq, Tq) fp32, contiguous; dlse may be
    None.
    """
    b = (tl.program_id(1) // Hq).to(tl.int64)
    h = (tl.program_id(1) % Hq).to(tl.int64)
    t = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    columns = tl.arange(0, BLOCK_DV)
    inside = (t < Tq)[:, None] & (columns < DV)[None, :]
    o_at = o_ptr + b * o_stride_b + h * o_stride_h + t.to(tl.int64)[:, None] * o_stride_t + columns[None, :]
    do_at = do_ptr + b * do_stride_b + h * do_stride_h + t.to(tl.int64)[:, None] * do_stride_t + columns[None, :]
    o = tl.load(o_at, mask=inside, other=0.0).to(tl.float32)  # (BLOCK_M, BLOCK_DV)
    do = tl.load(do_at, mask=inside, other=0.0).to(tl.float32)
    delta = tl.sum(o * do, axis=1)
    row = tl.program_id(1).to(tl.int64) * Tq + t
    if dlse_ptr is not None:
        delta -= tl.load(dlse_ptr + row, mask=t < Tq, other=0.0)
    lse = tl.load(lse_ptr + row, mask=t < Tq, other=0.0)
    # A row that saw no key has lse = −∞. With +∞ in its place, exp2(s − lse) is the 0 that its weights are.
    lse_log2 = tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)
    tl.store(delta_ptr + row, delta, mask=t < Tq)
    tl.store(lse_log2_ptr + row, lse_log2, mask=t < Tq)


@triton.jit
def flash_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_log2_ptr, delta_ptr, dk_ptr, dv_ptr,
    q_stride_b, q_stride_h, q_stride_t,
    k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t,
    do_stride_b, do_stride_h, do_stride_t,
    Hkv, Tq, Tk, scale, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of one tile of BLOCK_N keys of one key head, summed over the G query heads that share it.

    Grid: (ceil(Tk / BLOCK_N), B · Hkv). q (B, G·Hkv, Tq, DK), k (B, Hkv, Tk, DK), v (B, Hkv, Tk, DV), do as q with DV,
    all with unit stride in the last dimension; lse_log2 and delta (B, G·Hkv, Tq) fp32, dk as k and dv as v, contiguous.
    scale_log2 = scale · log2(e). With a causal mask, the first tile of keys is seen by the most queries: the longest
    programs start first by themselves.
    """
    first_key = tl.program_id(0) * BLOCK_N
    group = tl.program_id(1).to(tl.int64)  # a key head of a sequence, and the query heads that share it
    b = group // Hkv
    h = group % Hkv
    keys = first_key + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
    lanes = tl.arange(0, BLOCK_N)[:, None]
    columns_k = tl.arange(0, BLOCK_DK)
    columns_v = tl.arange(0, BLOCK_DV)
    k_inside = (keys < Tk)[:, None] & (columns_k < DK)[None, :]
    v_inside = (keys < Tk)[:, None] & (columns_v < DV)[None, :]
    k_at = k_ptr + b * k_stride_b + h * k_stride_h + first_key.to(tl.int64) * k_stride_t
    v_at = v_ptr + b * v_stride_b + h * v_stride_h + first_key.to(tl.int64) * v_stride_t
    k = tl.load(k_at + (lanes * k_stride_t + columns_k[None, :]), mask=k_inside, other=0.0)  # (BLOCK_N, BLOCK_DK)
    v = tl.load(v_at + (lanes * v_stride_t + columns_v[None, :]), mask=v_inside, other=0.0)  # (BLOCK_N, BLOCK_DV)
    dk = tl.zeros((BLOCK_N, BLOCK_DK), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)

    q_at = q_ptr + b * q_stride_b + h * G * q_stride_h
    do_at = do_ptr + b * do_stride_b + h * G * do_stride_h
    lse_log2_at = lse_log2_ptr + group * (G * Tq)
    delta_at = delta_ptr + group * (G * Tq)
    rows = G * Tq
    whole = rows // BLOCK_M * BLOCK_M  # in the tiles before it, every row exists
    start = 0  # rows before it see no key of this tile
    clear = 0  # rows from it on see every key of this tile
    if CAUSAL:
        last_key = tl.minimum(first_key + BLOCK_N, Tk) - 1
        start = tl.maximum(first_key - (Tk - Tq), 0) * G // BLOCK_M * BLOCK_M
        clear = tl.minimum(tl.cdiv(tl.maximum(last_key - (Tk - Tq), 0) * G, BLOCK_M) * BLOCK_M, whole)
        dk, dv = _absorb_queries(  # the tiles that the diagonal cuts
            dk, dv, k, v, q_at, do_at, lse_log2_at, delta_at, q_stride_h, q_stride_t, do_stride_h, do_stride_t,
            start, clear, keys, Tq, Tk, scale_log2,
            G, DK, DV, True, False, BLOCK_M, BLOCK_DK, BLOCK_DV, PRECISION,
        )  # fmt: skip
    dk, dv = _absorb_queries(  # nearly all: no mask
        dk, dv, k, v, q_at, do_at, lse_log2_at, delta_at, q_stride_h, q_stride_t, do_stride_h, do_stride_t,
        clear, whole, keys, Tq, Tk, scale_log2,
        G, DK, DV, False, False, BLOCK_M, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip
    dk, dv = _absorb_queries(  # the last tile, if it is not whole
        dk, dv, k, v, q_at, do_at, lse_log2_at, delta_at, q_stride_h, q_stride_t, do_stride_h, do_stride_t,
        tl.maximum(whole, start), rows, keys, Tq, Tk, scale_log2,
        G, DK, DV, CAUSAL, True, BLOCK_M, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip

    dk_at = dk_ptr + (group * Tk + first_key) * DK + (lanes * DK + columns_k[None, :])
    dv_at = dv_ptr + (group * Tk + first_key) * DV + (lanes * DV + columns_v[None, :])
    tl.store(dk_at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=k_inside)
    tl.store(dv_at, dv.to(dv_ptr.dtype.element_ty), mask=v_inside)


@triton.jit
def _absorb_queries(
    dk, dv, k, v, q_at, do_at, lse_log2_at, delta_at, q_stride_h, q_stride_t, do_stride_h, do_stride_t,
    start, stop, keys, Tq, Tk, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv after the rows from `start` to `stop`, a tile of BLOCK_M at a time.

    Scores are made transposed, keys by rows, as dk and dv want them: pᵀ and dsᵀ go on into the next product without
    leaving the registers. These are scarce, and the order of the lines minds them: the two products that need only
    inputs come first, lse and delta are loaded where they are used. Keys beyond the last need no mask: what they give
    are rows of dk and dv that nobody stores.
    """
    columns_k = tl.arange(0, BLOCK_DK)
    columns_v = tl.arange(0, BLOCK_DV)
    for row in range(start, stop, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)
        exists = rows < G * Tq
        query = rows // G
        head = rows % G
        q_tile = q_at + (head * q_stride_h + query * q_stride_t)[:, None] + columns_k[None, :]
        do_tile = do_at + (head * do_stride_h + query * do_stride_t)[:, None] + columns_v[None, :]
        q = _load(q_tile, exists[:, None], (columns_k < DK)[None, :], RAGGED, DK < BLOCK_DK)  # (BLOCK_M, BLOCK_DK)
        do = _load(do_tile, exists[:, None], (columns_v < DV)[None, :], RAGGED, DV < BLOCK_DV)  # (BLOCK_M, BLOCK_DV)
        s_t = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
        dp_t = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        lse_log2 = _load_row(lse_log2_at + (head * Tq + query), exists, float("inf"), RAGGED)  # (BLOCK_M,)
        p_t = tl.exp2(s_t * scale_log2 - lse_log2[None, :])
        if CAUSAL:
            p_t = tl.where(keys[:, None] <= (query + (Tk - Tq))[None, :], p_t, 0.0)
        delta = _load_row(delta_at + (head * Tq + query), exists, 0.0, RAGGED)
        ds_t = p_t * (dp_t - delta[None, :])
        dv = tl.dot(p_t.to(do.dtype), do, dv, input_precision=PRECISION)
        dk = tl.dot(ds_t.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def flash_dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_log2_ptr, delta_ptr, dq_ptr,
    q_stride_b, q_stride_h, q_stride_t,
    k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t,
    do_stride_b, do_stride_h, do_stride_t,
    Hkv, Tq, Tk, scale, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """dq of one tile of BLOCK_M rows: G query heads of one key head, their queries interleaved.

    Grid: (ceil(G · Tq / BLOCK_M), B · Hkv). dq (B, G·Hkv, Tq, DK) is contiguous; the rest as in `flash_dkdv_kernel`.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest first
    group = tl.program_id(1).to(tl.int64)
    b = group // Hkv
    h = group % Hkv
    rows = tile * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    query = rows // G
    head = rows % G
    exists = rows < G * Tq
    columns_k = tl.arange(0, BLOCK_DK)
    columns_v = tl.arange(0, BLOCK_DV)
    q_inside = exists[:, None] & (columns_k < DK)[None, :]
    do_inside = exists[:, None] & (columns_v < DV)[None, :]
    q_at = q_ptr + b * q_stride_b + h * G * q_stride_h
    do_at = do_ptr + b * do_stride_b + h * G * do_stride_h
    q_tile = q_at + ((head * q_stride_h + query * q_stride_t)[:, None] + columns_k[None, :])
    do_tile = do_at + ((head * do_stride_h + query * do_stride_t)[:, None] + columns_v[None, :])
    q = tl.load(q_tile, mask=q_inside, other=0.0)  # (BLOCK_M, BLOCK_DK)
    do = tl.load(do_tile, mask=do_inside, other=0.0)  # (BLOCK_M, BLOCK_DV)
    at = head * Tq + query
    lse_log2 = tl.load(lse_log2_ptr + group * (G * Tq) + at, mask=exists, other=float("inf"))
    delta = tl.load(delta_ptr + group * (G * Tq) + at, mask=exists, other=0.0)
    dq = tl.zeros((BLOCK_M, BLOCK_DK), tl.float32)

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
    dq = _absorb_keys(
        dq, q, do, lse_log2, delta, k_at, v_at, k_stride_t, v_stride_t, 0, clear, Tk, last_key, scale_log2,
        DK, DV, CAUSAL, False, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip
    dq = _absorb_keys(
        dq, q, do, lse_log2, delta, k_at, v_at, k_stride_t, v_stride_t, clear, stop, Tk, last_key, scale_log2,
        DK, DV, CAUSAL, True, BLOCK_N, BLOCK_DK, BLOCK_DV, PRECISION,
    )  # fmt: skip
    dq_at = dq_ptr + group * (G * Tq) * DK + (at[:, None] * DK + columns_k[None, :])
    tl.store(dq_at, (dq * scale).to(dq_ptr.dtype.element_ty), mask=q_inside)


@triton.jit
def _absorb_keys(
    dq, q, do, lse_log2, delta, k_at, v_at, k_stride_t, v_stride_t, start, stop, Tk, last_key, scale_log2,
    DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dq after the keys from `start` to `stop`, a tile of BLOCK_N at a time."""
    columns_k = tl.arange(0, BLOCK_DK)
    columns_v = tl.arange(0, BLOCK_DV)
    for key in range(start, stop, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        exists = keys < Tk
        k_tile = k_at + (keys * k_stride_t)[:, None] + columns_k[None, :]
        v_tile = v_at + (keys * v_stride_t)[:, None] + columns_v[None, :]
        k = _load(k_tile, exists[:, None], (columns_k < DK)[None, :], MASKED, DK < BLOCK_DK)  # (BLOCK_N, BLOCK_DK)
        v = _load(v_tile, exists[:, None], (columns_v < DV)[None, :], MASKED, DV < BLOCK_DV)  # (BLOCK_N, BLOCK_DV)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        p = tl.exp2(s * scale_log2 - lse_log2[:, None])
        if MASKED:
            seen = exists[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= last_key[:, None])
            p = tl.where(seen, p, 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _load(at, row_exists, column_exists, RAGGED_ROWS: tl.constexpr, RAGGED_HEAD: tl.constexpr):
    """A tile with zeros beyond the last row and the head's size. Where nothing is ragged, there is no mask at all."""
    if RAGGED_ROWS or RAGGED_HEAD:
        return tl.load(at, mask=row_exists & column_exists, other=0.0)
    else:
        return tl.load(at)


@triton.jit
def _load_row(at, exists, beyond: tl.constexpr, RAGGED: tl.constexpr):
    """A number for each row of a tile; `beyond` where there is no row."""
    if RAGGED:
        return tl.load(at, mask=exists, other=beyond)
    else:
        return tl.load(at)
