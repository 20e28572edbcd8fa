"""MLA decode in plain Triton: split-KV attention to latent vectors, and the merge.

Two things tell it from other decode kernels (`llmsys.attention.paged.split_kernels`). Keys and values are the same
numbers: a tile of c is read once, and is Kᵀ in the first product and V in the second. And all heads have the same keys,
so a row is a query token with one head, and many rows share what is read:

    S = scale · (Q_c Cᵀ + Q_r Rᵀ)      Q_c (M, LATENT), C (n, LATENT): latent vectors;   Q_r (M, ROPE), R (n, ROPE)
    O = softmax(S) C                   (M, LATENT): values that are still latent; Wᵛ turns them into values later

As there, all tiles of keys of all sequences form one line, which is cut into equal runs, one a program. The grid is the
number of programs that the GPU holds, and no length decides on it. Who has an entry alone writes its result. Where a
cut goes through one, both sides leave their parts, (o, lse), and the program in whose run it begins writes down whose
they are, in `cuts`. `merge_kernel` adds the parts up: lesson 02's merge.
"""

from llmsys.attention.paged.split_kernels import line_ends, line_place
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["S", "table_stride"])
def split_kernel(
    q_ptr, pages_ptr, o_ptr, lse_ptr, part_ptr, part_lse_ptr, cuts_ptr, starts_ptr, lengths_ptr, table_ptr,
    q_stride_n, q_stride_h, page_stride, slot_stride, table_stride, S, scale_log2,
    HEADS: tl.constexpr, LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, BLOCK_S: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One run of tiles: o (N, HEADS, LATENT) and lse (N, HEADS) of the entries that lie in it, and parts of the at most
    two that do not. The rest is `merge_kernel`'s.

    Grid: (P,). Part 2p is of an entry that began before program p's run, part 2p + 1 of one that goes on after it: part
    (2P, BLOCK_M, LATENT) and part_lse (2P, BLOCK_M), base two, fp32. cuts (3, P) int32: of the entry that begins in
    program p's run and goes on, the first row of o, how many rows, none where there is no such entry, and the last
    program that has a part. LATENT and ROPE are filled up with zeros to BLOCK_L and BLOCK_R.
    """
    program = tl.program_id(0)
    row = tl.arange(0, BLOCK_M)
    ends = line_ends(starts_ptr, lengths_ptr, S, 1, HEADS, 0, BLOCK_S, BLOCK_M, BLOCK_N)
    total = tl.max(ends, 0)
    each = tl.cdiv(total, tl.num_programs(0))
    at = tl.minimum(program * each, total)
    stop = tl.minimum(at + each, total)
    cut_rows = 0
    while at < stop:
        s, start, tokens, length, n, entry, tile = line_place(at, ends, starts_ptr, lengths_ptr, BLOCK_N)
        take = tl.minimum(n - tile, stop - at)
        query = entry * BLOCK_M + row  # the rows' numbers in the sequence
        rows = tl.minimum(tokens * HEADS - entry * BLOCK_M, BLOCK_M)
        q_at = q_ptr + (start + query // HEADS).to(tl.int64) * q_stride_n + query % HEADS * q_stride_h
        # The keys that a row sees: the sequence's last token sees all.
        seen = tl.minimum(length - tokens + query // HEADS + 1, length)
        o, lse = _attend(
            q_at, row < rows, seen, pages_ptr, table_ptr + s.to(tl.int64) * table_stride, page_stride, slot_stride,
            tile * BLOCK_N, tl.minimum((tile + take) * BLOCK_N, length), scale_log2,
            LATENT, ROPE, PAGE, BLOCK_M, BLOCK_N, BLOCK_L, BLOCK_R, PRECISION,
        )  # fmt: skip
        first = start * HEADS + entry * BLOCK_M
        if take == n:
            _store(o_ptr, lse_ptr, o, lse * 0.6931471805599453, first, row < rows, LATENT, BLOCK_M, BLOCK_L)  # ln 2
        else:
            part = 2 * program + (tile == 0)
            _store(part_ptr, part_lse_ptr, o, lse, part * BLOCK_M, row < rows, LATENT, BLOCK_M, BLOCK_L)
            if tile == 0:
                cut_rows = rows
                tl.store(cuts_ptr + program, first)
                tl.store(cuts_ptr + 2 * tl.num_programs(0) + program, (at + n - 1) // each)
        at += take
    tl.store(cuts_ptr + tl.num_programs(0) + program, cut_rows)


@triton.jit
def _attend(
    q_at, there, seen, pages_ptr, table_at, page_stride, slot_stride, begin, end, scale_log2,
    LATENT: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """o (BLOCK_M, BLOCK_L) and lse (BLOCK_M,), base two, of rows of q over a sequence's keys from `begin` to `end`."""
    latent = tl.arange(0, BLOCK_L)
    rope = tl.arange(0, BLOCK_R)
    q_c = tl.load(q_at[:, None] + latent[None, :], mask=there[:, None] & (latent < LATENT)[None, :], other=0.0)
    q_r = tl.load(q_at[:, None] + LATENT + rope[None, :], mask=there[:, None] & (rope < ROPE)[None, :], other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
    for key in range(begin, end, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        written = keys < end
        page = tl.load(table_at + keys // PAGE, mask=written, other=0).to(tl.int64)
        slot = pages_ptr + page * page_stride + (keys % PAGE).to(tl.int64) * slot_stride
        c = tl.load(slot[:, None] + latent[None, :], mask=written[:, None] & (latent < LATENT)[None, :], other=0.0)
        r = tl.load(slot[:, None] + LATENT + rope[None, :], mask=written[:, None] & (rope < ROPE)[None, :], other=0.0)
        s = tl.dot(q_c, c.T, input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        s = tl.dot(q_r, r.T, s, input_precision=PRECISION) * scale_log2
        s = tl.where(written[None, :] & (keys[None, :] < seen[:, None]), s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # nothing may have been seen yet, and −∞ − (−∞) is NaN
        p = tl.exp2(s - shift[:, None])
        shrink = tl.exp2(m - shift)
        l = l * shrink + tl.sum(p, 1)
        o = tl.dot(p.to(c.dtype), c, o * shrink[:, None], input_precision=PRECISION)
        m = m_new
    some = tl.where(l > 0, l, 1.0)
    return o / some[:, None], m + tl.log2(some)


@triton.jit
def _store(
    o_ptr, lse_ptr, o, lse, first, there, LATENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_L: tl.constexpr
):  # fmt: skip
    """o (…, LATENT) and lse to rows from `first` on, where `there` (BLOCK_M,) says so."""
    at = tl.cast(first, tl.int64) + tl.arange(0, BLOCK_M)
    latent = tl.arange(0, BLOCK_L)
    inside = there[:, None] & (latent < LATENT)[None, :]
    tl.store(o_ptr + at[:, None] * LATENT + latent[None, :], o.to(o_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + at, lse, mask=there)


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
        lse = (m + tl.log2(l)) * 0.6931471805599453  # ln 2: to natural logarithms
        _store(o_ptr, lse_ptr, o / l[:, None], lse, tl.program_id(0) * BLOCK_M, cut, LATENT, BLOCK_M, BLOCK_L)
    nobodys = (row >= tl.load(starts_ptr + S) * HEADS) & (row < N * HEADS)
    if tl.max(nobodys.to(tl.int32), 0) > 0:
        nothing = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
        never = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        _store(o_ptr, lse_ptr, nothing, never, tl.program_id(0) * BLOCK_M, nobodys, LATENT, BLOCK_M, BLOCK_L)
