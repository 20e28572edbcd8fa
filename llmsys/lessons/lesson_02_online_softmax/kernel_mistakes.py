"""Wrong Triton kernels for lesson 02, as people write them: a right one with an edit."""

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def softmax_kernel(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    """A right answer."""
    row = tl.program_id(0)
    x_row = x_ptr + row * x_row_stride
    y_row = y_ptr + row * y_row_stride
    m = float("-inf")
    l = 0.0
    for start in range(0, n_cols, BLOCK):  # m and l
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        m_new = tl.maximum(m, tl.max(x, axis=0))
        l = l * tl.exp(m - m_new) + tl.sum(tl.exp(x - m_new), axis=0)
        m = m_new
    for start in range(0, n_cols, BLOCK):  # y
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        tl.store(y_row + cols, tl.exp(x - m) / l, mask=cols < n_cols)


wrong = Mistakes("02.softmax_kernel", softmax_kernel)

wrong(
    "zeros_beyond_the_end",
    "Lanes beyond the end of the row load 0, and e^(0 − m) is counted in the sum.",
    ('other=float("-inf")', "other=0.0", 2),
    why="A masked lane gets `other`. For a maximum and a sum of exponentials, the number that does no harm is −∞.",
)
wrong(
    "no_other",
    "Your loads have a mask and no `other`: a lane beyond the end of the row gets whatever there is.",
    (', other=float("-inf")', "", 2),
    why="It takes part in the maximum and in the sum. −∞ does no harm to either.",
)
wrong(
    "no_mask",
    "Your loads and stores have no mask.",
    (', mask=cols < n_cols, other=float("-inf")', "", 2),
    (", mask=cols < n_cols", ""),
    why="The last tile reaches beyond the row: into the next row, and in the last row out of the tensor.",
)
wrong(
    "loads_without_a_mask",
    "The store is masked, but the loads are not.",
    (', mask=cols < n_cols, other=float("-inf")', "", 2),
    why="The last tile reaches beyond the row, and the next row's numbers join its maximum and its sum.",
)
store_without_a_mask = wrong(
    "store_without_a_mask",
    "The loads are masked, but the store is not.",
    ("/ l, mask=cols < n_cols", "/ l"),
    why="Lanes beyond the end of a row then write into the next row of y, and in the last row out of the tensor.",
)
wrong(
    "no_rescaling",
    "You do not rescale l when the maximum rises.",
    (" * tl.exp(m - m_new)", ""),
    why="What was summed before was summed under the old m: l * e^(m − m_new) before the new terms are added.",
)
wrong(
    "no_stride",
    "You find a row by n_cols instead of the row stride.",
    ("row * x_row_stride", "row * n_cols"),
    ("row * y_row_stride", "row * n_cols"),
    why="In a slice of a wider tensor the rows are further apart than they are long.",
)
wrong(
    "one_stride_for_both",
    "You use x's row stride for y as well.",
    ("row * y_row_stride", "row * x_row_stride"),
    why="They are two tensors: x may be a slice with gaps, and y has none.",
)
wrong(
    "first_tile_only",
    "Only the first tile of each row is read.",
    ("range(0, n_cols, BLOCK):  # m and l", "range(0, 1, BLOCK):"),
    why="A row may be longer than BLOCK: both loops go over range(0, n_cols, BLOCK).",
)

wrong(
    "maximum_begins_at_zero",
    "Your running maximum begins at 0 instead of −∞.",
    ('m = float("-inf")', "m = 0.0"),
    why="In a row whose logits are all far below 0 it stays there: every term vanishes, and 0 / 0 is left.",
)
wrong(
    "a_large_negative_number",
    "Lanes beyond the end of the row load a large negative number instead of −∞.",
    ('other=float("-inf")', "other=-10000.0", 2),
    why="Logits of a row can be lower still, and then that lane has the maximum. Nothing is lower than −∞.",
)
wrong(
    "sum_in_the_type_of_x",
    "You keep the sum l in the type of x.",
    ("+ tl.sum(tl.exp(x - m_new), axis=0)",
     "+ tl.sum(tl.exp(x - m_new), axis=0)\n        l = l.to(y_ptr.dtype.element_ty).to(tl.float32)"),
    why="Half precision has eleven bits: a sum of 16 takes in nothing that is less than 1/128. Keep l in float32.",
)  # fmt: skip
wrong(
    "rows_of_y_by_columns",
    "You find a row of y by n_cols instead of y's row stride.",
    ("row * y_row_stride", "row * n_cols"),
    why="y may be a slice of a wider tensor as well as x: its rows are y_row_stride apart.",
)
wrong(
    "base_two_before_the_difference",
    "You multiply x and m by log2(e) before you subtract them.",
    ("other=float(\"-inf\")).to(tl.float32)", "other=float(\"-inf\")).to(tl.float32) * 1.4426950408889634", 2),
    ("tl.exp(m - m_new)", "tl.exp2(m - m_new)"), ("tl.exp(x - m_new)", "tl.exp2(x - m_new)"),
    ("tl.exp(x - m) / l", "tl.exp2(x - m) / l"),
    why="Both products are rounded, and near −10,000 by more than the difference can bear. Subtract, then multiply.",
)  # fmt: skip
wrong(
    "maximum_of_the_first_tile",
    "You take the first tile's maximum for the whole row.",
    ("m_new = tl.maximum(m, tl.max(x, axis=0))", "m_new = tl.max(x, axis=0) if start == 0 else m"),
    why="A later tile may be above it by more than e^ can hold: the sum is then infinite.",
)


@misconception(
    "02.softmax_kernel",
    "You read the row three times: for m, for l, and for y.",
    why="Fold m and l in one loop: where m rises to m_new, l * e^(m − m_new) brings the sum so far under it.",
)
@triton.jit
def three_loops(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    m = float("-inf")
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_row_stride + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        m = tl.maximum(m, tl.max(x, axis=0))
    l = 0.0
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_row_stride + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        l += tl.sum(tl.exp(x - m), axis=0)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + row * x_row_stride + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        tl.store(y_ptr + row * y_row_stride + cols, tl.exp(x - m) / l, mask=cols < n_cols)
