"""Answers to 02.softmax_kernel. To import this module loads Triton. `RIGHT` and `WRONG` have a name for each."""

from llmsys.course.checking.mistakes import edited
from llmsys.hardware.tier import load_triton
from llmsys.lessons.lesson_02_online_softmax.kernel_mistakes import softmax_kernel

triton, tl = load_triton()


@triton.jit
def merged(m1, l1, m2, l2):
    m = tl.maximum(m1, m2)
    finite = tl.where(m == float("-inf"), 0.0, m)
    return m, l1 * tl.exp(m1 - finite) + l2 * tl.exp(m2 - finite)


@triton.jit
def by_a_reduction(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    """A tile's m and l are one reduction, by the merge."""
    x_row, y_row = x_ptr + tl.program_id(0) * x_row_stride, y_ptr + tl.program_id(0) * y_row_stride
    m = float("-inf")
    l = 0.0
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        m_tile, l_tile = tl.reduce((x, tl.where(cols < n_cols, 1.0, 0.0)), 0, merged)
        m, l = merged(m, l, m_tile, l_tile)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols).to(tl.float32)
        tl.store(y_row + cols, tl.exp(x - m) / l, mask=cols < n_cols)


@triton.jit
def pointers_that_walk(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    x_at = x_ptr + tl.program_id(0) * x_row_stride + lanes
    y_at = y_ptr + tl.program_id(0) * y_row_stride + lanes
    left = n_cols
    m = -3.4e38
    l = 0.0
    while left > 0:
        inside = lanes < left
        x = tl.where(inside, tl.load(x_at, mask=inside, other=0.0).to(tl.float32), float("-inf"))
        higher = tl.maximum(tl.max(x, axis=0), m)
        l = l * tl.exp2((m - higher) * 1.4426950408889634) + tl.sum(tl.exp2((x - higher) * 1.4426950408889634), axis=0)
        m = higher
        x_at += BLOCK
        left -= BLOCK
    x_at -= n_cols - left  # back to the first tile
    left = n_cols
    while left > 0:
        x = tl.load(x_at, mask=lanes < left, other=0.0).to(tl.float32)
        tl.store(y_at, tl.exp2((x - m) * 1.4426950408889634) * (1.0 / l), mask=lanes < left)
        x_at += BLOCK
        y_at += BLOCK
        left -= BLOCK


@triton.jit
def stays_with_the_last_tile(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    """The second loop goes backwards, and what was loaded last is stored first, from registers."""
    x_row, y_row = x_ptr + tl.program_id(0) * x_row_stride, y_ptr + tl.program_id(0) * y_row_stride
    last = (n_cols - 1) // BLOCK * BLOCK
    cols = tl.arange(0, BLOCK)
    m = float("-inf")
    l = 0.0
    for start in range(0, last, BLOCK):
        x = tl.load(x_row + start + cols).to(tl.float32)
        m_new = tl.maximum(m, tl.max(x, axis=0))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new), axis=0)
        m = m_new
    x = tl.load(x_row + last + cols, mask=last + cols < n_cols, other=float("-inf")).to(tl.float32)
    m_new = tl.maximum(m, tl.max(x, axis=0))
    l = l * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new), axis=0)
    tl.store(y_row + last + cols, tl.exp(x - m_new) / l, mask=last + cols < n_cols)
    for behind in range(BLOCK, last + BLOCK, BLOCK):
        x = tl.load(x_row + last - behind + cols).to(tl.float32)
        tl.store(y_row + last - behind + cols, tl.exp(x - m_new) / l)


def of(name, *changes):
    return edited(softmax_kernel, name, *changes)


COLS = "cols = start + tl.arange(0, BLOCK)"
LOAD = 'tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)'
M_NEW = "m_new = tl.maximum(m, tl.max(x, axis=0))"
L = "l = l * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new), axis=0)"
STORE = "tl.store(y_row + cols, tl.exp(x - m) / l, mask=cols < n_cols)"
M = '    m = float("-inf")\n'
LOOP = "for start in range(0, n_cols, BLOCK):"


RIGHT = {
    "what_the_mistakes_are_edits_of": softmax_kernel,
    "by_a_reduction": by_a_reduction,
    "pointers_that_walk": pointers_that_walk,
    "stays_with_the_last_tile": stays_with_the_last_tile,
} | {
    name: of(name, *changes)
    for name, changes in {
        "type_of_y_by_hand": [("tl.exp(x - m) / l,", "(tl.exp(x - m) / l).to(y_ptr.dtype.element_ty),")],
        "begins_with_the_least_number": [(M, "    m = -3.4028234e38\n")],
        "sums_in_float64": [
            ("tl.sum(tl.exp(x - m_new), axis=0)", "tl.sum(tl.exp(x - m_new).to(tl.float64)).to(tl.float32)")
        ],
        "lanes_beyond_the_end_by_where": [
            (LOAD, LOAD.replace('float("-inf")', "0.0"), 2),
            (M_NEW, f"x = tl.where(cols < n_cols, x, float('-inf'))\n        {M_NEW}"),
        ],
    }.items()
}  # fmt: skip

