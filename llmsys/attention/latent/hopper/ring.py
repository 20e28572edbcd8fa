"""The ring of latent tiles, and what the warpgroups leave on them for each other.

A tile is 64 keys of 576 numbers, 72 KiB: the latent vector c in two halves of 256 columns, and the 64 columns of the
rotated key. All of it is the keys; c alone is the values. Two tiles and the queries, 72 KiB again, fill the shared
memory of an SM, so nothing else may be large. Of the weights P there are 64 × 64, as large as the rotated keys, which
nobody needs once the scores are there: P takes their place.

A tile passes through these barriers, in this order:

    low      rotated key and first half of c are there        the scores' warpgroup begins with them
    high     the second half of c is there
    shrunk   it is noted by how much O must shrink            two warpgroups shrink O while P is computed
    weighed  P is there                                       they multiply, each a half of c
    empty    both are done: the next tile may come            the copies

Rings, phases and parities are explained in `llmsys.attention.hopper.ring`, units in `llmsys.attention.paged.hopper`.
"""

from llmsys.attention.hopper.gluon import aggregate, fence_async_shared, gl, gluon, mbarrier, tma
from llmsys.attention.hopper.ring import new_barriers
from llmsys.attention.latent.hopper.line import ROWS, TILE
from llmsys.attention.paged.hopper.ring import unit_of

HALF = gl.constexpr(256)
"""Columns of half a latent vector. What tensor cores read lies in panels of 64 columns, each with all rows."""
ROPE = gl.constexpr(64)
SLOTS = gl.constexpr(2)


