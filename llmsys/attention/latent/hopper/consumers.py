"""The three warpgroups that compute: one has the scores, two have O.

The accumulator of 64 rows is 64 × 512 numbers in fp32, 128 registers a thread of *two* warpgroups. They have no room
for scores, too, and both need the same ones. So a third warpgroup computes them: S = Q Kᵀ, m, l and P. Along the ring
(`ring`) it is a tile ahead: while the two multiply P by the values of tile i, it has begun with the keys of tile i + 1.
All products read both operands from shared memory.

Rows see keys up to the place of their token, which a row's `seen` counts. Only the last tiles of an entry have keys
that a row does not see.
"""

from llmsys.attention.hopper.gluon import gl, gluon, warpgroup_mma, warpgroup_mma_wait
from llmsys.attention.latent.hopper.line import ROWS, TILE
from llmsys.attention.latent.hopper.ring import HALF

LN_2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def score(line, queries, ring, scale_log2):
    """Scores and weights of all entries of the run."""
    T: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, TILE, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, T)
    row = gl.arange(0, ROWS, ROW)
    keys = gl.arange(0, TILE, gl.SliceLayout(0, T))
    nothing = gl.zeros([ROWS, TILE], gl.float32, T)
    number = 0
    i = 0  # tiles so far, over all entries: their number in the ring
    for walk in range(2):
        at, s, along, left = line.walk(walk)
        while left > 0:
            entry = line.entry(s, along, left)
            if entry.rows > 0:
                # The keys that a row sees: the sequence's last token sees all.
                seen = entry.length - entry.tokens + (entry.query + row) // line.HEADS + 1
                seen = gl.minimum(gl.maximum(seen, 0), entry.length)
                all_see = entry.length - entry.tokens + entry.query // line.HEADS + 1
                m = gl.full([ROWS], float("-inf"), gl.float32, ROW)
                l = gl.zeros([ROWS], gl.float32, ROW)
                q_rope, q_low, q_high = queries.take(number)
                last = entry.tile + entry.take - 1
                for tile in range(entry.tile, last + 1):
                    rope, low = ring.keys_low(i)
                    p = warpgroup_mma(q_rope, rope.permute((1, 0)), nothing, use_acc=False, is_async=True)
                    p = warpgroup_mma(q_low, low.permute((1, 0)), p, is_async=True)
                    high = ring.keys_high(i)
                    p = warpgroup_mma(q_high, high.permute((1, 0)), p, is_async=True)
                    p = warpgroup_mma_wait(0, [p])
                    if tile == last:
                        queries.give_back()
                    if (tile + 1) * TILE > all_see:
                        p = gl.where((tile * TILE + keys)[None, :] < seen[:, None], p, float("-inf"))
                    if (tile + 1) * TILE > entry.length:
                        ring.clear(i, entry.length - tile * TILE)
                    m_new = gl.maximum(m, gl.max(p, 1) * scale_log2)
                    shift = gl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet, and −∞ − (−∞) is NaN
                    shrink = gl.exp2(m - shift)
                    m = m_new
                    ring.note_shrink(i, shrink)
                    p = gl.exp2(p * scale_log2 - shift[:, None])
                    l = l * shrink + gl.sum(p, 1)
                    if tile == last:
                        ring.note_state(i, m, l)
                    ring.put_weights(i, p.to(q_rope.dtype))
                    i += 1
                number += 1
            s = entry.s
            along = entry.along + entry.take
            left = left - entry.take


@gluon.jit
def accumulate(half: gl.constexpr, line, ring, o_ptr, lse_ptr, part_ptr, part_lse_ptr):
    """256 columns of O, of all entries of the run. An entry that other teams share leaves its part."""
    O: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HALF // 2, 16])
    ROW: gl.constexpr = gl.SliceLayout(1, O)
    row = gl.arange(0, ROWS, ROW)
    i = 0
    for walk in range(2):
        at, s, along, left = line.walk(walk)
        while left > 0:
            entry = line.entry(s, along, left)
            if entry.rows > 0:
                o = gl.zeros([ROWS, HALF], gl.float32, O)
                m = gl.full([ROWS], float("-inf"), gl.float32, ROW)
                l = gl.zeros([ROWS], gl.float32, ROW)
                last = entry.tile + entry.take - 1
                for tile in range(entry.tile, last + 1):
                    o = o * ring.shrink(i, ROW)[:, None]
                    p, v = ring.weights_and_values(i, half)
                    o = warpgroup_mma(p, v, o, is_async=True)
                    o = warpgroup_mma_wait(0, [o])
                    if tile == last:
                        m, l = ring.state(i, ROW)
                    ring.give_back(i)
                    i += 1
                some = gl.where(l > 0, l, 1.0)
                o = o * (1 / some)[:, None]
                lse = m + gl.log2(some)
                there = row < entry.rows
                if entry.take == entry.n:
                    store(half, o_ptr, lse_ptr, o, lse * LN_2, entry.row, there)
                else:
                    part = 2 * line.program + gl.where(entry.tile == 0, 1, 0)
                    store(half, part_ptr, part_lse_ptr, o, lse, part * ROWS, there)
            s = entry.s
            along = entry.along + entry.take
            left = left - entry.take


@gluon.jit
def store(half: gl.constexpr, o_ptr, lse_ptr, o, lse, first, there):
    """Half of the columns of o (…, 512), and with the first one lse, to rows from `first` on, where `there` (ROWS,)."""
    at = gl.to_tensor(first).to(gl.int64) + gl.arange(0, ROWS, lse.type.layout)
    column = half * HALF + gl.arange(0, HALF, gl.SliceLayout(0, o.type.layout))
    gl.store(o_ptr + (at * (2 * HALF))[:, None] + column[None, :], o.to(o_ptr.dtype.element_ty), mask=there[:, None])
    if half == 0:
        gl.store(lse_ptr + at, lse, mask=there)
