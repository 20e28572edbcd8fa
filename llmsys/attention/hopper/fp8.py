"""Stage hopper in eight bits: attention's two products in e4m3, at twice the rate of the tensor cores in sixteen.

    o = hopper_fp8_attention(q, k, v, causal=True)

    quantized = quantize_qkv(q, k, v)                  # the same in two steps: codes, and a scale for each 128 rows
    o, lse = hopper_fp8_forward(quantized, causal=True)

Blocks, scales and their error are those of `llmsys.precision.fp8`. `fp8_kernels` says what eight bits change in the
kernel, and `fp8_quantize` makes the codes; everything else is stage hopper's. For inference: it has no gradients.

TFLOP/s and, in brackets, the ratio to cuDNN in bfloat16, timed in turns with it on an H100 80GB HBM3 (16k tokens in
all, 2048 wide, heads of 128; torch 2.11.0+cu130, triton 3.6.0, 2026-11-24; `llmsys.bench.recorded("attention_fp8")`):

    T                          1k            4k            16k
    full                       710 (1.18)    826 (1.23)    811 (1.18)
    causal                     544 (1.29)    788 (1.37)    890 (1.40)
    with quantising, full      427 (0.71)    692 (1.03)    776 (1.13)
    with quantising, causal    269 (0.64)    577 (1.01)    801 (1.26)

No unit is full (`recorded("attention_counters")`): at 16k the tensor cores are active for 44% of the time, the
exponential unit for 46% and schedulers for 42%; causal, 47%, 50% and 45%. Products take half as long as in bfloat16 and
exponentials as long, so consumers that take turns have little behind which to hide a softmax's dependent steps.

Quantising q, k and v of 16k tokens takes 0.135 ms, at 2.2 TB/s; k and v of a cache are quantised once. With normal
inputs, the root mean square error is 5% of the output, 24 times that of bfloat16, whose mantissa has four bits more.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments
from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.hopper.descriptors import descriptor
from llmsys.attention.hopper.forward import check_gpu
from llmsys.attention.hopper.schedule import ROWS, HopperTiles, hopper_schedule

HEAD = 128
TILES = HopperTiles(consumers=2, block_n=128, slots=4, consumer_registers=240, producer_registers=24)
"""Tiles of 128 queries and of 128 keys: each is a block of `llmsys.precision.fp8`, with one scale."""


class QuantizedQKV(NamedTuple):
    """q, k and v as the 8-bit kernel takes them: codes in float8_e4m3fn, scales in fp32, one for each 128 rows."""

    q: Tensor  # (B, Hq, Tq, D)
    q_scales: Tensor  # (B, Hq, blocks of Tq)
    k: Tensor  # (B, Hkv, Tk, D)
    k_scales: Tensor  # (B, Hkv, blocks of Tk)
    v: Tensor  # (B, Hkv, blocks of Tk · D, 128): each block transposed, its keys reordered (`fp8_quantize`)
    v_scales: Tensor  # (B, Hkv, blocks of Tk)
    dtype: torch.dtype  # of what was quantised, and of the output


def hopper_fp8_attention(
    q: Float[Tensor, "B Hq Tq D"],
    k: Float[Tensor, "B Hkv Tk D"],
    v: Float[Tensor, "B Hkv Tk D"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "B Hq Tq D"] | tuple[Float[Tensor, "B Hq Tq D"], Float[Tensor, "B Hq Tq"]]:
    """Attention on a Hopper GPU, computed in e4m3. The contract is `llmsys.attention.contract`'s, for float16 and
    bfloat16, with heads of 128 for keys and values alike.

    Raises
    ------
    ValueError
        An argument breaks the contract, is not one that this stage takes, or wants a gradient.
    RuntimeError
        This GPU is no Hopper (compute capability 9.0).
    """
    scale = check_arguments(q, k, v, scale=scale)
    o, lse = hopper_fp8_forward(quantize_qkv(q, k, v), causal=causal, scale=scale)
    return (o, lse) if return_lse else o


def quantize_qkv(
    q: Float[Tensor, "B Hq Tq D"], k: Float[Tensor, "B Hkv Tk D"], v: Float[Tensor, "B Hkv Tk D"]
) -> QuantizedQKV:
    """Codes and scales of q, k and v, each read once. Raises what `hopper_fp8_attention` raises."""
    check_arguments(q, k, v)
    _check_supported(q, k, v)
    return QuantizedQKV(*_quantize(q), *_quantize(k), *_quantize(v, turned=True), q.dtype)


def hopper_fp8_forward(
    quantized: QuantizedQKV, *, causal: bool = False, scale: float | None = None
) -> tuple[Float[Tensor, "B Hq Tq D"], Float[Tensor, "B Hq Tq"]]:
    """o in the dtype of what was quantised, and lse in fp32. scale is 1/√D if None."""
    from llmsys.attention.hopper.fp8_kernels import hopper_fp8_kernel  # Triton: not before now

    q, q_scales, k, k_scales, v, v_scales, dtype = quantized
    B, Hq, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    o, lse = q.new_empty(q.shape, dtype=dtype), q.new_empty(q.shape[:3], dtype=torch.float32)
    if Tk == 0:
        return o.zero_(), lse.fill_(float("-inf"))
    if o.numel() == 0:
        return o, lse
    scale = D**-0.5 if scale is None else scale
    programs = torch.cuda.get_device_properties(q.device).multi_processor_count
    programs = min(B * Hq * -(-Tq // TILES.block_m), programs)
    schedule = hopper_schedule(B, Hq, Hkv, Tq, Tk, D, causal, TILES, programs, q.device)
    with torch.cuda.device_of(q):
        hopper_fp8_kernel[(programs,)](
            descriptor(q, ROWS), descriptor(k, TILES.block_n), descriptor(v, D), descriptor(o, ROWS),
            q_scales, k_scales, v_scales, lse, schedule, Hq, Hq // Hkv, Tq, Tk, scale * LOG2_E,
            CAUSAL=causal, SLOTS=TILES.slots, CONSUMER_REGISTERS=TILES.consumer_registers,
            PRODUCER_REGISTERS=TILES.producer_registers, num_warps=4,
        )  # fmt: skip
    return o, lse


def _quantize(x: Tensor, turned: bool = False) -> tuple[Tensor, Tensor]:
    """Codes and scales of x (B, H, T, D). `turned` gives codes in the order in which QuantizedQKV has those of v."""
    from llmsys.attention.hopper.fp8_quantize import quantize_kernel

    B, H, T, D = x.shape
    x = x if x.stride(3) == 1 else x.contiguous()
    rows = TILES.block_n
    blocks = -(-T // rows)
    codes = x.new_empty((B, H, blocks * D, rows) if turned else x.shape, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(B, H, blocks, dtype=torch.float32)
    if codes.numel():
        with torch.cuda.device_of(x):
            quantize_kernel[(blocks, B * H)](x, codes, scales, H, T, *x.stride()[:3], ROWS=rows, D=D, TURNED=turned)
    return codes, scales


def _check_supported(q: Tensor, k: Tensor, v: Tensor) -> None:
    if q.shape[3] != HEAD or v.shape[3] != HEAD:
        name, D = ("q", q.shape[3]) if q.shape[3] != HEAD else ("v", v.shape[3])
        raise ValueError(
            f"{name} must have heads of {HEAD} for stage hopper in fp8, got {D}; stage hopper takes 64, too"
        )
    if q.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float16 or bfloat16 for stage hopper in fp8, got {q.dtype}; it is quantised here")
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise ValueError("stage hopper in fp8 has no gradients: call it under torch.no_grad(), or use stage hopper")
    check_gpu(q)