THIRD = f"""\
tl.store(y_row + cols, tl.exp(x - m), mask=cols < n_cols)
    {LOOP}
        {COLS}
        e = tl.load(y_row + cols, mask=cols < n_cols, other=0.0)
        tl.store(y_row + cols, e / l, mask=cols < n_cols)"""
ZEROS = f"""\
    {LOOP}
        {COLS}
        tl.store(y_row + cols, tl.zeros([BLOCK], tl.float32), mask=cols < n_cols)
"""

WRONG = {
    name: of(name, *changes)
    for name, changes in {
        "begins_at_a_thousand_million_below": [(M, "    m = -1e9\n")],
        "begins_at_ten_to_the_thirty_below": [(M, "    m = -1e30\n")],
        "lanes_of_a_thousand_million_below": [('other=float("-inf")', "other=-1e9", 2)],
        "lanes_of_ten_to_the_thirty_below": [('other=float("-inf")', "other=-1e30", 2)],
        "no_number_above_a_million": [(M_NEW, f"{M_NEW}\n        m_new = tl.minimum(m_new, 1e6)")],
        "tiles_of_sixteen": [("BLOCK)", "16)", 4)],
        "tiles_of_eight": [("BLOCK)", "8)", 4)],
        "tiles_twice_as_long": [("BLOCK)", "BLOCK * 2)", 4)],
        "tiles_half_as_long": [("BLOCK)", "BLOCK // 2)", 4)],
        "one_tile_more": [(LOOP, "for start in range(0, (n_cols // BLOCK + 1) * BLOCK, BLOCK):", 2)],
        "one_tile_less": [(LOOP, "for start in range(0, n_cols - BLOCK + 1, BLOCK):", 2)],
        "maximum_of_the_tile": [(M_NEW, "m_new = tl.max(x, axis=0)")],
        "terms_under_the_old_maximum": [(L, L.replace("exp(x - m_new)", "exp(x - m)"))],
        "factor_by_the_maximum_of_the_tile": [(L, L.replace("exp(m - m_new)", "exp(tl.max(x, axis=0) - m_new)"))],
        "factor_not_below_a_millionth": [("tl.exp(m - m_new)", "tl.maximum(tl.exp(m - m_new), 1e-6)")],
        "rescaled_after_the_sum": [(L, "l = (l + tl.sum(tl.exp(x - m_new), axis=0)) * tl.exp(m - m_new)")],
        "exponents_not_below_ten": [("tl.exp(x - m) / l", "tl.exp(tl.maximum(x - m, -10.0)) / l")],
        "x_in_half": [(".to(tl.float32)", ".to(tl.float16).to(tl.float32)", 2)],
        "weights_in_half": [("tl.exp(x - m) / l", "tl.exp(x - m).to(tl.float16).to(tl.float32) / l")],
        "terms_in_half": [("tl.exp(x - m_new), axis", "tl.exp(x - m_new).to(tl.float16).to(tl.float32), axis")],
        "loads_a_column_more": [("mask=cols < n_cols, other", "mask=cols <= n_cols, other", 2)],
        "stores_a_column_less": [("/ l, mask=cols < n_cols", "/ l, mask=cols < n_cols - 1")],
        "loads_up_to_the_next_row": [("mask=cols < n_cols, other", "mask=cols < x_row_stride, other", 2)],
        "stores_up_to_the_next_row": [("/ l, mask=cols < n_cols", "/ l, mask=cols < y_row_stride")],
        "strides_exchanged": [("x_ptr + row * x", "x_ptr + row * y"), ("y_ptr + row * y", "y_ptr + row * x")],
        "strides_in_bytes": [("row * x_row_stride", "row * x_row_stride * 4")],
        "one_row_for_all": [("x_ptr + row * x_row_stride", "x_ptr")],
        "divides_in_a_third_loop": [(STORE, THIRD)],
        "loads_a_tile_for_each_use": [(L, f"x = {LOAD}\n        {L}")],
        "stores_zeros_first": [(M, M + ZEROS)],
        "a_little_is_added": [("/ l,", "/ (l + 1e-3),")],
        "nothing_below_a_ten_thousandth": [("tl.exp(x - m) / l", "tl.where(x - m < -9.2, 0.0, tl.exp(x - m)) / l")],
        "in_base_two": [("tl.exp(x - m", "tl.exp2(x - m", 2), ("tl.exp(m", "tl.exp2(m")],
        "by_the_log_sum_exp": [("tl.exp(x - m) / l", "tl.exp(x - (m + tl.log(l)))")],
    }.items()
}  # fmt: skip
