"""The consumer of the hopper kernel: 64 rows of queries against all keys that they see.

What a consumer does for each tile of keys is lesson 03's recurrence: S = Q Kᵀ, then P = exp(S − m), and O = O·shrink +
P V. Done in that order, its tensor core work waits for its exponentials and the other way round. The loop below is
shifted by half a step: when it starts the scores of tile i, it also starts the P V of tile i − 1, and computes the
softmax of tile i as soon as the scores are there, while P V still runs:

    start S_i = Q K_iᵀ
    start O += P_{i−1} V_{i−1}
    wait for S_i                    the tensor cores go on with P V …
    softmax: m, l, P_i              … while this is computed
    wait for O;  O *= shrink

The two products of a step are started in the consumer's turn (`ring.Turns`); in the rest of the step the tensor
cores belong to the other consumers. That second overlap is the one that can be relied on: within a consumer, the
assembler has the last word, and that of CUDA 12.8 moves the wait for O up to before most exponentials.

Scores and outputs are the accumulators of wgmma, spread over the registers of 128 threads; P goes back into the
tensor cores out of registers. So of a tile of keys only K and V are ever in shared memory.
"""

from llmsys.attention.hopper.gluon import (
    fence_async_shared,
    gl,
    gluon,
    tma,
    wait_for_warpgroup,
    warpgroup_mma,
    warpgroup_mma_wait,
)

LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def consume(J: gl.constexpr, work, queries, keys, values, turns, outputs, o_desc, lse_ptr, scale_log2):
    """Consumer J: rows 64·J to 64·J + 63 of each tile of queries."""
    BLOCK_N: gl.constexpr = work.BLOCK_N
    D: gl.constexpr = o_desc.block_type.shape[3]
    # How the accumulators of S (64, BLOCK_N) and O (64, D) lie in registers, and P as the left operand of P V.
    S: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16])
    P: gl.constexpr = gl.DotOperandLayout(0, O, 2)
    rows = gl.arange(0, 64, gl.SliceLayout(1, S))

    i = 0  # tiles of keys so far, over all tiles of queries: their number in the rings
    turn = 0
    tile = work.first_tile()
    for r in range(work.count()):
        b, h, row = work.place(tile)
        tile = work.next_tile(r)
        key_tiles = work.key_tiles(row + 64 * work.CONSUMERS - 1)  # of the whole tile of queries: what the ring brings
        row += 64 * J
        mine = work.key_tiles(row + 63)
        clear = gl.minimum(work.seen(row) // BLOCK_N, mine - 1)  # tiles that all of my rows see all of
        seen = work.seen(row + rows)

        # Later rows see more keys. What only the consumers after me need goes by, and my turn with it.
        for _ in range(key_tiles - mine):
            turns.wait(J, turn)
            turns.pass_on(J)
            turn += 1
            keys.take(i)
            keys.give_back(i)
            values.take(i)
            values.give_back(i)
            i += 1

        # The first tile of keys: scores and softmax, with nothing to overlap them with.
        q = queries.take(r * work.CONSUMERS + J)
        s = warpgroup_mma_wait(0, [start_scores(q, keys.take(i), S)])
        keys.give_back(i)
        m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        l = gl.zeros([64], gl.float32, gl.SliceLayout(1, S))
        o = gl.zeros([64, D], gl.float32, O)
        if work.seen(row) >= mine * BLOCK_N:  # none of its keys is beyond the end, or in a row's future
            p, m, l, shrink = softmax(s, m, l, seen, 0, scale_log2, False)
        else:
            p, m, l, shrink = softmax(s, m, l, seen, (mine - 1) * BLOCK_N, scale_log2, True)
        p = gl.convert_layout(p.to(o_desc.dtype), P)

        # The tiles that the diagonal may cut, then those without a mask.
        if work.CAUSAL:
            for n in range(mine - 1 - clear):
                key = (mine - 2 - n) * BLOCK_N
                p, m, l, o = step(
                    J, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2, S, P, o_desc, True
                )
                i += 1
                turn += 1
        for _ in range(clear):
            p, m, l, o = step(J, q, keys, values, turns, i, turn, p, m, l, o, seen, 0, scale_log2, S, P, o_desc, False)
            i += 1
            turn += 1
        queries.give_back(r * work.CONSUMERS + J)

        # The last P V, the division that was left to the end, and out.
        o = warpgroup_mma(p, values.take(i), o, is_async=True)
        some = gl.where(l > 0, l, 1.0)  # a row without a key: o = 0 / 1
        lse = (m + gl.log2(some)) * LN_2
        o = warpgroup_mma_wait(0, [o])
        values.give_back(i)
        i += 1
        o = o * gl.convert_layout(1 / some, gl.SliceLayout(1, O))[:, None]
        write(o.to(o_desc.dtype), outputs.index(J), o_desc, b, h, row)
        lse_at = lse_ptr + (b * work.Hq + h).to(gl.int64) * work.Tq + row + rows
        gl.store(lse_at, lse, mask=row + rows < work.Tq)
    tma.store_wait(0)


@gluon.jit
def step(
    J: gl.constexpr, q, keys, values, turns, i, turn, p, m, l, o, seen, key, scale_log2,
    S: gl.constexpr, P: gl.constexpr, o_desc, MASKED: gl.constexpr,
):  # fmt: skip
    """P V of tile i and the scores of tile i + 1, which begins at key number `key`; its softmax meanwhile."""
    k = keys.take(i + 1)
    turns.wait(J, turn)
    s = start_scores(q, k, S)
    o = warpgroup_mma(p, values.take(i), o, is_async=True)
    turns.pass_on(J)
    s = warpgroup_mma_wait(1, [s])  # of the two, one may still run: P V
    keys.give_back(i + 1)
    p, m, l, shrink = softmax(s, m, l, seen, key, scale_log2, MASKED)
    o = warpgroup_mma_wait(0, [o])
    p = gl.convert_layout(p.to(o_desc.dtype), P)  # before the next scores want registers: half as many hold it
    values.give_back(i)
    return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]


@gluon.jit
def start_scores(q, k, S: gl.constexpr):
    """Start S = Q Kᵀ, (64, BLOCK_N) in fp32. Both lie in shared memory; transposing K is a way of reading it."""
    BLOCK_N: gl.constexpr = k.shape[0]
    return warpgroup_mma(q, k.permute((1, 0)), gl.zeros([64, BLOCK_N], gl.float32, S), use_acc=False, is_async=True)


@gluon.jit
def softmax(s, m, l, seen, key, scale_log2, MASKED: gl.constexpr):
    """The online softmax's step (lesson 02), in base two: p, the new m and l, and what O is to be multiplied with."""
    if MASKED:
        columns = key + gl.arange(0, s.shape[1], gl.SliceLayout(0, s.type.layout))
        s = gl.where(columns[None, :] < seen[:, None], s, float("-inf"))
    m_new = gl.maximum(m, gl.max(s, 1) * scale_log2)
    shift = m_new
    if MASKED:  # a row may have seen no key yet, and −∞ − (−∞) is NaN
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(s * scale_log2 - shift[:, None])
    shrink = gl.exp2(m - shift)
    return p, m_new, l * shrink + gl.sum(p, 1), shrink


@gluon.jit
def write(o, staging, o_desc, b, h, row):
    """64 rows of o, by way of shared memory: what lies beyond the last row is not written."""
    tma.store_wait(0)  # the copy engine has read what was there before
    wait_for_warpgroup()
    staging.reshape(o.shape).store(o)
    fence_async_shared()
    wait_for_warpgroup()
    tma.async_copy_shared_to_global(o_desc, [b, h, row, 0], staging)
