"""Parts of an entry that several teams share, and who adds them up.

Every part is a softmax of its own keys: o, and lse in base two. Their sum is lesson 02's merge. There are two ways to
it, and both add up all parts in the order of the line, so results are the same bits every time:

- *here*, by whoever comes last, which a counter says (`llmsys.attention.paged.hopper.parts`): nothing is launched
  again, and nobody waits. The two halves of the columns are added up apart, by the warpgroups that have them;
- or by `merge_kernel` after this kernel, a program a row. That is a launch more, and it is faster where sequences are
  so few that an entry has many parts, which one program would read for longer than it has worked.
"""

from llmsys.attention.hopper.gluon import gl, gluon, wait_for_warpgroup
from llmsys.attention.latent.hopper.line import ROWS
from llmsys.attention.latent.hopper.ring import HALF

LN_2 = gl.constexpr(0.6931471805599453)
CHUNK = gl.constexpr(64)
"""Columns that are added up at a time; two parts are then on the way."""


@gluon.jit
def store(o_ptr, lse_ptr, o, lse, first, column, there):
    """o (ROWS, …) to columns of (…, 512) from `column` on, and lse (ROWS,), to rows from `first` on, where `there`.

    Both halves write lse, the same numbers.
    """
    at = gl.to_tensor(first).to(gl.int64) + gl.arange(0, ROWS, lse.type.layout)
    columns = column + gl.arange(0, o.shape[1], gl.SliceLayout(0, o.type.layout))
    gl.store(o_ptr + (at * (2 * HALF))[:, None] + columns[None, :], o.to(o_ptr.dtype.element_ty), mask=there[:, None])
    gl.store(lse_ptr + at, lse, mask=there)


@gluon.jit
def clear(line, o_ptr, lse_ptr, S, N):
    """o and lse of tokens that belong to no sequence: each program has some rows."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 16], [1, 32], [4, 1], [1, 0])
    row = gl.arange(0, 4, gl.SliceLayout(1, LAYOUT))
    column = gl.arange(0, 2 * HALF, gl.SliceLayout(0, LAYOUT))
    nothing = gl.zeros([4, 2 * HALF], o_ptr.dtype.element_ty, LAYOUT)
    never = gl.full([4], float("-inf"), gl.float32, gl.SliceLayout(1, LAYOUT))
    begin = gl.load(line.starts_ptr + S) * line.HEADS + 4 * line.program
    for first in range(begin, N * line.HEADS, 4 * gl.num_programs(0)):
        at = gl.to_tensor(first).to(gl.int64) + row
        there = first + row < N * line.HEADS
        gl.store(o_ptr + (at * (2 * HALF))[:, None] + column[None, :], nothing, mask=there[:, None])
        gl.store(lse_ptr + at, never, mask=there)


@gluon.jit
def last_to_come(counters_ptr, half: gl.constexpr, line, first, last):
    """Whether the teams `first` to `last` have all left their parts of an entry; counts this program's, just stored.

    Each run has at most one entry that begins in it and goes on: so a counter for each program and half is enough.
    """
    counter = counters_ptr + 2 * (first * line.MEMBERS + line.program % line.MEMBERS) + half
    wait_for_warpgroup()  # every thread has stored its share
    all_there = gl.atomic_add(counter, 1, sem="acq_rel") == last - first
    if all_there:
        gl.store(counter, 0)  # for the next launch
    return all_there


@gluon.jit
def merge(half: gl.constexpr, line, o_ptr, lse_ptr, part_ptr, part_lse_ptr, entry, first, last):
    """Half of the columns of an entry whose parts the teams `first` to `last` have left."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [4, 1], [1, 0])
    ROW: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    there = gl.arange(0, ROWS, ROW) < entry.rows
    for c in gl.static_range(HALF // CHUNK):
        column = half * HALF + c * CHUNK
        m = gl.full([ROWS], float("-inf"), gl.float32, ROW)
        l = gl.zeros([ROWS], gl.float32, ROW)
        o = gl.zeros([ROWS, CHUNK], gl.float32, LAYOUT)
        for team in range(first, last + 1, 2):
            lse_0, part_0 = load(line, part_ptr, part_lse_ptr, team, first, there, column, LAYOUT)
            lse_1, part_1 = load(line, part_ptr, part_lse_ptr, team + 1, first, there & (team < last), column, LAYOUT)
            m_new = gl.maximum(m, gl.maximum(lse_0, lse_1))
            shift = gl.where(m_new == float("-inf"), 0.0, m_new)  # nothing seen yet, and −∞ − (−∞) is NaN
            shrink, weight_0, weight_1 = gl.exp2(m - shift), gl.exp2(lse_0 - shift), gl.exp2(lse_1 - shift)
            l = l * shrink + weight_0 + weight_1
            o = o * shrink[:, None] + part_0 * weight_0[:, None] + part_1 * weight_1[:, None]
            m = m_new
        some = gl.where(l > 0, l, 1.0)
        store(o_ptr, lse_ptr, o * (1 / some)[:, None], (m + gl.log2(some)) * LN_2, entry.row, column, there)


@gluon.jit
def load(line, part_ptr, part_lse_ptr, team, first, there, column, LAYOUT: gl.constexpr):
    """lse (ROWS,) and CHUNK columns of the part of a team; nothing where not `there`.

    From the L2 cache: an SM's own may have what was there before.
    """
    part = 2 * (team * line.MEMBERS + line.program % line.MEMBERS) + gl.where(team == first, 1, 0)
    row = part * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    columns = column + gl.arange(0, CHUNK, gl.SliceLayout(0, LAYOUT))
    lse = gl.load(part_lse_ptr + row, mask=there, other=float("-inf"), cache_modifier=".cg")
    at = part_ptr + (row * (2 * HALF))[:, None] + columns[None, :]
    return lse, gl.load(at, mask=there[:, None], other=0.0, cache_modifier=".cg")
