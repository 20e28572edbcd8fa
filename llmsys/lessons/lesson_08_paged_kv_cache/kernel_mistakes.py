"""Wrong Triton kernels for 08.paged_walk, edits of the library's (`llmsys.course.checking.mistakes`)."""

from llmsys.attention.paged.one_token_kernel import one_token_kernel
from llmsys.course.checking.mistakes import Mistakes

wrong = Mistakes("08.paged_walk", one_token_kernel)

PAGE = "tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=written, other=0).to(tl.int64)"
K_TILE = "k = tl.load(k_ptr + k_at[:, None] + d[None, :], mask=there, other=0.0)"
V_TILE = "v = tl.load(v_ptr + v_at[:, None] + d[None, :], mask=there, other=0.0)"
K_AT = "k_at = page * k_stride_page + slot * k_stride_slot + head * k_stride_head"
V_AT = "v_at = page * v_stride_page + slot * v_stride_slot + head * v_stride_head"
HIDDEN = 's = tl.where(written[None, :], s, float("-inf"))'
S = 's = tl.dot(q, tl.trans(k), input_precision="ieee")'
PV = 'tl.dot(p.to(v.dtype), v, input_precision="ieee")'
TO_ITS_END = "keys < (length + PAGE - 1) // PAGE * PAGE"  # of the last page
SOME = "some = tl.where(l > 0, l, 1.0)"
LSE = "(m + tl.log2(some)) * 0.6931471805599453"

