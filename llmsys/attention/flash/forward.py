"""Stage 4, flash: tiled attention as one Triton kernel, for any GPU that Triton knows, and for the interpreter.

The kernel is `kernels.flash_forward_kernel`; this is what surrounds it: the contract, the choice of tiles, the
launch, and a custom operator of torch, so that `torch.compile` takes it as it is. A kernel of one's own with the same
arguments goes the same way, with `flash_attention(…, kernel=mine)`.

Half-precision inputs are multiplied on the tensor cores and summed in fp32. float32 is multiplied in full precision;
`precision="tf32"` trades 13 bits of mantissa for the tensor cores. In the interpreter bf16 is refused: it adds raw bits
there. The backward pass is in `backward`.

What limits it on an H100 (bf16, 16k, full; `llmsys.bench.recorded("attention_counters")`): no unit is full. With heads
of 128, the tensor cores are active for 57% of the time and shared memory's data pipe for 48%; with heads of 64, the
tensor cores for 51% and the exponential unit for 54%. Warps wait for their own products before they compute
exponentials, and only the other programs on the multiprocessor fill the gap; stage hopper removes that wait.
"""

from collections.abc import Sequence
from dataclasses import astuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments, needs_gradient, needs_operator, within_reach
from llmsys.attention.flash.backward import backward, flash_backward
from llmsys.attention.flash.tiles import LOG2_E, TileConfig, block_of, target_of, tiles_for, tuned_tiles
from llmsys.attention.operators import with_gradients
from llmsys.hardware.tier import interpreting, load_triton

LARGEST_HEAD = 256
MOST_ROWS = 2**31 - 256  # the kernel counts rows and keys in 32 bits, up to the end of the last tile


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
    autotune: bool = False,
    kernel=None,
) -> Float[Tensor, "B Hq Tq Dv"] | tuple[Float[Tensor, "B Hq Tq Dv"], Float[Tensor, "B Hq Tq"]]:
    """FlashAttention. The contract is `llmsys.attention.contract`'s, for fp32, fp16 and bf16 and heads of at most 256.

    Parameters
    ----------
    precision
        Of products of float32: "ieee" for all of it, "tf32" for the tensor cores.
    tiles
        The sizes of tiles; by default what `llmsys.attention.flash.tiles.tiles_for` says.
    autotune
        On a GPU, measure once which tiles are the fastest for tensors like these, and remember it (`tuned_tiles`).
    kernel
        A Triton kernel with the arguments of `kernels.flash_forward_kernel`, in its place.

    Gradients are those of `flash_backward`; the result of a kernel of one's own has none.
    """
    scale = check_arguments(q, k, v, scale=scale)
    if precision not in ("ieee", "tf32"):
        raise ValueError(f'precision must be "ieee" or "tf32", got {precision!r}')
    _check_supported(q, k, v)
    if autotune and tiles is None:
        tiles = tuned_tiles(q, k, v, causal, lambda tiles: launch(q, k, v, causal, scale, precision, tiles, kernel))
    if kernel is not None:
        o, lse = launch(q, k, v, causal, scale, precision, tiles, kernel)
    elif needs_operator(q, k, v):
        o, lse = flash_forward(q, k, v, causal, scale, precision, list(astuple(tiles)) if tiles else None)
    else:
        forward = differentiable if needs_gradient(q, k, v) else launch
        o, lse = forward(q, k, v, causal, scale, precision, tiles)
    return (o, lse) if return_lse else o


@torch.library.custom_op("llmsys::flash_forward", mutates_args=())
def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str, tiles: Sequence[int] | None
) -> tuple[Tensor, Tensor]:
    """The operator: o (B, Hq, Tq, Dv) in q's dtype and lse (B, Hq, Tq) in fp32. Arguments have been checked; `tiles`
    are the numbers of a TileConfig."""
    return launch(q, k, v, causal, scale, precision, TileConfig(*tiles) if tiles else None, None)


@flash_forward.register_fake
def _(q, k, v, causal, scale, precision, tiles):
    B, Hq, Tq, _ = q.shape
    return q.new_empty(B, Hq, Tq, v.shape[3]), q.new_empty(B, Hq, Tq, dtype=torch.float32)


def launch(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, precision: str, tiles: TileConfig | None, kernel=None
) -> tuple[Tensor, Tensor]:
    """Launch the kernel, or another with its arguments: a program for each tile of rows of each key head.

    Returns o and lse as `flash_forward` does. Arguments have been checked.
    """
    if kernel is None:
        from llmsys.attention.flash.kernels import flash_forward_kernel as kernel  # Triton: not before now

    B, Hq, Tq, Dk = q.shape
    Hkv, Tk, Dv = v.shape[1:]
    G = Hq // Hkv
    o, lse = q.new_empty(B, Hq, Tq, Dv), q.new_empty(B, Hq, Tq, dtype=torch.float32)
    if o.numel() == 0:
        return o, lse.fill_(float("-inf")) if Tk == 0 else _lse_alone(q, k, lse, causal, scale)
    # A token's number times its stride is taken in 32 bits, once for each token of each tile. In 64 bits, heads of 64
    # took 4 to 12% longer on an H100 (full attention), in each of three ways to write it.
    q, k, v = (within_reach(name, x, "flash") for name, x in (("q", q), ("k", k), ("v", v)))
    tiles = tiles or tiles_for(max(Dk, Dv), q.element_size(), G * Tq, target_of(q.device))
    grid = (-(-G * Tq // tiles.block_m), B * Hkv)
    with torch.cuda.device_of(q):
        kernel[grid](
            q, k, v, o, lse,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *o.stride()[:3],
            Hkv, Tq, Tk, scale * LOG2_E,
            G=G, DK=Dk, DV=Dv, CAUSAL=causal, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            BLOCK_DK=block_of(Dk), BLOCK_DV=block_of(Dv), PRECISION=precision,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
    return o, lse


def _gradients(q, k, v, o, lse, do, dlse, causal, scale, precision, _):
    run = flash_backward if needs_operator(q, do) else backward
    return run(q, k, v, o, lse, do, dlse, causal, scale, precision)


differentiable = with_gradients(flash_forward, launch, _gradients)


def _lse_alone(q: Tensor, k: Tensor, lse: Tensor, causal: bool, scale: float) -> Tensor:
    """Values without a width: there is no o, but the log-sum-exp is still asked for."""
    return launch(q, k, k, causal, scale, "ieee", None, None)[1] if lse.numel() else lse


def _check_supported(q: Tensor, k: Tensor, v: Tensor) -> None:
    load_triton()
    for name, x in (("q", q), ("v", v)):
        if x.shape[3] > LARGEST_HEAD:
            raise ValueError(f"{name} must have heads of at most {LARGEST_HEAD} for stage flash, got {x.shape[3]}")
    counted = {"q": (q.shape[1] // k.shape[1] * q.shape[2], "rows a key head"), "k": (k.shape[2], "tokens")}
    for name, (n, what) in counted.items():
        if n > MOST_ROWS:
            raise ValueError(f"{name} must have at most 2^31 − 256 {what} for stage flash, got {n}")
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
