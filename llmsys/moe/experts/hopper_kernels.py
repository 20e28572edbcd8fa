"""The two grouped products as Hopper wants them, in Gluon: warps with roles, as in `llmsys.attention.hopper.kernels`.

One warp, the *producer*, does nothing but start copies into a ring of slots. Each of CONSUMERS warpgroups has 128 rows
of the result, takes the slots out of the ring, and has products running while it waits for the next. A program is on an
SM for the whole launch (the grid is *persistent*) and does every so-manyeth tile: while consumers write one tile, the
producer loads the next one's slots.

Ragged ends cost no masks. The copy engine (TMA) neither reads nor writes beyond the bounds of a tensor, and `ragged`
makes an expert's end such a bound, wherever it lies. Where an expert has no rows for a consumer, that consumer starts
no products: the tile is as expensive as its rows, rounded up to 128.
"""

from llmsys.attention.hopper.gluon import (
    aggregate,
    fence_async_shared,
    gl,
    gluon,
    mbarrier,
    tma,
    wait_for_warpgroup,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from llmsys.attention.hopper.ring import new_barriers

BILLION = gl.constexpr(1 << 30)
"""See `ragged`."""


@aggregate
class Slots:
    """A ring of SLOTS slots, with room for a tile of each consumer and one that all of them use."""

    own: gl.shared_memory_descriptor  # (SLOTS · CONSUMERS, …)
    common: gl.shared_memory_descriptor  # (SLOTS, …)
    full: gl.shared_memory_descriptor  # (SLOTS, 1) mbarriers
    empty: gl.shared_memory_descriptor
    SLOTS: gl.constexpr
    CONSUMERS: gl.constexpr
    BYTES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, own, common, full, empty, SLOTS, CONSUMERS, BYTES):
        self.own = own
        self.common = common
        self.full = full
        self.empty = empty
        self.SLOTS = gl.constexpr(SLOTS)
        self.CONSUMERS = gl.constexpr(CONSUMERS)
        self.BYTES = gl.constexpr(BYTES)

    @gluon.jit
    def begin(self, i):
        """Producer: wait until slot i mod SLOTS is empty, and have its barrier expect all its bytes."""
        slot = i % self.SLOTS
        mbarrier.wait(self.empty.index(slot), (i // self.SLOTS & 1) ^ 1)
        mbarrier.expect(self.full.index(slot), self.BYTES)
        return slot

    @gluon.jit
    def take(self, i):
        """Consumer: wait until the slot is full."""
        slot = i % self.SLOTS
        mbarrier.wait(self.full.index(slot), i // self.SLOTS & 1)
        return slot

    @gluon.jit
    def give_back(self, i):
        mbarrier.arrive(self.empty.index(i % self.SLOTS), count=1)


@gluon.jit
def new_slots(own_desc, common_desc, SLOTS: gl.constexpr, CONSUMERS: gl.constexpr):
    own = gl.allocate_shared_memory(own_desc.dtype, [SLOTS * CONSUMERS] + own_desc.block_type.shape, own_desc.layout)
    common = gl.allocate_shared_memory(common_desc.dtype, [SLOTS] + common_desc.block_type.shape, common_desc.layout)
    BYTES: gl.constexpr = CONSUMERS * own_desc.block_type.nbytes + common_desc.block_type.nbytes
    return Slots(own, common, new_barriers(SLOTS, 1), new_barriers(SLOTS, CONSUMERS), SLOTS, CONSUMERS, BYTES)


@aggregate
class Rows:
    """Tiles of rows times columns, and the program's share of them: tile number t, of `count()`, has rows of one expert.

    Programs that run at the same time should read the same: GROUP tiles of rows after another have the same columns.
    """

    starts_ptr: gl.tensor
    tile_expert_ptr: gl.tensor
    tile_row_ptr: gl.tensor
    tiles_ptr: gl.tensor
    columns: gl.tensor
    GROUP: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, starts_ptr, tile_expert_ptr, tile_row_ptr, tiles_ptr, columns, GROUP):
        self.starts_ptr = starts_ptr
        self.tile_expert_ptr = tile_expert_ptr
        self.tile_row_ptr = tile_row_ptr
        self.tiles_ptr = tiles_ptr
        self.columns = columns
        self.GROUP = gl.constexpr(GROUP)

    @gluon.jit
    def tiles(self):
        return gl.load(self.tiles_ptr)

    @gluon.jit
    def place(self, t, tiles):
        """Of tile t: the expert, its first row, how many rows from there on are the expert's, and the column's tile."""
        first = t // (self.GROUP * self.columns) * self.GROUP
        together = gl.minimum(tiles - first, self.GROUP)
        within = t % (self.GROUP * self.columns)
        tile = first + within % together
        e = gl.load(self.tile_expert_ptr + tile)
        row = gl.load(self.tile_row_ptr + tile)
        return e, row, gl.load(self.starts_ptr + e + 1) - row, within // together


@gluon.jit(do_not_specialize=["columns", "k_tiles"])
def grouped_matmul_hopper_kernel(
    x_desc, weight_desc, out_desc, starts_ptr, tile_expert_ptr, tile_row_ptr, tiles_ptr, columns, k_tiles,
    TRANSPOSED: gl.constexpr, SLOTS: gl.constexpr, GROUP: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """out[r] = x[r] · weight[e]ᵀ, or · weight[e] where TRANSPOSED is not.

    Grid: (programs,), any number. x (R, IN) in tiles of (128, K); weight in tiles (1, N, K) of (E, OUT, IN), or
    (1, K, N) of (E, IN, OUT); out (R, OUT), `ragged`, in tiles of (128, N). Groups of tiles of 256 rows, of which there
    are tiles_ptr[0]. Four warps are asked for: the first consumer.
    """
    work = Rows(starts_ptr, tile_expert_ptr, tile_row_ptr, tiles_ptr, columns, GROUP)
    slots = new_slots(x_desc, weight_desc, SLOTS, 2)
    staging = gl.allocate_shared_memory(out_desc.dtype, [2] + out_desc.block_type.shape, out_desc.layout)
    fence_async_shared()
    gl.warp_specialize(
        [
            (multiply_rows, (0, work, slots, staging, out_desc, k_tiles, TRANSPOSED)),
            (multiply_rows, (1, work, slots, staging, out_desc, k_tiles, TRANSPOSED)),
            (load_rows, (work, slots, x_desc, weight_desc, k_tiles, TRANSPOSED)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, 24],
    )


@gluon.jit
def load_rows(work, slots, x_desc, weight_desc, k_tiles, TRANSPOSED: gl.constexpr):
    K: gl.constexpr = x_desc.block_type.shape[1]
    N: gl.constexpr = weight_desc.block_type.shape[1 if TRANSPOSED else 2]
    tiles = work.tiles()
    i = 0
    for t in range(gl.program_id(0), tiles * work.columns, gl.num_programs(0)):
        e, row, there, column = work.place(t, tiles)
        for k in range(k_tiles):
            slot = slots.begin(i)
            full = slots.full.index(slot)
            for j in gl.static_range(slots.CONSUMERS):
                own = slots.own.index(slot * slots.CONSUMERS + j)
                tma.async_copy_global_to_shared(x_desc, [row + x_desc.block_type.shape[0] * j, k * K], full, own)
            if TRANSPOSED:
                tma.async_copy_global_to_shared(weight_desc, [e, column * N, k * K], full, slots.common.index(slot))
            else:
                tma.async_copy_global_to_shared(weight_desc, [e, k * K, column * N], full, slots.common.index(slot))
            i += 1


@gluon.jit
def multiply_rows(J: gl.constexpr, work, slots, staging, out_desc, k_tiles, TRANSPOSED: gl.constexpr):
    ROWS: gl.constexpr = out_desc.block_type.shape[2]
    PIECE: gl.constexpr = out_desc.block_type.shape[3]
    N: gl.constexpr = slots.common.shape[2 if TRANSPOSED else 3]
    ACC: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, N, 16])
    tiles = work.tiles()
    i = 0
    for t in range(gl.program_id(0), tiles * work.columns, gl.num_programs(0)):
        e, row, there, column = work.place(t, tiles)
        there -= ROWS * J
        if there > 0:
            acc = gl.zeros([ROWS, N], gl.float32, ACC)
            for k in range(k_tiles):
                acc = product(J, slots, i + k, acc, TRANSPOSED)
                acc = warpgroup_mma_wait(1, [acc])  # the one before is done
                if k > 0:
                    slots.give_back(i + k - 1)
            acc = warpgroup_mma_wait(0, [acc])
            slots.give_back(i + k_tiles - 1)
            out = acc.to(out_desc.dtype)
            if N == PIECE:
                write(out, staging.index(J), out_desc, row + ROWS * J, there, column * N)
            else:
                left, right = out.reshape([ROWS, 2, PIECE]).permute([0, 2, 1]).split()
                write(left, staging.index(J), out_desc, row + ROWS * J, there, column * N)
                write(right, staging.index(J), out_desc, row + ROWS * J, there, column * N + PIECE)
        else:
            for k in range(k_tiles):
                slots.take(i + k)
                slots.give_back(i + k)
        i += k_tiles
    tma.store_wait(0)


@gluon.jit
def write(out, staging, out_desc, row, there, column):
    """`out`, the rows from `row` on of which `there` are the expert's, by way of shared memory."""
    tma.store_wait(0)  # the copy engine has read what was there before
    wait_for_warpgroup()
    staging.reshape(out.shape).store(out)
    fence_async_shared()
    wait_for_warpgroup()
    tma.async_copy_shared_to_global(out_desc, [BILLION, row + there, BILLION - there, column], staging)


@gluon.jit
def product(J: gl.constexpr, slots, i, acc, TRANSPOSED: gl.constexpr):
    """Start acc += x · weight of slot i."""
    slot = slots.take(i)
    weight = slots.common.index(slot)
    weight = weight.reshape([weight.shape[1], weight.shape[2]])
    if TRANSPOSED:
        weight = weight.permute((1, 0))
    return warpgroup_mma(slots.own.index(slot * slots.CONSUMERS + J), weight, acc, is_async=True)


@gluon.jit(do_not_specialize=["m_tiles", "columns", "E"])
def weight_gradient_hopper_kernel(
    dout_desc, x_desc, out_desc, starts_ptr, m_tiles, columns, E,
    SLOTS: gl.constexpr, CONSUMER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """dweight[e] = Σ_r dout[r]ᵀ · x[r] over the rows of expert e.

    Grid: (programs,), any number. dout (R, OUT), `ragged`, in tiles of (K, 128); x (R, IN), `ragged`, in tiles of
    (K, N); dweight (E, OUT, IN) in tiles of (1, 128, N). m_tiles = ⌈OUT / 256⌉, columns = ⌈IN / N⌉.
    """
    slots = new_slots(dout_desc, x_desc, SLOTS, 2)
    staging = gl.allocate_shared_memory(out_desc.dtype, [2] + out_desc.block_type.shape, out_desc.layout)
    fence_async_shared()
    gl.warp_specialize(
        [
            (multiply_columns, (0, slots, staging, out_desc, starts_ptr, m_tiles, columns, E)),
            (multiply_columns, (1, slots, staging, out_desc, starts_ptr, m_tiles, columns, E)),
            (load_columns, (slots, dout_desc, x_desc, starts_ptr, m_tiles, columns, E)),
        ],
        [4, 1],
        [CONSUMER_REGISTERS, 24],
    )


@gluon.jit
def load_columns(slots, dout_desc, x_desc, starts_ptr, m_tiles, columns, E):
    K: gl.constexpr = x_desc.block_type.shape[2]
    N: gl.constexpr = x_desc.block_type.shape[3]
    i = 0
    for t in range(gl.program_id(0), E * m_tiles * columns, gl.num_programs(0)):
        e = t // (m_tiles * columns)
        m, n = t // columns % m_tiles, t % columns
        start = gl.load(starts_ptr + e)
        stop = gl.load(starts_ptr + e + 1)
        for row in range(start, stop, K):
            slot = slots.begin(i)
            full = slots.full.index(slot)
            end = BILLION - (stop - row)
            for j in gl.static_range(slots.CONSUMERS):
                own = slots.own.index(slot * slots.CONSUMERS + j)
                at = [BILLION, stop, end, (m * slots.CONSUMERS + j) * dout_desc.block_type.shape[3]]
                tma.async_copy_global_to_shared(dout_desc, at, full, own)
            tma.async_copy_global_to_shared(x_desc, [BILLION, stop, end, n * N], full, slots.common.index(slot))
            i += 1


@gluon.jit
def multiply_columns(J: gl.constexpr, slots, staging, out_desc, starts_ptr, m_tiles, columns, E):
    ROWS: gl.constexpr = out_desc.block_type.shape[1]
    N: gl.constexpr = out_desc.block_type.shape[2]
    ACC: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, N, 16])
    K: gl.constexpr = slots.common.shape[3]
    i = 0
    for t in range(gl.program_id(0), E * m_tiles * columns, gl.num_programs(0)):
        e = t // (m_tiles * columns)
        m, n = t // columns % m_tiles, t % columns
        start = gl.load(starts_ptr + e)
        stop = gl.load(starts_ptr + e + 1)
        acc = gl.zeros([ROWS, N], gl.float32, ACC)
        first = i
        for row in range(start, stop, K):
            slot = slots.take(i)
            own, common = slots.own.index(slot * slots.CONSUMERS + J), slots.common.index(slot)
            dout = own.reshape([own.shape[2], own.shape[3]]).permute((1, 0))
            acc = warpgroup_mma(dout, common.reshape([common.shape[2], common.shape[3]]), acc, is_async=True)
            acc = warpgroup_mma_wait(1, [acc])
            if i > first:
                slots.give_back(i - 1)
            i += 1
        acc = warpgroup_mma_wait(0, [acc])
        if i > first:
            slots.give_back(i - 1)
        out = acc.to(out_desc.dtype)
        tma.store_wait(0)
        wait_for_warpgroup()
        staging.index(J).reshape([ROWS, N]).store(out)
        fence_async_shared()
        wait_for_warpgroup()
        tma.async_copy_shared_to_global(out_desc, [e, (m * slots.CONSUMERS + J) * ROWS, n * N], staging.index(J))
    tma.store_wait(0)
