"""Wrong kernels for 04.causal, edits of the library's."""

from llmsys.attention.one_head import one_head_kernel
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_04_flash_triton.kernel_mistakes.lines import (
    HIDDEN,
    K_TILE,
    PLAIN,
    SEEN,
    STOP,
    V_TILE,
    O,
    S,
)

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
    "stops_before_the_last_row", "Your loop ends before the keys that the program's last row sees.",
    (STOP, "stop = tl.minimum((tl.program_id(0) + 1) * BLOCK_N + Tk - Tq, Tk)"),
    why="That row is number (program_id + 1) · BLOCK_M − 1, whatever BLOCK_N is, and sees Tk − Tq keys more.",
)  # fmt: skip
wrong(
    "mask_turned_over", "Your mask is turned over: in s, rows go down and keys go across.",
    (SEEN, "keys[:, None] <= rows[None, :] + Tk - Tq"),
    why="s is (BLOCK_M, BLOCK_N): rows[:, None] is compared with keys[None, :].",
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
    "one_product_in_tf32", "One of your two products rounds float32 to tf32: it lacks input_precision=\"ieee\".",
    (O, O.replace(', input_precision="ieee"', "")),
    why="On a GPU that is tl.dot's default: ten bits of mantissa of 23. Both products must ask for all of them.",
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
