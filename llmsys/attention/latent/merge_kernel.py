"""The merge of what a split kernel has left, in Triton: lesson 02's, over the parts of all that was cut.

It knows neither lengths nor tiles, only `cuts`, in which each program that cut something has written down whose the
parts are. So it serves the kernel in Triton (`llmsys.attention.latent.kernels`) and the one for Hopper, whose programs
come in teams and whose runs are not quite equal. A row of o is a token with one head, as they lie one after another.
"""

from llmsys.attention.paged.walk import store_rows
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["P", "S", "N"])
def merge_kernel(
    o_ptr, lse_ptr, part_ptr, part_lse_ptr, cuts_ptr, starts_ptr, P, S, N,
    HEADS: tl.constexpr, LATENT: tl.constexpr, MEMBERS: tl.constexpr, ROWS: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows of o (N · HEADS, LATENT) and lse: of those that were cut, the sum of their parts, in the order of
    the runs; of those that belong to no sequence, 0 and −∞.

    Grid: (⌈N · HEADS / BLOCK_M⌉,). The P programs that left the parts came in teams of MEMBERS, which share a run, with
    other rows of queries. Parts have ROWS rows, and PARTS of them are read at a time.
    """
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    latent = tl.arange(0, BLOCK_L)
    each = tl.arange(0, BLOCK_P)
    first = tl.load(cuts_ptr + each, mask=each < P, other=0)
    rows = tl.load(cuts_ptr + P + each, mask=each < P, other=0)
    mine = (first[:, None] <= row[None, :]) & (row[None, :] < (first + rows)[:, None])
    program = tl.max(tl.where(mine, each[:, None], -1), 0)  # in whose run a row begins and goes on; −1: it is whole
    if tl.max(program, 0) >= 0:
        cut = program >= 0
        row_of_part = row - tl.load(cuts_ptr + program, mask=cut, other=0)
        last = tl.load(cuts_ptr + 2 * P + program, mask=cut, other=-1)
        team = program // MEMBERS
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l = tl.zeros((BLOCK_M,), tl.float32)
        o = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
        for some in range(0, tl.max(tl.where(cut, last - team, -1), 0) + 1, PARTS):
            its_team = team[None, :] + (some + tl.arange(0, PARTS))[:, None]  # (PARTS, BLOCK_M)
            part = 2 * (its_team * MEMBERS + (program % MEMBERS)[None, :]) + (its_team == team[None, :])
            at = part * ROWS + row_of_part[None, :]
            there = cut[None, :] & (its_team <= last[None, :])
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
        store_rows(o_ptr, lse_ptr, o / l[:, None], m + tl.log2(l), row.to(tl.int64), 0, cut, 1, LATENT, BLOCK_L)
    nobodys = (row >= tl.load(starts_ptr + S) * HEADS) & (row < N * HEADS)
    if tl.max(nobodys.to(tl.int32), 0) > 0:
        nothing = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
        never = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        store_rows(o_ptr, lse_ptr, nothing, never, row.to(tl.int64), 0, nobodys, 1, LATENT, BLOCK_L)
