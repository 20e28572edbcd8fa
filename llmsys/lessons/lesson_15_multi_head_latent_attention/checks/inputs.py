"""What the checks of both forms draw, and the cases in which they meet all options together."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer


@dataclass(frozen=True)
class Sizes:
    """Of a step: B sequences, H heads, Tq new tokens of Tk; L, R of what is kept, Dn and Dv of a head."""

    B: int = 1
    H: int = 3
    Tq: int = 1
    Tk: int = 7
    L: int = 8
    R: int = 4
    Dn: int = 6
    Dv: int = 5


def step(answer: Answer, sizes: Sizes, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, latent, key_up, value_up."""
    s = sizes
    drawn = (
        answer.randn(s.B, s.H, s.Tq, s.Dn + s.R),
        answer.randn(s.B, 1, s.Tk, s.L + s.R),
        answer.randn(s.H, s.Dn, s.L, scale=s.L**-0.5),
        answer.randn(s.H, s.Dv, s.L, scale=s.L**-0.5),
    )
    return tuple(each.to(dtype) for each in drawn)


TOGETHER = (  # each pair of options is in one of them
    (Sizes(2, 3, 2, 5, 7, 2, 3, 4), True, None, torch.float32),
    (Sizes(1, 2, 4, 4, 5, 4, 5, 3), True, 0.3, torch.float16),
    (Sizes(3, 1, 3, 9, 6, 2, 8, 6), False, 0.7, torch.float32),
    (Sizes(2, 5, 1, 1, 3, 6, 2, 7), False, None, torch.float16),
    (Sizes(2, 2, 3, 6, 4, 2, 4, 4), True, 0.5, torch.float32),
)


def all_together(answer: Answer) -> Iterator[tuple[tuple[Tensor, ...], dict]]:
    """The arguments of each case, twice with other numbers; as views with gaps."""
    for sizes, causal, scale, dtype in TOGETHER:
        for _ in range(2):  # of the same shape, and other numbers: nothing may be remembered of the first
            tensors = tuple(answer.spread(each) for each in step(answer, sizes, dtype))
            yield tensors, {"causal": causal, "scale": scale}
