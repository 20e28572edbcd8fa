"""The hopper kernel in eight bits: Q, K, V and P are e4m3, and everything that is summed is fp32.

Producer, rings and schedule are those of `kernels`. The consumer is another one, because the balance is another:
eight bits halve the time of the products, and an exponential takes as long as ever. A tile of 128 × 128 scores with
heads of 128 costs an SM 1,024 cycles of products and 1,024 of exponentials. So the consumer's order is turned around
(`step`): each of its two products runs while it computes something that the product does not need,

    start S_{i+1} = Q K_{i+1}ᵀ
    p_i = exp2(…), row sums                   while the scores of the next tile are made
    start P_i V_i
    wait for S_{i+1};  its maxima             while P_i V_i is made
    wait for P_i V_i;  O = O·shrink + P_i V_i

The assembler likes to move a wait up, to before work that could have gone on meanwhile. It cannot here: P_i V_i does
not start before p_i is there, and between the maxima and the last wait there is a barrier to wait for, that of the next
values, where the assembler's blocks of instructions end. The consumers take no turns.

What else is different:

*Scales.* A tile of queries and a tile of keys are blocks with one scale each (`llmsys.precision.fp8`). The product of
the two is one factor of all scores of the tile, and goes into the scale that the softmax multiplies with anyway. O is
kept in units of the current tile of values' scale; when the unit changes, its ratio goes into the factor `shrink`.

*P.* Its numbers are at most 1. Times 2⁸, the largest is near the largest of e4m3, and 2⁻¹⁸ the least that does not
become zero, where it would be 2⁻¹⁰. l is the sum of the same numbers, so the 2⁸ cancels in O / l.

*Sums.* In an 8-bit product, the tensor cores align what they add to the largest of it and cut off what is more than
about 13 bits below. A long sum loses a little at each addition, always towards zero: with values around 1, adding all
of P V in the tensor cores made O 1% too small at 1k keys, 5% at 4k, 10% at 8k. So a product sums 128 keys, and O is
summed by the consumer itself, in the instructions that would have multiplied O with `shrink`. (DeepSeek-V3 does so in
its matrix products: https://arxiv.org/abs/2412.19437, section 3.3.2.)

*P's order.* The accumulators of S give a thread the columns 2c, 2c + 1, 2c + 8 and 2c + 9 of every 16, c being its
place among four threads. As left operand of an 8-bit product, the same registers are four adjacent columns. Instead of
moving P between threads, V's rows are stored in the order in which P's columns are read; a sum over keys does not mind.
(https://arxiv.org/abs/2407.08608, section 3.3)

*P's bytes.* `pack` makes four numbers into the four bytes of a register in two instructions, and P does not live from
one step to the next. Converted one by one, or kept across the loop's edge, each byte travels in a register of its own:
200 more instructions in a step of 660, half of them while the tensor cores wait for P.

*V's transpose.* An 8-bit product reads its right operand with the numbers of a sum side by side, so that each tile of
values is stored transposed, (D, keys). The tiles lie one below the other: tile n begins at row n · D, which is n · 128
as for keys, and `produce` knows no difference.
"""

