"""The kernel of stage hopper's backward pass: dK, dV and dQ in one walk, in Gluon.

`llmsys.attention.flash.backward_kernels` derives the gradients, and walks twice: dK and dV are sums over queries, dQ is
a sum over keys, and each walk makes P and dP for itself. That is seven matrix products for a tile of scores, of which
only five are different. Here a program has 128 keys, walks over the queries that see them, and makes the share of dQ
that its keys contribute on the way:

    Sᵀ = K Qᵀ        dPᵀ = V dOᵀ        dV += Pᵀ dO        dK += dSᵀ Q        dQ += dS K

dK and dV stay in registers until the walk ends. dQ is summed over programs: the copy engine takes each share from
shared memory and adds it to an fp32 tensor in memory. (https://arxiv.org/abs/2407.08608, section 3.1; appendix B.1)

Roles, rings and the persistent grid are those of the forward pass (`kernels`): a warp that does nothing but start
copies (`produce`), and two consumers with 64 keys each (`backward_consumer.consume`). Here it is the queries that
stream by, so their tiles are in the ring (`Steps`), and a tile of keys stays for a whole walk. One more warp adds dQ's
shares in a fixed order, where that is asked for (`backward_turns.add_in_turn`).

Ends need as little care as in the forward pass. Queries beyond the end have lse = +∞ (`backward_rows`), so that
their weights are zero, and the copy engine does not add beyond the end. Only keys beyond the end need a mask, and what
the diagonal cuts.
"""

from llmsys.attention.hopper.backward_consumer import consume
from llmsys.attention.hopper.backward_turns import add_in_turn
from llmsys.attention.hopper.gluon import add_to_memory, aggregate, fence_async_shared, gl, gluon, mbarrier, tma
from llmsys.attention.hopper.kernels import Work
from llmsys.attention.hopper.ring import new_barriers, new_ring

KEYS = gl.constexpr(128)
"""Keys of a tile: 64 for each of the two consumers."""


@gluon.jit(do_not_specialize=["Hq", "G", "Tq", "Tk", "scale", "scale_log2"])
def hopper_backward_kernel(
    q_desc, k_desc, v_desc, do_desc, rows_desc, dq_desc, dk_desc, dv_desc,
    schedule_ptr, counters_ptr, Hq, G, Tq, Tk, scale, scale_log2,
    CAUSAL: gl.constexpr, IN_TURN: gl.constexpr, SLOTS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, OTHER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """dk and dv of all tiles of keys that this program's column of the schedule names, and their shares of dq.

    Descriptors of q and do (B, Hq, Tq, D) with tiles of BLOCK_M rows, of k and v (B, Hkv, Tk, D) with tiles of 128, of
    dk and dv with tiles of 64; of rows (B · Hq · tiles · 2 · BLOCK_M) fp32, where the lse of a tile's queries come
    before their delta; of dq (B, Hq, Tq, D) fp32, without the factor `scale`, with tiles of 64 × 64. The schedule's
    tiles are tiles of keys of key heads. Hq = G · Hkv; scale_log2 is scale · log2(e). IN_TURN: whether programs add to
    dq in a fixed order, for which there is a counter, int32 and 0, for each tile of queries (`backward_turns`).
    """
    work = KeyWork(Work(schedule_ptr, Hq, G, Tq, Tk, CAUSAL, 2, KEYS), G, Tq, Tk, CAUSAL)
    keys = new_ring(k_desc, 1, 2)
    values = new_ring(v_desc, 1, 2)
    steps = new_steps(q_desc, do_desc, rows_desc, SLOTS)
    shares = new_shares(q_desc, dq_desc, IN_TURN)
    outputs = gl.allocate_shared_memory(dk_desc.dtype, [2] + dk_desc.block_type.shape, dk_desc.layout)
    fence_async_shared()
    gl.warp_specialize(
        [
            (consume, (0, work, keys, values, steps, shares, outputs, dq_desc, dk_desc, dv_desc, scale, scale_log2)),
            (consume, (1, work, keys, values, steps, shares, outputs, dq_desc, dk_desc, dv_desc, scale, scale_log2)),
            (produce, (work, keys, values, steps, q_desc, k_desc, v_desc, do_desc, rows_desc)),
            (add_in_turn, (work, shares, dq_desc, counters_ptr)),
        ],
        [4, 1, 1],
        [CONSUMER_REGISTERS, OTHER_REGISTERS, OTHER_REGISTERS],
    )


@gluon.jit
def produce(work, keys, values, steps, q_desc, k_desc, v_desc, do_desc, rows_desc):
    """The producer: start all copies, in the order in which the consumers want the tiles."""
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[2]
    whole = (work.Tq + BLOCK_M - 1) // BLOCK_M * BLOCK_M
    i = 0  # steps so far, over all tiles of keys
    tile = work.tiles.first_tile()
    for r in range(work.tiles.count()):
        b, h, key = work.tiles.place(tile)
        tile = work.tiles.next_tile(r)
        first = work.first_row(key, BLOCK_M)
        for g in range(work.G):
            head = h * work.G + g
            rows_at = (b * work.tiles.Hq + head) * (2 * whole)
            for row in range(first, work.Tq, BLOCK_M):
                steps.fill_q(i, q_desc, rows_desc, b, head, row, rows_at)
                if (g == 0) & (row == first):  # these slots are in use until late, the first queries' are free earlier
                    keys.fill(r, k_desc, b, h, key)
                    values.fill(r, v_desc, b, h, key)
                steps.fill_do(i, do_desc, b, head, row)
                i += 1


@aggregate
class KeyWork:
    """Which tiles of keys are this program's, and which queries see them."""

    tiles: Work  # walks down the schedule
    G: gl.tensor
    Tq: gl.tensor
    Tk: gl.tensor
    CAUSAL: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, tiles, G, Tq, Tk, CAUSAL):
        self.tiles = tiles
        self.G = G
        self.Tq = Tq
        self.Tk = Tk
        self.CAUSAL = gl.constexpr(CAUSAL)

    @gluon.jit
    def first_row(self, key, BLOCK_M: gl.constexpr):
        """Where the walk of the tile of keys that begins at `key` begins: at the tile of the first query to see one."""
        if self.CAUSAL:
            return gl.maximum(key - (self.Tk - self.Tq), 0) // BLOCK_M * BLOCK_M
        else:
            return key * 0

    @gluon.jit
    def clear_row(self, key):
        """The first query that sees all keys of that tile; with keys beyond the end, one beyond the end."""
        if self.CAUSAL:
            return key + KEYS - 1 - (self.Tk - self.Tq)
        else:
            return gl.where(key + KEYS > self.Tk, self.Tq, 0)

    @gluon.jit
    def seen(self, key, row, BLOCK_M: gl.constexpr, LAYOUT: gl.constexpr):
        """Which of 64 keys are seen by which of BLOCK_M queries: (64, BLOCK_M)."""
        keys = key + gl.arange(0, 64, gl.SliceLayout(1, LAYOUT))[:, None]
        rows = row + gl.arange(0, BLOCK_M, gl.SliceLayout(0, LAYOUT))[None, :]
        if self.CAUSAL:
            return keys <= rows + (self.Tk - self.Tq)
        else:
            return keys + rows * 0 < self.Tk


