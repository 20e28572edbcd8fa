"""Wrong Triton kernels for lesson 04: each is a right one, in which a line or two read otherwise.

Those with one head begin from the library's `one_head_kernel`, those of the last exercise from `grouped_kernel` below.
"""

from llmsys.attention.one_head import one_head_kernel
from llmsys.course.checking.mistakes import Mistakes
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def grouped_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t, o_stride_b, o_stride_h, o_stride_t,
    Hkv, Tq, Tk, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`flash_forward_kernel` with one loop, which is what a first solution looks like."""
    b = tl.program_id(1) // Hkv
    h = tl.program_id(1) % Hkv
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query = rows // G
    head = h * G + rows % G
    row_exists = rows < G * Tq
    dk = tl.arange(0, BLOCK_DK)
    dv = tl.arange(0, BLOCK_DV)
    q_at = q_ptr + b * q_stride_b + head[:, None] * q_stride_h + query[:, None] * q_stride_t + dk[None, :]
    q = tl.load(q_at, mask=row_exists[:, None] & (dk[None, :] < DK), other=0.0)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    last_key = query + Tk - Tq
    stop = Tk
    if CAUSAL:
        stop = tl.minimum((tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // G + 1 + Tk - Tq, Tk)
    for start in range(0, stop, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_at = k_ptr + b * k_stride_b + h * k_stride_h + keys[:, None] * k_stride_t + dk[None, :]
        k = tl.load(k_at, mask=(keys[:, None] < Tk) & (dk[None, :] < DK), other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        seen = keys[None, :] < Tk
        if CAUSAL:
            seen = seen & (keys[None, :] <= last_key[:, None])
        s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - shift[:, None])
        shrink = tl.exp2(m - shift)
        l = l * shrink + tl.sum(p, axis=1)
        v_at = v_ptr + b * v_stride_b + h * v_stride_h + keys[:, None] * v_stride_t + dv[None, :]
        v = tl.load(v_at, mask=(keys[:, None] < Tk) & (dv[None, :] < DV), other=0.0)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        m = m_new
    some = tl.where(l > 0, l, 1.0)
    o_at = o_ptr + b * o_stride_b + head[:, None] * o_stride_h + query[:, None] * o_stride_t + dv[None, :]
    tl.store(o_at, (o / some[:, None]).to(o_ptr.dtype.element_ty), mask=row_exists[:, None] & (dv[None, :] < DV))
    lse = (m + tl.log2(some)) * 0.6931471805599453
    tl.store(lse_ptr + (b * Hkv * G + head) * Tq + query, lse, mask=row_exists)


# As a first solution writes them: nothing guards a row without a key, so what is wrong shows as NaN, and not as 0.
PLAIN = (
    ('shift = tl.where(m_new == float("-inf"), 0.0, m_new)', "shift = m_new"),
    ("o = o / tl.where(l > 0, l, 1.0)[:, None]", "o = o / l[:, None]"),
)

# (a) the loop

SHRINK_O = "o * shrink[:, None]"
SHRINK_L = "l = l * shrink + tl.sum(p, axis=1)"
S = 's = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2'
O = 'o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")'
K_TILE = "k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)"
V_TILE = "v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)"

wrong = Mistakes("04.inner_loop", one_head_kernel)

wrong(
    "o_not_rescaled", "You do not rescale o when the maximum rises.", (SHRINK_O, "o"),
    why="o is a sum under the old maximum, as l is: both shrink by 2^(m − m_new).",
)  # fmt: skip
wrong(
    "l_not_rescaled", "You do not rescale l when the maximum rises.",
    (SHRINK_L, "l = l + tl.sum(p, axis=1)"),
    why="What was summed before was summed under the old maximum: l shrinks by 2^(m − m_new).",
)  # fmt: skip
wrong(
    "exponential_of_e", "You use tl.exp, though the scores are in base two.",
    ("p = tl.exp2(s - shift[:, None])", "p = tl.exp(s - shift[:, None])"),
    ("shrink = tl.exp2(m - shift)", "shrink = tl.exp(m - shift)"),
    why="scale_log2 contains log2(e), so 2^s is e^(scale · q·k) already: tl.exp2.",
)  # fmt: skip
wrong(
    "no_scale", "You do not scale the scores.",
    (S, 's = tl.dot(q, tl.trans(k), input_precision="ieee")'),
    why="The scale is part of scale_log2: multiply q·k by it, and use tl.exp2.",
)  # fmt: skip
wrong(
    "maximum_not_kept", "You do not keep the new maximum: m stays −∞.", ("        m = m_new\n", ""),
    why="Then 2^(m − m_new) is 0 in every tile, and only the last one counts. End the loop with m = m_new.",
)  # fmt: skip
wrong(
    "first_tile_again", "You load the first tile in every step.",
    ("keys = start + tl.arange(0, BLOCK_N)", "keys = tl.arange(0, BLOCK_N)"),
    why="The keys of the tile that begins at `start` are start + tl.arange(0, BLOCK_N).",
)  # fmt: skip
wrong(
    "one_maximum_for_all", "You take one maximum for the whole tile of queries.",
    ("tl.max(s, axis=1)", "tl.max(tl.max(s, axis=1), axis=0)"),
    why="Each row has its own: under another row's, all of its terms may vanish.",
)  # fmt: skip
wrong(
    "steps_of_D", "You step from token to token by D.",
    (K_TILE, K_TILE.replace("k_stride", "D")), (V_TILE, V_TILE.replace("v_stride", "D")),
    why="Tokens of one head may lie far apart: their distance is k_stride for k, v_stride for v.",
)  # fmt: skip
wrong(
    "two_passes", "You load k twice: once for the maximum, once for the sum.",
    ("    for start in range(0, stop, BLOCK_N):\n", """\
    for start in range(0, Tk, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)
        m = tl.maximum(m, tl.max(tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2, axis=1))
    for start in range(0, stop, BLOCK_N):
