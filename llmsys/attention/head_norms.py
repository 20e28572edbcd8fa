"""Norms of the heads of q and k, as Qwen3 has them: each head is x / √(mean(x²) + eps) · weight, before it is turned.

They keep the scores small whatever q and k have grown to (https://arxiv.org/abs/2302.05442, there with LayerNorm).
Usually a model applies them itself, and a backend never hears of it. One that turns q and k on the way to its pages has
them in its hands anyway, and takes these (`norms=`) to do both in one pass.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class HeadNorms:
    """The weights of both norms, one number for each element of a head."""

    q: Float[Tensor, " D"]
    k: Float[Tensor, " D"]
    eps: float


def normalise(x: Float[Tensor, "*heads D"], weight: Float[Tensor, " D"], eps: float) -> Float[Tensor, "*heads D"]:
    """Each head normalised, the mean in fp32: the plain form, and what a kernel must equal."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)
