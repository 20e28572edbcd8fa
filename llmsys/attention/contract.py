"""The contract that every attention stage keeps, and the checks that keep it.

    f(q, k, v, *, causal=False, scale=None, return_lse=False) -> o  or  (o, lse)

    q (B, Hq, Tq, Dk)   k (B, Hkv, Tk, Dk)   v (B, Hkv, Tk, Dv)   ->   o (B, Hq, Tq, Dv)   lse (B, Hq, Tq), fp32

One query head attends with one key head; with grouped queries (Hq = G · Hkv) the G query heads of a group share
theirs: query head h reads key head h // G. `causal` is aligned **bottom-right**: the last query is the last token, as
it is when the keys come from a cache, so query i sees the keys j ≤ i + Tk − Tq. A row that sees no key has o = 0 and
lse = −∞. No sequence, no query head or no token is no error: the result is empty or zero, and so are the gradients. No
key head is one.

Stages check their arguments here, before anything is computed, so that a wrong shape is a sentence and not a crash
thirty frames down in a kernel.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Attention = Callable[..., Tensor | tuple[Tensor, Tensor]]


def check_arguments(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> float:
    """Check the arguments of an attention stage, and return the scale to use (1/√Dk where `scale` is None).

    Raises
    ------
    ValueError
        Names the first argument that breaks the contract, what it was and what was expected.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor of shape (B, H, T, D), got {type(x).__name__}")
        if x.dim() != 4:
            raise ValueError(
                f"{name} must have four dimensions (B, H, T, D), got shape {tuple(x.shape)}; "
                "add the missing ones with x[None] or split the heads with x.view(B, T, H, D).transpose(1, 2)"
            )
        if not x.is_floating_point():
            raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}")
        if x.dtype != q.dtype:
            raise ValueError(f"{name} must have q's dtype, {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device, {q.device}, got {x.device}")
    B, Hq, _, Dk = q.shape
    Hkv, Tk = k.shape[1], k.shape[2]
    if k.shape[0] != B or v.shape[0] != B:
        raise ValueError(f"q, k and v must have the same batch size, got {B}, {k.shape[0]} and {v.shape[0]}")
    if k.shape[3] != Dk:
        raise ValueError(f"k must have q's head size Dk = {Dk}, got {k.shape[3]}")
    if Dk == 0:
        raise ValueError("q and k must have a head size Dk of at least 1, got 0")
    if v.shape[1] != Hkv or v.shape[2] != Tk:
        raise ValueError(f"v must have k's heads and tokens, ({Hkv}, {Tk}), got ({v.shape[1]}, {v.shape[2]})")
    if Hkv == 0:
        raise ValueError("k must have at least 1 head, got 0")
    if Hq % Hkv:
        raise ValueError(f"q must have a multiple of k's {Hkv} heads (grouped queries), got {Hq}")
    if scale is None:
        return 1 / math.sqrt(Dk)
    if not 0 < scale < math.inf:  # kernels take the maximum before they scale
        raise ValueError(f"scale must be a positive number or None (for 1/√Dk), got {scale}")
    return float(scale)


def within_reach(name: str, x: Tensor, stage: str, *, heads: int = 0) -> Tensor:
    """x (…, T, D), or a contiguous copy, such that a kernel can count the elements of a head in 32 bits: those of one,
    or of so many neighbouring `heads` of x (B, H, T, D) where it counts from head to head as well.

    Raises
    ------
    ValueError
        Even a copy has 2^31 of them, or more; the message names the argument and the stage.
    """
    T, D = x.shape[-2:]
    reach = T * x.stride(-2) + (heads * x.stride(-3) if heads else 0)
    if x.stride(-1) != 1 or reach >= 2**31:
        x = x.contiguous()
    if max(heads, 1) * T * D >= 2**31:
        whose, got, remedy = "a head", f"{T} × {D}", "split the sequence"
        if heads:
            whose, got, remedy = "for each key head", f"{heads} × {got}", f"{remedy}, or its heads"
        raise ValueError(f"{name} must have fewer than 2^31 elements {whose} for stage {stage}, got {got}; {remedy}")
    return x


def visible_keys(Tq: int, Tk: int, *, device: torch.device | str | None = None) -> Tensor:
    """The causal mask, aligned bottom-right: a bool (Tq, Tk) matrix, True where the query sees the key."""
    query = torch.arange(Tq, device=device)[:, None]  # (Tq, 1)
    key = torch.arange(Tk, device=device)[None, :]  #   (1, Tk)
    return key <= query + (Tk - Tq)


def with_gradients_of_zero(o: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """o (B, Hq, Tq, Dv), empty or zero because no query saw a key: so made that autograd finds q, k and v behind it.

    Otherwise a backward pass through it would be an error, and not zeros.
    """
    if o.requires_grad or not needs_gradient(q, k, v):
        return o
    rows = q.reshape(q.shape[0], k.shape[1], q.shape[1] // k.shape[1] * q.shape[2], q.shape[3])
    return o + (rows @ k[:, :, :0].mT @ v[:, :, :0]).view(o.shape)  # a product over no key: zeros


def needs_operator(*tensors: Tensor) -> bool:
    """Whether torch traces this call, so that a kernel must be launched by a custom operator.

    Otherwise it is launched directly: a custom operator costs a call about as much time as the launch itself.
    """
    return torch.compiler.is_compiling() or any(type(x) not in (Tensor, torch.nn.Parameter) for x in tensors)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd records this call, so that the result must carry gradients."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
