"""The backward split at a matrix: the gradient of its input now, the gradient of its weight when somebody asks.

    y = x Wᵀ         forward                       x (R, n), W (m, n), y (R, m); R rows, those of all tokens
    dx = dy W        I: the layer before waits     dy (R, m)
    dW = dyᵀ x       W: nobody waits

Both need dy and nothing of each other, and each is as many operations as the forward. A model's matrices come from a
factory, so the cut is made in the matrix and not in autograd's graph: this one's backward pass returns dx, and puts
the other half on a list (`split_backward`). Whoever runs the pipeline takes the list when the backward pass is over,
and goes through it when the schedule says W.

torch's own runtime leaves the model as it is and walks the graph of the backward pass instead, from the inputs to the
weights, to find where to stop (`torch.distributed.pipelining._backward`; https://arxiv.org/abs/2401.10241 splits each
layer by hand). Walking works with any model; a factory works with those that have one, in forty lines.

What is not a matrix (norms, the embedding) has its gradient in I: it is of the size of the activations, and cheap.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llmsys.models.modules import Linear

Later = Callable[[], Tensor]
"""Call it for dW (m, n)."""

SplitBackward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Later]]
"""`split_backward`, or another function of its contract."""


def split_backward(
    dy: Float[Tensor, "*rows m"], x: Float[Tensor, "*rows n"], weight: Float[Tensor, "m n"]
) -> tuple[Float[Tensor, "*rows n"], Later]:
    """The backward pass of y = x Wᵀ in its two halves: dx, and a function that computes dW when it is called.

    dy and x are of the same rows, in one dimension or several. Until dW is computed, both are kept, and nothing else.
    """

    def later() -> Float[Tensor, "m n"]:
        return dy.flatten(0, -2).T @ x.flatten(0, -2)

    return dy @ weight, later


@dataclass(frozen=True)
class Waiting:
    """A weight's gradient that is not computed yet."""

    weight: nn.Parameter
    later: Later

    @torch.no_grad()
    def finish(self) -> None:
        """Compute it and hand it to autograd, which adds it to `weight.grad` and calls the weight's hooks, as it would
        have in an ordinary backward pass."""
        self.weight.backward(self.later())


class PutOff:
    """A factory for a model's matrices (`llmsys.models.LinearFactory`) that puts their weights' gradients off.

        later = PutOff()
        model = Llama(config, linear=later)
        loss.backward()                  # I: norms and embedding have their gradients, matrices have none
        for each in later.take():        # W
            each.finish()

    `backward` says how a matrix's backward pass is split: `split_backward`, or a function of its contract.
    """

    def __init__(self, backward: SplitBackward = split_backward) -> None:
        self._backward = backward
        self._waiting: list[Waiting] = []

    def __call__(
        self, inputs: int, outputs: int, sections: tuple[int, ...] | None = None, *, name: str = ""
    ) -> "SplitLinear":
        return SplitLinear(inputs, outputs, self._waiting, self._backward)

    def take(self) -> list[Waiting]:
        """What backward passes have put off since this was last asked, in their order."""
        taken = self._waiting.copy()
        self._waiting.clear()  # the list itself stays, the matrices have it
        return taken


class SplitLinear(Linear):
    """x Wᵀ, whose backward pass leaves the weight's gradient for later. `whole=True` makes it an ordinary one."""

    def __init__(self, inputs: int, outputs: int, waiting: list[Waiting], backward: SplitBackward = split_backward):
        super().__init__(inputs, outputs)
        self.whole = False
        self._waiting, self._backward = waiting, backward

    def forward(self, x: Tensor) -> Tensor:
        if self.whole or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        if not x.requires_grad:  # or autograd would see no reason to come here
            x = x.detach().requires_grad_()
        return _Split.apply(x, self)

    def input_gradient(self, dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """dx; the other half is put on the list, with x without the graph that it comes from, which I is done with."""
        dx, later = self._backward(dy, x.detach(), weight)
        self._waiting.append(Waiting(self.weight, later))
        return dx


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, matrix: SplitLinear) -> Tensor:
        weight = matrix.weight.detach()  # the module is no tensor: autograd does not know that there is a weight
        ctx.save_for_backward(x, weight)
        ctx.matrix = matrix
        return torch.nn.functional.linear(x, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight = ctx.saved_tensors
        return ctx.matrix.input_gradient(dy, x, weight), None
