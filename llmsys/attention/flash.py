"""Stage 4, flash: tiled attention as one Triton kernel, for any GPU that Triton knows, and for the interpreter.

The kernel is `flash_kernels.flash_forward_kernel`; this is what surrounds it: the contract, the choice of tiles, the
launch, and a custom operator of torch, so that `torch.compile` takes it as it is. A kernel of one's own with the same
arguments goes the same way, with `flash_attention(…, kernel=mine)`.

Half-precision inputs are multiplied on the tensor cores and summed in fp32. float32 is multiplied in full precision;
`precision="tf32"` trades 13 bits of mantissa for the tensor cores. In the interpreter bf16 is refused: it adds raw bits
there.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments

LARGEST_HEAD = 256
LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class TileConfig:
    """How the kernel is cut: rows of a query tile, keys of a K tile, warps a program, and tiles in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def flash_attention(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
    precision: str = "ieee",
    tiles: TileConfig | None = None,
    kernel=None,
) -> Float[Tensor, "B Hq Tq Dv"] | tuple[Float[Tensor, "B Hq Tq Dv"], Float[Tensor, "B Hq Tq"]]:
    """FlashAttention's forward. The contract is `llmsys.attention.contract`'s, for fp32, fp16, bf16, heads up to 256.

    Parameters
    ----------
    precision
        Of products of float32: "ieee" for all of it, "tf32" for the tensor cores.
    tiles
        How to cut it; by default what `tiles_for` says.
    kernel
        A Triton kernel with the arguments of `flash_kernels.flash_forward_kernel`, in its place.
    """
    scale = check_arguments(q, k, v, scale=scale)
    if precision not in ("ieee", "tf32"):
        raise ValueError(f'precision must be "ieee" or "tf32", got {precision!r}')
    _check_supported(q, v)
    if kernel is None and tiles is None:
        o, lse = flash_forward(q, k, v, causal, scale, precision)
    else:
        o, lse = launch(q, k, v, causal, scale, precision, tiles, kernel)
    return (o, lse) if return_lse else o


def tiles_for(D: int, itemsize: int, rows: int) -> TileConfig:
    """The tiles for heads of D (the larger of Dk and Dv), elements of `itemsize` bytes, and so many rows of queries.

    Measured on an H100 (`python -m llmsys.bench attention`); on other devices they are a start.
    """
    if itemsize == 4:  # in full precision, products are made of many small ones: small tiles, few registers
        return TileConfig(32, 32, 4, 2) if D > 64 else TileConfig(64, 32, 4, 2)
    if rows <= 16:  # decoding: a tile of one token's heads
        return TileConfig(16, 64, 4, 3)
    if D <= 128:
        return TileConfig(64, 64, 4, 3)  # of 128 rows in four warps, the registers spill; in eight, fewer programs fit
    return TileConfig(64, 64, 8, 2)


@torch.library.custom_op("llmsys::flash_forward", mutates_args=())
def flash_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str) -> tuple[Tensor, Tensor]:
    """The operator: o (B, Hq, Tq, Dv) in q's dtype and lse (B, Hq, Tq) in fp32. Arguments have been checked."""
    return launch(q, k, v, causal, scale, precision, None, None)


@flash_forward.register_fake
def _(q, k, v, causal, scale, precision):
    B, Hq, Tq, _ = q.shape
    return q.new_empty(B, Hq, Tq, v.shape[3]), q.new_empty(B, Hq, Tq, dtype=torch.float32)


def launch(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str, tiles: TileConfig | None, kernel
) -> tuple[Tensor, Tensor]:
    """Run the kernel on its grid: a program for each tile of rows of each key head."""
    from llmsys.attention import flash_kernels  # Triton decides on its mode when it is first imported: not before now

    kernel = kernel or flash_kernels.flash_forward_kernel
    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    G = Hq // Hkv
    o, lse = q.new_empty(B, Hq, Tq, Dv), q.new_empty(B, Hq, Tq, dtype=torch.float32)
    if o.numel() == 0:
        return o, lse.fill_(float("-inf")) if Tk == 0 else _lse_alone(q, k, lse, causal, scale)
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    tiles = tiles or tiles_for(max(Dk, Dv), q.element_size(), G * Tq)
    grid = (-(-G * Tq // tiles.block_m), B * Hkv)
    with torch.cuda.device_of(q):
        kernel[grid](
            q, k, v, o, lse,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
            Hkv, Tq, Tk, scale * LOG2_E,
            G=G, DK=Dk, DV=Dv, CAUSAL=causal, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            BLOCK_DK=_power_of_two(Dk), BLOCK_DV=_power_of_two(Dv), PRECISION=precision,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return o, lse


def _lse_alone(q: Tensor, k: Tensor, lse: Tensor, causal: bool, scale: float) -> Tensor:
    """Values without a width: there is no o, but the log-sum-exp is still asked for."""
    return launch(q, k, k, causal, scale, "ieee", None, None)[1] if lse.numel() else lse


def _check_supported(q: Tensor, v: Tensor) -> None:
    from llmsys.hardware.tier import interpreting, load_triton

    load_triton()
    for name, x in (("q", q), ("v", v)):
        if x.shape[3] > LARGEST_HEAD:
            raise ValueError(f"{name} must have heads of at most {LARGEST_HEAD} for stage flash, got {x.shape[3]}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float32, float16 or bfloat16 for stage flash, got {q.dtype}")
    if interpreting():
        if q.dtype == torch.bfloat16:
            raise ValueError("q must be float32 or float16 in Triton's interpreter, it gets bfloat16 wrong; q.float()")
    elif not q.is_cuda:
        raise ValueError(
            f"q must be on a GPU for stage flash, got {q.device}; q.cuda(), or TRITON_INTERPRET=1 set before Triton is "
            "imported, to run the kernel in the interpreter"
        )


def _power_of_two(D: int) -> int:
    return max(16, 1 << (D - 1).bit_length())  # tl.dot wants at least 16
