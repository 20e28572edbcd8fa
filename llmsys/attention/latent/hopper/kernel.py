"""The MLA decode kernel for Hopper, in Gluon: the same 576 numbers a key for all heads, read once.

In the absorbed form every head attends to the same latent vectors, with queries of its own (`llmsys.attention.latent`).
A key of 1152 bytes is then worth 2 · (576 + 512) floating-point operations for each row, a query token with one head:
16 rows ask 30 operations of a byte, and memory is the limit; 128 rows ask 242, as many as an H100 can do meanwhile.
One kernel is for both. It takes 64 rows at a time, of which it computes all even where there are 16, and keeps the
copies going. One program an SM has five roles:

- one warp copies *latents*: page after page of the program's run of the line (`line`), across entries and sequences
  without a stop, as far ahead as the ring has room (`ring`);
- one warp copies *queries*, whenever an entry has been scored;
- one warpgroup *scores*, and two *accumulate* (`consumers`).

Parts of an entry that several teams share are left in memory, and `merge_kernel` adds them up
(`llmsys.attention.latent.merge_kernel`).

Only one program of this kind fits on an SM, and it must stay so: with more, in earlier trials, the GPU hung.
"""

from llmsys.attention.hopper.gluon import fence_async_shared, gl, gluon, launch_dependents
from llmsys.attention.latent.hopper.consumers import accumulate, score
from llmsys.attention.latent.hopper.line import TILE, new_line
from llmsys.attention.latent.hopper.ring import new_latent_ring, new_queries
from llmsys.attention.paged.hopper.line import ask

NOWHERE = gl.constexpr(2**30)
"""A row that no cache has."""


@gluon.jit(do_not_specialize=["table_stride", "S", "scale_log2"])
def latent_decode_kernel(
    q_desc, pages_desc, o_ptr, lse_ptr, part_ptr, part_lse_ptr, cuts_ptr, starts_ptr, lengths_ptr, table_ptr,
    table_stride, S, scale_log2,
    HEADS: gl.constexpr, MEMBERS: gl.constexpr, PAGE: gl.constexpr, BLOCK_S: gl.constexpr,
    ACCUMULATE_REGISTERS: gl.constexpr, COPY_REGISTERS: gl.constexpr,
):  # fmt: skip
    """o (N · HEADS, 512) and lse (N · HEADS,) of a step, contiguous.

    Grid: (P,), a multiple of MEMBERS, at most one program an SM. Descriptors: of q (N · HEADS, 576) in tiles of
    (64, 64); of the pages (slots, 576) in tiles of (UNIT, 64), where UNIT divides PAGE and 64. part (2P, 64, 512) and
    part_lse (2P, 64), base two, fp32, and cuts (3, P) int32 are for `merge_kernel`, which must follow. Four warps are
    asked for: they score.
    """
    launch_dependents()  # the merge, whose programs then wait beside this one, or for its place
    tokens, length = ask(starts_ptr, lengths_ptr, S, BLOCK_S)  # on the way while the barriers are made
    queries = new_queries(q_desc)
    ring = new_latent_ring(pages_desc)
    fence_async_shared()  # the copy engine, too, sees that the barriers have begun
    line = new_line(starts_ptr, lengths_ptr, tokens, length, S, HEADS, MEMBERS)
    gl.warp_specialize(
        [
            (score, (line, queries, ring, scale_log2)),
            (accumulate, (0, line, ring, o_ptr, lse_ptr, part_ptr, part_lse_ptr)),
            (accumulate, (1, line, ring, o_ptr, lse_ptr, part_ptr, part_lse_ptr)),
            (copy_latents, (line, ring, pages_desc, table_ptr, table_stride, PAGE)),
            (copy_queries, (line, queries, q_desc, cuts_ptr)),
        ],
        [4, 4, 1, 1],
        [ACCUMULATE_REGISTERS, ACCUMULATE_REGISTERS, COPY_REGISTERS, COPY_REGISTERS],
    )


@gluon.jit
def copy_latents(line, ring, pages_desc, table_ptr, table_stride, PAGE: gl.constexpr):
    """Start the copies of all tiles, in the order in which they are wanted.

    The ids of a tile's pages are asked for before the wait for its slot, so that nobody waits for them. Units beyond a
    sequence's end are fetched from behind the cache's: the copy engine writes zeros, and reads no memory.
    """
    UNIT: gl.constexpr = pages_desc.block_type.shape[0]
    UNITS: gl.constexpr = TILE // UNIT
    A_PAGE: gl.constexpr = PAGE // UNIT  # units in a page
    number = gl.arange(0, UNITS, gl.BlockedLayout([UNITS], [32], [1], [0]))
    i = 0
    for walk in range(2):
        at, s, along, left = line.walk(walk)
        while left > 0:
            entry = line.entry(s, along, left)
            if entry.rows > 0:
                table = table_ptr + gl.to_tensor(entry.s).to(gl.int64) * table_stride
                for tile in range(entry.tile, entry.tile + entry.take):
                    units = tile * UNITS + number
                    there = units * UNIT < entry.length
                    page = gl.load(table + units // A_PAGE, mask=there, other=0)
                    ring.fill(i, pages_desc, gl.where(there, (page * A_PAGE + units % A_PAGE) * UNIT, NOWHERE))
                    i += 1
            s = entry.s
            along = entry.along + entry.take
            left = left - entry.take


@gluon.jit
def copy_queries(line, queries, q_desc, cuts_ptr):
    """Start the copies of all entries' queries; and write down for `merge_kernel` which entry is cut.

    Rows of a copy that are not the entry's are somebody else's, and nothing comes of them. Of every run, one entry at
    most begins in it and goes on.
    """
    cut_row = 0
    cut_rows = 0
    cut_last = 0  # the last team that has a part
    number = 0
    for walk in range(2):
        at, s, along, left = line.walk(walk)
        while left > 0:
            entry = line.entry(s, along, left)
            if entry.rows > 0:
                queries.fill(number, q_desc, entry.row)
                number += 1
                if entry.tile == 0 and entry.take < entry.n:
                    cut_row, cut_rows, cut_last = entry.row, entry.rows, (at + entry.n - 1) // line.each
            s = entry.s
            along = entry.along + entry.take
            at = at + entry.take
            left = left - entry.take
    cut = cuts_ptr + line.program
    gl.store(cut, cut_row)
    gl.store(cut + gl.num_programs(0), cut_rows)
    gl.store(cut + 2 * gl.num_programs(0), cut_last)
