"""The ring, and the turns: how the warps of the hopper kernel wait for each other.

A *ring* is a few tiles of shared memory that are filled and emptied in turn. Each slot has two barriers:

    full    the copy engine arrives when all bytes of the tile are there          consumers wait for it
    empty   each consumer arrives when it needs the tile no longer                the producer waits for it

A barrier (mbarrier) counts arrivals. When as many have arrived as it expects, it enters its next phase and counts from
the beginning; who waits for it names the *parity* of the phase that is to end, 0 for the first, 1 for the second, 0 for
the third. So nobody counts slots or phases: tile number i of a ring of S lies in slot i mod S, and it is the slot's
(i div S)-th tile, whose parity is (i div S) mod 2. Producer and consumers each count tiles from 0, and meet.

The producer starts before any slot has been emptied. It waits with the other parity, that of the phase before the
first, which counts as ended: the first S tiles find their slots empty.

*Turns* keep the consumers from all doing the same at the same time. A consumer starts its matrix products when it has
the turn, passes the turn on, and computes its softmax while the others' products run.

(mbarriers: https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-mbarrier;
turns: https://arxiv.org/abs/2407.08608, section 3.1, "ping-pong".)
"""

from llmsys.attention.hopper.gluon import aggregate, gl, gluon, mbarrier, tma


@aggregate
class Ring:
    """SLOTS tiles of (ROWS, D) in shared memory, with their barriers; tile number i lies in slot i mod SLOTS."""

    tiles: gl.shared_memory_descriptor  # (SLOTS, 1, 1, ROWS, D): the copy engine sees tiles of (B, H, T, D)
    full: gl.shared_memory_descriptor  # (SLOTS, 1) mbarriers
    empty: gl.shared_memory_descriptor
    SLOTS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, tiles, full, empty, SLOTS):
        self.tiles = tiles
        self.full = full
        self.empty = empty
        self.SLOTS = gl.constexpr(SLOTS)

    @gluon.jit
    def fill(self, i, desc, b, h, t):
        """Producer: once its slot is empty, start to copy the tile that begins at [b, h, t, 0] as number i.

        The copy engine writes zeros for what lies beyond the tensor's end, and counts their bytes, too.
        """
        slot = i % self.SLOTS
        mbarrier.wait(self.empty.index(slot), (i // self.SLOTS & 1) ^ 1)
        mbarrier.expect(self.full.index(slot), desc.block_type.nbytes)
        tma.async_copy_global_to_shared(desc, [b, h, t, 0], self.full.index(slot), self.tiles.index(slot))

    @gluon.jit
    def take(self, i):
        """Consumer: tile number i, (ROWS, D), once it is there."""
        slot = i % self.SLOTS
        mbarrier.wait(self.full.index(slot), i // self.SLOTS & 1)
        tile = self.tiles.index(slot)
        return tile.reshape([tile.shape[2], tile.shape[3]])

    @gluon.jit
    def give_back(self, i):
        """Consumer: nothing of mine reads tile number i any more."""
        mbarrier.arrive(self.empty.index(i % self.SLOTS), count=1)


@gluon.jit
def new_ring(desc, SLOTS: gl.constexpr, CONSUMERS: gl.constexpr):
    """A ring of tiles as `desc` describes them, each of which CONSUMERS warpgroups take and give back."""
    tiles = gl.allocate_shared_memory(desc.dtype, [SLOTS] + desc.block_type.shape, desc.layout)
    full = new_barriers(SLOTS, 1)
    empty = new_barriers(SLOTS, CONSUMERS)
    return Ring(tiles, full, empty, SLOTS)


@gluon.jit
def new_barriers(N: gl.constexpr, ARRIVALS: gl.constexpr):
    """N barriers, each of which expects so many arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(N):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@aggregate
class Turns:
    """Whose turn it is: CONSUMERS barriers; an arrival at barrier j gives consumer j its next turn."""

    barriers: gl.shared_memory_descriptor
    CONSUMERS: gl.constexpr

    @gluon.constexpr_function
    def __init__(self, barriers, CONSUMERS):
        self.barriers = barriers
        self.CONSUMERS = gl.constexpr(CONSUMERS)

    @gluon.jit
    def wait(self, j, turn):
        """Wait for consumer j's turn number `turn`."""
        mbarrier.wait(self.barriers.index(j), turn & 1)

    @gluon.jit
    def pass_on(self, j):
        """The next consumer's turn begins."""
        mbarrier.arrive(self.barriers.index((j + 1) % self.CONSUMERS), count=1)


@gluon.jit
def new_turns(CONSUMERS: gl.constexpr):
    """Turns of so many consumers; the first one's turn has begun."""
    barriers = new_barriers(CONSUMERS, 1)
    mbarrier.arrive(barriers.index(0), count=1)
    return Turns(barriers, CONSUMERS)
