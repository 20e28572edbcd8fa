"""`attention="auto"`: attention by the stage that is fastest for the tensors at hand, and the rules that choose it.

    from llmsys.attention.auto import pick
    pick(q, k, v).name, pick(q, k, v).why       # ("hopper", "16 bits, heads of 128, 2^31 scores, on a Hopper GPU")

The rules below were measured on an H100 80GB HBM3 (torch 2.11.0+cu130, triton 3.6.0, 2026-11-23), causal, with a GPU
that waits for nothing but the launch. There, a call of `hopper` costs the host about 250 µs, of `flash` 100 µs, and of
torch's own 100 µs if it needs no mask: so for small problems the kernel does not matter. With a cache and more than one
query, torch cannot be told of the mask but by a tensor, with which it does not use its fast kernels: there `flash` took
between a third and three quarters of torch's time.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import check_arguments
from llmsys.attention.flash.forward import flash_attention
from llmsys.attention.hopper.forward import HEADS, hopper_attention
from llmsys.attention.sdpa import sdpa_attention
from llmsys.hardware.tier import interpreting, triton_installed

ENOUGH_SCORES = 2**28
"""B · Hq · Tq · Tk above which the hopper kernel gains more than its launch costs."""
WIDEST = 128  # heads, for flash: with 256, torch's kernel took 0.4 times as long at 4k tokens


class Pick(NamedTuple):
    """The name of the stage that was chosen, and the reason, for people."""

    name: str
    why: str


def pick(q: Tensor, k: Tensor, v: Tensor) -> Pick:
    """The stage for causal attention of tensors of these shapes, (B, H, T, D), dtype and device.

    q and k are looked at, not read.
    """
    B, Hq, Tq, Dk = q.shape
    Tk, Dv = v.shape[2:]
    if not q.is_cuda:
        return Pick("sdpa", f"on the {q.device.type}, torch's own is the fastest")
    if not triton_installed() or interpreting():
        return Pick("sdpa", "Triton is not there to compile a kernel")
    if q.dtype not in (torch.float16, torch.bfloat16):
        return Pick("sdpa", f"for {str(q.dtype).removeprefix('torch.')}, torch's own is the fastest")
    if max(Dk, Dv) > WIDEST:
        return Pick("sdpa", f"for heads above {WIDEST}, torch's own is the fastest")
    if Tq == 1:
        return Pick("sdpa", "a single query: torch divides the keys among programs, and flash does not")
    hopper = torch.cuda.get_device_capability(q.device) == (9, 0)
    if hopper and Dk == Dv and Dk in HEADS and B * Hq * Tq * Tk > ENOUGH_SCORES:
        return Pick("hopper", f"16 bits, heads of {Dk} and more than 2^28 scores, on a Hopper GPU")
    if hopper:
        return Pick("flash", "16 bits, and too few scores for hopper, or not its heads")
    if Tq != Tk:
        return Pick("flash", "with a cache, torch's own needs a mask of all queries and keys")
    return Pick("sdpa", "on this GPU nothing was measured, and torch's own is a safe choice")


def auto_attention(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    *,
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
) -> Float[Tensor, "B Hq Tq Dv"] | tuple[Float[Tensor, "B Hq Tq Dv"], Float[Tensor, "B Hq Tq"]]:
    """Attention by the stage that `pick` names. The contract is `llmsys.attention.contract`'s."""
    check_arguments(q, k, v, scale=scale)
    stage = _STAGES[pick(q, k, v).name]
    return stage(q, k, v, causal=causal, scale=scale, return_lse=return_lse)


_STAGES = {"flash": flash_attention, "hopper": hopper_attention, "sdpa": sdpa_attention}
