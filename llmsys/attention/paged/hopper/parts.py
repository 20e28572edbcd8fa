"""Parts of heads that several programs share: each leaves its part, and who comes last adds them up.

There is no second launch, and nobody waits. A counter says who is last: every program adds one to it after it has
written its part, in the order "first the part, then the count" for all who read them (acquire and release). The last
one adds up *all* parts in the order of the line, its own among them as it lies in memory. Which program that is, is a
matter of luck; what it computes is not. So results are the same bits every time, which a sum in the order of arrival,
with its own part kept in registers, would not be.

An entry that is cut is known by the program in whose run it begins: each run has at most one that begins in it and goes
on. So there are as many counters as programs. They are 0 again when all is done, for the next launch.
"""

from llmsys.attention.hopper.gluon import gl, gluon


@gluon.jit
def leave(part_ptr, part_lse_ptr, o, lse, number, D: gl.constexpr, M: gl.constexpr, T: gl.constexpr):
    """Write Oᵀ (D, M) and lse (M,), base two, as part `number`."""
    at, head = places(number, D, M, T)
    gl.store(part_ptr + at, o)
    gl.store(part_lse_ptr + number * M + head, lse)


@gluon.jit
def merge(part_ptr, part_lse_ptr, p, last, D: gl.constexpr, M: gl.constexpr, T: gl.constexpr):
    """Oᵀ and lse of an entry whose parts the programs p to `last` have left. Up to four are on the way at a time."""
    m = gl.full([M], float("-inf"), gl.float32, gl.SliceLayout(0, T))
    l = gl.zeros([M], gl.float32, gl.SliceLayout(0, T))
    o = gl.zeros([D, M], gl.float32, T)
    for first in range(p, last + 1, 4 if M <= 16 else 2):
        lse_0, part_0 = load(part_ptr, part_lse_ptr, first, p, last, D, M, T)
        lse_1, part_1 = load(part_ptr, part_lse_ptr, first + 1, p, last, D, M, T)
        if M <= 16:
            lse_2, part_2 = load(part_ptr, part_lse_ptr, first + 2, p, last, D, M, T)
            lse_3, part_3 = load(part_ptr, part_lse_ptr, first + 3, p, last, D, M, T)
            m, l, o = plus(m, l, o, lse_0, part_0)
            m, l, o = plus(m, l, o, lse_1, part_1)
            m, l, o = plus(m, l, o, lse_2, part_2)
            m, l, o = plus(m, l, o, lse_3, part_3)
        else:
            m, l, o = plus(m, l, o, lse_0, part_0)
            m, l, o = plus(m, l, o, lse_1, part_1)
    return divide(m, l, o)


@gluon.jit
def divide(m, l, o):
    """Oᵀ and lse of a softmax that has the state (m, l, o); 0 and −∞ where no key was seen."""
    some = gl.where(l > 0, l, 1.0)
    return o / some[None, :], m + gl.log2(some)


@gluon.jit
def load(part_ptr, part_lse_ptr, program, p, last, D: gl.constexpr, M: gl.constexpr, T: gl.constexpr):
    """A program's part of an entry that begins in program p's run; beyond `last`, one that weighs nothing.

    From the L2 cache: an SM's own may have what was there before.
    """
    number = 2 * program + gl.where(program == p, 1, 0)
    at, head = places(number, D, M, T)
    there = program <= last
    lse = gl.load(part_lse_ptr + number * M + head, mask=there, other=float("-inf"), cache_modifier=".cg")
    return lse, gl.load(part_ptr + at, mask=there, other=0.0, cache_modifier=".cg")


@gluon.jit
def plus(m, l, o, lse, part):
    """The state (m, l, o) after one more part: lesson 02's merge."""
    m_new = gl.maximum(m, lse)
    shift = gl.where(m_new == float("-inf"), 0.0, m_new)
    weight = gl.exp2(lse - shift)
    shrink = gl.exp2(m - shift)
    return m_new, l * shrink + weight, o * shrink[None, :] + part * weight[None, :]


@gluon.jit
def places(number, D: gl.constexpr, M: gl.constexpr, T: gl.constexpr):
    """Where the elements of part `number` lie, and the queries' numbers."""
    head = gl.arange(0, M, gl.SliceLayout(0, T))
    dim = gl.arange(0, D, gl.SliceLayout(1, T))
    return (number * D + dim)[:, None] * M + head[None, :], head
