"""The safe softmax in three passes, as a Triton kernel: the peer that shows what online softmax saves.

It has the argument list of `llmsys.attention.row_softmax.softmax_kernel`, so `softmax_rows(x, kernel=…)` launches it.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def three_pass_kernel(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    """y[row, :] = softmax(x[row, :]): one loop for the maximum, one for the sum, one for the result."""
    row = tl.program_id(0).to(tl.int64)  # rows × stride may exceed 2³¹
    x_row = x_ptr + row * x_row_stride
    y_row = y_ptr + row * y_row_stride
    m = float("-inf")
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        m = tl.maximum(m, tl.max(x, axis=0))
    l = 0.0
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        l += tl.sum(tl.exp(x - m), axis=0)
    for start in range(0, n_cols, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        tl.store(y_row + cols, tl.exp(x - m) / l, mask=cols < n_cols)
