"""The paged decode kernel for Hopper, in Gluon: one copy that never stops, and little beside it.

A decode step reads every key and value once, and memory is the limit. So everything serves a steady stream of copies.
One program an SM has two roles:

- one warp is the *producer*: it walks down the program's run of the line (`line`), and sends the copy engine (TMA) for
  unit after unit, across heads and sequences without a stop, as far ahead as the ring has room (`ring`);
- one warpgroup is the *consumer*: products, softmax, and the parts of heads that other programs share (`consumer`).

What lies beside what: a cache of pages is rows of Hkv · D columns, one a slot. A *group* of heads has a row's columns
from h · D on. There are two ways to see it (TOGETHER). With 1, a row is a slot and a group is one key head, with its G
query heads. With Hkv, a row is a key of a head, those of a slot lie one after another, and there is a single group that
has all heads: each unit is then one piece of memory, and a query head masks out the keys of the other heads. That
multiplies the products and exponentials by Hkv, which there is time for where heads are few; and where they are small,
too, pieces of 128 bytes with gaps between them become pieces of 2 KB.

Only one program of this kind fits on an SM, and it must stay so: with more, in earlier trials, the GPU hung.
"""

from llmsys.attention.hopper.gluon import fence_async_shared, gl, gluon
from llmsys.attention.hopper.ring import new_ring
from llmsys.attention.paged.hopper.consumer import consume
from llmsys.attention.paged.hopper.line import ask, new_line
from llmsys.attention.paged.hopper.ring import new_page_ring

QUERIES = gl.constexpr(4)
"""Slots of the ring of queries: so many entries the producer can be ahead."""


@gluon.jit(do_not_specialize=["table_stride", "S", "N", "groups", "rows", "scale_log2"])
def paged_decode_kernel(
    q_desc, k_desc, v_desc, o_ptr, lse_ptr, part_ptr, part_lse_ptr, counters_ptr, starts_ptr, lengths_ptr, table_ptr,
    table_stride, S, N, groups, rows, scale_log2,
    HEADS: gl.constexpr, TOGETHER: gl.constexpr, PAGE: gl.constexpr, BLOCK_S: gl.constexpr, BLOCK_N: gl.constexpr,
    SLOTS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """o (N, groups · HEADS, D) and lse (N, groups · HEADS) of a step, contiguous; what is nobody's is 0 and −∞.

    Grid: (P,), at most one program an SM. Descriptors: of q (N, groups, HEADS, D) in tiles of (1, 1, M, D), where M is
    HEADS up to a power of two, 8 at least; of the pages (rows, groups · D) in tiles of (UNIT, 64). UNIT divides PAGE.
    part (2P, D, M) and part_lse (2P, M) fp32; counters (P,) int32, which are 0 before and after. Four warps are asked
    for: they are the consumer.
    """
    D: gl.constexpr = q_desc.block_type.shape[3]
    UNIT: gl.constexpr = k_desc.block_type.shape[0]
    M: gl.constexpr = q_desc.block_type.shape[2]
    tokens, length = ask(starts_ptr, lengths_ptr, S, BLOCK_S)  # on the way while the barriers are made
    queries = new_ring(q_desc, QUERIES, 1)
    pages = new_page_ring(k_desc, BLOCK_N, D, SLOTS)
    weights = gl.allocate_shared_memory(q_desc.dtype, [M, BLOCK_N], k_desc.layout)
    fence_async_shared()  # the copy engine, too, sees that the barriers have begun
    line = new_line(starts_ptr, lengths_ptr, tokens, length, S, groups, TOGETHER, UNIT)
    gl.warp_specialize(
        [
            (
                consume,
                (line, queries, pages, weights, o_ptr, lse_ptr, part_ptr, part_lse_ptr, counters_ptr, S, N, scale_log2,
                 HEADS),
            ),
            (produce, (line, queries, pages, q_desc, k_desc, v_desc, table_ptr, table_stride, rows, PAGE)),
        ],
        [1],
        [PRODUCER_REGISTERS],
    )  # fmt: skip


@gluon.jit
def produce(line, queries, pages, q_desc, k_desc, v_desc, table_ptr, table_stride, rows, PAGE: gl.constexpr):
    """The producer: start all copies, in the order in which the consumer wants the tiles.

    The ids of a tile's pages are asked for before the wait for its slot, so that nobody waits for them.
    """
    UNIT: gl.constexpr = k_desc.block_type.shape[0]
    UNITS: gl.constexpr = pages.keys.shape[1] // UNIT
    D: gl.constexpr = pages.keys.shape[2]
    A_PAGE: gl.constexpr = PAGE * line.TOGETHER // UNIT  # units in a page
    number = gl.arange(0, UNITS, gl.BlockedLayout([UNITS], [32], [1], [0]))
    entry = 0
    i = 0
    for walk in range(2):
        at, s, along, left = line.walk(walk)
        while left > 0:
            start, tokens, length, n = line.sequence(s)
            if along >= n * tokens * line.groups:
                s = s + 1
                along = 0
            else:
                r = along // n
                unit = along % n
                h = r % line.groups
                take = gl.minimum(n - unit, left)
                queries.fill(entry, q_desc, start + r // line.groups, h, 0)
                entry += 1
                end = gl.minimum(unit + take, (length * line.TOGETHER + UNIT - 1) // UNIT)
                table = table_ptr + gl.to_tensor(s).to(gl.int64) * table_stride
                for tile in range(unit, unit + take, UNITS):
                    units = tile + number
                    there = units < end
                    page = gl.load(table + units // A_PAGE, mask=there, other=0)
                    row = gl.where(there, (page * A_PAGE + units % A_PAGE) * UNIT, rows)  # or behind all rows
                    pages.fill(i, k_desc, v_desc, row, h * D)
                    i += 1
                along = along + take
                left = left - take