wrong(
    "no_table", "You do not look pages up: you take the number of a page in its sequence for its number in memory.",
    (PAGE, "(keys // PAGE).to(tl.int64)"),
    why="Page 2 of a sequence is wherever there was room: in page table[2] of the memory.",
)  # fmt: skip
wrong(
    "first_row_of_the_table", "All sequences read the table's first row.", ("sequence * table_stride + keys", "keys"),
    why="Sequence s has the row that begins at s · table_stride.",
)  # fmt: skip
wrong(
    "first_length", "All sequences have the length of the first one.",
    ("tl.load(lengths_ptr + sequence)", "tl.load(lengths_ptr)"), why="Each program loads its own sequence's.",
)  # fmt: skip
wrong(
    "one_page_for_a_tile", "You look up one page for all keys of a tile.",
    (PAGE, "tl.load(table_ptr + sequence * table_stride + start // PAGE).to(tl.int64) + tl.zeros_like(keys)"),
    why="A tile may span pages, and then its later keys are on another one: look up keys // PAGE, a tile of numbers.",
)  # fmt: skip
wrong(
    "pages_of_BLOCK_N", "You take BLOCK_N for the size of a page.",
    ("keys // PAGE", "keys // BLOCK_N"), ("keys % PAGE", "keys % BLOCK_N"),
    why="How many keys a tile has is the launcher's choice, how many slots a page has is the cache's.",
)  # fmt: skip
wrong(
    "slots_run_on", "You take the key's number in its sequence for its slot in the page.",
    ("slot = keys % PAGE", "slot = keys"), why="A page has PAGE slots, and each begins again at 0: j % PAGE.",
)  # fmt: skip
wrong(
    "table_not_masked", "You look up pages for keys that do not exist.",
    (PAGE, PAGE.replace("mask=written, other=0", "")),
    why="The table's row ends, and the last tile may go further: load where keys < length.",
)  # fmt: skip
wrong(
    "values_not_masked", "You load values of keys that do not exist.",
    (V_TILE, V_TILE.replace("mask=there", "mask=(d < D)[None, :]")),
    why="Their weight is 0, but slots that nobody has written may hold NaN, and 0 · NaN is NaN.",
)  # fmt: skip
wrong(
    "keys_not_masked", "You load keys that do not exist.",
    (K_TILE, K_TILE.replace("mask=there", "mask=(d < D)[None, :]")),
    why="Their scores are hidden afterwards, but what is read lies in a page that is nobody's: mask the load of k.",
)  # fmt: skip
wrong(
    "unwritten_keys_read", "You load keys from slots that nobody has written.",
    (K_TILE, K_TILE.replace("there", f"({TO_ITS_END})[:, None] & (d < D)[None, :]")),
    (PAGE, PAGE.replace("mask=written", f"mask={TO_ITS_END}")),
    why="Their scores are hidden, so nothing goes wrong but the time that it takes: mask the load of k as that of v.",
)  # fmt: skip
wrong(
    "keys_leak", "Keys that do not exist count in the sum.", (HIDDEN, "pass"),
    why="They were loaded as zeros, so their score is 0, and 2^(0 − m) is added to l. Their score must be −∞.",
)  # fmt: skip
wrong(
    "without_its_own_key", "You leave out the last key, which is the token's own.",
    ("length = tl.load(lengths_ptr + sequence)", "length = tl.maximum(tl.load(lengths_ptr + sequence) - 1, 0)"),
    why="The length counts it: a token sees itself.",
)  # fmt: skip
wrong(
    "first_head", "All programs of a sequence read key head 0.",
    (K_AT, K_AT.removesuffix(" + head * k_stride_head")), (V_AT, V_AT.removesuffix(" + head * v_stride_head")),
    why="A slot has all heads of its token. This program's begins head · k_stride_head further on, and v's likewise.",
)  # fmt: skip
wrong(
    "first_head_of_v", "All programs of a sequence read the values of key head 0.",
    (V_AT, V_AT.removesuffix(" + head * v_stride_head")),
    why="A slot has the values of all heads, too: this program's begin head · v_stride_head further on.",
)  # fmt: skip
wrong(
    "finite_for_minus_infinity", "You hide keys that do not exist by −10,000, and not by −∞.",
    (HIDDEN, HIDDEN.replace('float("-inf")', "-1.0e4")),
    why="Scores may be as low as that, or lower. Nothing is lower than −∞.",
)  # fmt: skip
wrong(
    "slots_of_one_head", "You step from slot to slot by D.",
    (K_AT, K_AT.replace("k_stride_slot", "D")), (V_AT, V_AT.replace("v_stride_slot", "D")),
    why="A slot has all key heads of its token, and may lie further from the next: k_stride_slot and v_stride_slot.",
)  # fmt: skip
wrong(
    "strides_of_k_for_v", "You use k's strides for v.", (V_AT, K_AT.replace("k_at", "v_at")),
    why="Values may be laid out in another way than keys: v has three strides of its own.",
)  # fmt: skip
wrong(
    "contiguous_pages", "You take pages, slots and heads to be contiguous, and do not use their strides.",
    (K_AT, "k_at = ((page * PAGE + slot) * tl.num_programs(1) + head) * D"),
    (V_AT, "v_at = ((page * PAGE + slot) * tl.num_programs(1) + head) * D"),
    why="They may be those of one layer of many. What is where, the strides say, and nothing else.",
)  # fmt: skip
wrong(
    "pages_in_32_bits", "You multiply the number of a page by its stride in 32 bits.",
    (PAGE, PAGE.removesuffix(".to(tl.int64)")),
    why="Beyond 2^31 elements the product wraps around, without an error. To widen it afterwards is too late: "
    "page.to(tl.int64) * stride.",
)  # fmt: skip
wrong(
    "columns_not_masked", "You do not mask k and v beyond the head's size.",
    ("there = written[:, None] & (d < D)[None, :]", "there = written[:, None] & (d >= 0)[None, :]"),
    why="BLOCK_D is a power of two. Columns from D on belong to the next head, or the next slot.",
)  # fmt: skip
wrong(
    "empty_sequences", "A sequence without a key gives NaN.", (SOME, "some = l"),
    why="Nothing was added to l, which is still 0: divide by 1 there. lse is then −∞ + log2(1).",
)  # fmt: skip
wrong(
    "lse_in_base_two", "Your log-sum-exp is in base two.", (LSE, "m + tl.log2(some)"),
    why="m and l are. The contract asks for natural logarithms: multiply by ln 2.",
)  # fmt: skip
wrong(
    "natural_logarithm_of_l", "Your log-sum-exp adds m in base two to a natural logarithm of l.",
    (LSE, "m + tl.log(some)"), why="lse = m · ln 2 + ln l, which is (m + log2 l) · ln 2.",
)  # fmt: skip
wrong(
    "lse_in_the_type_of_o", "You round the log-sum-exp to o's type.",
    (LSE, LSE.replace("(m + tl.log2(some))", "(m + tl.log2(some)).to(o_ptr.dtype.element_ty)")),
    why="lse is float32 whatever q is: whoever merges results computes exponentials of it.",
)  # fmt: skip
wrong(
    "lse_finite", "The log-sum-exp of a sequence without a key is a large negative number.",
    (LSE, f"tl.maximum({LSE}, -1e30)"),
    why="It is ln 0 = −∞. Whoever merges results looks for −∞, and for nothing else.",
)  # fmt: skip
wrong(
    "lse_of_all_rows", "You store a log-sum-exp for each of the BLOCK_G rows of the tile.", (", mask=g < G)", ")"),
    why="There are G: the other lanes write over the log-sum-exps of the next key head, or behind them all.",
)  # fmt: skip
wrong(
    "exponential_of_e", "You use tl.exp, though the scores are in base two.",
    ("p = tl.exp2(", "p = tl.exp("), ("shrink = tl.exp2(", "shrink = tl.exp("),
    why="scale_log2 contains log2(e), so 2^s is e^(scale · q·k) already: tl.exp2.",
)  # fmt: skip
wrong(
    "o_not_rescaled", "You do not rescale o when the maximum rises.", ("o * shrink[:, None]", "o"),
    why="o is a sum under the old maximum, as l is: both shrink by 2^(m − m_new).",
)  # fmt: skip
wrong(
    "l_not_rescaled", "You do not rescale l when the maximum rises.", ("l * shrink", "l"),
    why="What was summed before was summed under the old maximum: l shrinks by 2^(m − m_new).",
)  # fmt: skip
wrong(
    "all_in_float32", "You turn q, k and v into float32 before you multiply them.",
    (S, S.replace("q, tl.trans(k)", "q.to(tl.float32), tl.trans(k.to(tl.float32))")),
    (PV, PV.replace("p.to(v.dtype), v", "p, v.to(tl.float32)")),
    why="tl.dot adds up in float32 whatever it multiplies; what it multiplies should stay as it was loaded.",
)  # fmt: skip
wrong(
    "short_mantissas", "Your products round float32 to tf32: they lack input_precision=\"ieee\".",
    (S, S.replace(', input_precision="ieee"', "")), (PV, PV.replace(', input_precision="ieee"', "")),
    why="On a GPU that is tl.dot's default: ten bits of mantissa of 23. The interpreter computes with all of them.",
)  # fmt: skip
wrong(
    "o_in_half_precision", "You keep o in v's type from tile to tile.",
    ("        m = m_new\n", "        o = o.to(v.dtype).to(tl.float32)\n        m = m_new\n"),
    why="In half precision, a sum of 16 takes in nothing that is less than 1/128. Round o once, when it is stored.",
)  # fmt: skip
wrong(
    "rounded_before_the_division", "You round o to its type before you divide it by l.",
    ("(o / some[:, None]).to(o_ptr.dtype.element_ty)", "o.to(o_ptr.dtype.element_ty) / some[:, None]"),
    why="Before the division it is a sum over all keys: above 65,504, half precision has infinity alone.",
)  # fmt: skip
wrong(
    "sixteen_keys", "You take 16 keys at a time, whatever BLOCK_N says.",
    ("range(0, length, BLOCK_N)", "range(0, length, 16)"),
    ("keys = start + tl.arange(0, BLOCK_N)", "keys = start + tl.arange(0, 16)"),
    why="How large a tile is, the launcher decides: BLOCK_N. A small one leaves little on the way from memory.",
)  # fmt: skip
wrong(
    "two_passes", "You load k twice: once for the maximum, once for the sum.",
    ("    for start in range(0, length, BLOCK_N):\n", """\
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        written = keys < length
        page = tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=written, other=0).to(tl.int64)
        k_at = page * k_stride_page + keys % PAGE * k_stride_slot + head * k_stride_head
        k = tl.load(k_ptr + k_at[:, None] + d[None, :], mask=written[:, None] & (d < D)[None, :], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        m = tl.maximum(m, tl.max(tl.where(written[None, :], s, float("-inf")), axis=1))
    for start in range(0, length, BLOCK_N):
"""),
    why="That is safe softmax's way. With a running maximum one pass is enough, and reading K is all of the time.",
)  # fmt: skip
