"""The exercises' functions as functions of plain data, which a check can compare and send to another process.

What an answer takes or returns beside tensors is a `Routing`, and what a check asks of it beside its value are
gradients and the operations of its products. `told` says which:

    told=""                              what the function returns
    told="gradient of …"                 what that argument gets, if its result gets `grad_output`
    told="operations of its products"    a multiply-add counts as two
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.hardware.meters import work
from llmsys.moe.router import Routing


def plain_route(route: Callable) -> Callable:
    """A router: logits and options -> (experts, weights, scores), a token's experts in the order of their numbers.

    told="gradient of logits, through weights" or "… through scores" has what they get from that part of the result, to
    which `grad_output` belongs; for weights it is in the order of the experts' numbers.
    """

    def routed(logits, k, *, told="", grad_output=None, **options):
        logits = logits.requires_grad_(bool(told))
        experts, weights, scores = _parts(route(logits, k, **options))
        if experts.shape == weights.shape and experts.dim() == 2 and experts.dtype == torch.int64:
            experts, order = experts.sort(dim=-1)
            weights = weights.gather(1, order)
        if told:
            return _gradient(weights if told.endswith("weights") else scores, logits, grad_output)
        return experts, weights, scores

    return routed


def plain_experts(run: Callable) -> Callable:
    """The experts of a layer: tensors -> the tokens' weighted sums. "gradient of …" is that of x, weights, gate_up or
    down."""

    def computed(x, experts, weights, gate_up, down, *, told="", grad_output=None):
        given = {"x": x, "weights": weights, "gate_up": gate_up, "down": down}
        if told == "operations of its products":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of what is no product, and not known to `work`
                with work() as done:
                    run(x, experts, weights, gate_up, down)
            return done.matmul_flops
        if told:
            of = given[told.removeprefix("gradient of ")].requires_grad_(True)
            return _gradient(run(x, experts, weights, gate_up, down), of, grad_output)
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
    """A balance loss: experts (N, K) and scores (N, E) -> the loss, or told="gradient of scores". The routing's weights
    are the scores of its experts, normalised."""

    def computed(experts, scores, *, sequences=1, told=""):
        scores = scores.requires_grad_(bool(told))
        weights = scores.gather(1, experts)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        found = loss(Routing(experts, weights, scores), sequences=sequences)
        if told:
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


def _gradient(result: Tensor, of: Tensor, grad_output: Tensor) -> Tensor:
    """Zeros where nothing of the result depends on it, or its shape is another one than that of `grad_output`."""
    if not isinstance(result, Tensor) or not result.requires_grad or result.shape != grad_output.shape:
        return torch.zeros_like(of)
    (found,) = torch.autograd.grad(result, of, grad_output.to(result.dtype), allow_unused=True)
    return torch.zeros_like(of) if found is None else found
