"""Wrong kernels for the four repairs of lesson 04, edits of the library's. The first of each is the one as found."""

from llmsys.attention.one_head import one_head_kernel
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_04_flash_triton.kernel_mistakes.lines import (
    DIVIDE,
    HIDDEN,
    K_MASK,
    K_TILE,
    PLAIN,
    Q_BARE,
    Q_TILE,
    ROWS,
    SHIFT,
    SHRINK_L,
    STORE,
    STORE_BARE,
    TRANSPOSED,
    V_TILE,
    S,
)

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
wrong(
    "every_zero_is_hidden", "You hide every score that is 0.",
    (HIDDEN, 's = tl.where(s == 0.0, float("-inf"), s)'),
    why="A key that exists may have the score 0, too, and then it counts. Ask for its number: keys < Tk.",
)  # fmt: skip

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
