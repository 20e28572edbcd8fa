"""What the checks of lesson 05 share: inputs, the gradients that are expected of them, and what is forbidden.

What is expected is autograd's, of naive attention in float64, rounded once.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.attention.naive import naive_attention
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.watch import DERIVATIVES, FUSED_ATTENTION
from llmsys.lessons.common import Products, later_stages

NAMES = ("dq", "dk", "dv")
FORBIDDEN = (
    *DERIVATIVES,
    *FUSED_ATTENTION,
    *(f"llmsys.attention.{stage}:*" for stage in ("naive", "online", "tiled", "backward")),
    *later_stages("tiled"),
)
"""Of an exercise in PyTorch: derivatives by machine, and every stage of the library."""


def one_gradient(function: Callable) -> Callable:
    """A backward pass that gives the one gradient that `only` names, so that a mistake in another does not hide it;
    or, for only="products", what its matrix products were (`Products`)."""

    def gradients(*tensors, only: str = "", **options):
        if only == "products":
            with Products() as products:
                function(*tensors, **options)
            return products.report()
        result = function(*tensors, **options)
        if only and isinstance(result, (tuple, list)) and len(result) == 3:
            return result[NAMES.index(only)]
        return result

    return gradients


def draw(
    answer: Answer, Tq: int, Tk: int, *, B=1, G=1, Hkv=1, Dk=6, Dv=None, scale=1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and do."""
    return (
        answer.randn(B, G * Hkv, Tq, Dk, scale=scale),
        answer.randn(B, Hkv, Tk, Dk),
        answer.randn(B, Hkv, Tk, Dv or Dk),
        answer.randn(B, G * Hkv, Tq, Dv or Dk),
    )


def exact_gradients(q, k, v, do, **options) -> dict[str, Tensor]:
    """dq, dk and dv as expected."""
    leaves = [x.double().clone().requires_grad_() for x in (q, k, v)]
    gradients = torch.autograd.grad(naive_attention(*leaves, **options), leaves, do.double())
    return {name: x.to(q.dtype) for name, x in zip(NAMES, gradients, strict=True)}


def weights(q, k, **options) -> Tensor:
    """P (B, Hq, Tq, Tk): what attention gives for values that are the rows of a unit matrix."""
    unit = torch.eye(k.shape[2], dtype=torch.float64).expand(*k.shape[:2], -1, -1)
    return naive_attention(q.double(), k.double(), unit, **options).to(q.dtype)


def under_mask(q, k, v, do, seen: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """P and the gradients of an attention in which query i sees key j where `seen` (Tq, Tk) says so, which no option of
    this course's does; for as many query heads as key heads, the scale 1/√Dk, and some key for each query."""
    q64, k64, v64 = (x.double().clone().requires_grad_() for x in (q, k, v))
    p = (q64 @ k64.mT * q.shape[3] ** -0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    gradients = torch.autograd.grad(p @ v64, (q64, k64, v64), do.double())
    expected = {name: x.to(q.dtype) for name, x in zip(NAMES, gradients, strict=True)}
    return p.detach().to(q.dtype), expected
