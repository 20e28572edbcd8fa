"""The ring of tiles of keys and values, which are put together from pages.

A ring as in `llmsys.attention.hopper.ring`: barriers, phases and parities are explained there. What is new is how a
tile is filled. Its rows lie in several pages, so the copy engine is sent for them in *units*, of UNIT rows that lie in
one page, with 64 columns each: 128 bytes a row, the width over which it swaps 16-byte pieces so that the tensor cores
meet no bank conflicts. A tile of heads of 128 lies in shared memory as two panels of 64 columns, each with all rows.

One barrier counts the bytes of keys and values of a tile together. They are always a whole tile's: units that a run
does not have are fetched from behind the end of the cache, which the copy engine replaces with zeros, without reading
any memory.
"""

from llmsys.attention.hopper.gluon import aggregate, gl, gluon, mbarrier, tma
from llmsys.attention.hopper.ring import new_barriers


@aggregate
class PageRing:
    """SLOTS tiles of keys, and as many of values, (BLOCK_N, D); tile number i lies in slot i mod SLOTS."""

    keys: gl.shared_memory_descriptor  # (SLOTS, BLOCK_N, D)
    values: gl.shared_memory_descriptor
    full: gl.shared_memory_descriptor  # (SLOTS, 1) mbarriers
    empty: gl.shared_memory_descriptor

    @gluon.constexpr_function
    def __init__(self, keys, values, full, empty):
        self.keys = keys
        self.values = values
        self.full = full
        self.empty = empty

    @gluon.jit
    def fill(self, i, k_desc, v_desc, rows, column):
        """Producer: once its slot is empty, start to copy the units that begin at `rows` as tile number i.

        rows (BLOCK_N / UNIT,): each unit's first row in the cache; `column` is that of their group of heads.
        """
        SLOTS: gl.constexpr = self.keys.shape[0]
        UNITS: gl.constexpr = rows.shape[0]
        UNIT: gl.constexpr = self.keys.shape[1] // UNITS
        PANELS: gl.constexpr = self.keys.shape[2] // 64
        slot = i % SLOTS
        full = self.full.index(slot)
        number = gl.arange(0, UNITS, rows.type.layout)
        mbarrier.wait(self.empty.index(slot), (i // SLOTS & 1) ^ 1)
        mbarrier.expect(full, 2 * UNITS * PANELS * k_desc.block_type.nbytes)
        for j in gl.static_range(UNITS):
            row = gl.sum(gl.where(number == j, rows, 0), 0)  # a thread has them all: this is no work
            for c in gl.static_range(PANELS):
                at = [row, column + 64 * c]
                tma.async_copy_global_to_shared(k_desc, at, full, unit_of(self.keys, slot, j, c, UNIT))
                tma.async_copy_global_to_shared(v_desc, at, full, unit_of(self.values, slot, j, c, UNIT))

    @gluon.jit
    def take(self, i):
        """Consumer: keys and values of tile number i, once they are there."""
        SLOTS: gl.constexpr = self.keys.shape[0]
        slot = i % SLOTS
        mbarrier.wait(self.full.index(slot), i // SLOTS & 1)
        return self.keys.index(slot), self.values.index(slot)

    @gluon.jit
    def clear(self, i, end, UNIT: gl.constexpr):
        """Consumer: zeros in place of the values of tile number i, from row `end` to the end of that row's unit.

        The cache has no keys there. What nobody wrote may be NaN, and 0 · NaN is NaN.
        """
        SLOTS: gl.constexpr = self.keys.shape[0]
        PANELS: gl.constexpr = self.keys.shape[2] // 64
        LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
        rows = gl.arange(0, UNIT, gl.SliceLayout(1, LAYOUT))
        for c in gl.static_range(PANELS):
            unit = unit_of(self.values, i % SLOTS, end // UNIT, c, UNIT)
            nothing = gl.zeros([UNIT, 64], unit.dtype, LAYOUT)
            unit.store(gl.where((rows < end % UNIT)[:, None], unit.load(LAYOUT), nothing))

    @gluon.jit
    def give_back(self, i):
        """Consumer: nothing of mine reads tile number i any more."""
        SLOTS: gl.constexpr = self.keys.shape[0]
        mbarrier.arrive(self.empty.index(i % SLOTS), count=1)


@gluon.jit
def unit_of(tiles, slot, j, c: gl.constexpr, UNIT: gl.constexpr):
    """The place of unit j's columns 64 · c to 64 · c + 63 in the tile in `slot`: (UNIT, 64)."""
    SLOTS: gl.constexpr = tiles.shape[0]
    UNITS: gl.constexpr = tiles.shape[1] // UNIT
    PANELS: gl.constexpr = tiles.shape[2] // 64
    units = tiles._reinterpret(tiles.dtype, [SLOTS * PANELS * UNITS, UNIT, 64], tiles.layout)
    return units.index((slot * PANELS + c) * UNITS + j)


@gluon.jit
def new_page_ring(k_desc, BLOCK_N: gl.constexpr, D: gl.constexpr, SLOTS: gl.constexpr):
    """A ring of empty tiles, of which one consumer gives back each."""
    keys = gl.allocate_shared_memory(k_desc.dtype, [SLOTS, BLOCK_N, D], k_desc.layout)
    values = gl.allocate_shared_memory(k_desc.dtype, [SLOTS, BLOCK_N, D], k_desc.layout)
    return PageRing(keys, values, new_barriers(SLOTS, 1), new_barriers(SLOTS, 1))
