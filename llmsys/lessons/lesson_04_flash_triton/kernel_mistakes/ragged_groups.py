"""Wrong kernels for 04.ragged_groups, edits of a right one, `grouped_kernel`."""

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
    "queries_by_the_row", "You look for a row's query at the row's number.",
    ("query[:, None] * q_stride_t", "rows[:, None] * q_stride_t"),
    why="Row r is query r // G of its head: query · q_stride_t.",
)  # fmt: skip
wrong(
    "key_head_divided", "You divide the key head by G.",
    ("h * k_stride_h", "h // G * k_stride_h"), ("h * v_stride_h", "h // G * v_stride_h"),
    why="h counts key heads already, program_id(1) % Hkv. It is a query head that is divided by G.",
)  # fmt: skip
wrong(
    "values_up_to_DK", "You mask v's columns at DK.",
    ("mask=(keys[:, None] < Tk) & (dv[None, :] < DV), other=0.0)",
     "mask=(keys[:, None] < Tk) & (dv[None, :] < DK), other=0.0)"),
    why="A value has DV elements; DK is the size of queries and keys.",
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
    "heads_below_each_other", "Your rows are one head below the other, not interleaved.",
    ("query = rows // G", "query = rows % Tq"), ("head = h * G + rows % G", "head = h * G + rows // Tq"),
    (G_STOP, "stop = tl.minimum(tl.max(query, axis=0) + 1 + Tk - Tq, Tk)"),
    why="The result is right, and some keys are loaded for nothing: a tile spans G times as many queries, and its loop "
        "goes on for the last of them. Row r is query r // G of head r % G.",
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
wrong(
    "always_in_full", "You multiply float32 in full, whatever PRECISION says.",
    ("input_precision=PRECISION", 'input_precision="ieee"', 2),
    why="Who launches the kernel may prefer tf32, which is many times as fast: pass PRECISION on to both products.",
)  # fmt: skip
wrong(
    "rounded_before_the_division", "You round o to its type before you divide it by l.",
    ("(o / some[:, None]).to(o_ptr.dtype.element_ty)", "o.to(o_ptr.dtype.element_ty) / some[:, None]"),
    why="Before the division it is a sum over all keys: above 65,504, half precision has infinity alone.",
)  # fmt: skip
