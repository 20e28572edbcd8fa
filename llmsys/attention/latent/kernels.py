"""The kernel of latent attention over pages, in its absorbed form: every latent that is loaded is key and value.

A slot has L + R numbers: c, and behind it r. A tile of BLOCK_N slots is loaded as these two parts, neither of which
need be padded far (512 and 64 are powers of two, and 576 is not):

    s = q_c cᵀ + q_r rᵀ          (BLOCK_M, BLOCK_N)
    o = o · shrink + p c         (BLOCK_M, L): c once more, from where it is already

The walk over the pages, and how rows and keys are divided among programs, are those of `llmsys.attention.paged`: all
tiles of all sequences in a line, cut into equal runs, one a program; the parts of what was cut are added up by its
`merge_kernel`. There is one key head, and all G query heads of a token are rows of its tiles, so a chunk of a prompt
has many tiles of rows, and a decode step one or two.
"""

from llmsys.attention.paged.split_kernels import line_ends, line_place
from llmsys.attention.paged.walk import store_rows
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit(do_not_specialize=["S", "W", "table_stride"])
def latent_kernel(
    q_ptr, pages_ptr, o_ptr, lse_ptr, part_ptr, part_lse_ptr, starts_ptr, lengths_ptr, table_ptr, tree_ptr,
    q_stride_n, q_stride_h, stride_page, stride_slot, table_stride, S, W, scale_log2,
    G: tl.constexpr, L: tl.constexpr, R: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
    BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One run of tiles: o and lse of the units that lie in it, and the parts of the at most two that do not.

    Grid: (P,). q (N, G, L + R); pages (num_blocks, PAGE, L + R); o (N, G, L) and lse (N, G), contiguous. Parts, and
    what says whose the tokens are, as in `llmsys.attention.paged.split_kernels.split_kernel`.
    """
    program = tl.program_id(0)
    ends = line_ends(starts_ptr, lengths_ptr, S, 1, G, 0, BLOCK_S, BLOCK_M, BLOCK_N)
    total = tl.max(ends, 0)
    each = tl.cdiv(total, tl.num_programs(0))
    at = tl.minimum(program * each, total)
    stop = tl.minimum(at + each, total)
    l_ = tl.arange(0, BLOCK_L)
    r_ = tl.arange(0, BLOCK_R)
    while at < stop:
        s, start, Tq, length, n, unit, tile = line_place(at, ends, starts_ptr, lengths_ptr, BLOCK_N)
        first_row = unit * BLOCK_M
        take = tl.minimum(n - tile, stop - at)
        rows = first_row + tl.arange(0, BLOCK_M)
        query = rows // G
        head = rows % G
        there = query < Tq
        token = (start + query).to(tl.int64)
        q_at = q_ptr + (token * q_stride_n + head * q_stride_h)[:, None]
        q_c = tl.load(q_at + l_[None, :], mask=there[:, None] & (l_ < L)[None, :], other=0.0)
        q_r = tl.load(q_at + L + r_[None, :], mask=there[:, None] & (r_ < R)[None, :], other=0.0)
        in_tree = there
        if TREE:  # a token of a tree sees itself
            in_tree = tl.load(tree_ptr + token * W + query, mask=there & (query < W), other=0) != 0

        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l = tl.zeros((BLOCK_M,), tl.float32)
        o = tl.zeros((BLOCK_M, BLOCK_L), tl.float32)
        computed = length - Tq
        begin = tile * BLOCK_N
        last_query = tl.minimum((first_row + BLOCK_M - 1) // G, Tq - 1)
        seen = tl.minimum(tl.maximum(tl.minimum(last_query + 1 + computed, length), 0), (tile + take) * BLOCK_N)
        clear = first_row // G + 1 + computed  # keys before it are seen by every row
        if TREE:
            clear = computed
        clear = tl.minimum(tl.maximum(clear, 0), seen) // BLOCK_N * BLOCK_N
        clear = tl.maximum(clear, begin)
        table_at = table_ptr + s.to(tl.int64) * table_stride
        last_key = query + computed
        m, l, o = _walk(
            m, l, o, q_c, q_r, token, last_key, in_tree, pages_ptr, table_at, tree_ptr, stride_page, stride_slot,
            begin, clear, length, computed, W, scale_log2,
            L, R, PAGE, TREE, False, BLOCK_N, BLOCK_L, BLOCK_R, PRECISION,
        )  # fmt: skip
        m, l, o = _walk(
            m, l, o, q_c, q_r, token, last_key, in_tree, pages_ptr, table_at, tree_ptr, stride_page, stride_slot,
            clear, seen, length, computed, W, scale_log2,
            L, R, PAGE, TREE, True, BLOCK_N, BLOCK_L, BLOCK_R, PRECISION,
        )  # fmt: skip
        some = tl.where(l > 0, l, 1.0)  # a row without a key: o = 0 / 1
        o = o / some[:, None]
        lse = m + tl.log2(some)
        if take == n:
            store_rows(o_ptr, lse_ptr, o, lse, token, head, there, G, L, BLOCK_L)
        else:
            part = 2 * program + (tile == 0)
            row = part * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(part_ptr + row[:, None] * L + l_[None, :], o, mask=there[:, None] & (l_ < L)[None, :])
            tl.store(part_lse_ptr + row, lse, mask=there)
        at += take


@triton.jit
def _walk(
    m, l, o, q_c, q_r, token, last_key, in_tree, pages_ptr, table_at, tree_ptr, stride_page, stride_slot,
    begin, stop, length, computed, W, scale_log2,
    L: tl.constexpr, R: tl.constexpr, PAGE: tl.constexpr, TREE: tl.constexpr, MASKED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The state (m, l, o) after the keys from `begin` to `stop`, a tile of BLOCK_N at a time."""
    l_ = tl.arange(0, BLOCK_L)
    r_ = tl.arange(0, BLOCK_R)
    for key in range(begin, stop, BLOCK_N):
        keys = key + tl.arange(0, BLOCK_N)
        written = keys < length
        if MASKED:
            page = tl.load(table_at + keys // PAGE, mask=written, other=0).to(tl.int64)
        else:
            page = tl.load(table_at + keys // PAGE).to(tl.int64)
        slot = pages_ptr + page * stride_page + (keys % PAGE).to(tl.int64) * stride_slot
        c = _load(slot[:, None] + l_[None, :], (l_ < L)[None, :], written[:, None], L < BLOCK_L, MASKED)
        r = _load(slot[:, None] + L + r_[None, :], (r_ < R)[None, :], written[:, None], R < BLOCK_R, MASKED)
        s = tl.dot(q_r, tl.trans(r), input_precision=PRECISION)  # (BLOCK_M, BLOCK_N)
        s = tl.dot(q_c, tl.trans(c), s, input_precision=PRECISION)
        if MASKED:
            seen = written[None, :] & (keys[None, :] <= last_key[:, None])
            if TREE:
                own = keys - computed  # the number among the step's tokens, below 0 for those from before
                there = in_tree[:, None] & ((own >= 0) & (own < W))[None, :]
                related = tl.load(tree_ptr + token[:, None] * W + own[None, :], mask=there, other=0) != 0
                seen = seen & (related | (own < 0)[None, :] | (in_tree == 0)[:, None])
            s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1) * scale_log2)
        shift = m_new
        if MASKED:  # a row may have seen no key yet, and −∞ − (−∞) is NaN
            shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s * scale_log2 - shift[:, None])
        shrink = tl.exp2(m - shift)
        l = l * shrink + tl.sum(p, axis=1)
        o = o * shrink[:, None]
        o = tl.dot(p.to(c.dtype), c, o, input_precision=PRECISION)
        m = m_new
    return m, l, o


@triton.jit
def _load(at, inside, written, RAGGED_SLOT: tl.constexpr, RAGGED_KEYS: tl.constexpr):
    """A tile with zeros beyond a slot's part and the last key. Where nothing is ragged, there is no mask at all."""
    if RAGGED_SLOT or RAGGED_KEYS:
        return tl.load(at, mask=inside & written, other=0.0)
    else:
        return tl.load(at)
