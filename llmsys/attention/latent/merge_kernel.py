"""The merge of what a split kernel has left, in Triton: lesson 02's, over the parts of all that was cut.

It knows neither lengths nor tiles, only `cuts`, in which each program that cut something has written down whose the
parts are. So it serves the kernel in Triton (`llmsys.attention.latent.kernels`) and the one for Hopper, whose programs
come in teams and whose runs are not quite equal. A row of o is a token with one head, as they lie one after another.

Nobody looks for what is theirs to do: program (p, b) has rows of what was cut at the end of program p's run, if there
is such a thing, and is done after one load if there is not. (Rows that look for their parts in all of `cuts` are slow:
a tile of rows times programs is held by every thread at once, in the layout that the sums want.)
"""

from llmsys.attention.paged.walk import store_rows
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()
from triton.language.extra.cuda import gdc_wait  # noqa: E402


@triton.jit(do_not_specialize=["S", "N"])
def merge_kernel(
    o_ptr, lse_ptr, part_ptr, part_lse_ptr, cuts_ptr, starts_ptr, S, N,
    HEADS: tl.constexpr, LATENT: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_L: tl.constexpr, PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Of the rows of o (N · HEADS, LATENT) and lse that were cut the sum of their parts, in the order of the runs; 0
    and −∞ for those that belong to no sequence.

    Grid: (P, ⌈rows of a part / BLOCK_M⌉), for the P programs that left the parts, in teams of MEMBERS, which share a
    run, with other rows of queries. Parts have ROWS rows, and PARTS of them are read at a time. EARLY: it may have been
    launched before the parts are there, and waits for the kernel that leaves them.
    """
    if EARLY:
        gdc_wait()
    program, P = tl.program_id(0), tl.num_programs(0)
    row_of_part = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    latent = tl.arange(0, BLOCK_L)
    rows = tl.load(cuts_ptr + P + program)
    nobodys = tl.load(starts_ptr + S) * HEADS  # the first row of no sequence
    if tl.program_id(1) * BLOCK_M < rows:
        mine = row_of_part < rows
        row = tl.load(cuts_ptr + program).to(tl.int64) + row_of_part
        last = tl.load(cuts_ptr + 2 * P + program)
        first = program // MEMBERS  # its own team has the first part
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l = tl.zeros((BLOCK_M,), tl.float32)
        o = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
        for some in range(first, last + 1, PARTS):
            team = some + tl.arange(0, PARTS)
            part = 2 * (team * MEMBERS + program % MEMBERS) + (team == first)
            at = part[:, None] * ROWS + row_of_part[None, :]  # (PARTS, BLOCK_M)
            there = (team <= last)[:, None] & mine[None, :]
            lse = tl.load(part_lse_ptr + at, mask=there, other=float("-inf"))
            inside = there[:, :, None] & (latent < LATENT)[None, None, :]
            its_o = tl.load(part_ptr + at[:, :, None] * LATENT + latent[None, None, :], mask=inside, other=0.0)
            m_new = tl.maximum(m, tl.max(lse, 0))
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
            weight = tl.exp2(lse - shift[None, :])
            shrink = tl.exp2(m - shift)
            l = l * shrink + tl.sum(weight, 0)
            o = o * shrink[:, None] + tl.sum(its_o * weight[:, :, None], 0)
            m = m_new
        l = tl.where(l > 0, l, 1.0)
        store_rows(o_ptr, lse_ptr, o / l[:, None], m + tl.log2(l), row, 0, mine, 1, LATENT, BLOCK_L)
    number = program * tl.num_programs(1) + tl.program_id(1)
    for row in range(nobodys + number, N * HEADS, P * tl.num_programs(1)):
        o_at = o_ptr + tl.cast(row, tl.int64) * LATENT + latent
        tl.store(o_at, tl.zeros((BLOCK_L,), o_ptr.dtype.element_ty), mask=latent < LATENT)
        tl.store(lse_ptr + row, float("-inf"))