"""),
    why="That is safe softmax's way. With a running maximum one pass is enough.",
)  # fmt: skip
wrong(
    "second_product_in_float32", "You turn v into float32, and multiply P by that.",
    (O, O.replace("p.to(v.dtype), v", "p, v.to(tl.float32)")),
    why="Tensor cores multiply half precision: make P's type v's, with p.to(v.dtype), not v's type P's.",
)  # fmt: skip
wrong(
    "products_in_float32", "You turn q, k and v into float32 before you multiply them.",
    (S, S.replace("q, tl.trans(k)", "q.to(tl.float32), tl.trans(k.to(tl.float32))")),
    (O, O.replace("p.to(v.dtype), v", "p, v.to(tl.float32)")),
    why="tl.dot adds up in float32 whatever it multiplies; what it multiplies should stay as it was loaded.",
)  # fmt: skip
wrong(
    "rounds_scores_to_tf32", "Your products round float32 to tf32: they lack input_precision=\"ieee\".",
    (S, S.replace(', input_precision="ieee"', "")), (O, O.replace(', input_precision="ieee"', "")),
    why="On a GPU that is tl.dot's default: ten bits of mantissa of 23. The interpreter computes with all of them.",
)  # fmt: skip
wrong(
    "begins_at_zero", "Your running maximum begins at 0 instead of −∞.",
    ('m = tl.full((BLOCK_M,), float("-inf"), tl.float32)', "m = tl.zeros((BLOCK_M,), tl.float32)"), *PLAIN,
    why="In a row whose scores are all far below 0 it stays there: every term vanishes, and 0 / 0 is left.",
)  # fmt: skip
wrong(
    "o_in_the_type_of_v", "You keep o in v's type from tile to tile.",
    ("        m = m_new\n", "        o = o.to(v.dtype).to(tl.float32)\n        m = m_new\n"),
    why="In half precision, a sum of 16 takes in nothing that is less than 1/128. Round o once, when it is stored.",
)  # fmt: skip
wrong(
    "l_in_the_type_of_v", "You keep l in the inputs' type from tile to tile.",
    (SHRINK_L, "l = (l * shrink + tl.sum(p, axis=1)).to(q_ptr.dtype.element_ty).to(tl.float32)"),
    why="In half precision, a sum of 16 takes in nothing that is less than 1/128. l is part of the state: float32.",
)  # fmt: skip
wrong(
    "sixteen_keys", "You take 16 keys at a time, whatever BLOCK_N says.",
    ("range(0, stop, BLOCK_N)", "range(0, stop, 16)"),
    ("keys = start + tl.arange(0, BLOCK_N)", "keys = start + tl.arange(0, 16)"),
    why="How large a tile is, the launcher decides: BLOCK_N. Smaller products leave the tensor cores waiting.",
)  # fmt: skip
wrong(
    "first_maximum", "You take the first tile's maximum for all of them.",
    ("m_new = tl.maximum(m, tl.max(s, axis=1))", "m_new = tl.max(s, axis=1) if start == 0 else m"), *PLAIN,
    why="A later score may be above it by more than 2^ can hold: the sums are then infinite.",
)  # fmt: skip

# (b) causal

STOP = "stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk)"
SEEN = "keys[None, :] <= rows[:, None] + Tk - Tq"
HIDDEN = 's = tl.where(seen, s, float("-inf"))'

wrong = Mistakes("04.causal", one_head_kernel)

wrong(
    "aligned_at_the_beginning", "Your mask is aligned top-left: query i sees the keys up to i.",
    (SEEN, "keys[None, :] <= rows[:, None]"),
    why="The last query is the last token: query i is token i + Tk − Tq, and sees the keys up to there.",
)  # fmt: skip
wrong(
    "stops_too_early", "You stop without Tk − Tq: at the last query's number, not at its last key.",
    (STOP, "stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M, Tk)"),
    why="Query i sees the keys up to i + Tk − Tq, so the loop has to go on for Tk − Tq keys more.",
)  # fmt: skip
wrong(
    "not_itself", "Your mask hides a token from itself.",
    (SEEN, "keys[None, :] < rows[:, None] + Tk - Tq"), *PLAIN,
    why="Key i + Tk − Tq is the query's own token: ≤, not <.",
)  # fmt: skip
wrong(
    "skips_and_does_not_mask", "You skip the tiles beyond the diagonal, and do not mask the one on it.",
    ("seen = seen & (keys[None, :] <= rows[:, None] + Tk - Tq)", "pass"),
    why="In that tile each row sees a different number of keys.",
)  # fmt: skip
wrong(
    "skips_squares_only", "You skip tiles only where there are as many queries as keys.",
    (STOP, "stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + (Tk - Tq) * Tk, Tk)"),
    why="With a cache, the last row of a program sees Tk − Tq keys more, and not all of them.",
)  # fmt: skip
wrong(
    "masks_and_does_not_skip", "You mask the tiles that no query sees, but you still load them.",
    (STOP, "pass"), why="The result is right, and half of the work is wasted: end the loop after the last key seen.",
)  # fmt: skip
wrong(
    "hidden_scores_are_zero", "You set the hidden scores to 0.", (HIDDEN, "s = tl.where(seen, s, 0.0)"),
    why="2^(0 − m) is not 0: a hidden key would count. Its score must be −∞.",
)  # fmt: skip
wrong(
    "hidden_after_the_maximum", "You hide the keys only after the maximum has been taken.",
    (HIDDEN, "pass"), ("p = tl.exp2(s - shift[:, None])", "p = tl.where(seen, tl.exp2(s - shift[:, None]), 0.0)"),
    *PLAIN, why="The maximum may then be a hidden key's, under which all that is seen can vanish: 0 / 0.",
)  # fmt: skip
wrong(
    "loads_masked_and_not_skipped", "You do not load the tiles that no query sees, but multiply them.",
    ("    stop = Tk\n", "    stop = Tk\n    last = Tk\n"), (STOP, STOP.replace("stop =", "last =")),
    (K_TILE, K_TILE.replace("< Tk", "< last")), (V_TILE, V_TILE.replace("< Tk", "< last")),
    why="The loop still runs over all keys, and a product of zeros takes as long as any: end the loop.",
)  # fmt: skip
wrong(
    "rounds_to_tf32", "Your products round float32 to tf32: they lack input_precision=\"ieee\".",
    (S, S.replace(', input_precision="ieee"', "")), (O, O.replace(', input_precision="ieee"', "")),
    why="On a GPU that is tl.dot's default: ten bits of mantissa of 23. The interpreter computes with all of them.",
)  # fmt: skip
wrong(
    "large_and_negative", "You hide a score behind a large negative number instead of −∞.",
    (HIDDEN, "s = tl.where(seen, s, -1e4)"), why="Scores that are seen can be lower still. Nothing is lower than −∞.",
)  # fmt: skip
wrong(
    "always_causal", "Your kernel is causal even where CAUSAL is False.",
    ("    if CAUSAL:  # bottom-right: row i sees the keys up to i + Tk − Tq\n", "    if True:\n"),
    ("        if CAUSAL:\n", "        if True:\n"), why="CAUSAL is an argument: ask it, in both places.",
)  # fmt: skip
wrong(
    "strides_of_o", "You store o's tokens D apart.", ("o_ptr + rows[:, None] * o_stride", "o_ptr + rows[:, None] * D"),
    why="o lies as its launcher has made it: from token to token it is o_stride.",
)  # fmt: skip
wrong(
    "halves_turned_into_float32", "You turn q, k and v into float32 before you multiply them.",
    (S, S.replace("q, tl.trans(k)", "q.to(tl.float32), tl.trans(k.to(tl.float32))")),
    (O, O.replace("p.to(v.dtype), v", "p, v.to(tl.float32)")),
    why="tl.dot adds up in float32 whatever it multiplies; what it multiplies should stay as it was loaded.",
)  # fmt: skip
wrong(
    "mask_of_the_last_tile", "You mask the last tile of keys alone.",
    ("        if CAUSAL:\n", "        if CAUSAL and start + BLOCK_N >= stop:\n"),
    why="Where a tile of queries is longer than one of keys, the diagonal crosses two of them, or more.",
)  # fmt: skip

# Four repairs. The first of each is the kernel as it is found.

Q_TILE = "q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq, other=0.0)"
STORE = "o.to(o_ptr.dtype.element_ty), mask=rows[:, None] < Tq)"
Q_BARE = (Q_TILE, "q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :])")
STORE_BARE = (STORE, "o.to(o_ptr.dtype.element_ty))")
ROWS = "rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)"

wrong = Mistakes("04.repair_mask", one_head_kernel)

wrong(
    "mask_as_found", "Rows beyond the last query are still loaded and stored.", Q_BARE, STORE_BARE,
    why="The last program has BLOCK_M rows as all the others, but not all of them exist: mask=rows[:, None] < Tq.",
)  # fmt: skip
wrong(
    "only_the_load_is_masked", "You masked the load of q, and not the store of o.", STORE_BARE,
    why="A row that does not exist is then written into whatever lies behind o.",
)  # fmt: skip
wrong(
    "only_the_store_is_masked", "You masked the store of o, and not the load of q.", Q_BARE,
    why="The result is right, and the load may still touch a page that does not exist.",
)  # fmt: skip
wrong(
    "rows_moved_back", "You moved the last tile back until it fits: two programs store its rows.",
    (ROWS, "rows = tl.minimum(tl.program_id(0) * BLOCK_M, Tq - BLOCK_M) + tl.arange(0, BLOCK_M)"), Q_BARE, STORE_BARE,
    why="On a GPU that is a race; and with fewer queries than BLOCK_M, it leaves the tensor at its other end.",
)  # fmt: skip
wrong(
    "last_tile_left_out", "You leave the last tile out: the rows in it are never stored.",
    (Q_TILE, Q_TILE.replace("< Tq", "< Tq // BLOCK_M * BLOCK_M")),
    (STORE, STORE.replace("< Tq", "< Tq // BLOCK_M * BLOCK_M")),
    why="Some of its rows exist. Mask those that do not, one by one: mask=rows[:, None] < Tq.",
)  # fmt: skip
wrong(
    "one_row_more", "You store one row more than there are: the comparison has to be <, not <=.",
    (STORE, STORE.replace("< Tq", "<= Tq")), why="Rows are counted from 0: the last one is Tq − 1.",
)  # fmt: skip
wrong(
    "stride_of_q_for_o", "You use q's stride for o.",
    ("o_ptr + rows[:, None] * o_stride", "o_ptr + rows[:, None] * q_stride"),
    why="They are two tensors: q may be a slice of a wider one, and o lies as its launcher has made it.",
)  # fmt: skip
wrong(
    "ragged_tile_of_zeros", "You store zeros for a whole tile where some of its rows do not exist.",
    ("o = o / tl.where(l > 0, l, 1.0)[:, None]",
     "o = tl.where(tl.program_id(0) * BLOCK_M + BLOCK_M > Tq, 0.0, o / l[:, None])"),
    why="The other rows of the tile are queries like all others.",
)  # fmt: skip

BELOW_TK = "seen = keys[None, :] < Tk  # a key that does not exist has s = 0, and 2^0 is not 0"
wrong = Mistakes("04.repair_sum", one_head_kernel)

wrong(
    "sum_as_found", "Keys that do not exist still count in the sum.", (HIDDEN, "pass"),
    why="They were loaded as zeros, so their score is 0, and 2^(0 − m) is added to l. Their score must be −∞.",
)  # fmt: skip
wrong(
    "keys_of_minus_infinity", "You load −∞ for the keys that do not exist.",
    (HIDDEN, "pass"), (K_TILE, K_TILE.replace("other=0.0", 'other=float("-inf")')),
    why="q · (−∞) is +∞ wherever q is negative, and their sum is NaN. It is the score that has to be −∞, not the key.",
)  # fmt: skip
wrong(
    "a_large_negative_number", "You hide a score behind a large negative number instead of −∞.",
    (HIDDEN, "s = tl.where(seen, s, -1e4)"), why="Scores of a real key can be lower still. Nothing is lower than −∞.",
)  # fmt: skip
wrong(
    "after_the_maximum", "You take missing keys out of the sum, but they still set the maximum.",
    (HIDDEN, "pass"), ("p = tl.exp2(s - shift[:, None])", "p = tl.where(seen, tl.exp2(s - shift[:, None]), 0.0)"),
    *PLAIN, why="Their score 0 may be above all the others: then every term vanishes, and 0 / 0 is left.",
)  # fmt: skip
wrong(
    "subtracted_again", "You subtract one from l for each key that does not exist.",
    (HIDDEN, "pass"), (SHRINK_L, SHRINK_L + " - tl.sum(tl.where(keys < Tk, 0.0, 1.0), axis=0)"),
    why="Each of them added 2^(0 − m), which is 1 only where m is 0. Do not let them in at all.",
)  # fmt: skip
wrong(
    "keys_against_queries", "You compare the keys with the number of queries.",
    ("keys[None, :] < Tk", "keys[None, :] < Tq"),
    why="A key exists where it is below Tk; Tq is how many queries there are.",
)  # fmt: skip
wrong(
    "full_tiles_only", "You leave out the last tile of keys where it is not full.",
    ("range(0, stop, BLOCK_N)", "range(0, stop // BLOCK_N * BLOCK_N, BLOCK_N)"),
    why="Some of its keys exist, and they count as all others do.",
)  # fmt: skip
wrong(
    "one_key_more", "You let in one key more than there are: the comparison has to be <, not <=.",
    ("seen = keys[None, :] < Tk", "seen = keys[None, :] <= Tk"), why="Keys are counted from 0: the last one is Tk − 1.",
)  # fmt: skip
wrong(
    "last_tile_moved_back", "You move the last tile back until it fits: its first keys count twice.",
    ("keys = start + tl.arange(0, BLOCK_N)",
     "keys = tl.maximum(tl.minimum(start, Tk - BLOCK_N), 0) + tl.arange(0, BLOCK_N)"),
    why="They were in the tile before. Leave the tile where it is, and hide the keys that do not exist.",
)  # fmt: skip

TRANSPOSED = (S, 's = tl.dot(q, k, input_precision="ieee") * scale_log2')
K_MASK = "mask=keys[None, :] < Tk, other=0.0)"
wrong = Mistakes("04.repair_strides", one_head_kernel)

wrong(
    "strides_as_found", "The strides of k are still swapped.", TRANSPOSED,
    (K_TILE, f"k = tl.load(k_ptr + d[:, None] * k_stride + keys[None, :], {K_MASK}"),
    why="Key number n begins at n · k_stride, and its elements are adjacent: keys · k_stride + d.",
)  # fmt: skip
wrong(
    "neither_transposed", "You load k as (BLOCK_N, D) now, and multiply q by that, not by kᵀ.",
    TRANSPOSED, why="tl.dot(q, k) contracts D with D: k must be (D, BLOCK_N), by its strides or by tl.trans.",
)  # fmt: skip
wrong(
    "v_swapped_too", "You swapped the strides of v, too.",
    (V_TILE, "v = tl.load(v_ptr + keys[:, None] + d[None, :] * v_stride, mask=keys[:, None] < Tk, other=0.0)"),
    why="v's tile was right: (BLOCK_N, D), a token a row.",
)  # fmt: skip
wrong(
    "D_for_the_stride", "You step from key to key by D instead of k_stride.",
    (K_TILE, K_TILE.replace("k_stride", "D")), why="A head may be a slice of a wider matrix: tokens lie further apart.",
)  # fmt: skip
wrong(
    "stride_of_q", "You use q's stride for k.", (K_TILE, K_TILE.replace("k_stride", "q_stride")),
    why="Each tensor has its own stride.",
)  # fmt: skip
wrong(
    "queries_by_D", "You step from query to query by D instead of q_stride.", (Q_TILE, Q_TILE.replace("q_stride", "D")),
    why="q's tile was right: a head may be a slice of a wider matrix, and its tokens lie further apart.",
)  # fmt: skip
wrong(
    "stride_of_k_for_v", "You use k's stride for v.", (V_TILE, V_TILE.replace("v_stride", "k_stride")),
    why="Each tensor has its own stride.",
)  # fmt: skip
wrong(
    "reshaped", "You reshape k's tile instead of turning it over.",
    (S, S.replace("tl.trans(k)", "tl.reshape(k, (D, BLOCK_N))")),
    why="tl.reshape keeps the order in which the elements lie, and gives other rows. tl.trans exchanges dimensions.",
)  # fmt: skip
wrong(
    "stride_of_o", "You store o's tokens D apart.", ("o_ptr + rows[:, None] * o_stride", "o_ptr + rows[:, None] * D"),
    why="o lies as its launcher has made it: from token to token it is o_stride.",
)  # fmt: skip

SHIFT = 'shift = tl.where(m_new == float("-inf"), 0.0, m_new)'
DIVIDE = "o = o / tl.where(l > 0, l, 1.0)[:, None]"
wrong = Mistakes("04.repair_empty_row", one_head_kernel)

wrong(
    "empty_row_as_found", "A row without a key still gives NaN.",
    (SHIFT, "shift = m_new"), (DIVIDE, "o = o / l[:, None]"),
    why="−∞ − (−∞) in the loop, or 0 / 0 at the end, or both: neither is 0.",
)  # fmt: skip
wrong(
    "only_the_division", "You repaired the division; the exponent can still be −∞ − (−∞).",
    (SHIFT, "shift = m_new"),
    why="In a tile in which a row sees nothing, m_new is −∞ and so is s: subtract a finite number there.",
)  # fmt: skip
wrong(
    "finite_mask", "You hide scores behind a large negative number, not −∞.",
    (SHIFT, "shift = m_new"), (HIDDEN, "s = tl.where(seen, s, -1e30)"),
    why="If all scores are the same −10³⁰, so are all weights: o is the mean of values that the row must not see.",
)  # fmt: skip
wrong(
    "maximum_begins_at_zero", "Your running maximum begins at 0 instead of −∞.",
    ('m = tl.full((BLOCK_M,), float("-inf"), tl.float32)', "m = tl.zeros((BLOCK_M,), tl.float32)"),
    why="A row whose scores are all far below 0 never gets above it: every term vanishes, and o is 0.",
)  # fmt: skip
wrong(
    "every_nan_is_zero", "You turn NaN into 0, whatever made it.",
    (SHIFT, "shift = m_new"), (DIVIDE, "o = o / l[:, None]\n    o = tl.where(o == o, o, 0.0)"),
    why="That hides a NaN that came in with q, k or v as well, and you want to hear of it. Ask whether l == 0.",
)  # fmt: skip
wrong(
    "by_the_number_alone", "You set rows to 0 by their number, whether CAUSAL is true or not.",
    (SHIFT, "shift = m_new"), (DIVIDE, "o = tl.where((rows + Tk - Tq >= 0)[:, None], o / l[:, None], 0.0)"),
    why="Only a causal row can be without a key. Ask CAUSAL, or, simpler, l.",
)  # fmt: skip
wrong(
    "nothing_stored", "A program whose rows see nothing stores nothing.",
    ("    tl.store(o_ptr + rows", "    if stop > 0:\n        tl.store(o_ptr + rows"),
    why="Then o is what was in that memory before. A row without a key has a result, and it is 0.",
)  # fmt: skip
wrong(
    "beginning_too_high", "Your running maximum begins at a number that scores can be below.",
    ('m = tl.full((BLOCK_M,), float("-inf"), tl.float32)', "m = tl.full((BLOCK_M,), -10000.0, tl.float32)"),
    why="A row whose scores are all lower never gets down to them: every term vanishes, and o is 0.",
)  # fmt: skip
wrong(
    "rows_of_the_first_program", "You tell empty rows by their number in the tile.",
    (SHIFT, "shift = m_new"), (DIVIDE, """\
