"""The exercises' functions as functions of plain data, which a check can compare and send to another process.

What an answer takes or returns beside tensors is a `Routing`, and what a check asks of it beside its value are
gradients and the operations of its products. `told` says which:

    told=""              what the function returns
    told="gradient"      what one of its arguments gets, if `along` is the gradient of its result
    told="products"      operations of matrix products, a multiply-add counting as two
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.hardware.meters import work
from llmsys.moe.router import Routing


def plain_route(route: Callable) -> Callable:
    """A router: logits and options -> (experts, weights, scores), a token's experts in the order of their numbers.

    told="gradient" has what the logits get from the weights, or with of="scores" from the scores; `along` belongs to
    that result, the weights' to experts in the order of their numbers.
    """

    def routed(logits, k, *, told="", of="weights", along=None, **options):
        logits = logits.requires_grad_(told == "gradient")
        experts, weights, scores = _parts(route(logits, k, **options))
        if experts.shape == weights.shape and experts.dim() == 2 and experts.dtype == torch.int64:
            experts, order = experts.sort(dim=-1)
            weights = weights.gather(1, order)
        if told == "gradient":
            return _gradient(weights if of == "weights" else scores, logits, along)
        return experts, weights, scores

    return routed


def plain_experts(run: Callable) -> Callable:
    """The experts of a layer: tensors -> the tokens' weighted sums. told="gradient" asks for that of the argument `of`,
    "x", "weights", "gate_up" or "down"."""

    def computed(x, experts, weights, gate_up, down, *, told="", of="x", along=None):
        given = {"x": x, "weights": weights, "gate_up": gate_up, "down": down}
        if told == "products":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of what is no product, and not known to `work`
                with work() as done:
                    run(x, experts, weights, gate_up, down)
            return done.matmul_flops
        if told == "gradient":
            given[of].requires_grad_(True)
            return _gradient(run(x, experts, weights, gate_up, down), given[of], along)
        return run(x, experts, weights, gate_up, down)

    return computed


def plain_bias(move: Callable) -> Callable:
    """A change in place: bias, loads, rate -> the bias as it is after that."""

    def moved(bias, loads, rate):
        bias = bias.clone()
        move(bias, loads, rate)
        return bias

    return moved


def plain_loss(loss: Callable) -> Callable:
    """A balance loss: experts (N, K) and scores (N, E) -> the loss. told="gradient" asks for that of the scores. The
    routing's weights are the scores of its experts, normalised."""

    def computed(experts, scores, *, sequences=1, told=""):
        scores = scores.requires_grad_(told == "gradient")
        weights = scores.gather(1, experts)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        found = loss(Routing(experts, weights, scores), sequences=sequences)
        if told == "gradient":
            return _gradient(found, scores, torch.ones(()))
        return found

    return computed


def _parts(routing: object) -> tuple[Tensor, Tensor, Tensor]:
    """Its experts, weights and scores. TypeError where it is no `Routing` of tensors."""
    if not isinstance(routing, Routing):
        raise TypeError(f"it returned a {type(routing).__name__}, and not Routing(experts, weights, scores)")
    parts = routing.experts, routing.weights, routing.scores
    for name, part in zip(("experts", "weights", "scores"), parts, strict=True):
        if not isinstance(part, Tensor):
            raise TypeError(f"Routing.{name} is a {type(part).__name__}, and not a tensor")
    return parts


def _gradient(result: Tensor, of: Tensor, along: Tensor) -> Tensor:
    """Zeros where nothing of the result depends on it, or its shape is another one than `along`'s."""
    if not isinstance(result, Tensor) or not result.requires_grad or result.shape != along.shape:
        return torch.zeros_like(of)
    (found,) = torch.autograd.grad(result, of, along.to(result.dtype), allow_unused=True)
    return torch.zeros_like(of) if found is None else found
