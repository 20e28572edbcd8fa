"""The backward split at a matrix: the gradient of its input now, the gradient of its weight when somebody asks.

    y = x Wᵀ         forward                       x (R, n), W (m, n), y (R, m); R rows, those of all tokens
    dx = dy W        I: the layer before waits     dy (R, m)
    dW = dyᵀ x       W: nobody waits

Both need dy and nothing of each other, and each is as many operations as the forward. A model's matrices come from a
factory, so the cut is made in the matrix and not in autograd's graph: this one's backward pass returns dx, and puts
(weight, x, dy) on a list. Whoever runs the pipeline takes the list when the backward pass is over, and goes through it
when the schedule says W.

torch's own runtime leaves the model as it is and walks the graph of the backward pass instead, from the inputs to the
weights, to find where to stop (`torch.distributed.pipelining._backward`; https://arxiv.org/abs/2401.10241 splits each
layer by hand). Walking works with any model; a factory works with those that have one, in forty lines.

What is not a matrix (norms, the embedding) has its gradient in I: it is of the size of the activations, and cheap.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmsys.models.modules import Linear


@dataclass(frozen=True)
class Waiting:
    """A weight's gradient that is not computed yet, and what it needs: dW = dyᵀ x."""

    weight: nn.Parameter
    x: Tensor
    dy: Tensor

    @torch.no_grad()
    def finish(self) -> None:
        """Compute it and hand it to autograd, which adds it to `weight.grad` and calls the weight's hooks, as it would
        have in an ordinary backward pass."""
        self.weight.backward(self.dy.flatten(0, -2).T @ self.x.flatten(0, -2))


class PutOff:
    """A factory for a model's matrices (`llmsys.models.LinearFactory`) that puts their weights' gradients off.

        later = PutOff()
        model = Llama(config, linear=later)
        loss.backward()                  # I: norms and embedding have their gradients, matrices have none
        for each in later.take():        # W
            each.finish()
    """

    def __init__(self) -> None:
        self._waiting: list[Waiting] = []

    def __call__(
        self, inputs: int, outputs: int, sections: tuple[int, ...] | None = None, *, name: str = ""
    ) -> "SplitLinear":
        return SplitLinear(inputs, outputs, self._waiting)

    def take(self) -> list[Waiting]:
        """What backward passes have put off since this was last asked, in their order."""
        taken = self._waiting.copy()
        self._waiting.clear()  # the list itself stays, the matrices have it
        return taken


class SplitLinear(Linear):
    """x Wᵀ, whose backward pass leaves the weight's gradient for later. `whole=True` makes it an ordinary one."""

    def __init__(self, inputs: int, outputs: int, waiting: list[Waiting]):
        super().__init__(inputs, outputs)
        self.whole = False
        self._waiting = waiting

    def forward(self, x: Tensor) -> Tensor:
        if self.whole or not (torch.is_grad_enabled() and self.weight.requires_grad):
            return super().forward(x)
        if not x.requires_grad:  # or autograd would see no reason to come here
            x = x.detach().requires_grad_()
        return _Split.apply(x, self)

    def put_off(self, x: Tensor, dy: Tensor) -> None:
        """Note what the weight's gradient needs; x without the graph that it comes from, which I is done with."""
        self._waiting.append(Waiting(self.weight, x.detach(), dy))


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
        ctx.matrix.put_off(x, dy)
        return dy @ weight, None