o = o / l[:, None]
    if CAUSAL:
        o = tl.where((tl.arange(0, BLOCK_M) + Tk - Tq >= 0)[:, None], o, 0.0)"""),
    why="In the second program, row 0 of the tile is row BLOCK_M of the sequence.",
)  # fmt: skip

# (c) the whole kernel

G_SEEN = "seen = seen & (keys[None, :] <= last_key[:, None])"
G_STOP = "stop = tl.minimum((tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // G + 1 + Tk - Tq, Tk)"
G_LSE = "lse = (m + tl.log2(some)) * 0.6931471805599453"

wrong = Mistakes("04.ragged_groups", grouped_kernel)

wrong(
    "lse_in_base_two", "Your log-sum-exp is in base two.", (G_LSE, "lse = m + tl.log2(some)"),
    why="m and l are. The contract asks for natural logarithms: multiply by ln 2.",
)  # fmt: skip
wrong(
    "natural_logarithm_of_l", "Your log-sum-exp adds m in base two to a natural logarithm of l.",
    (G_LSE, "lse = m + tl.log(some)"), why="lse = m · ln 2 + ln l, which is (m + log2 l) · ln 2.",
)  # fmt: skip
wrong(
    "heads_dealt_out", "Your query head h reads key head h % Hkv.",
    ("head = h * G + rows % G", "head = h + Hkv * (rows % G)"),
    why="The G query heads of a key head are neighbours: h · G, h · G + 1, …: query head h reads key head h // G.",
)  # fmt: skip
wrong(
    "sequences_and_heads_swapped", "You take the sequence from %, and the head from //.",
    ("b = tl.program_id(1) // Hkv", "b = tl.program_id(1) % Hkv"),
    ("h = tl.program_id(1) % Hkv", "h = tl.program_id(1) // Hkv"),
    why="Its key heads are numbered sequence by sequence: b = program_id(1) // Hkv, h = program_id(1) % Hkv.",
)  # fmt: skip
wrong(
    "rows_up_to_Tq", "You mask the rows at Tq, and there are G · Tq of them.",
    ("row_exists = rows < G * Tq", "row_exists = rows < Tq"), why="A row is a query of one of G heads.",
)  # fmt: skip
wrong(
    "rows_are_queries", "Your causal mask takes a row's number for its query's.",
    ("last_key = query + Tk - Tq", "last_key = rows + Tk - Tq"),
    why="With G heads in a tile, row r is query r // G: it sees the keys up to r // G + Tk − Tq.",
)  # fmt: skip
wrong(
    "top_left", "Your mask is aligned top-left: query i sees the keys up to i.",
    ("last_key = query + Tk - Tq", "last_key = query"),
    why="The last query is the last token: query i sees the keys up to i + Tk − Tq.",
)  # fmt: skip
wrong(
    "keys_leak", "Keys that do not exist count in the sum.",
    ("seen = keys[None, :] < Tk", "seen = keys[None, :] >= 0"),
    why="They were loaded as zeros, so their score is 0, and 2^(0 − m) is added to l. Their score must be −∞.",
)  # fmt: skip
wrong(
    "columns_not_masked", "You do not mask the columns beyond the head's size.",
    ("mask=row_exists[:, None] & (dk[None, :] < DK), other=0.0)", "mask=row_exists[:, None], other=0.0)"),
    ("mask=(keys[:, None] < Tk) & (dk[None, :] < DK), other=0.0)", "mask=keys[:, None] < Tk, other=0.0)"),
    ("mask=(keys[:, None] < Tk) & (dv[None, :] < DV), other=0.0)", "mask=keys[:, None] < Tk, other=0.0)"),
    ("mask=row_exists[:, None] & (dv[None, :] < DV))", "mask=row_exists[:, None])"),
    why="BLOCK_DK and BLOCK_DV are the next powers of two: what is beyond DK and DV belongs to the next token.",
)  # fmt: skip
wrong(
    "strides_of_k_for_v", "You use k's strides for v.",
    ("v_at = v_ptr + b * v_stride_b + h * v_stride_h + keys[:, None] * v_stride_t",
     "v_at = v_ptr + b * k_stride_b + h * k_stride_h + keys[:, None] * k_stride_t"),
    why="v may have heads of another size, and lie elsewhere.",
)  # fmt: skip
wrong(
    "empty_rows", "A row without a key gives NaN.",
    ('shift = tl.where(m_new == float("-inf"), 0.0, m_new)', "shift = m_new"), ("tl.where(l > 0, l, 1.0)", "l"),
    why="−∞ − (−∞) in the loop, 0 / 0 at the end, as in the fourth repair. lse is −∞ there: m + log2(1).",
)  # fmt: skip
wrong(
    "no_skipping", "You load tiles of keys that no row of the program sees.", (G_STOP, "pass"),
    why="The last row of the program is the last query of it: the loop can end after the keys that that one sees.",
)  # fmt: skip
wrong(
    "stops_by_rows", "You stop at the last row's number, and not at its query's.",
    (G_STOP, "stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk)"),
    why="G rows share a query: divide by G, or the loop runs on over tiles that nobody sees.",
)  # fmt: skip
wrong(
    "stops_at_the_floor", "Your loop may end a key early: you divide the end by G, not the row.",
    (G_STOP, "stop = tl.minimum((tl.program_id(0) * BLOCK_M + BLOCK_M) // G + Tk - Tq, Tk)"),
    why="Where G does not divide BLOCK_M, the last row's query is begun there: (last row) // G + 1, then Tk − Tq.",
)  # fmt: skip
wrong(
    "all_in_float32", "You turn q, k and v into float32 before you multiply them.",
    ("tl.dot(q, tl.trans(k), input_precision=PRECISION)",
     "tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32)), input_precision=PRECISION)"),
    ("tl.dot(p.to(v.dtype), v, input_precision=PRECISION)", "tl.dot(p, v.to(tl.float32), input_precision=PRECISION)"),
    why="tl.dot adds up in float32 whatever it multiplies; what it multiplies should stay as it was loaded.",
)  # fmt: skip
wrong(
    "short_mantissas", "Your products round float32 to tf32: they lack input_precision=PRECISION.",
    ("tl.dot(q, tl.trans(k), input_precision=PRECISION)", "tl.dot(q, tl.trans(k))"),
    ("tl.dot(p.to(v.dtype), v, input_precision=PRECISION)", "tl.dot(p.to(v.dtype), v)"),
    why="On a GPU that is tl.dot's default: ten bits of mantissa of 23. The interpreter computes with all of them.",
)  # fmt: skip
wrong(
    "empty_rows_by_the_row", "You tell empty rows by the row's number, and not by the query's.",
    ('shift = tl.where(m_new == float("-inf"), 0.0, m_new)', "shift = m_new"),
    ("    some = tl.where(l > 0, l, 1.0)\n", """\
    some = l
    if CAUSAL:
        empty = rows + Tk - Tq < 0
        o = tl.where(empty[:, None], 0.0, o)
        m = tl.where(empty, float("-inf"), m)
        some = tl.where(empty, 1.0, l)
