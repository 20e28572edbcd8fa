"""The two grouped products as Hopper wants them, in Gluon: warps with roles, as in `llmsys.attention.hopper.kernels`.

One warp, the *producer*, does nothing but start copies into a ring of slots. Each of two warpgroups, the *consumers*,
has 64 rows of a tile of the result, takes the slots out of the ring, and has a product running while it waits for the
next. The grid is *persistent*: a program stays on its SM and does one tile after another, so the producer loads the
next tile's slots while the consumers write the last one.

Ragged ends cost no masks. The copy engine (TMA) neither reads nor writes beyond the bounds of a tensor, and a *ragged*
descriptor (`llmsys.moe.experts.hopper`) makes an expert's end such a bound, wherever it lies. A consumer whose rows
are all beyond it starts no products: a tile costs as much as its rows, rounded up to 64.
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

ROWS = gl.constexpr(64)
"""Rows of the result that a consumer has."""
CONSUMERS = gl.constexpr(2)
BILLION = gl.constexpr(1 << 30)
"""The bound of a ragged descriptor's rows."""


@aggregate
class Slots:
    """A ring of SLOTS slots, each with a tile for each consumer and one that both use. See `ring.Ring` for barriers."""

    own: gl.shared_memory_descriptor  # (SLOTS · CONSUMERS, …)
    common: gl.shared_memory_descriptor  # (SLOTS, …)
    full: gl.shared_memory_descriptor  # (SLOTS, 1) mbarriers
    empty: gl.shared_memory_descriptor
    SLOTS: gl.constexpr
    BYTES: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, own, common, full, empty, SLOTS, BYTES):
        self.own = own
        self.common = common
        self.full = full
        self.empty = empty
        self.SLOTS = gl.constexpr(SLOTS)
        self.BYTES = gl.constexpr(BYTES)

    @gluon.jit
    def begin(self, i):
        """Producer: the place of filling number i, once it is empty; its barrier now expects all its bytes."""
        slot = i % self.SLOTS
        mbarrier.wait(self.empty.index(slot), (i // self.SLOTS & 1) ^ 1)
        mbarrier.expect(self.full.index(slot), self.BYTES)
        return slot

    @gluon.jit
    def take(self, i):
        """Consumer: the place of filling number i, once all of it is there."""
        slot = i % self.SLOTS
        mbarrier.wait(self.full.index(slot), i // self.SLOTS & 1)
        return slot

    @gluon.jit
    def give_back(self, i):
        """Consumer: nothing of mine reads filling number i any more."""
        mbarrier.arrive(self.empty.index(i % self.SLOTS), count=1)


@gluon.jit
def new_slots(own_desc, common_desc, SLOTS: gl.constexpr):
    own = gl.allocate_shared_memory(own_desc.dtype, [SLOTS * CONSUMERS] + own_desc.block_type.shape, own_desc.layout)
    common = gl.allocate_shared_memory(common_desc.dtype, [SLOTS] + common_desc.block_type.shape, common_desc.layout)
    BYTES: gl.constexpr = CONSUMERS * own_desc.block_type.nbytes + common_desc.block_type.nbytes
    return Slots(own, common, new_barriers(SLOTS, 1), new_barriers(SLOTS, CONSUMERS), SLOTS, BYTES)


@aggregate
class Tiles:
    """The tiles of a product: those of rows, `count` of them, times `columns`.

    Programs that run at the same time should read the same: GROUP tiles of rows after another have the same columns.
    """

    starts_ptr: gl.tensor
    tile_expert_ptr: gl.tensor
    tile_row_ptr: gl.tensor
    count: gl.tensor
    columns: gl.tensor
    GROUP: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, starts_ptr, tile_expert_ptr, tile_row_ptr, count, columns, GROUP):
        self.starts_ptr = starts_ptr
        self.tile_expert_ptr = tile_expert_ptr
        self.tile_row_ptr = tile_row_ptr
        self.count = count
        self.columns = columns
        self.GROUP = gl.constexpr(GROUP)

    @gluon.jit
    def place(self, t):
        """Of tile t: the expert, its first row, how many rows from there on are the expert's, and which columns."""
        first = t // (self.GROUP * self.columns) * self.GROUP
        together = gl.minimum(self.count - first, self.GROUP)
        within = t % (self.GROUP * self.columns)
        tile = first + within % together
        e = gl.load(self.tile_expert_ptr + tile)
        row = gl.load(self.tile_row_ptr + tile)
        return e, row, gl.load(self.starts_ptr + e + 1) - row, within // together


@gluon.jit(do_not_specialize=["columns", "k_tiles"])
def grouped_matmul_hopper_kernel(
    x_desc, weight_desc, out_desc, starts_ptr, tile_expert_ptr, tile_row_ptr, count_ptr, columns, k_tiles,
    TRANSPOSED: gl.constexpr, SLOTS: gl.constexpr, GROUP: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """out[r] = x[r] · weight[e]ᵀ, e the expert of row r; or x[r] · weight[e], where it is not TRANSPOSED.

    Grid: (programs,), any number. x (R, IN) in tiles of (64, K); weight (E, OUT, IN) in tiles of (1, N, K), or
    (E, IN, OUT) in tiles of (1, K, N); out (R, OUT), ragged, in tiles of (64, N) or half of that. starts, tile_expert
    and tile_row are those of `groups.Groups` with tiles of 128 rows, of which there are count_ptr[0]. Four warps are
    asked for: they are the first consumer.
    """
    tiles = Tiles(starts_ptr, tile_expert_ptr, tile_row_ptr, gl.load(count_ptr), columns, GROUP)
    slots = new_slots(x_desc, weight_desc, SLOTS)
    staging = gl.allocate_shared_memory(out_desc.dtype, [CONSUMERS] + out_desc.block_type.shape, out_desc.layout)
    fence_async_shared()  # the copy engine, too, sees that the barriers have begun
    gl.warp_specialize(
        [
            (multiply_rows, (0, tiles, slots, staging, out_desc, k_tiles, TRANSPOSED)),
            (multiply_rows, (1, tiles, slots, staging, out_desc, k_tiles, TRANSPOSED)),
            (load_rows, (tiles, slots, x_desc, weight_desc, k_tiles, TRANSPOSED)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@gluon.jit
def load_rows(tiles, slots, x_desc, weight_desc, k_tiles, TRANSPOSED: gl.constexpr):
    """The producer: both consumers' rows of x and the columns of the matrix, K of the inner dimension at a time."""
    K: gl.constexpr = x_desc.block_type.shape[1]
    N: gl.constexpr = weight_desc.block_type.shape[1 if TRANSPOSED else 2]
    i = 0
    for t in range(gl.program_id(0), tiles.count * tiles.columns, gl.num_programs(0)):
        e, row, there, column = tiles.place(t)
        for k in range(k_tiles):
            slot = slots.begin(i)
            full = slots.full.index(slot)
            for j in gl.static_range(CONSUMERS):
                own = slots.own.index(slot * CONSUMERS + j)
                tma.async_copy_global_to_shared(x_desc, [row + ROWS * j, k * K], full, own)
            if TRANSPOSED:
                tma.async_copy_global_to_shared(weight_desc, [e, column * N, k * K], full, slots.common.index(slot))
            else:
                tma.async_copy_global_to_shared(weight_desc, [e, k * K, column * N], full, slots.common.index(slot))
            i += 1


@gluon.jit
def multiply_rows(J: gl.constexpr, tiles, slots, staging, out_desc, k_tiles, TRANSPOSED: gl.constexpr):
    """Consumer J: rows 64·J to 64·J + 63 of each tile."""
    PIECE: gl.constexpr = out_desc.block_type.shape[3]
    N: gl.constexpr = slots.common.shape[2 if TRANSPOSED else 3]
    SUM: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, N, 16])
    i = 0
    for t in range(gl.program_id(0), tiles.count * tiles.columns, gl.num_programs(0)):
        e, row, there, column = tiles.place(t)
        row += ROWS * J
        there -= ROWS * J
        if there > 0:
            total = gl.zeros([ROWS, N], gl.float32, SUM)
            for k in range(k_tiles):
                slot = slots.take(i + k)
                weight = slots.common.index(slot)
                weight = weight.reshape([weight.shape[1], weight.shape[2]])
                if TRANSPOSED:
                    weight = weight.permute((1, 0))
                total = warpgroup_mma(slots.own.index(slot * CONSUMERS + J), weight, total, is_async=True)
                total = warpgroup_mma_wait(1, [total])  # the product before this one is done
                if k > 0:
                    slots.give_back(i + k - 1)
            total = warpgroup_mma_wait(0, [total])
            slots.give_back(i + k_tiles - 1)
            out = total.to(out_desc.dtype)
            if N == PIECE:
                write(out, staging.index(J), out_desc, [BILLION, row + there, BILLION - there, column * N])
            else:
                left, right = out.reshape([ROWS, 2, PIECE]).permute([0, 2, 1]).split()
                write(left, staging.index(J), out_desc, [BILLION, row + there, BILLION - there, column * N])
                write(right, staging.index(J), out_desc, [BILLION, row + there, BILLION - there, column * N + PIECE])
        else:
            for k in range(k_tiles):
                slots.take(i + k)
                slots.give_back(i + k)
        i += k_tiles
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["m_tiles", "columns", "E"])
def weight_gradient_hopper_kernel(
    dout_desc, x_desc, out_desc, starts_ptr, by_load_ptr, m_tiles, columns, E,
    SLOTS: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """dweight[e] = Σ_r dout[r]ᵀ · x[r] over the rows of expert e. An expert without a row gets zeros.

    Grid: (programs,), any number. dout (R, OUT), ragged, in tiles of (K, 64); x (R, IN), ragged, in tiles of (K, N);
    dweight (E, OUT, IN) in tiles of (1, 64, N) or half of that; m_tiles = ⌈OUT / 128⌉, columns = ⌈IN / N⌉. by_load
    (E,): the experts, those with most rows first.
    """
    slots = new_slots(dout_desc, x_desc, SLOTS)
    staging = gl.allocate_shared_memory(out_desc.dtype, [CONSUMERS] + out_desc.block_type.shape, out_desc.layout)
    fence_async_shared()
    gl.warp_specialize(
        [
            (multiply_columns, (0, slots, staging, out_desc, starts_ptr, by_load_ptr, m_tiles, columns, E)),
            (multiply_columns, (1, slots, staging, out_desc, starts_ptr, by_load_ptr, m_tiles, columns, E)),
            (load_columns, (slots, dout_desc, x_desc, starts_ptr, by_load_ptr, m_tiles, columns, E)),
        ],
        [4, 1],
        [REGISTERS, 24],
    )


@gluon.jit
def rounds(tiles):
    return (tiles + gl.num_programs(0) - 1) // gl.num_programs(0)


@gluon.jit
def gradient_place(r, starts_ptr, by_load_ptr, m_tiles, columns, E):
    """Of this program's tile in round r: the expert, where its rows begin and end, and the tile of its matrix.

    Tiles cost what their experts have of rows. They come with the costliest first, and every second round is dealt out
    backwards, as teams are picked, so that all programs get about as much. After the last tile: no rows, and matrix E.
    """
    programs = gl.num_programs(0)
    p = gl.program_id(0)
    t = r * programs + gl.where(r % 2 == 0, p, programs - 1 - p)
    tiles = m_tiles * columns  # of an expert's matrix
    e = gl.load(by_load_ptr + gl.minimum(t // tiles, E - 1))
    start = gl.load(starts_ptr + e)
    stop = gl.load(starts_ptr + e + 1)
    there = t < E * tiles
    return gl.where(there, e, E), start, gl.where(there, stop, start), t // columns % m_tiles, t % columns


@gluon.jit
def load_columns(slots, dout_desc, x_desc, starts_ptr, by_load_ptr, m_tiles, columns, E):
    """The producer: K rows at a time, both consumers' columns of dout and the columns of x."""
    K: gl.constexpr = x_desc.block_type.shape[2]
    N: gl.constexpr = x_desc.block_type.shape[3]
    i = 0
    for r in range(rounds(E * m_tiles * columns)):
        e, start, stop, m, n = gradient_place(r, starts_ptr, by_load_ptr, m_tiles, columns, E)
        for row in range(start, stop, K):
            slot = slots.begin(i)
            full = slots.full.index(slot)
            end = BILLION - (stop - row)
            for j in gl.static_range(CONSUMERS):
                own = slots.own.index(slot * CONSUMERS + j)
                at = [BILLION, stop, end, (m * CONSUMERS + j) * ROWS]
                tma.async_copy_global_to_shared(dout_desc, at, full, own)
            tma.async_copy_global_to_shared(x_desc, [BILLION, stop, end, n * N], full, slots.common.index(slot))
            i += 1


@gluon.jit
def multiply_columns(J: gl.constexpr, slots, staging, out_desc, starts_ptr, by_load_ptr, m_tiles, columns, E):
    """Consumer J: columns 64·J to 64·J + 63 of dout, which are rows of the matrix."""
    PIECE: gl.constexpr = out_desc.block_type.shape[2]
    K: gl.constexpr = slots.common.shape[3]
    N: gl.constexpr = slots.common.shape[4]
    SUM: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, N, 16])
    i = 0
    for r in range(rounds(E * m_tiles * columns)):
        e, start, stop, m, n = gradient_place(r, starts_ptr, by_load_ptr, m_tiles, columns, E)
        total = gl.zeros([ROWS, N], gl.float32, SUM)
        first = i
        for _row in range(start, stop, K):
            slot = slots.take(i)
            own, common = slots.own.index(slot * CONSUMERS + J), slots.common.index(slot)
            dout = own.reshape([K, ROWS]).permute((1, 0))
            total = warpgroup_mma(dout, common.reshape([K, N]), total, is_async=True)
            total = warpgroup_mma_wait(1, [total])
            if i > first:
                slots.give_back(i - 1)
            i += 1
        total = warpgroup_mma_wait(0, [total])
        if i > first:
            slots.give_back(i - 1)
        out = total.to(out_desc.dtype)
        row = (m * CONSUMERS + J) * ROWS
        if N == PIECE:
            write(out, staging.index(J), out_desc, [e, row, n * N])
        else:
            left, right = out.reshape([ROWS, 2, PIECE]).permute([0, 2, 1]).split()
            write(left, staging.index(J), out_desc, [e, row, n * N])
            write(right, staging.index(J), out_desc, [e, row, n * N + PIECE])
    tma.store_wait(0)


@gluon.jit
def write(tile, staging, desc, at):
    """A consumer's tile to memory, by way of shared memory: what lies beyond a bound is not written."""
    tma.store_wait(0)  # the copy engine has read what was there before
    wait_for_warpgroup()
    staging.reshape(tile.shape).store(tile)
    fence_async_shared()
    wait_for_warpgroup()
    tma.async_copy_shared_to_global(desc, at, staging)
