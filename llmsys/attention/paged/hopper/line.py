"""The line: all keys of all sequences, cut into equal runs, one a program. It is found out in the kernel.

As in `llmsys.attention.paged.split_kernels`, nothing depends on lengths but what programs compute from them, so one
CUDA graph serves any step. Three things differ here, and all are for short contexts, where a run takes a few tens of
microseconds and a program that has 3% more than others is late by one.

*Units.* The line is counted in units, which are what one copy fetches (`ring`): 16 keys of a head, or more. Runs of
whole tiles would differ by a tile, of 64 or 128 keys.

*Order.* A run is walked in two walks: first what lies behind its last cut, then the rest from its beginning.

        ──────┤ begun earlier │ whole │ whole │ goes on ├──────
                     2.          3.      4.       1.

Heads that two programs share are therefore done early, and whoever adds up the parts does so while its own copies go
on. At the end stands a head that is nobody else's.

*Whole heads.* Where sequences are equally long, as those of one prompt are that is continued many times, there are
often nearly as many heads as the programs can share without cutting any: 512 are 3.9 for each of 132. Then 128 programs
take 4. They keep the memory as busy as all would, and no parts are to be added up.

An *entry* is what one softmax runs over: a token of a sequence with one group of heads. A sequence of Tq tokens has
Tq · groups entries, one after the other, each of as many units as the sequence has keys for, and of one at least: so
one without a key is written, too.
"""

from llmsys.attention.hopper.gluon import aggregate, gl, gluon

LEAST = gl.constexpr(64)
"""Rows of the shortest run: below that, adding up parts would take longer than what is divided."""
SPARED = gl.constexpr(128)
"""Rows by which a run may be longer than its share, if so none is cut: they take no longer than adding up parts."""


@gluon.jit
def add(a, b):
    return a + b


@aggregate
class Line:
    """Where the units are, and which of them are this program's.

    A *row* is a key of a head, and TOGETHER heads lie side by side in a group (`kernel`): a sequence of `length` keys
    has length · TOGETHER rows in each of its groups.
    """

    starts_ptr: gl.tensor
    lengths_ptr: gl.tensor
    groups: gl.tensor
    each: gl.tensor  # units of a run; the last runs may be shorter, or empty
    first: gl.tensor  # of the run
    cut: gl.tensor  # the first walk begins here, and the second ends
    stop: gl.tensor
    first_s: gl.tensor  # the sequence of `first`, and the units that this has before it
    first_along: gl.tensor
    cut_s: gl.tensor
    cut_along: gl.tensor
    TOGETHER: gl.constexpr
    UNIT: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self, starts_ptr, lengths_ptr, groups, each, first, cut, stop, first_s, first_along, cut_s, cut_along, TOGETHER,
        UNIT,
    ):  # fmt: skip
        self.starts_ptr = starts_ptr
        self.lengths_ptr = lengths_ptr
        self.groups = groups
        self.each = each
        self.first = first
        self.cut = cut
        self.stop = stop
        self.first_s = first_s
        self.first_along = first_along
        self.cut_s = cut_s
        self.cut_along = cut_along
        self.TOGETHER = gl.constexpr(TOGETHER)
        self.UNIT = gl.constexpr(UNIT)

    @gluon.jit
    def walk(self, number):
        """Of walk 0 or 1: the unit at which it begins, its sequence, the units before it in that, and how many."""
        at, s, along, left = self.cut, self.cut_s, self.cut_along, self.stop - self.cut
        if number == 1:
            at, s, along, left = self.first, self.first_s, self.first_along, self.cut - self.first
        return at, s, along, left

    @gluon.jit
    def sequence(self, s):
        """Of sequence s: its first token, its tokens, its keys, and the units of an entry."""
        start = gl.load(self.starts_ptr + s)
        length = gl.load(self.lengths_ptr + s)
        return start, gl.load(self.starts_ptr + s + 1) - start, length, units_of(length, self.TOGETHER, self.UNIT)


@gluon.jit
def units_of(length, TOGETHER: gl.constexpr, UNIT: gl.constexpr):
    """The units of an entry over so many keys."""
    return gl.maximum((length * TOGETHER + UNIT - 1) // UNIT, 1)


@gluon.jit
def ask(starts_ptr, lengths_ptr, S, BLOCK_S: gl.constexpr):
    """The tokens and keys of S sequences, (BLOCK_S,) each. BLOCK_S is a power of two, S at least and 128 at least.

    A function of its own, so that other things can be done while these loads are under way. Up to 1024 sequences every
    warp has all of them, and sums over them need no barrier.
    """
    ALONE: gl.constexpr = BLOCK_S <= 1024
    A_THREAD: gl.constexpr = BLOCK_S // (32 if ALONE else 128)
    i = gl.arange(0, BLOCK_S, gl.BlockedLayout([A_THREAD], [32], [4], [0]))
    start = gl.load(starts_ptr + i, mask=i < S, other=0)
    end = gl.load(starts_ptr + i + 1, mask=i < S, other=0)
    return end - start, gl.load(lengths_ptr + i, mask=i < S, other=0)


@gluon.jit
def new_line(
    starts_ptr, lengths_ptr, tokens, length, S, groups, TOGETHER: gl.constexpr, UNIT: gl.constexpr
):  # fmt: skip
    """The line of S sequences, of which `ask` has brought tokens and keys, as this program sees it."""
    units = units_of(length, TOGETHER, UNIT)
    ends = gl.associative_scan(units * tokens * groups, 0, add)
    total = gl.max(ends, 0)
    each = gl.maximum((total + gl.num_programs(0) - 1) // gl.num_programs(0), LEAST // UNIT)
    longest = gl.max(units, 0)
    whole = (each + longest - 1) // longest * longest
    each = gl.where(whole - each <= SPARED // UNIT, whole, each)
    first = gl.minimum(gl.program_id(0) * each, total)
    stop = gl.minimum(first + each, total)
    first_s, first_along = place(ends, first, S)
    cut_s, stop_along = place(ends, stop, S)
    n = units_of(gl.load(lengths_ptr + cut_s), TOGETHER, UNIT)
    # What of the entry at `stop` comes before it. Nothing comes at the end of the line.
    begun = gl.where(stop < total, gl.minimum(stop_along % n, stop - first), 0)
    return Line(
        starts_ptr, lengths_ptr, groups, each, first, stop - begun, stop, first_s, first_along, cut_s,
        stop_along - begun, TOGETHER, UNIT,
    )  # fmt: skip


@gluon.jit
def place(ends, at, S):
    """The sequence that unit `at` of the line belongs to, and how many of its units come before that one."""
    before = ends <= at
    s = gl.minimum(gl.sum(before.to(gl.int32), 0), S - 1)
    return s, at - gl.max(gl.where(before, ends, 0), 0)
