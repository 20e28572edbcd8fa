"""The token of each row of logits, drawn where the logits are, in two launches: what a step ends with.

    tokens = draw_tokens(logits, temperature, u)         # (N,) int32, on the device; nobody waits

The sampler (`llmsys.serving.sampling.sampler`) knows all kinds of rows. Most steps have two, greedy ones and ones that
are drawn at a temperature, and these are here. Both are one formula, by which rows of both kinds stand in one launch:

    temperature 0    the largest logit, the first of equal ones
    above 0          p = softmax(logits / temperature); the first token whose cumulated p exceeds u
    −1               where logits are not finite: one is NaN or +∞, or all are −∞

The temperatures and random numbers are read on the device, and what is launched depends on shapes alone. So a CUDA
graph holds it, and serves other temperatures and numbers. A row's token depends on no other row: how a row is cut into
parts follows from V.

Sums are in fp64: with 150,000 tokens in fp32, the last ones would draw from what rounding left over.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention.paged.write import check_device
from llmsys.hardware.tier import interpreting, triton_installed

LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-37, 1e37
"""Temperatures beyond these are taken for them: fp32 has these, and their reciprocals."""
PART = 4096
"""Logits of a program, a power of two."""
FORMS = ("triton", "torch")
KERNELS_TAKE = (torch.float32, torch.float16, torch.bfloat16)


class Kernels(NamedTuple):
    """Those of `llmsys.serving.sampling.draw_kernels`, or others with their arguments."""

    parts: object
    draw: object


def draw_tokens(
    logits: Float[Tensor, "N V"],
    temperature: Float[Tensor, " N"],
    u: Float[Tensor, " N"],
    out: Int[Tensor, " N"] | None = None,
    *,
    form: str | None = None,
    kernels: Kernels | None = None,
) -> Int[Tensor, " N"]:
    """The token of each row, int32, on the device.

    Parameters
    ----------
    logits
        Rows may lie apart.
    temperature
        float32 or float64; 0 is greedy.
    u
        float64, from 0 to below 1, made on the host (`llmsys.serving.sampling.sampler.uniform`): what draws the row's
        token. Of greedy rows it is not looked at.
    out
        Where to write the tokens, int32, contiguous; None for a new tensor.
    form
        "triton": the kernels, in float32, float16 or bfloat16. "torch": the formula in plain PyTorch, which waits for
        nothing either, in some twenty launches. None: the kernels on a GPU where they can, else torch's.
    kernels
        In place of the library's.

    Raises
    ------
    ValueError
        A shape, dtype or device is another one. Says which, and what was expected.
    """
    _check(logits, temperature, u, out, form)
    N, V = logits.shape
    if out is None:
        out = torch.empty(N, dtype=torch.int32, device=logits.device)
    if N == 0:
        return out
    if kernels is None and form != "triton" and (form == "torch" or not _triton_can(logits)):
        return out.copy_(_drawn(logits, temperature, u))
    if kernels is None:
        check_device(logits)
        kernels = _kernels()
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    parts = -(-V // PART)
    most = torch.empty(N, parts, dtype=torch.float32, device=logits.device)
    first = torch.empty(N, parts, dtype=torch.int32, device=logits.device)
    weight = torch.empty(N, parts, dtype=torch.float64, device=logits.device)
    temperature, u = temperature.contiguous(), u.contiguous()
    with torch.cuda.device_of(logits):
        kernels.parts[(N * parts,)](
            logits, temperature, most, first, weight, logits.stride(0), V, parts, PART=PART, num_warps=4
        )
        kernels.draw[(N,)](
            logits, temperature, u, most, first, weight, out, logits.stride(0), V, parts,
            PART=PART, BLOCK_PARTS=max(16, 1 << (parts - 1).bit_length()), num_warps=4,
        )  # fmt: skip
    return out


def first_above(p: Float[Tensor, "N V"], u: Float[Tensor, "N 1"]) -> Int[Tensor, " N"]:
    """Where each row's cumulated weights p first exceed u times their sum; u is float64."""
    total = p.double().cumsum(dim=1)
    found = torch.searchsorted(total, u * total[:, -1:], right=True)[:, 0]
    return found.clamp(max=p.shape[1] - 1)  # rows of NaN, whose token nobody takes


def _drawn(logits: Tensor, temperature: Tensor, u: Tensor) -> Tensor:
    """The formula. Of every row both tokens are computed, because only the device knows which is wanted."""
    x = logits if logits.dtype == torch.float64 else logits.float()
    largest = x.amax(dim=1, keepdim=True)
    within = temperature.clamp(LEAST_TEMPERATURE, MOST_TEMPERATURE).to(x.dtype)[:, None]
    drawn = first_above(torch.softmax((x - largest) / within, dim=1), u[:, None])
    token = torch.where(temperature > 0, drawn, x.argmax(dim=1))
    return torch.where(torch.isfinite(largest[:, 0]), token, -1)


def _check(logits: Tensor, temperature: Tensor, u: Tensor, out: Tensor | None, form: str | None) -> None:
    if form not in (None, *FORMS):
        raise ValueError(f'form must be "triton", "torch" or None, got {form!r}')
    if form == "triton" and logits.dtype not in KERNELS_TAKE:
        raise ValueError(f"logits must be float32, float16 or bfloat16 for the kernels, got {logits.dtype}")
    if logits.dim() != 2 or logits.shape[1] == 0 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating-point numbers (N, V), V at least 1, got {logits.dtype} of shape "
            f"{tuple(logits.shape)}"
        )
    wanted = [
        ("temperature", temperature, (torch.float32, torch.float64)),
        ("u", u, (torch.float64,)),
        ("out", out, (torch.int32,)),
    ]
    for name, x, dtypes in wanted:
        if x is None:
            continue
        if x.shape != logits.shape[:1] or x.dtype not in dtypes or x.device != logits.device:
            raise ValueError(
                f"{name} must be {' or '.join(str(each) for each in dtypes)} of shape ({logits.shape[0]},), one for "
                f"each row of logits, on {logits.device}; got {x.dtype} of shape {tuple(x.shape)} on {x.device}"
            )
    if out is not None and not out.is_contiguous():
        raise ValueError("out must be contiguous: the tokens are written side by side")


def _triton_can(logits: Tensor) -> bool:
    if not logits.is_cuda or not triton_installed() or interpreting():
        return False
    return logits.dtype in KERNELS_TAKE


@lru_cache
def _kernels() -> Kernels:
    from llmsys.serving.sampling.draw_kernels import draw_kernel, parts_kernel  # Triton: not before now

    return Kernels(parts_kernel, draw_kernel)
