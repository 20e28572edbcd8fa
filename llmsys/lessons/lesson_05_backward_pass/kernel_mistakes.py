"""Wrong Triton kernels for lesson 05: `one_loop_kernel`, in which a line or two read otherwise."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def one_loop_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_log2_ptr, delta_ptr, dk_ptr, dv_ptr,
    q_stride_b, q_stride_h, q_stride_t, k_stride_b, k_stride_h, k_stride_t,
    v_stride_b, v_stride_h, v_stride_t, do_stride_b, do_stride_h, do_stride_t,
    Hkv, Tq, Tk, scale, scale_log2,
    G: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr, CAUSAL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_DK: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`flash_dkdv_kernel` with one loop, which is what a first solution looks like."""
    b = tl.program_id(1) // Hkv
    h = tl.program_id(1) % Hkv
    first_key = tl.program_id(0) * BLOCK_N
    keys = first_key + tl.arange(0, BLOCK_N)
    key_exists = keys < Tk
    columns_k = tl.arange(0, BLOCK_DK)
    columns_v = tl.arange(0, BLOCK_DV)
    k_inside = key_exists[:, None] & (columns_k < DK)[None, :]
    v_inside = key_exists[:, None] & (columns_v < DV)[None, :]
    k_at = k_ptr + b * k_stride_b + h * k_stride_h + keys[:, None] * k_stride_t + columns_k[None, :]
    v_at = v_ptr + b * v_stride_b + h * v_stride_h + keys[:, None] * v_stride_t + columns_v[None, :]
    k = tl.load(k_at, mask=k_inside, other=0.0)
    v = tl.load(v_at, mask=v_inside, other=0.0)
    dk = tl.zeros((BLOCK_N, BLOCK_DK), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    start = 0
    if CAUSAL:
        start = tl.maximum(first_key - (Tk - Tq), 0) * G // BLOCK_M * BLOCK_M
    for row in range(start, G * Tq, BLOCK_M):
        rows = row + tl.arange(0, BLOCK_M)
        query = rows // G
        head = h * G + rows % G
        exists = rows < G * Tq
        q_at = q_ptr + b * q_stride_b + (head * q_stride_h + query * q_stride_t)[:, None] + columns_k[None, :]
        do_at = do_ptr + b * do_stride_b + (head * do_stride_h + query * do_stride_t)[:, None] + columns_v[None, :]
        q = tl.load(q_at, mask=exists[:, None] & (columns_k < DK)[None, :], other=0.0)
        do = tl.load(do_at, mask=exists[:, None] & (columns_v < DV)[None, :], other=0.0)
        at = (b * Hkv * G + head) * Tq + query
        lse_log2 = tl.load(lse_log2_ptr + at, mask=exists, other=float("inf"))
        delta = tl.load(delta_ptr + at, mask=exists, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        p = tl.exp2(s - lse_log2[:, None])
        if CAUSAL:
            p = tl.where(keys[None, :] <= (query + Tk - Tq)[:, None], p, 0.0)
        dv += tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)
    at = (tl.program_id(1) * Tk + keys)[:, None]
    tl.store(dk_ptr + at * DK + columns_k[None, :], (dk * scale).to(dk_ptr.dtype.element_ty), mask=k_inside)
    tl.store(dv_ptr + at * DV + columns_v[None, :], dv.to(dv_ptr.dtype.element_ty), mask=v_inside)


P = "p = tl.exp2(s - lse_log2[:, None])"
S = "s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2"
DS = "ds = p * (dp - delta[:, None])"
DV = "dv += tl.dot(tl.trans(p.to(do.dtype)), do, input_precision=PRECISION)"
DK = "dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision=PRECISION)"
DP = "dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)"
SEEN = "keys[None, :] <= (query + Tk - Tq)[:, None]"
START = "start = tl.maximum(first_key - (Tk - Tq), 0) * G // BLOCK_M * BLOCK_M"
HEAD = "head = h * G + rows % G"
EXISTS = "exists = rows < G * Tq"
Q_MASK = "mask=exists[:, None] & (columns_k < DK)[None, :], other=0.0)"
DO_MASK = "mask=exists[:, None] & (columns_v < DV)[None, :], other=0.0)"

wrong = Mistakes("05.dkdv_kernel", one_loop_kernel)

wrong(
    "exponential_of_e", "You use tl.exp, though the scores are in base two.", (P, P.replace("exp2", "exp")),
    why="scale_log2 contains log2(e), and lse_log2 is in base two: tl.exp2.",
)  # fmt: skip
wrong(
    "natural_scores", "You scale the scores by scale, not by scale_log2.", (S, S.replace("scale_log2", "scale")),
    why="lse_log2 is the log-sum-exp in base two, so the scores must be, too: q·k · scale · log2(e).",
)  # fmt: skip
wrong(
    "no_scale", "You do not scale the scores.", (S, S.replace("scale_log2", "1.4426950408889634")),
    why="lse_log2 was taken of scaled scores: multiply q·k by scale_log2.",
)  # fmt: skip
wrong(
    "lse_of_the_keys", "You subtract lse along the wrong axis of the scores.", (P, P.replace("[:, None]", "[None, :]")),
    why="It is a number for each query: lse_log2[:, None] where s is (BLOCK_M, BLOCK_N), [None, :] where it is s's "
    "transpose.",
)  # fmt: skip
wrong(
    "delta_of_the_keys", "You subtract delta along the wrong axis of dP.", (DS, DS.replace("[:, None]", "[None, :]")),
    why="It is a number for each query: delta[:, None] where dp is (BLOCK_M, BLOCK_N), [None, :] where it is dp's "
    "transpose.",
)  # fmt: skip
wrong(
    "p_not_transposed", "You multiply P by dO, and not Pᵀ.",
    (DV, "dv += tl.dot(p.to(do.dtype), do, input_precision=PRECISION)"),
    why="dV has a row for each key, and sums over queries: (BLOCK_N, BLOCK_M) times (BLOCK_M, BLOCK_DV).",
)  # fmt: skip
wrong(
    "ds_not_transposed", "You multiply dS by Q, and not dSᵀ.",
    (DK, "dk += tl.dot(ds.to(q.dtype), q, input_precision=PRECISION)"),
    why="dK has a row for each key, and sums over queries: (BLOCK_N, BLOCK_M) times (BLOCK_M, BLOCK_DK).",
)  # fmt: skip
wrong(
    "no_delta", "You leave delta out: dS = P ∘ dP.", (DS, "ds = p * dp"),
    why="A score also lowers all other weights of its row, through the denominator. That is what delta takes off.",
)  # fmt: skip
wrong(
    "scaled_twice", "You scale dS as well: dK has the scale twice.", (DS, DS + " * scale"),
    why="The skeleton multiplies dk by the scale before it is stored.",
)  # fmt: skip
wrong(
    "last_tile_only", "dk and dv hold the last tile of queries only.",
    (DV, DV.replace("+=", "=")), (DK, DK.replace("+=", "=")),
    why="They are sums over all queries: dv += …, dk += ….",
)  # fmt: skip
wrong(
    "half_precision_sums", "You sum dk and dv in the precision of the inputs.",
    (DV, DV + "\n        dv = dv.to(q.dtype).to(tl.float32)"),
    (DK, DK + "\n        dk = dk.to(q.dtype).to(tl.float32)"),
    why="tl.dot returns float32, and dk and dv are float32: add there, and round once, when they are stored.",
)  # fmt: skip
wrong(
    "rows_up_to_Tq", "You mask the rows at Tq, and there are G · Tq of them.", (EXISTS, "exists = rows < Tq"),
    why="A row is a query of one of G heads.",
)  # fmt: skip
wrong(
    "rows_not_masked", "You load rows that do not exist.", (EXISTS, "exists = rows >= 0"),
    why="The last tile of rows is rarely full: a row exists where rows < G · Tq.",
)  # fmt: skip
wrong(
    "columns_not_masked", "You do not mask the columns beyond the head's size.",
    (Q_MASK, "mask=exists[:, None], other=0.0)"), (DO_MASK, "mask=exists[:, None], other=0.0)"),
    why="BLOCK_DK and BLOCK_DV are the next powers of two: what is beyond DK and DV belongs to the next token.",
)  # fmt: skip
wrong(
    "heads_dealt_out", "Your query head h reads key head h % Hkv.", (HEAD, "head = h + Hkv * (rows % G)"),
    why="The G query heads of a key head are neighbours: h · G, h · G + 1, …: query head h reads key head h // G.",
)  # fmt: skip
wrong(
    "one_head_of_the_group", "You count heads as if there were no groups: head = h.", (HEAD, "head = h + rows * 0"),
    why="Each of the G query heads of key head h adds to its dk and dv: row r belongs to head h · G + r % G.",
)  # fmt: skip
wrong(
    "rows_of_lse", "You look lse and delta up without the sequence.",
    ("at = (b * Hkv * G + head) * Tq + query", "at = head * Tq + query"),
    why="They are (B, G · Hkv, Tq): a sequence further is Hkv · G · Tq numbers further.",
)  # fmt: skip
wrong(
    "sequences_of_lse", "You look lse and delta up as if a sequence had Hkv heads of queries.",
    ("at = (b * Hkv * G + head) * Tq + query", "at = (b * Hkv + head) * Tq + query"),
    why="They are (B, G · Hkv, Tq): a sequence further is Hkv · G · Tq numbers further.",
)  # fmt: skip
wrong(
    "strides_of_q_for_do", "You use q's strides for do.",
    ("do_ptr + b * do_stride_b + (head * do_stride_h + query * do_stride_t)[:, None]",
     "do_ptr + b * q_stride_b + (head * q_stride_h + query * q_stride_t)[:, None]"),
    why="do may have heads of another size, and lie elsewhere.",
)  # fmt: skip
wrong(
    "top_left", "Your mask is aligned top-left: query i sees the keys up to i.",
    (SEEN, "keys[None, :] <= query[:, None]"),
    why="The last query is the last token: query i sees the keys up to i + Tk − Tq.",
)  # fmt: skip
wrong(
    "not_itself", "Your mask hides a token from itself.", (SEEN, SEEN.replace("<=", "<")),
    why="Key i + Tk − Tq is the query's own token: ≤, not <.",
)  # fmt: skip
wrong(
    "rows_are_queries", "Your causal mask takes a row's number for its query's.", (SEEN, SEEN.replace("query", "rows")),
    why="With G heads in a tile, row r is query r // G: it sees the keys up to r // G + Tk − Tq.",
)  # fmt: skip
wrong(
    "not_masked", "You skip tiles, but do not mask inside the ones that remain.",
    (f"p = tl.where({SEEN}, p, 0.0)", "pass"),
    why="lse was taken of what the query saw. What it did not see has no weight: p is 0 there.",
)  # fmt: skip
wrong(
    "masked_by_multiplication", "You multiply p by the mask.",
    (f"p = tl.where({SEEN}, p, 0.0)", f"p = p * tl.where({SEEN}, 1.0, 0.0)"),
    why="2^(s − lse) can overflow for a key that is hidden, and ∞ · 0 is NaN. Select with tl.where.",
)  # fmt: skip
wrong(
    "no_skipping", "You load queries that see none of the tile's keys.", (START, "pass"),
    why="The first query that sees key j is j − (Tk − Tq): start at its tile.",
)  # fmt: skip
wrong(
    "starts_by_queries", "You start at the first query's number, and not at its first row's.",
    (START, START.replace(" * G", "")),
    why="Query i has the rows i · G to i · G + G − 1: multiply by G, or the loop begins with rows that see nothing.",
)  # fmt: skip
wrong(
    "begins_at_the_keys_number", "You begin with query j for key j.",
    (START, START.replace("first_key - (Tk - Tq)", "first_key")),
    why="The first query that sees key j is j − (Tk − Tq): with more keys than queries, that is an earlier one.",
)  # fmt: skip
wrong(
    "begins_with_the_last_key", "You start at the first query that sees the tile's last key.",
    (START, START.replace("first_key - (Tk - Tq)", "first_key + BLOCK_N - 1 - (Tk - Tq)")),
    why="The tile's first key is seen earlier: from query first_key − (Tk − Tq) on.",
)  # fmt: skip
wrong(
    "begins_a_tile_late", "You round the first row up to a tile, and not down.",
    (START, "start = (tl.maximum(first_key - (Tk - Tq), 0) * G + BLOCK_M - 1) // BLOCK_M * BLOCK_M"),
    why="The tile in which that row is counts: its last rows see the key. row // BLOCK_M · BLOCK_M is where it begins.",
)  # fmt: skip
wrong(
    "begins_on_the_other_side", "You start at query j + (Tk − Tq) for key j.",
    (START, START.replace("- (Tk - Tq)", "+ (Tk - Tq)")),
    why="Query i sees the keys up to i + (Tk − Tq). Solved for i, the difference is subtracted: j − (Tk − Tq).",
)  # fmt: skip
wrong(
    "begins_before_the_first_row", "Your loop may begin at a negative row.",
    (START, "start = (first_key - (Tk - Tq)) * G // BLOCK_M * BLOCK_M"),
    why="With more keys than queries, first_key − (Tk − Tq) may be negative: tl.maximum(…, 0).",
)  # fmt: skip
wrong(
    "loop_ends_at_Tq", "Your loop ends at Tq, and there are G · Tq rows.",
    ("for row in range(start, G * Tq, BLOCK_M):", "for row in range(start, Tq, BLOCK_M):"),
    why="All G heads of a group pass through one program.",
)  # fmt: skip
wrong(
    "heads_one_after_another", "You stack the rows head after head, and begin as if they were sorted by query.",
    ("query = rows // G", "query = rows % Tq"), (HEAD, "head = h * G + rows // Tq"),
    why="The sums do not care, but the loop's start does: only if row r is query r // G do early queries come first.",
)  # fmt: skip
wrong(
    "short_mantissas", "Your products round float32 to tf32: they lack input_precision=PRECISION.",
    *((each, each.replace(", input_precision=PRECISION", "")) for each in (S, DV, DP, DK)),
    why="On a GPU that is tl.dot's default: ten bits of mantissa of 23. The interpreter computes with all of them.",
)  # fmt: skip
wrong(
    "products_in_float32", "You turn P and dS, and what they are multiplied by, into float32.",
    (DV, DV.replace("p.to(do.dtype)), do", "p), do.to(tl.float32)")),
    (DK, DK.replace("ds.to(q.dtype)), q", "ds), q.to(tl.float32)")),
    why="Tensor cores multiply half precision: give P do's type and dS q's. tl.dot sums in float32 all the same.",
)  # fmt: skip
