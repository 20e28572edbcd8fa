"""Moving rows: to their experts (`permute`), through the gated SiLU, and back to their tokens (`unpermute`).

    rows = permute(x, groups)                 (R, C)     row r is the token of assignment order[r]
    a = gated_silu(gate_up, groups)           (R, I)     silu(gate) · up
    out = unpermute(rows, weights, groups)    (N, C)     Σ_j weights[n, j] · the row of assignment (n, j)

Triton kernels with gradients that are kernels, too: on a GPU, or in the interpreter. Rows that are nobody's
(`groups.starts[E]` on) are not touched, whatever lies there. Sums over a token's experts are taken in the order of its
experts, in fp32, and nothing is added up by atomics: the same input gives the same bits.

With `kernel=` another kernel with the same arguments is launched, and the result has no gradient.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmsys.attention.paged.write import check_device
from llmsys.moe.experts.groups import Groups

BLOCK, WARPS = 1024, 4
"""Elements of a row that a program has; and its warps, 8 elements a thread: 16 bytes in half precision."""


def permute(x: Float[Tensor, "N C"], groups: Groups, *, kernel=None) -> Float[Tensor, "R C"]:
    """Each token's vector, once for each of its experts, those of an expert together."""
    _check("x", x, len(groups.rows), "tokens")
    return _Permute.apply(x, groups) if kernel is None else _gather(x, None, groups, kernel)


def unpermute(
    rows: Float[Tensor, "R C"], weights: Float[Tensor, "N K"], groups: Groups, *, kernel=None
) -> Float[Tensor, "N C"]:
    """Each token's weighted sum over the rows of its experts, in `rows`' dtype; 0 for a token without one."""
    _check("rows", rows, len(groups.order), "rows")
    if weights.shape != groups.rows.shape or weights.dtype != torch.float32:
        raise ValueError(
            f"weights must be float32 {tuple(groups.rows.shape)}, one for each assignment, got {weights.dtype} "
            f"{tuple(weights.shape)}"
        )
    return _Unpermute.apply(rows, weights, groups) if kernel is None else _combine(rows, weights, groups, kernel)


def gated_silu(gate_up: Float[Tensor, "R I2"], groups: Groups, *, kernel=None) -> Float[Tensor, "R I"]:
    """silu(gate) · up of each row, which has both side by side, the gate first."""
    _check("gate_up", gate_up, len(groups.order), "rows")
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must have as many columns for the gate as for up, got {gate_up.shape[1]} in all")
    return _GatedSilu.apply(gate_up, groups) if kernel is None else _gated(gate_up, groups, kernel)


# With gradients


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, groups):
        ctx.groups = groups
        return _gather(x, None, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, drows):
        return _combine(drows, None, ctx.groups), None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weights, groups):
        ctx.save_for_backward(rows, weights)
        ctx.groups = groups
        return _combine(rows, weights, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        rows, weights = ctx.saved_tensors
        drows = _gather(dout, weights, ctx.groups) if ctx.needs_input_grad[0] else None
        dweights = weights_gradient(dout, rows, ctx.groups) if ctx.needs_input_grad[1] else None
        return drows, dweights, None


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up, groups):
        ctx.save_for_backward(gate_up)
        ctx.groups = groups
        return _gated(gate_up, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        (gate_up,) = ctx.saved_tensors
        return gated_silu_gradient(dout, gate_up, ctx.groups), None


# Launches


def _gather(x: Tensor, weights: Tensor | None, groups: Groups, kernel=None) -> Tensor:
    kernel = kernel or _kernels(x).gather_rows_kernel
    x, weights = x.contiguous(), weights if weights is None else weights.contiguous()
    R, C = len(groups.order), x.shape[1]
    rows = x.new_empty(R, C)
    if rows.numel():
        with torch.cuda.device_of(x):
            kernel[(R, -(-C // BLOCK))](
                x, groups.order, weights, rows, groups.starts, C, C, C, groups.experts, TOP=groups.top,
                BLOCK=block(C), num_warps=WARPS,
            )  # fmt: skip
    return rows


def _combine(rows: Tensor, weights: Tensor | None, groups: Groups, kernel=None) -> Tensor:
    kernel = kernel or _kernels(rows).combine_rows_kernel
    rows, weights = rows.contiguous(), weights if weights is None else weights.contiguous()
    N, C = len(groups.rows), rows.shape[1]
    out = rows.new_empty(N, C)
    if out.numel():
        with torch.cuda.device_of(rows):
            kernel[(N, -(-C // BLOCK))](
                rows, groups.rows, weights, out, C, C, C, TOP=groups.top, BLOCK=block(C), num_warps=WARPS
            )
    return out


def weights_gradient(
    dout: Float[Tensor, "N C"], rows: Float[Tensor, "R C"], groups: Groups, *, kernel=None
) -> Float[Tensor, "N K"]:
    """What `unpermute`'s weights get: the product of a token's gradient with each of its rows, fp32."""
    kernel = kernel or _kernels(rows).weights_gradient_kernel
    dout, rows, C = dout.contiguous(), rows.contiguous(), rows.shape[1]
    found = rows.new_empty(groups.rows.shape, dtype=torch.float32)
    if found.numel():
        with torch.cuda.device_of(rows):
            kernel[(found.numel(),)](
                dout, rows, groups.rows, found, C, C, C, TOP=groups.top, BLOCK=block(C), num_warps=WARPS
            )
    return found


def _gated(gate_up: Tensor, groups: Groups, kernel=None) -> Tensor:
    kernel = kernel or _kernels(gate_up).gated_silu_kernel
    R, I = len(gate_up), gate_up.shape[1] // 2  # noqa: E741
    gate_up = gate_up.contiguous()
    out = gate_up.new_empty(R, I)
    if out.numel():
        with torch.cuda.device_of(out):
            kernel[(R, -(-I // BLOCK))](gate_up, out, groups.starts, I, groups.experts, BLOCK=block(I), num_warps=WARPS)
    return out


def gated_silu_gradient(
    dout: Float[Tensor, "R I"], gate_up: Float[Tensor, "R I2"], groups: Groups, *, kernel=None
) -> Float[Tensor, "R I2"]:
    """What `gated_silu`'s argument gets."""
    kernel = kernel or _kernels(gate_up).gated_silu_gradient_kernel
    R, I = dout.shape  # noqa: E741
    dout, gate_up = dout.contiguous(), gate_up.contiguous()
    found = gate_up.new_empty(R, 2 * I)
    if found.numel():
        with torch.cuda.device_of(found):
            kernel[(R, -(-I // BLOCK))](
                dout, gate_up, found, groups.starts, I, groups.experts, BLOCK=block(I), num_warps=WARPS
            )
    return found


def block(size: int) -> int:
    """A power of two that holds a row of `size`, or BLOCK."""
    return min(BLOCK, 1 << max(size - 1, 0).bit_length())


def _kernels(x: Tensor):
    check_device(x)
    from llmsys.moe.experts import row_kernels  # Triton: not before now

    return row_kernels


def _check(name: str, x: Tensor, length: int, what: str) -> None:
    if x.dim() != 2 or len(x) != length:
        raise ValueError(f"{name} must be ({length}, …), a vector for each of the groups' {what}, got {tuple(x.shape)}")