@aggregate
class Steps:
    """A ring of what a step needs: a tile of Q, one of dO, and lse and delta of these queries.

    Q comes before dO, which are waited for apart, and both are given back at once.
    """

    q: gl.shared_memory_descriptor  # (SLOTS, 1, 1, BLOCK_M, D)
    do: gl.shared_memory_descriptor  # (SLOTS, 1, 1, BLOCK_M, D)
    rows: gl.shared_memory_descriptor  # (SLOTS, 2 · BLOCK_M)
    q_full: gl.shared_memory_descriptor  # (SLOTS, 1) mbarriers: Q and the rows are there
    do_full: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor
    SLOTS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, q, do, rows, q_full, do_full, empty, SLOTS):
        self.q = q
        self.do = do
        self.rows = rows
        self.q_full = q_full
        self.do_full = do_full
        self.empty = empty
        self.SLOTS = gl.constexpr(SLOTS)

    @gluon.jit
    def fill_q(self, i, q_desc, rows_desc, b, head, row, rows_at):
        slot = i % self.SLOTS
        mbarrier.wait(self.empty.index(slot), (i // self.SLOTS & 1) ^ 1)
        mbarrier.expect(self.q_full.index(slot), q_desc.block_type.nbytes + rows_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [b, head, row, 0], self.q_full.index(slot), self.q.index(slot))
        tma.async_copy_global_to_shared(rows_desc, [rows_at + 2 * row], self.q_full.index(slot), self.rows.index(slot))

    @gluon.jit
    def fill_do(self, i, do_desc, b, head, row):
        slot = i % self.SLOTS  # which `fill_q` has found empty
        mbarrier.expect(self.do_full.index(slot), do_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(do_desc, [b, head, row, 0], self.do_full.index(slot), self.do.index(slot))

    @gluon.jit
    def take_q(self, i):
        """(BLOCK_M, D), once it is there, and with it the rows."""
        mbarrier.wait(self.q_full.index(i % self.SLOTS), i // self.SLOTS & 1)
        return self.matrix(self.q.index(i % self.SLOTS))

    @gluon.jit
    def take_do(self, i):
        mbarrier.wait(self.do_full.index(i % self.SLOTS), i // self.SLOTS & 1)
        return self.matrix(self.do.index(i % self.SLOTS))

    @gluon.jit
    def row(self, i, n: gl.constexpr, layout: gl.constexpr):
        """lse in base two (n = 0) or delta (n = 1), (BLOCK_M,). After `take_q`."""
        BLOCK_M: gl.constexpr = self.q.shape[3]
        return self.rows.index(i % self.SLOTS).slice(n * BLOCK_M, BLOCK_M).load(layout)

    @gluon.jit
    def matrix(self, tile):
        return tile.reshape([tile.shape[2], tile.shape[3]])

    @gluon.jit
    def give_back(self, i):
        """Consumer: nothing of mine reads what step i needs any more."""
        mbarrier.arrive(self.empty.index(i % self.SLOTS), count=1)


@gluon.jit
def new_steps(q_desc, do_desc, rows_desc, SLOTS: gl.constexpr):
    q = gl.allocate_shared_memory(q_desc.dtype, [SLOTS] + q_desc.block_type.shape, q_desc.layout)
    do = gl.allocate_shared_memory(do_desc.dtype, [SLOTS] + do_desc.block_type.shape, do_desc.layout)
    rows = gl.allocate_shared_memory(gl.float32, [SLOTS] + rows_desc.block_type.shape, rows_desc.layout)
    return Steps(q, do, rows, new_barriers(SLOTS, 1), new_barriers(SLOTS, 1), new_barriers(SLOTS, 2), SLOTS)


@aggregate
class Shares:
    """Where the consumers make dQ's shares: dS of both, and each one's result."""

    ds: gl.shared_memory_descriptor  # (2, 128 keys, BLOCK_M): one step's, and the next one's
    full: gl.shared_memory_descriptor  # (2, 1) mbarriers: both consumers' halves are there
    dq: gl.shared_memory_descriptor  # (2, 1, 1, 64, 64) fp32: a share of each consumer, on its way out
    dq_full: gl.shared_memory_descriptor  # (2, 1), where the adder takes it from here: it is there
    dq_empty: gl.shared_memory_descriptor
    IN_TURN: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, ds, full, dq, dq_full, dq_empty, IN_TURN):
        self.ds = ds
        self.full = full
        self.dq = dq
        self.dq_full = dq_full
        self.dq_empty = dq_empty
        self.IN_TURN = gl.constexpr(IN_TURN)

    @gluon.jit
    def put(self, i, J: gl.constexpr, ds):
        """Consumer J's half of step i's dSᵀ, (64, BLOCK_M).

        Nobody needs to say that the place is empty. What was there was read in step i − 2, and this consumer has seen
        the other's half of step i − 1, which was put after the other's product of step i − 2 had ended.
        """
        self.ds.index(i % 2).slice(64 * J, 64, 0).store(ds)
        fence_async_shared()
        mbarrier.arrive(self.full.index(i % 2), count=1)

    @gluon.jit
    def take(self, i):
        """dSᵀ of step i, (128, BLOCK_M), once both halves are there."""
        mbarrier.wait(self.full.index(i % 2), i // 2 & 1)
        return self.ds.index(i % 2)

    @gluon.jit
    def start_to_add(self, J: gl.constexpr, dq_desc, b, head, row):
        """Have the copy engine add J's half of a share to memory; beyond the last row it does nothing."""
        if self.ds.shape[2] == 64:
            add_to_memory(dq_desc, [b, head, row, 64 * J], self.dq.index(J))
        else:
            add_to_memory(dq_desc, [b, head, row + 64 * J, 0], self.dq.index(J))

    @gluon.jit
    def leave(self, i, J: gl.constexpr, dq):
        """Consumer J's half of step i's share, (64, 64), for the adder."""
        mbarrier.wait(self.dq_empty.index(J), (i & 1) ^ 1)
        self.dq.index(J).reshape([64, 64]).store(dq)
        fence_async_shared()
        mbarrier.arrive(self.dq_full.index(J), count=1)

    @gluon.jit
    def wait_for_share(self, i, J: gl.constexpr):
        """Adder: wait until J's half of step i's share is there."""
        mbarrier.wait(self.dq_full.index(J), i & 1)

    @gluon.jit
    def give_share_back(self, J: gl.constexpr):
        """Adder: the copy engine has read J's half."""
        mbarrier.arrive(self.dq_empty.index(J), count=1)


@gluon.jit
def new_shares(q_desc, dq_desc, IN_TURN: gl.constexpr):
    BLOCK_M: gl.constexpr = q_desc.block_type.shape[2]
    DS: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    ds = gl.allocate_shared_memory(q_desc.dtype, [2, KEYS, BLOCK_M], DS)
    dq = gl.allocate_shared_memory(gl.float32, [2] + dq_desc.block_type.shape, dq_desc.layout)
    return Shares(ds, new_barriers(2, 2), dq, new_barriers(2, 1), new_barriers(2, 1), IN_TURN)