"""),
    why="G rows share a query, and see what it sees: r // G, which is r only without groups.",
)  # fmt: skip
wrong(
    "strides_of_o", "You take o to be contiguous, and do not use its strides.",
    ("o_ptr + b * o_stride_b + head[:, None] * o_stride_h + query[:, None] * o_stride_t",
     "o_ptr + ((b * Hkv * G + head) * Tq + query)[:, None] * DV"),
    why="o may lie as (B, T, H, D), as a model's other tensors do. Only lse is always contiguous.",
)  # fmt: skip
wrong(
    "lse_in_the_type_of_o", "You round the log-sum-exp to o's type.",
    (G_LSE, G_LSE.replace("(m + tl.log2(some))", "(m + tl.log2(some)).to(o_ptr.dtype.element_ty)")),
    why="lse is float32 whatever the inputs are: a backward pass computes exponentials of it.",
)  # fmt: skip
wrong(
    "groups_of_powers_of_two", "You take the head of a row by a mask of bits.",
    ("head = h * G + rows % G", "head = h * G + (rows & (G - 1))"),
    why="That is the remainder for powers of two alone. G may be 3: rows % G.",
)  # fmt: skip
wrong(
    "lse_finite", "The log-sum-exp of a row without a key is a large negative number.",
    (G_LSE, G_LSE + "\n    lse = tl.maximum(lse, -1e30)"),
    why="It is ln 0 = −∞. Whoever merges results looks for −∞, and for nothing else.",
)  # fmt: skip
wrong(
    "o_in_half_precision", "You keep o in v's type from tile to tile.",
    ("        m = m_new\n", "        o = o.to(v.dtype).to(tl.float32)\n        m = m_new\n"),
    why="In half precision, a sum of 16 takes in nothing that is less than 1/128. Round o once, when it is stored.",
)  # fmt: skip
