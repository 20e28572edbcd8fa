"""The course's first Triton kernel: a softmax of each row, two passes over it.

One program takes one row and walks over it in tiles of BLOCK columns. The first loop folds the tiles into (m, ℓ) with
equation (4) of lesson 02; inside a program both are single numbers. The second loop reads the row once more and writes
y; it goes backwards, because the tiles that were read last are the likeliest to be still in a cache. Lanes beyond the
end of the row load −∞, which changes neither a maximum nor, as e^(−∞ − m) = 0, a sum.

How fast it is depends on where the second pass finds the row. A row that fits in one tile is loaded into registers
twice, but the second time it comes out of the multiprocessor's L1 cache, so that the big memory sees one read and one
write, as for a copy. That is why the launcher takes a tile as long as the row while that fits in the registers of the
warps that it gives to a program (compare `softmax_warp_forward` and `cunn_SoftMaxForward` in PyTorch, which are two
kernels for the two cases). Milakov and Gimelshein, https://arxiv.org/abs/1805.02867, algorithm 3.
"""

import torch
from torch import Tensor

from llmsys.hardware.tier import interpreting, load_triton, triton_device

triton, tl = load_triton()

LARGEST_BLOCK = 32768  # columns in a tile: 32 warps hold it in registers, 32 columns a thread
MOST_COLUMNS = 2**31 - LARGEST_BLOCK  # the kernel counts columns in 32 bits, up to the end of the last tile


@triton.jit
def softmax_kernel(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK: tl.constexpr):
    """y[row, :] = softmax(x[row, :]) for the row of this program; strides in elements. A row of −∞ gives zeros."""
    row = tl.program_id(0).to(tl.int64)  # rows × stride may exceed 2³¹
    x_row = x_ptr + row * x_row_stride
    y_row = y_ptr + row * y_row_stride
    m = float("-inf")
    l = 0.0
    for start in range(0, n_cols, BLOCK):  # pass 1: m and l
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)  # (BLOCK,)
        m_new = tl.maximum(m, tl.max(x, axis=0))
        finite = tl.where(m_new == float("-inf"), 0.0, m_new)  # −∞ − (−∞) would be NaN
        l = l * tl.exp(m - finite) + tl.sum(tl.exp(x - finite), axis=0)
        m = m_new
    finite = tl.where(m == float("-inf"), 0.0, m)
    scale = 1.0 / tl.where(l > 0, l, 1.0)
    last = (n_cols - 1) // BLOCK * BLOCK
    for behind in range(0, n_cols, BLOCK):  # pass 2: y, from the last tile to the first
        cols = last - behind + tl.arange(0, BLOCK)
        x = tl.load(x_row + cols, mask=cols < n_cols, other=float("-inf")).to(tl.float32)
        tl.store(y_row + cols, tl.exp(x - finite) * scale, mask=cols < n_cols)


def softmax_rows(x: Tensor, *, kernel=softmax_kernel, block: int | None = None, num_warps: int | None = None) -> Tensor:
    """Softmax of x (..., N) over its last dimension, by a Triton kernel: ours, or one with the same arguments.

    Parameters
    ----------
    x
        float32 or float16, or bfloat16 where the kernel is compiled; on the device that Triton runs on
        (`llmsys.hardware.tier.triton_device`). Rows may have any stride; they are copied only if their elements are
        not adjacent, or the leading dimensions do not have one common stride.
    kernel
        `(x_ptr, y_ptr, x_row_stride, y_row_stride, n_cols, BLOCK)`: one program a row.
    block, num_warps
        The columns in a tile, a power of two, and the warps in a program. By default as many as the row needs.

    Raises
    ------
    ValueError
        Wrong dtype, device or block; the message says what was expected.
    """
    _check(x, block)
    n_cols = x.shape[-1]
    rows = x if x.dim() == 2 else x.reshape(-1, n_cols)  # (rows, N); a view wherever the strides allow it
    if n_cols > 1 and rows.stride(1) != 1:
        rows = rows.contiguous()
    y = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        block = block or min(triton.next_power_of_2(n_cols), LARGEST_BLOCK)
        warps = num_warps or min(max(block * x.element_size() // 1024, 1), 32)  # 32 bytes a thread: a sweep on an H100
        kernel[(rows.shape[0],)](rows, y, rows.stride(0), y.stride(0), n_cols, BLOCK=block, num_warps=warps)
    return y.view(x.shape)


def _check(x: Tensor, block: int | None) -> None:
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise ValueError(f"x must be a tensor of at least one dimension, got {x!r}")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"x must be float32, float16 or bfloat16, got {x.dtype}")
    if x.dtype == torch.bfloat16 and interpreting():
        raise ValueError(
            "x is bfloat16, which Triton's interpreter silently gets wrong (it adds the raw bits): "
            "use float32 or float16 here, and bfloat16 on a GPU"
        )
    if x.device.type != triton_device().type:
        raise ValueError(
            f"x must be on {triton_device().type!r}, where Triton runs in this process, got {str(x.device)!r}"
        )
    if x.shape[-1] > MOST_COLUMNS:
        raise ValueError(f"x must have at most 2^31 − {LARGEST_BLOCK} columns, counted in 32 bits, got {x.shape[-1]}")
    if block is not None and (block < 1 or block & (block - 1)):
        raise ValueError(f"block must be a power of two (tl.arange wants that), got {block}")
