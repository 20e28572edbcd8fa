"""Wrong kernels for 04.inner_loop, edits of the library's."""

from llmsys.attention.one_head import one_head_kernel
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_04_flash_triton.kernel_mistakes.lines import (
    K_TILE,
    PLAIN,
    SHRINK_L,
    SHRINK_O,
    V_TILE,
    O,
    S,
)

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
    "neither_rescaled", "Neither l nor o shrinks when the maximum rises.",
    (SHRINK_L, "l = l + tl.sum(p, axis=1)"), (SHRINK_O, "o"),
    why="Both shrink by 2^(m − m_new), which is taken while m is still the old maximum.",
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
    "as_many_keys_as_queries", "Your loop ends at Tq, the number of queries.",
    ("range(0, stop, BLOCK_N)", "range(0, Tq, BLOCK_N)"), why="It runs over keys, and there are Tk of them.",
)  # fmt: skip
wrong(
    "maximum_of_the_tile", "Your m_new is the maximum of the tile, not of all scores so far.",
    ("m_new = tl.maximum(m, tl.max(s, axis=1))", "m_new = tl.max(s, axis=1)"), *PLAIN,
    why="Where the scores fall, 2^(m − m_new) has a positive exponent, and overflows. The maximum never falls.",
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
    "one_product_in_float32", "One of your two products multiplies float32: you turn half precision into it.",
    (O, O.replace("p.to(v.dtype), v", "p, v.to(tl.float32)")),
    why="Tensor cores multiply half precision. Leave q, k and v as they are, and turn P into v's type: p.to(v.dtype).",
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
    "one_product_in_tf32", "One of your two products rounds float32 to tf32: it lacks input_precision=\"ieee\".",
    (O, O.replace(', input_precision="ieee"', "")),
    why="On a GPU that is tl.dot's default: ten bits of mantissa of 23. Both products must ask for all of them.",
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
