"""The consumer of the paged decode kernel: the queries of a group against the keys of a run.

Both products are made transposed, Sᵀ = K Qᵀ and Oᵀ = Vᵀ Pᵀ. The tensor cores want 64 rows of the left operand and take
as few as 8 columns of the right one. Queries of a group are few, so they are the columns: K and V go from shared memory
into the tensor cores as they lie, and never pass registers. Only P, of which there is little, is written to shared
memory between the products.

The sum l stays spread over the threads, each with its own rows, until an entry is over. The maximum m is needed by all
at each tile.
"""

from llmsys.attention.hopper.gluon import (
    fence_async_shared,
    gl,
    gluon,
    wait_for_warpgroup,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from llmsys.attention.paged.hopper.parts import divide, leave, merge

LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def consume(
    line, queries, pages, weights, o_ptr, lse_ptr, part_ptr, part_lse_ptr, counters_ptr, S, N, scale_log2,
    HEADS: gl.constexpr,
):  # fmt: skip
    """All entries of the program's run; then zeros for tokens that belong to no sequence."""
    D: gl.constexpr = pages.keys.shape[2]
    M: gl.constexpr = weights.shape[0]
    # How the accumulators of Sᵀ (BLOCK_N, M) and Oᵀ (D, M) lie in registers.
    T: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, M, 16])
    taken = gl.load(line.starts_ptr + S)  # tokens that belong to sequences; asked for here, where nobody has to wait
    entry = 0
    i = 0  # tiles so far, over all entries: their number in the ring
    for walk in range(2):
        at, s, along, left = line.walk(walk)
        while left > 0:
            start, tokens, length, n = line.sequence(s)
            if along >= n * tokens * line.groups:  # the next sequence; this one is over, or brings no token
                s = s + 1
                along = 0
            else:
                r = along // n
                unit = along % n
                take = gl.minimum(n - unit, left)
                token = start + r // line.groups
                head = r % line.groups * HEADS
                # The keys that the token sees: the last one sees all.
                seen = gl.minimum(gl.maximum(length - tokens + r // line.groups + 1, 0), length)
                q = queries.take(entry)
                o, lse, i = attend(line, pages, weights, q, i, unit, take, seen, length, scale_log2, HEADS, T)
                queries.give_back(entry)
                entry += 1
                if take == n:
                    store(o_ptr, lse_ptr, o, lse, token, head, line.groups * HEADS, HEADS)
                else:
                    first = at - unit
                    p = first // line.each  # the programs that have parts of it are p to last
                    last = (first + n - 1) // line.each
                    number = 2 * gl.program_id(0) + gl.where(unit == 0, 1, 0)
                    leave(part_ptr, part_lse_ptr, o, lse, number, D, M, T)
                    wait_for_warpgroup()  # every thread has stored its share
                    if gl.atomic_add(counters_ptr + p, 1, sem="acq_rel") == last - p:  # nobody comes later
                        gl.store(counters_ptr + p, 0)
                        o, lse = merge(part_ptr, part_lse_ptr, p, last, D, M, T)
                        store(o_ptr, lse_ptr, o, lse, token, head, line.groups * HEADS, HEADS)
                at = at + take
                along = along + take
                left = left - take
    nothing = gl.zeros([D, M], gl.float32, T)
    never = gl.full([M], float("-inf"), gl.float32, gl.SliceLayout(0, T))
    for token in range(taken + gl.program_id(0), N, gl.num_programs(0)):
        for h in range(line.groups):
            store(o_ptr, lse_ptr, nothing, never, token, h * HEADS, line.groups * HEADS, HEADS)


@gluon.jit
def attend(
    line, pages, weights, q, i, unit, take, seen, length, scale_log2, HEADS: gl.constexpr, T: gl.constexpr
):  # fmt: skip
    """Oᵀ (D, M), lse in base two (M,), of `take` units from `unit` on; and the number of the next tile in the ring."""
    D: gl.constexpr = pages.keys.shape[2]
    M: gl.constexpr = weights.shape[0]
    BLOCK_N: gl.constexpr = weights.shape[1]
    HEAD: gl.constexpr = gl.SliceLayout(0, T)  # a number for each query
    rows = gl.arange(0, BLOCK_N, gl.SliceLayout(1, T))
    mine = gl.arange(0, M, HEAD) // (HEADS // line.TOGETHER)  # the key head of each query, among those of the group
    m = gl.full([M], float("-inf"), gl.float32, HEAD)
    l = gl.zeros([BLOCK_N, M], gl.float32, T)
    o = gl.zeros([D, M], gl.float32, T)
    none = gl.zeros([BLOCK_N, M], gl.float32, T)
    begin = unit * line.UNIT
    end = gl.minimum((unit + take) * line.UNIT, seen * line.TOGETHER)
    written = length * line.TOGETHER
    for row in range(begin, begin + take * line.UNIT, BLOCK_N):
        k, v = pages.take(i)
        s = warpgroup_mma(k, q.permute((1, 0)), none, use_acc=False, is_async=True)
        s = warpgroup_mma_wait(0, [s]) * scale_log2
        if line.TOGETHER > 1:
            s = gl.where(((row % line.TOGETHER + rows) % line.TOGETHER)[:, None] == mine[None, :], s, float("-inf"))
        if row + BLOCK_N > end:
            s = gl.where((row + rows < end)[:, None], s, float("-inf"))
        if written % line.UNIT > 0 and row <= written and written < row + BLOCK_N:
            pages.clear(i, written - row, line.UNIT)
        m_new = gl.maximum(m, gl.max(s, 0))
        shift = gl.where(m_new == float("-inf"), 0.0, m_new)  # nothing may have been seen yet, and −∞ − (−∞) is NaN
        p = gl.exp2(s - shift[None, :])
        shrink = gl.exp2(m - shift)[None, :]
        m = m_new
        l = l * shrink + p
        o = o * shrink
        weights.permute((1, 0)).store(p.to(q.dtype))
        fence_async_shared()
        wait_for_warpgroup()
        o = warpgroup_mma(v.permute((1, 0)), weights.permute((1, 0)), o, is_async=True)
        o = warpgroup_mma_wait(0, [o])
        pages.give_back(i)
        i += 1
    o, lse = divide(m, gl.sum(l, 0), o)
    return o, lse, i


@gluon.jit
def store(o_ptr, lse_ptr, o, lse, token, first, Hq, HEADS: gl.constexpr):
    """Oᵀ (D, M) and lse, base two, to heads `first` to first + HEADS − 1 of a token."""
    D: gl.constexpr = o.shape[0]
    head = gl.arange(0, o.shape[1], lse.type.layout)
    dim = gl.arange(0, D, gl.SliceLayout(1, o.type.layout))
    at = gl.to_tensor(token).to(gl.int64) * Hq + first + head
    gl.store(o_ptr + (at * D)[None, :] + dim[:, None], o.to(o_ptr.dtype.element_ty), mask=(head < HEADS)[None, :])
    gl.store(lse_ptr + at, lse * LN_2, mask=head < HEADS)