from llmsys.attention.hopper.consumer import LN_2, start_scores, write
from llmsys.attention.hopper.gluon import (
    aggregate,
    fence_async_shared,
    gl,
    gluon,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from llmsys.attention.hopper.kernels import Work, produce
from llmsys.attention.hopper.ring import new_ring

BLOCK = gl.constexpr(128)
"""Rows of a block that shares a scale, keys of a tile, and D: `produce` counts on it (see above)."""

UP = gl.constexpr(8.0)
"""P is computed times 2⁸ = 256. e4m3's largest number is 448."""


@gluon.jit(do_not_specialize=["Hq", "G", "Tq", "Tk", "scale_log2"])
def hopper_fp8_kernel(
    q_desc, k_desc, v_desc, o_desc, q_scales, k_scales, v_scales, lse_ptr, schedule_ptr, Hq, G, Tq, Tk, scale_log2,
    CAUSAL: gl.constexpr, SLOTS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """o and lse of all tiles that this program's column of the schedule names, by two consumers.

    As `hopper_forward_kernel`, but q and k are codes, (B, Hq, Tq, 128) and (B, Hkv, Tk, 128); v_desc describes
    (B, Hkv, blocks · 128, 128), transposed tiles of values, their keys in P's order; q_scales (B, Hq, blocks of
    queries), k_scales and v_scales (B, Hkv, blocks of keys) are fp32.
    """
    work = Work(schedule_ptr, Hq, G, Tq, Tk, CAUSAL, 2, BLOCK)
    queries = new_ring(q_desc, 2, 1)
    keys = new_ring(k_desc, SLOTS, 2)
    values = new_ring(v_desc, SLOTS, 2)
    outputs = gl.allocate_shared_memory(o_desc.dtype, [2] + o_desc.block_type.shape, o_desc.layout)
    scales = Scales(q_scales, k_scales, v_scales, scale_log2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (0, work, queries, keys, values, scales, outputs, o_desc, lse_ptr)),
            (consume, (1, work, queries, keys, values, scales, outputs, o_desc, lse_ptr)),
            (produce, (work, queries, keys, values, q_desc, k_desc, v_desc)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )


@aggregate
class Scales:
    """Where the scales are, and the one that all scores have in common."""

    q_scales: gl.tensor
    k_scales: gl.tensor
    v_scales: gl.tensor
    scale_log2: gl.tensor

    @gluon.constexpr_function
    def __init__(self, q_scales, k_scales, v_scales, scale_log2):
        self.q_scales = q_scales
        self.k_scales = k_scales
        self.v_scales = v_scales
        self.scale_log2 = scale_log2

    @gluon.jit
    def of_queries(self, work, b, h, row):
        """What the scores of this row's block are to be multiplied with, but for the keys' scale."""
        blocks = (work.Tq + BLOCK - 1) // BLOCK
        block = gl.minimum(row // BLOCK, blocks - 1)  # the second consumer's rows may all be beyond the end
        return gl.load(self.q_scales + (b * work.Hq + h) * blocks + block) * self.scale_log2

    @gluon.jit
    def of_keys(self, work, b, h, n):
        """Scales of the n-th tile of keys and of values that query head h sees."""
        blocks = (work.Tk + BLOCK - 1) // BLOCK
        at = (b * (work.Hq // work.G) + h // work.G) * blocks + n  # in 32 bits: a block has 16 KiB of codes
        return gl.load(self.k_scales + at), gl.load(self.v_scales + at)


@gluon.jit
def consume(J: gl.constexpr, work, queries, keys, values, scales, outputs, o_desc, lse_ptr):
    """Consumer J: rows 64·J to 64·J + 63 of each tile of queries."""
    S: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 32])
    P: gl.constexpr = gl.DotOperandLayout(0, S, 4)  # the accumulators of O, (64, D), lie as those of S, (64, 128)
    rows = gl.arange(0, 64, gl.SliceLayout(1, S))

    i = 0  # tiles of keys so far, over all tiles of queries: their number in the rings
    tile = work.first_tile()
    for r in range(work.count()):
        b, h, row = work.place(tile)
        tile = work.next_tile(r)
        key_tiles = work.key_tiles(row + 127)  # of the whole tile of queries: what the ring brings
        row += 64 * J
        mine = work.key_tiles(row + 63)
        clear = gl.minimum(work.seen(row) // BLOCK, mine - 1)  # tiles that all of my rows see all of
        seen = work.seen(row + rows)
        for _ in range(key_tiles - mine):  # later rows see more keys
            keys.take(i)
            keys.give_back(i)
            values.take(i)
            values.give_back(i)
            i += 1

        # The first tile's scores and maxima.
        n = mine - 1
        q_scale = scales.of_queries(work, b, h, row)
        k_scale, unit = scales.of_keys(work, b, h, n)
        scale = k_scale * q_scale
        change = 1.0
        q = queries.take(r * 2 + J)
        s = warpgroup_mma_wait(0, [start_scores(q, keys.take(i), S)])
        keys.give_back(i)
        m = gl.full([64], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        s, m, shrink = maxima(s, m, seen, n * BLOCK, scale, True)
        l = sums(gl.zeros([64, BLOCK], gl.float32, S))
        o = gl.zeros([64, BLOCK], gl.float32, S)

        # The tiles before it: those that the diagonal may cut, then those without a mask.
        if work.CAUSAL:
            for _ in range(mine - 1 - clear):
                n -= 1
                s, m, shrink, l, o, scale, unit, change = step(
                    q, keys, values, scales, work, b, h, i, n, s, m, shrink, l, o, q_scale, scale, unit, change,
                    seen, S, P, True,
                )  # fmt: skip
                i += 1
        for _ in range(clear):
            n -= 1
            s, m, shrink, l, o, scale, unit, change = step(
                q, keys, values, scales, work, b, h, i, n, s, m, shrink, l, o, q_scale, scale, unit, change,
                seen, S, P, False,
            )  # fmt: skip
            i += 1
        queries.give_back(r * 2 + J)

        # The last tile's weights and P V, the division that was left to the end, and out.
        p, l = weights(s * scale - (finite(m) - UP)[:, None], l, shrink)
        pv = start_output(pack(p, P), values.take(i), S)
        total = gl.convert_layout(gl.sum(l, 1), gl.SliceLayout(1, S))
        some = gl.where(total > 0, total, 1.0)  # a row without a key: o = 0 / 1
        lse = (m + gl.log2(some) - UP) * LN_2
        o = add(o, shrink * change, warpgroup_mma_wait(0, [pv]))
        values.give_back(i)
        i += 1
        write((o * (unit / some)[:, None]).to(o_desc.dtype), outputs.index(J), o_desc, b, h, row)
        lse_at = lse_ptr + (b * work.Hq + h).to(gl.int64) * work.Tq + row + rows
        gl.store(lse_at, lse, mask=row + rows < work.Tq)
    tma.store_wait(0)


@gluon.jit
def step(
    q, keys, values, scales, work, b, h, i, n, s, m, shrink, l, o, q_scale, scale, unit, change, seen,
    S: gl.constexpr, P: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Weights and P V of tile i, whose scores s and their maxima are there; scores and maxima of tile i + 1, the n-th
    of its keys.

    shrink is what o and l are to be multiplied with, and change what o is besides, because its unit changes.
    """
    k_scale, next_unit = scales.of_keys(work, b, h, n)  # asked for long before they are needed
    exponent = s * scale - (finite(m) - UP)[:, None]  # s is used up: its registers are free for the next scores
    if MASKED:  # one after the other: with a mask in between, registers would not do for both products at once
        p, l = weights(exponent, l, shrink)
        o = add(o, shrink * change, warpgroup_mma_wait(0, [start_output(pack(p, P), values.take(i), S)]))
        s = warpgroup_mma_wait(0, [start_scores(q, keys.take(i + 1), S)])
        keys.give_back(i + 1)
        scale = k_scale * q_scale
        s, m, shrink = maxima(s, m, seen, n * BLOCK, scale, True)
    else:
        s = start_scores(q, keys.take(i + 1), S)
        p, l = weights(exponent, l, shrink)
        pv = start_output(pack(p, P), values.take(i), S)
        s = warpgroup_mma_wait(1, [s])  # of the two, one may still run: P V
        keys.give_back(i + 1)
        scale = k_scale * q_scale
        factor = shrink * change
        s, m, shrink = maxima(s, m, seen, n * BLOCK, scale, False)
        values.take(i + 1)  # for the next step; here, so that the maxima stay before the wait for P V
        o = add(o, factor, warpgroup_mma_wait(0, [pv]))
    values.give_back(i)
    return s, m, shrink, l, o, scale, next_unit, unit / next_unit


@gluon.jit
def start_output(p, v, S: gl.constexpr):
    """Start P V, (64, D) in fp32, of one tile; v lies transposed, (D, keys)."""
    return warpgroup_mma(p, v.permute((1, 0)), gl.zeros([64, BLOCK], gl.float32, S), use_acc=False, is_async=True)


@gluon.jit
def add(o, factor, pv):
    return o * factor[:, None] + pv


@gluon.jit
def maxima(s, m, seen, key, scale, MASKED: gl.constexpr):
    """Of a tile's scores, which begins at key number `key`: s with its mask, the new m, and shrink."""
    if MASKED:
        columns = key + gl.arange(0, s.shape[1], gl.SliceLayout(0, s.type.layout))
        s = gl.where(columns[None, :] < seen[:, None], s, float("-inf"))
    m_new = gl.maximum(m, gl.max(s, 1) * scale)
    return s, m_new, gl.exp2(m - finite(m_new))


@gluon.jit
def finite(m):
    """m, or 0 for a row that has seen no key yet: −∞ − (−∞) is NaN."""
    return gl.where(m == float("-inf"), 0.0, m)


@gluon.jit
def weights(exponent, l, shrink):
    """p = 2^exponent of a tile, and l with p in it."""
    p = gl.exp2(exponent)
    return p, l * gl.convert_layout(shrink, gl.SliceLayout(1, l.type.layout))[:, None] + sums(p)


@gluon.jit
def sums(p):
    """Four sums a row, (64, 4), each over the columns that one of four threads has: they are added once, at the end."""
    return gl.sum(gl.sum(p.reshape([64, p.shape[1] // 8, 4, 2]), 3), 1)


@gluon.jit
def pack(p, P: gl.constexpr):
    """p (64, keys) as left operand: e4m3, and its columns in the order in which each thread has them."""
    keys: gl.constexpr = p.shape[1]
    p = p.reshape([64, keys // 16, 2, 4, 2]).permute([0, 1, 3, 2, 4]).reshape([64, keys])
    return to_e4m3(gl.convert_layout(p, P, assert_trivial=True))


@gluon.jit
def to_e4m3(p):
    return gl.inline_asm_elementwise(
        """{
            .reg .b16 low, high;
            cvt.rn.satfinite.e4m3x2.f32 low, $2, $1;
            cvt.rn.satfinite.e4m3x2.f32 high, $4, $3;
            mov.b32 $0, {low, high};
        }""",
        "=r,f,f,f,f", [p], dtype=gl.float8e4nv, is_pure=True, pack=4,
    )  # fmt: skip