@aggregate
class LatentRing:
    """SLOTS tiles; tile number i lies in slot i mod SLOTS, the halves of its c in places 2 · slot and 2 · slot + 1."""

    latents: gl.shared_memory_descriptor  # (SLOTS · 2, TILE, HALF)
    ropes: gl.shared_memory_descriptor  # (SLOTS, TILE, ROPE): first rotated keys, then P (ROWS, TILE)
    shrinks: gl.shared_memory_descriptor  # (SLOTS, ROWS) fp32
    maxima: gl.shared_memory_descriptor  # the same: m and l after an entry's last tile
    sums: gl.shared_memory_descriptor
    low: gl.shared_memory_descriptor  # (SLOTS, 1) mbarriers, and all below
    high: gl.shared_memory_descriptor
    shrunk: gl.shared_memory_descriptor
    weighed: gl.shared_memory_descriptor
    empty: gl.shared_memory_descriptor

    @gluon.constexpr_function
    def __init__(self, latents, ropes, shrinks, maxima, sums, low, high, shrunk, weighed, empty):
        self.latents = latents
        self.ropes = ropes
        self.shrinks = shrinks
        self.maxima = maxima
        self.sums = sums
        self.low = low
        self.high = high
        self.shrunk = shrunk
        self.weighed = weighed
        self.empty = empty

    @gluon.jit
    def fill(self, i, desc, rows):
        """Copies: once its slot is empty, start to copy the units that begin at `rows` (TILE / UNIT,) as tile i."""
        UNITS: gl.constexpr = rows.shape[0]
        UNIT: gl.constexpr = TILE // UNITS
        slot = i % SLOTS
        number = gl.arange(0, UNITS, rows.type.layout)
        mbarrier.wait(self.empty.index(slot), (i // SLOTS & 1) ^ 1)
        for half in gl.static_range(2):
            bar = self.low.index(slot) if half == 0 else self.high.index(slot)
            mbarrier.expect(bar, UNITS * (HALF // 64 + 1 - half) * desc.block_type.nbytes)
            for j in gl.static_range(UNITS):
                row = gl.sum(gl.where(number == j, rows, 0), 0)  # a thread has them all: there is nothing to exchange
                if half == 0:
                    tma.async_copy_global_to_shared(desc, [row, 2 * HALF], bar, unit_of(self.ropes, slot, j, 0, UNIT))
                for c in gl.static_range(HALF // 64):
                    to = unit_of(self.latents, 2 * slot + half, j, c, UNIT)
                    tma.async_copy_global_to_shared(desc, [row, half * HALF + c * 64], bar, to)

    @gluon.jit
    def keys_low(self, i):
        """Scores: rotated key and first half of c of tile i, once they are there."""
        mbarrier.wait(self.low.index(i % SLOTS), i // SLOTS & 1)
        return self.ropes.index(i % SLOTS), self.latents.index(2 * (i % SLOTS))

    @gluon.jit
    def keys_high(self, i):
        mbarrier.wait(self.high.index(i % SLOTS), i // SLOTS & 1)
        return self.latents.index(2 * (i % SLOTS) + 1)

    @gluon.jit
    def clear(self, i, end):
        """Scores: zeros in place of the values of tile i from row `end` on.

        The cache has no keys there. What nobody wrote may be NaN, and 0 · NaN is NaN.
        """
        LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        rows = gl.arange(0, TILE, gl.SliceLayout(1, LAYOUT))
        for half in range(2):  # not unrolled: it happens once a sequence
            for c in gl.static_range(HALF // 64):
                panel = unit_of(self.latents, 2 * (i % SLOTS) + half, 0, c, TILE)
                nothing = gl.zeros([TILE, 64], panel.dtype, LAYOUT)
                panel.store(gl.where((rows < end)[:, None], panel.load(LAYOUT), nothing))

    @gluon.jit
    def note_shrink(self, i, shrink):
        """Scores: by what O must be multiplied before tile i is added."""
        self.shrinks.index(i % SLOTS).store(shrink)
        mbarrier.arrive(self.shrunk.index(i % SLOTS), count=1)

    @gluon.jit
    def note_state(self, i, m, l):
        """Scores: m and l after an entry, whose last tile is i. To be called before `put_weights`."""
        self.maxima.index(i % SLOTS).store(m)
        self.sums.index(i % SLOTS).store(l)

    @gluon.jit
    def put_weights(self, i, p):
        """Scores: P, and all that was noted, may be read."""
        self.ropes.index(i % SLOTS).store(p)
        fence_async_shared()
        mbarrier.arrive(self.weighed.index(i % SLOTS), count=1)

    @gluon.jit
    def shrink(self, i, layout: gl.constexpr):
        """Accumulation: what `note_shrink` noted."""
        mbarrier.wait(self.shrunk.index(i % SLOTS), i // SLOTS & 1)
        return self.shrinks.index(i % SLOTS).load(layout)

    @gluon.jit
    def weights_and_values(self, i, half: gl.constexpr):
        """Accumulation: P (ROWS, TILE) and half of c (TILE, HALF) of tile i."""
        if half == 0:  # nobody puts weights before all of c is there; but that is the scores' wait, and no other's
            mbarrier.wait(self.low.index(i % SLOTS), i // SLOTS & 1)
        else:
            mbarrier.wait(self.high.index(i % SLOTS), i // SLOTS & 1)
        mbarrier.wait(self.weighed.index(i % SLOTS), i // SLOTS & 1)
        return self.ropes.index(i % SLOTS), self.latents.index(2 * (i % SLOTS) + half)

    @gluon.jit
    def state(self, i, layout: gl.constexpr):
        """Accumulation: what `note_state` noted; after `weights_and_values`."""
        return self.maxima.index(i % SLOTS).load(layout), self.sums.index(i % SLOTS).load(layout)

    @gluon.jit
    def give_back(self, i):
        """Accumulation: nothing of mine reads tile i any more."""
        mbarrier.arrive(self.empty.index(i % SLOTS), count=1)


@gluon.jit
def new_latent_ring(desc):
    """A ring of empty tiles."""
    NUMBERS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    latents = gl.allocate_shared_memory(desc.dtype, [SLOTS * 2, TILE, HALF], desc.layout)
    ropes = gl.allocate_shared_memory(desc.dtype, [SLOTS, TILE, ROPE], desc.layout)
    shrinks = gl.allocate_shared_memory(gl.float32, [SLOTS, ROWS], NUMBERS)
    maxima = gl.allocate_shared_memory(gl.float32, [SLOTS, ROWS], NUMBERS)
    sums = gl.allocate_shared_memory(gl.float32, [SLOTS, ROWS], NUMBERS)
    return LatentRing(
        latents, ropes, shrinks, maxima, sums, new_barriers(SLOTS, 1), new_barriers(SLOTS, 1),
        new_barriers(SLOTS, 1), new_barriers(SLOTS, 1), new_barriers(SLOTS, 2),
    )  # fmt: skip


@aggregate
class Queries:
    """The queries of an entry, 64 rows in the columns of a tile. One place: the next come when the scores are done."""

    latents: gl.shared_memory_descriptor  # (2, ROWS, HALF)
    ropes: gl.shared_memory_descriptor  # (1, ROWS, ROPE)
    full: gl.shared_memory_descriptor  # (1, 1) mbarriers
    empty: gl.shared_memory_descriptor

    @gluon.constexpr_function
    def __init__(self, latents, ropes, full, empty):
        self.latents = latents
        self.ropes = ropes
        self.full = full
        self.empty = empty

    @gluon.jit
    def fill(self, i, desc, row):
        """Copies: once the last ones are done with, start to copy 64 rows from `row` on as number i."""
        full = self.full.index(0)
        mbarrier.wait(self.empty.index(0), (i & 1) ^ 1)
        mbarrier.expect(full, (2 * HALF // 64 + 1) * desc.block_type.nbytes)
        tma.async_copy_global_to_shared(desc, [row, 2 * HALF], full, unit_of(self.ropes, 0, 0, 0, ROWS))
        for half in gl.static_range(2):
            for c in gl.static_range(HALF // 64):
                to = unit_of(self.latents, half, 0, c, ROWS)
                tma.async_copy_global_to_shared(desc, [row, half * HALF + c * 64], full, to)

    @gluon.jit
    def take(self, i):
        """Scores: the rotated columns (ROWS, ROPE), and both halves of the others, of number i."""
        mbarrier.wait(self.full.index(0), i & 1)
        return self.ropes.index(0), self.latents.index(0), self.latents.index(1)

    @gluon.jit
    def give_back(self):
        mbarrier.arrive(self.empty.index(0), count=1)


@gluon.jit
def new_queries(desc):
    latents = gl.allocate_shared_memory(desc.dtype, [2, ROWS, HALF], desc.layout)
    ropes = gl.allocate_shared_memory(desc.dtype, [1, ROWS, ROPE], desc.layout)
    return Queries(latents, ropes, new_barriers(1, 1), new_barriers(1, 1))
