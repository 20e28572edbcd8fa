"""What the two consumers have found out about an entry, put together.

At the end of each entry one consumer gives its half to the other, which ends the entry. They take turns: entries with
an even number are ended by consumer 0, the others by consumer 1. So one place in shared memory is enough, and one
barrier. Who wants to give a half was the last to take one, and nobody else uses the place between.
"""

from llmsys.attention.hopper.gluon import aggregate, gl, gluon, mbarrier, wait_for_warpgroup
from llmsys.attention.hopper.ring import new_barriers
from llmsys.attention.paged.hopper.parts import divide


@aggregate
class Halves:
    """A place for one half: Oᵀ (D, M) and lse (M,), base two, both fp32."""

    o: gl.shared_memory_descriptor
    lse: gl.shared_memory_descriptor
    given: gl.shared_memory_descriptor  # (1, 1), an mbarrier: entry number i is its phase i

    @gluon.constexpr_function
    def __init__(self, o, lse, given):
        self.o = o
        self.lse = lse
        self.given = given

    @gluon.jit
    def give(self, m, l, o):
        """One consumer: here is my half, of which the softmax has the state (m, l, o)."""
        o, lse = divide(m, l, o)
        wait_for_warpgroup()  # every thread has read what was given to us before
        self.o.store(o)
        self.lse.store(lse)
        wait_for_warpgroup()  # every thread has stored its share
        mbarrier.arrive(self.given.index(0), count=1)

    @gluon.jit
    def take(self, entry, D: gl.constexpr, M: gl.constexpr, T: gl.constexpr):
        """The other: lse and Oᵀ of its half of entry number `entry`, once they are there."""
        mbarrier.wait(self.given.index(0), entry & 1)
        return self.lse.load(gl.SliceLayout(0, T)), self.o.load(T)


@gluon.jit
def new_halves(D: gl.constexpr, M: gl.constexpr):
    o = gl.allocate_shared_memory(gl.float32, [D, M], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    lse = gl.allocate_shared_memory(gl.float32, [M], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    return Halves(o, lse, new_barriers(1, 1))
