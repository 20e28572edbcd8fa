"""The consumer of the hopper backward kernel: 64 keys against all queries that see them.

Scores are made transposed, keys × queries. So P and dS come out of the tensor cores lying as the left operands of dV
and dK want them, in registers, and only one of the five products needs a matrix to be moved: dQ is a sum over keys, of
which this consumer has 64 and the other one 64. Both put their dS into shared memory, and each makes half of the share
of dQ: half of its columns where a tile has 64 queries, half of its rows where it has 128.

A step is shifted like the forward pass's. Each product runs while something else is computed that does not need it:

    start dPᵀ = V dOᵀ
    P = exp2(S − lse)                           while dP is made
    start dV += Pᵀ dO
    dS = P (dP − delta)                         while dV is made
    start dK += dSᵀ Q, and half of dQ = dS K
    start the next step's Sᵀ = K Qᵀ
    dQ goes out to be added                     while the next S is made
"""

from llmsys.attention.hopper.consumer import write
from llmsys.attention.hopper.gluon import (
    fence_async_shared,
    gl,
    gluon,
    tma,
    wait_for_warpgroup,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def consume(J: gl.constexpr, work, keys, values, steps, shares, outputs, dq_desc, dk_desc, dv_desc, scale, scale_log2):
    """Consumer J: keys 64·J to 64·J + 63 of each tile of keys."""
    D: gl.constexpr = dk_desc.block_type.shape[3]
    BLOCK_M: gl.constexpr = shares.ds.shape[2]
    # How the accumulators of Sᵀ (64, BLOCK_M) and of dK and dV (64, D) lie in registers.
    S: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_M, 16])
    KV: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])

    i = 0  # steps so far, over all tiles of keys
    tile = work.tiles.first_tile()
    for r in range(work.tiles.count()):
        b, h, key = work.tiles.place(tile)
        tile = work.tiles.next_tile(r)
        first = work.first_row(key, BLOCK_M)
        clear = work.clear_row(key)
        head = h * work.G
        row = first
        k = keys.take(r)
        s = warpgroup_mma_wait(0, [start_scores(J, k, steps.take_q(i), S)])
        v = values.take(r)
        dk = gl.zeros([64, D], gl.float32, KV)
        dv = gl.zeros([64, D], gl.float32, KV)
        for _ in range(work.G * ((work.Tq - first + BLOCK_M - 1) // BLOCK_M) - 1):
            s, dk, dv = step(
                J, work, k, v, steps, shares, dq_desc, i, b, head, row, key, clear, s, dk, dv, scale_log2, S, KV, False
            )
            i += 1
            row = row + BLOCK_M
            if row >= work.Tq:  # the next query head that shares these keys
                row = first
                head += 1
        s, dk, dv = step(
            J, work, k, v, steps, shares, dq_desc, i, b, head, row, key, clear, s, dk, dv, scale_log2, S, KV, True
        )
        i += 1
        values.give_back(r)
        keys.give_back(r)
        write(dv.to(dv_desc.dtype), outputs.index(J), dv_desc, b, h, key + 64 * J)
        write((dk * scale).to(dk_desc.dtype), outputs.index(J), dk_desc, b, h, key + 64 * J)
    tma.store_wait(0)


@gluon.jit
def step(
    J: gl.constexpr, work, k, v, steps, shares, dq_desc, i, b, head, row, key, clear, s, dk, dv, scale_log2,
    S: gl.constexpr, KV: gl.constexpr, LAST: gl.constexpr,
):  # fmt: skip
    """Step i, queries from `row` on, whose scores are s: what they add to dk, dv and dq. And the next scores."""
    COLUMN: gl.constexpr = gl.SliceLayout(0, S)  # a number for each query
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, KV, 2)
    BLOCK_M: gl.constexpr = s.shape[1]
    do = steps.take_do(i)
    dp = start(v.slice(64 * J, 64, 0), do.permute((1, 0)), S)
    p = gl.exp2(s * scale_log2 - steps.row(i, 0, COLUMN)[None, :])
    if row < clear:
        p = gl.where(work.seen(key + 64 * J, row, BLOCK_M, S), p, 0.0)
    dp = warpgroup_mma_wait(0, [dp])
    dv = warpgroup_mma(gl.convert_layout(p.to(do.dtype), OPERAND), do, dv, is_async=True)
    ds = (p * (dp - steps.row(i, 1, COLUMN)[None, :])).to(do.dtype)
    shares.put(i, J, ds)
    q = steps.take_q(i)
    dk = warpgroup_mma(gl.convert_layout(ds, OPERAND), q, dk, is_async=True)
    dq = start_share(J, shares.take(i), k)
    dv, dk = warpgroup_mma_wait(1, [dv, dk])  # of the three, one may still run: dQ
    steps.give_back(i)
    if LAST:
        dq = warpgroup_mma_wait(0, [dq])
        add(J, dq, shares, dq_desc, i, b, head, row)
    else:
        s = start_scores(J, k, steps.take_q(i + 1), S)
        dq = warpgroup_mma_wait(1, [dq])
        add(J, dq, shares, dq_desc, i, b, head, row)
        s = warpgroup_mma_wait(0, [s])
    return s, dk, dv


@gluon.jit
def start_scores(J: gl.constexpr, k, q, S: gl.constexpr):
    """Start Sᵀ = K Qᵀ, (64, BLOCK_M), of this consumer's keys."""
    return start(k.slice(64 * J, 64, 0), q.permute((1, 0)), S)


@gluon.jit
def start_share(J: gl.constexpr, ds, k):
    """Start this consumer's half, (64, 64), of dQ = dS K, (BLOCK_M, D); ds is dSᵀ, (128, BLOCK_M), and k (128, D)."""
    DQ: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    if ds.shape[1] == 64:
        return start(ds.permute((1, 0)), k.slice(64 * J, 64, 1), DQ)
    else:
        return start(ds.slice(64 * J, 64, 1).permute((1, 0)), k, DQ)


@gluon.jit
def start(a, b, LAYOUT: gl.constexpr):
    """Start a product of two matrices in shared memory."""
    ROWS: gl.constexpr = a.shape[0]
    COLUMNS: gl.constexpr = b.shape[1]
    return warpgroup_mma(a, b, gl.zeros([ROWS, COLUMNS], gl.float32, LAYOUT), use_acc=False, is_async=True)


@gluon.jit
def add(J: gl.constexpr, dq, shares, dq_desc, i, b, head, row):
    """Have this consumer's half of a share of dQ added to memory: at once, or by the adder, in turn."""
    if shares.IN_TURN:
        shares.leave(i, J, dq)
    else:
        tma.store_wait(0)  # the copy engine has read what was there before
        wait_for_warpgroup()
        shares.dq.index(J).reshape([64, 64]).store(dq)
        fence_async_shared()
        wait_for_warpgroup()
        shares.start_to_add(J, dq_desc, b, head, row)
