"""The fused operations: what surrounds their kernels.

    h = add_norm(x, y, norm.weight, norm.eps)       x ← x + y, h = norm(x)        in place of nine launches
    a = swiglu(gate_up)                             silu(gate) · up               of two
    turn = step_rotation(positions, 64, …)          what `rotation` returns       of twelve

None of them waits for the device, and what is launched follows from shapes alone, so a CUDA graph may hold them. They
need a GPU, or Triton's interpreter; gradients they have none.
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention.paged.write import check_device
from llmsys.attention.rotary import Rotation, frequencies

WARPS_OF_A_ROW = ((1024, 4), (4096, 8))
"""Up to how many elements of a row a program of `add_norm` has how many warps; 16 beyond."""
SWIGLU_BLOCK, SWIGLU_WARPS = 1024, 4
"""Elements of a program."""


def add_norm(
    x: Float[Tensor, "*rows C"],
    y: Float[Tensor, "*rows C"] | None,
    weight: Float[Tensor, " C"],
    eps: float,
    *,
    kernel=None,
) -> Float[Tensor, "*rows C"]:
    """Add y to x, **in place**, and return h = x / √(mean(x²) + eps) · weight, in x's dtype.

    Parameters
    ----------
    x
        Contiguous.
    y
        None: x is not changed.
    kernel
        In place of `kernels.add_norm_kernel`, with its arguments.

    Raises
    ------
    ValueError
        Wrong shapes, or x is not contiguous: then it could not be changed in place.
    """
    C = x.shape[-1]
    if not x.is_contiguous():
        raise ValueError("x must be contiguous, for it is changed in place")
    if y is not None and y.shape != x.shape:
        raise ValueError(f"y must be {tuple(x.shape)} as x is, got {tuple(y.shape)}")
    if weight.shape != (C,):
        raise ValueError(f"weight must be ({C},), a number for each element of a row, got {tuple(weight.shape)}")
    if kernel is None:
        check_device(x)
        from llmsys.models.fused.kernels import add_norm_kernel as kernel  # Triton: not before now
    h = torch.empty_like(x)
    if x.numel():
        y = y if y is None else _rows(y)
        with torch.cuda.device_of(x):
            kernel[(x.numel() // C,)](
                x, y, weight.contiguous(), h, C if y is None else y.stride(0), eps, C=C, BLOCK=_up(C),
                num_warps=next((warps for most, warps in WARPS_OF_A_ROW if C <= most), 16),
            )  # fmt: skip
    return h


def swiglu(gate_up: Float[Tensor, "*rows I2"], *, kernel=None) -> Float[Tensor, "*rows I"]:
    """silu(gate) · up of rows that have both side by side, gate first. ValueError where their length is odd."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up must have as many elements for the gate as for up, got {gate_up.shape[-1]} in all")
    if kernel is None:
        check_device(gate_up)
        from llmsys.models.fused.kernels import swiglu_kernel as kernel  # Triton: not before now
    I = gate_up.shape[-1] // 2  # noqa: E741
    out = torch.empty(*gate_up.shape[:-1], I, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        rows = _rows(gate_up)
        with torch.cuda.device_of(out):
            kernel[(rows.shape[0], -(-I // SWIGLU_BLOCK))](
                rows, out, rows.stride(0), I, BLOCK=min(SWIGLU_BLOCK, _up(I)), num_warps=SWIGLU_WARPS
            )
    return out


def step_rotation(
    positions: Int[Tensor, "*B T"],
    size: int,
    *,
    base: float,
    divisors: tuple[float, ...] | None = None,
    dtype: torch.dtype,
    kernel=None,
) -> Rotation:
    """`rotation(positions, size, …)` in one launch, of pairs (i, i + R/2), for sizes that a model was made with.

    The frequencies are made once for a model; the positions are what a step brings.
    """
    made = _frequencies(size, base, divisors, positions.device)
    if kernel is None:
        check_device(made)
        from llmsys.models.fused.kernels import rotation_kernel as kernel  # Triton: not before now
    shape = positions.shape if positions.dim() == 1 else (positions.shape[0], 1, positions.shape[1])
    cos, sin = (torch.empty(*shape, size, dtype=dtype, device=positions.device) for _ in range(2))
    if positions.numel():
        with torch.cuda.device_of(made):
            kernel[(positions.numel(),)](
                positions.contiguous(), made, cos, sin, R=size, BLOCK=_up(size // 2), num_warps=1
            )
    return Rotation(cos, sin)


@functools.lru_cache(maxsize=64)
def _frequencies(size: int, base: float, divisors: tuple[float, ...] | None, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asked first: it shall be a tensor like any other
        return frequencies(size, base, divisors, device)


def _rows(x: Tensor) -> Tensor:
    """(N, C), the C adjacent: a view where x is contiguous, or a part of such a matrix."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def _up(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()
