"""The line of all keys, cut into equal runs, as `llmsys.attention.paged.hopper.line` has it; here a run is a *team's*.

What is different is what belongs to an entry. Sixty-four rows of queries fill a program: its accumulator is 64 × 512
numbers in fp32, half of an SM's registers. A row is a query token with one head, and the rows of a sequence lie one
after another in q, token by token. With 128 heads one token has two programs' rows; they want the same keys. So
MEMBERS programs are a team: they walk down one run at the same pace, each with the rows of its own, and what one has
read is in the L2 cache when the others ask for it. A run has

    entry       MEMBERS · 64 rows of a sequence, and all tiles of its keys
    tile        64 keys: the unit in which the line is counted

A sequence that brings fewer rows than an entry has leaves some members without any: they pass over it.
"""

from llmsys.attention.hopper.gluon import aggregate, gl, gluon
from llmsys.attention.paged.hopper.line import add, place, units_of

ROWS = gl.constexpr(64)
"""Rows of queries that a program has at a time."""
TILE = gl.constexpr(64)
"""Keys of a tile."""
LEAST = gl.constexpr(2)
"""Tiles of the shortest run."""
SPARED = gl.constexpr(2)
"""Tiles by which a run may be longer than its share, if so none is cut: they take no longer than adding up parts."""


@aggregate
class Entry:
    """Rows of a sequence, and those tiles of its keys that lie in the run."""

    s: gl.tensor
    along: gl.tensor  # tiles of the sequence, over its entries, before this place
    n: gl.tensor  # tiles of the entry
    tile: gl.tensor  # the first that is in the run, and how many are
    take: gl.tensor
    row: gl.tensor  # the member's first row, among all of q's; how many rows it has, which may be none
    rows: gl.tensor
    query: gl.tensor  # that row's number in the sequence
    tokens: gl.tensor  # of the sequence, and its keys
    length: gl.tensor

    @gluon.constexpr_function
    def __init__(self, s, along, n, tile, take, row, rows, query, tokens, length):
        self.s = s
        self.along = along
        self.n = n
        self.tile = tile
        self.take = take
        self.row = row
        self.rows = rows
        self.query = query
        self.tokens = tokens
        self.length = length


@aggregate
class Line:
    """Where the tiles are, and which of them are this program's."""

    program: gl.tensor  # this one's number
    starts_ptr: gl.tensor
    lengths_ptr: gl.tensor
    each: gl.tensor  # tiles of a run; the last runs may be shorter, or empty
    first: gl.tensor  # of the run
    cut: gl.tensor  # the first walk begins here, and the second ends
    stop: gl.tensor
    first_s: gl.tensor  # the sequence of `first`, and the tiles that this has before it
    first_along: gl.tensor
    cut_s: gl.tensor
    cut_along: gl.tensor
    HEADS: gl.constexpr
    MEMBERS: gl.constexpr

    @gluon.constexpr_function
    def __init__(
        self, program, starts_ptr, lengths_ptr, each, first, cut, stop, first_s, first_along, cut_s, cut_along,
        HEADS, MEMBERS,
    ):  # fmt: skip
        self.program = program
        self.starts_ptr = starts_ptr
        self.lengths_ptr = lengths_ptr
        self.each = each
        self.first = first
        self.cut = cut
        self.stop = stop
        self.first_s = first_s
        self.first_along = first_along
        self.cut_s = cut_s
        self.cut_along = cut_along
        self.HEADS = gl.constexpr(HEADS)
        self.MEMBERS = gl.constexpr(MEMBERS)

    @gluon.jit
    def walk(self, number):
        """Of walk 0 or 1: its first tile, the sequence of that, the tiles before it in that, and how many there are."""
        at, s, along, left = self.cut, self.cut_s, self.cut_along, self.stop - self.cut
        if number == 1:
            at, s, along, left = self.first, self.first_s, self.first_along, self.cut - self.first
        return at, s, along, left

    @gluon.jit
    def entry(self, s, along, left):
        """What lies `along` tiles after the beginning of sequence s, as far as `left` tiles go."""
        start = gl.load(self.starts_ptr + s)
        tokens = gl.load(self.starts_ptr + s + 1) - start
        length = gl.load(self.lengths_ptr + s)
        n = units_of(length, 1, TILE)
        entries = entries_of(tokens, self.HEADS, self.MEMBERS)
        while along >= n * entries:  # this sequence is over, or brings no token
            along = along - n * entries
            s = s + 1
            start = gl.load(self.starts_ptr + s)
            tokens = gl.load(self.starts_ptr + s + 1) - start
            length = gl.load(self.lengths_ptr + s)
            n = units_of(length, 1, TILE)
            entries = entries_of(tokens, self.HEADS, self.MEMBERS)
        tile = along % n
        query = (along // n * self.MEMBERS + self.program % self.MEMBERS) * ROWS
        rows = gl.minimum(tokens * self.HEADS - query, ROWS)
        take = gl.minimum(n - tile, left)
        return Entry(s, along, n, tile, take, start * self.HEADS + query, rows, query, tokens, length)


@gluon.jit
def entries_of(tokens, HEADS: gl.constexpr, MEMBERS: gl.constexpr):
    """The entries of a sequence that brings so many tokens."""
    return (tokens * HEADS + MEMBERS * ROWS - 1) // (MEMBERS * ROWS)


@gluon.jit
def new_line(starts_ptr, lengths_ptr, tokens, length, S, HEADS: gl.constexpr, MEMBERS: gl.constexpr):
    """The line of S sequences, of which `ask` has brought tokens and keys, as this program sees it."""
    program = gl.program_id(0)
    teams = gl.num_programs(0) // MEMBERS
    tiles = units_of(length, 1, TILE)
    ends = gl.associative_scan(tiles * entries_of(tokens, HEADS, MEMBERS), 0, add)
    total = gl.max(ends, 0)
    each = gl.maximum((total + teams - 1) // teams, LEAST)
    longest = gl.max(tiles, 0)
    whole = (each + longest - 1) // longest * longest
    each = gl.where(whole - each <= SPARED, whole, each)
    first = gl.minimum(program // MEMBERS * each, total)
    stop = gl.minimum(first + each, total)
    first_s, first_along = place(ends, first, S)
    cut_s, stop_along = place(ends, stop, S)
    n = units_of(gl.load(lengths_ptr + cut_s), 1, TILE)
    # What of the entry at `stop` comes before it. Nothing comes at the end of the line.
    begun = gl.where(stop < total, gl.minimum(stop_along % n, stop - first), 0)
    return Line(
        program, starts_ptr, lengths_ptr, each, first, stop - begun, stop, first_s, first_along, cut_s,
        stop_along - begun, HEADS, MEMBERS,
    )  # fmt: skip
