"""The small modules of which models are built: matrices, which come from a factory, an embedding and a norm.

A model calls `linear(inputs, outputs, sections, name=…)` for each of its matrices and multiplies with what it gets. So
what is no model's affair is added from outside, by another factory: a share of the matrix on each of several ranks, a
product in FP8, a backward pass in two parts.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn


@runtime_checkable
class LinearFactory(Protocol):
    """Makes one of a model's matrices; whoever builds the model may give another one than `Linear`."""

    def __call__(self, inputs: int, outputs: int, sections: tuple[int, ...] | None = None, *, name: str) -> nn.Module:
        """A module that takes (…, inputs) to (…, outputs), without a bias, its weight (outputs, inputs) in `.weight`.

        Parameters
        ----------
        sections
            The sizes of the parts that the output consists of, for instance (q, k, v) or (gate, up): a factory that
            splits the output over ranks takes a piece of each. None: one part. A module that gives shorter ones than
            asked for has their sizes in `.sections`, and the model goes by these.
        name
            The module's name in the model, like "layers.3.qkv", by which a plan chooses: which matrices are split by
            output and which by input, which stay in high precision.
        """


class Linear(nn.Linear):
    """x Wᵀ, W (outputs, inputs), without a bias: the plain matrix, and what `LinearFactory` is by default."""

    def __init__(self, inputs: int, outputs: int, sections: tuple[int, ...] | None = None, *, name: str = ""):
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        _initialise(self.weight)


class Embedding(nn.Embedding):
    """A row of the matrix for each token id."""

    def reset_parameters(self) -> None:
        _initialise(self.weight)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + eps) · weight over the last dimension, the mean in fp32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows n"]:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def _initialise(weight: Tensor) -> None:
    # On the meta device there are no numbers to draw; asking all the same makes torch import its compiler, and Triton.
    if not weight.is_meta:
        nn.init.normal_(weight, std=0.02)


_WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def plain_name(weight: str) -> str:
    """A weight's name in the model itself, of the name that it has in one that is compiled or wrapped to be trained.

    torch writes the wrapper into the name: "_orig_mod.norm.weight" is "norm.weight".
    """
    return ".".join(part for part in weight.split(".") if part not in _WRAPPERS)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what `torch.compile` or torch's data parallelism made of it; itself where it is bare."""
    inner = (getattr(model, name, None) for name in _WRAPPERS)
    found = next((each for each in inner if isinstance(each, nn.Module)), None)
    return model if found is None else unwrapped(found)
