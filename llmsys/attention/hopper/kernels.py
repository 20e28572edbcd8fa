"""The kernel of stage hopper: FlashAttention's forward pass as Hopper wants it, in Gluon.

An SM of an H100 has three engines that work by themselves once they have been told to: the copy engine (TMA), the
tensor cores (wgmma, which read shared memory), and the units that compute exponentials. A kernel in which every warp
copies, then multiplies, then computes exponentials, leaves each of them idle most of the time. Here, warps have roles:

- one warp is the *producer*: it does nothing but start copies into the rings (`produce`);
- each of 2 or 3 warpgroups (4 warps, what wgmma wants) is a *consumer*: it has 64 rows of queries, and takes tiles of
  keys and values out of the rings (`consumer.consume`). Within a consumer, the softmax of one tile of keys
  overlaps with the products of the next; between consumers, turns see to it that the products of one overlap with the
  softmax of the others.

A warp's role also decides how many of the SM's registers it gets: the producer hands its share to the consumers, which
hold scores and outputs (setmaxnreg; the numbers are in `schedule.HopperTiles`).

The grid is *persistent*: one program an SM, which works down its column of a schedule that was made on the host
(`schedule`). So the producer loads the next tile's queries and keys while the consumers finish this one.

Ends need no care: the copy engine knows the tensors' shapes (B, H, T, D), reads zeros beyond the end of any dimension
and does not write there. Only scores of keys that do not exist must be made −∞, in the last tile of keys.

(https://arxiv.org/abs/2407.08608)
"""

from llmsys.attention.hopper.consumer import consume
from llmsys.attention.hopper.gluon import aggregate, fence_async_shared, gl, gluon
from llmsys.attention.hopper.ring import new_ring, new_turns


@gluon.jit(do_not_specialize=["Hq", "G", "Tq", "Tk", "scale_log2"])
def hopper_forward_kernel(
    q_desc, k_desc, v_desc, o_desc, lse_ptr, schedule_ptr, Hq, G, Tq, Tk, scale_log2,
    CAUSAL: gl.constexpr, CONSUMERS: gl.constexpr, SLOTS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """o and lse of all tiles that this program's column of the schedule names.

    Descriptors of q and o (B, Hq, Tq, D) with tiles of 64 rows; of k and v (B, Hkv, Tk, D) with tiles of keys; lse
    (B, Hq, Tq) fp32; schedule (rounds + 2, programs) int64, see `schedule`. Hq = G · Hkv; scale_log2 is
    scale · log2(e). Four warps are asked for: they are the first consumer.
    """
    work = Work(schedule_ptr, Hq, G, Tq, Tk, CAUSAL, CONSUMERS, k_desc.block_type.shape[2])
    queries = new_ring(q_desc, CONSUMERS, 1)  # a slot a consumer
    keys = new_ring(k_desc, SLOTS, CONSUMERS)
    values = new_ring(v_desc, SLOTS, CONSUMERS)
    outputs = gl.allocate_shared_memory(o_desc.dtype, [CONSUMERS] + o_desc.block_type.shape, o_desc.layout)
    turns = new_turns(CONSUMERS)
    fence_async_shared()  # the copy engine, too, sees that the barriers have begun
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (consume, (0, work, queries, keys, values, turns, outputs, o_desc, lse_ptr, scale_log2)),
                (consume, (1, work, queries, keys, values, turns, outputs, o_desc, lse_ptr, scale_log2)),
                (produce, (work, queries, keys, values, q_desc, k_desc, v_desc)),
            ],
            [4, 1],
            [CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (consume, (0, work, queries, keys, values, turns, outputs, o_desc, lse_ptr, scale_log2)),
                (consume, (1, work, queries, keys, values, turns, outputs, o_desc, lse_ptr, scale_log2)),
                (consume, (2, work, queries, keys, values, turns, outputs, o_desc, lse_ptr, scale_log2)),
                (produce, (work, queries, keys, values, q_desc, k_desc, v_desc)),
            ],
            [4, 4, 1],
            [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
        )


@gluon.jit
def produce(work, queries, keys, values, q_desc, k_desc, v_desc):
    """The producer: start all copies, in the order in which the consumers want the tiles.

    Keys come from the last that is seen to the first: so what is masked comes first, and is over.
    """
    i = 0  # tiles of keys so far, over all tiles of queries
    tile = work.first_tile()
    for r in range(work.count()):
        b, h, row = work.place(tile)
        tile = work.next_tile(r)
        key_tiles = work.key_tiles(row + 64 * work.CONSUMERS - 1)
        for n in range(key_tiles):
            key = (key_tiles - 1 - n) * work.BLOCK_N
            keys.fill(i, k_desc, b, h // work.G, key)
            if n == 0:  # after the first keys: these wait for nobody, but the queries' slots are in use until late
                for j in gl.static_range(work.CONSUMERS):
                    queries.fill(r * work.CONSUMERS + j, q_desc, b, h, row + 64 * j)
            values.fill(i, v_desc, b, h // work.G, key)
            i += 1


@aggregate
class Work:
    """Which tiles of queries are this program's, and which keys they see."""

    schedule_ptr: gl.tensor
    Hq: gl.tensor
    G: gl.tensor
    Tq: gl.tensor
    Tk: gl.tensor
    CAUSAL: gl.constexpr
    CONSUMERS: gl.constexpr
    BLOCK_N: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, schedule_ptr, Hq, G, Tq, Tk, CAUSAL, CONSUMERS, BLOCK_N):
        self.schedule_ptr = schedule_ptr
        self.Hq = Hq
        self.G = G
        self.Tq = Tq
        self.Tk = Tk
        self.CAUSAL = gl.constexpr(CAUSAL)
        self.CONSUMERS = gl.constexpr(CONSUMERS)
        self.BLOCK_N = gl.constexpr(BLOCK_N)

    @gluon.jit
    def count(self):
        """How many tiles this program has: the first row of the schedule."""
        return gl.load(self.schedule_ptr + gl.program_id(0)).to(gl.int32)

    @gluon.jit
    def first_tile(self):
        return gl.load(self.schedule_ptr + gl.num_programs(0) + gl.program_id(0))

    @gluon.jit
    def next_tile(self, r):
        """The tile after number r, asked for a tile ahead: nobody waits for this load. (After the last: 0.)"""
        return gl.load(self.schedule_ptr + (r + 2) * gl.num_programs(0) + gl.program_id(0))

    @gluon.jit
    def place(self, tile):
        """Sequence, query head and first row of a tile of queries."""
        b, h, n = tile >> 40, tile >> 24 & 0xFFFF, tile & 0xFFFFFF
        return b.to(gl.int32), h.to(gl.int32), n.to(gl.int32) * (64 * self.CONSUMERS)

    @gluon.jit
    def seen(self, row):
        """How many keys that row of queries sees: keys 0 to seen − 1. (row: a number, or a tensor of them)"""
        if self.CAUSAL:
            return gl.minimum(gl.maximum(row + 1 + self.Tk - self.Tq, 0), self.Tk)
        else:
            return gl.minimum(self.Tk, row + self.Tk)

    @gluon.jit
    def key_tiles(self, row):
        """How many tiles of keys that row needs; one at least, though it may not see any of it."""
        return gl.maximum((self.seen(row) + self.BLOCK_N - 1) // self.BLOCK_N, 1)
