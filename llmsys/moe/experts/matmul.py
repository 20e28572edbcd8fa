"""The grouped product: each row times the matrix of its expert.

    out = grouped_matmul(x, weight, groups)     out[r] = x[r] · weight[e]ᵀ,  e the expert of row r
    x (R, IN)   weight (E, OUT, IN)   ->   out (R, OUT), in x's dtype, added up in fp32

Its gradients are two more of the kind: dx[r] = dout[r] · weight[e] is the same kernel with the matrices' strides
exchanged, and dweight[e] = Σ dout[r]ᵀ x[r] over the rows of e. Experts without a row cost no program of the first
kernel that does anything, and get a gradient of zeros from the second.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmsys.attention.paged.write import check_device
from llmsys.moe.experts import hopper
from llmsys.moe.experts.groups import Groups

GROUP = 8
"""Tiles of rows that have the same columns of a matrix, one after another."""


@dataclass(frozen=True)
class Tiles:
    """The sizes of a product's tiles, beside the rows of one; and what Triton is asked for."""

    block_n: int  #  columns of the result
    block_k: int  #  of the inner dimension, at a time
    num_warps: int
    num_stages: int  # tiles that are loaded at the same time


TILES = {
    2: {16: Tiles(128, 128, 4, 3), 32: Tiles(128, 128, 4, 3), 64: Tiles(128, 64, 4, 4), 128: Tiles(128, 64, 8, 3)},
    4: {16: Tiles(64, 32, 4, 2), 32: Tiles(64, 32, 4, 2), 64: Tiles(64, 32, 4, 2), 128: Tiles(64, 32, 8, 2)},
}
"""By an element's bytes and a tile's rows. In half precision 64 rows and more use Hopper's products of four warps."""

GRADIENT = {2: (128, Tiles(128, 64, 8, 3)), 4: (64, Tiles(64, 32, 4, 2))}
"""The gradient of the matrices, by an element's bytes: rows of a matrix's tile (of OUT); its columns (of IN), and rows
of tokens at a time."""


def grouped_matmul(
    x: Float[Tensor, "R IN"],
    weight: Float[Tensor, "E OUT IN"],
    groups: Groups,
    *,
    tiles: Tiles | None = None,
    kernel=None,
) -> Float[Tensor, "R OUT"]:
    """out[r] = x[r] · weight[e]ᵀ. Rows that are nobody's are neither read nor written.

    Parameters
    ----------
    tiles
        By default TILES'.
    kernel
        In place of `matmul_kernels.grouped_matmul_kernel`, with its arguments; then the result has no gradient.

    Raises
    ------
    ValueError
        Shapes or types do not go together, or this is no place for a Triton kernel.
    """
    if x.dim() != 2 or len(x) != len(groups.order):
        raise ValueError(f"x must be ({len(groups.order)}, IN), the groups' rows, got {tuple(x.shape)}")
    if weight.dim() != 3 or len(weight) != groups.experts or weight.shape[2] != x.shape[1]:
        raise ValueError(
            f"weight must be ({groups.experts}, OUT, {x.shape[1]}), a matrix for each of the groups' experts, got "
            f"{tuple(weight.shape)}"
        )
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16) or weight.dtype != x.dtype:
        raise ValueError(
            f"x and weight must be float32, float16 or bfloat16, both the same, got {x.dtype} and {weight.dtype}"
        )
    if kernel is None and tiles is None:
        return _GroupedMatmul.apply(x, weight, groups)
    return _multiply(x, weight, groups, tiles, kernel)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, groups):
        ctx.save_for_backward(x, weight)
        ctx.groups = groups
        return _multiply(x, weight, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, weight = ctx.saved_tensors
        dx = _multiply(dout, weight.transpose(1, 2), ctx.groups) if ctx.needs_input_grad[0] else None
        dweight = weight_gradient(dout, x, ctx.groups) if ctx.needs_input_grad[1] else None
        return dx, dweight, None


def _multiply(x: Tensor, weight: Tensor, groups: Groups, tiles: Tiles | None = None, kernel=None) -> Tensor:
    on_hopper = kernel is None and tiles is None
    if kernel is None:
        check_device(x)
        from llmsys.moe.experts.matmul_kernels import grouped_matmul_kernel as kernel  # Triton: not before now
    E, OUT, IN = weight.shape
    x = x.contiguous()
    if on_hopper and len(x) and hopper.takes(x, weight, groups=groups):
        return hopper.multiply(x, weight, groups)
    out = x.new_empty(len(x), OUT)
    count = len(groups.tile_expert)
    if out.numel():
        tiles = tiles or TILES[x.element_size()][groups.block_m]
        with torch.cuda.device_of(x):
            kernel[(count * -(-OUT // tiles.block_n),)](
                x, weight, out, groups.starts, groups.tile_expert, groups.tile_row,
                x.stride(0), *weight.stride(), out.stride(0), OUT, IN, E, count,
                BLOCK_M=groups.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, GROUP=GROUP, PRECISION="ieee",
                num_warps=tiles.num_warps, num_stages=tiles.num_stages,
            )  # fmt: skip
    return out


def weight_gradient(
    dout: Float[Tensor, "R OUT"], x: Float[Tensor, "R IN"], groups: Groups, *, kernel=None
) -> Float[Tensor, "E OUT IN"]:
    """What `grouped_matmul`'s matrices get: Σ dout[r]ᵀ x[r] over each expert's rows."""
    dout, x = dout.contiguous(), x.contiguous()
    if kernel is None:
        check_device(x)
        if len(x) and hopper.takes(dout, x):
            return hopper.weight_gradient(dout, x, groups)
        from llmsys.moe.experts.matmul_kernels import weight_gradient_kernel as kernel  # Triton: not before now
    OUT, IN = dout.shape[1], x.shape[1]
    found = x.new_empty(groups.experts, OUT, IN)
    block_n, tiles = GRADIENT[x.element_size()]
    if found.numel():
        with torch.cuda.device_of(x):
            kernel[(-(-OUT // block_n) * -(-IN // tiles.block_n), groups.experts)](
                dout, x, found, groups.starts, OUT, IN, OUT, IN,
                BLOCK_N=block_n, BLOCK_K=tiles.block_n, BLOCK_R=tiles.block_k, PRECISION="ieee",
                num_warps=tiles.num_warps, num_stages=tiles.num_stages,
            )  # fmt: skip
    return found
