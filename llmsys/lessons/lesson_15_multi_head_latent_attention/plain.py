"""The exercises' functions as functions of plain data, and what the library's model keeps of a token."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from llmsys.attention.rotary import rotate, rotation
from llmsys.hardware.meters import work


def plain_attention(attend: Callable) -> Callable:
    """Latent attention: its result, or with told="products" the operations of its matrix products, a multiply-add
    counting as two."""

    def attended(*args, told="", **options):
        if not told:
            return attend(*args, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what is no product, and not known to `work`
            with work() as done:
                attend(*args, **options)
        return done.matmul_flops

    return attended


def kept(
    x: Tensor, down: Tensor, weight: Tensor, positions: Tensor, *, base: float = 10_000.0, eps: float = 1e-6
) -> Tensor:
    """[c ; r] (B, 1, T, L + R) of x (B, T, C), as `llmsys.models.deepseek` makes them: c normalised, r turned.

    down (L + R, C) · weight (L,) of the norm · positions (T,)
    """
    L, R = len(weight), len(down) - len(weight)
    c, r = F.linear(x, down).split((L, R), dim=-1)
    c = F.rms_norm(c, (L,), weight, eps)
    r = rotate(r[:, None], rotation(positions, R, base=base, interleaved=True))
    return torch.cat((c[:, None], r), dim=-1)
