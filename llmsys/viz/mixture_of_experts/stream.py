"""What goes by a router, batch after batch, while a bias or a loss evens its loads.

    batches     what the tokens of each batch are when they come to the router: (S, T, C), S sequences of T tokens
    a step      route a batch, count; then move the bias against the loads, or the router's matrix down a balance loss

Nothing else learns: the model's own loss would pull the matrix back, and there is none here. Both means are the
reader's, if they are handed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.moe import RouterConfig, Routing, balance_loss, load_statistics, move_bias, route_sigmoid

SHOWN = 88
"""Letters of a batch's first sequence that are kept."""
PULL = 0.3
"""How far the matrix goes down the balance loss's gradient in a step."""


@torch.no_grad()
def passing(model, batches: Sequence[Tensor], layer: int) -> list[tuple[str, Tensor]]:
    """What comes to a layer's router when a model of bytes reads: (text, x (B, T, C)) for each batch of tokens (B, T).

    model    with `routed` and `mixtures`, as `llmsys.models.MixtureLlama`; layer, one with experts
    """
    found = []
    router = model.mixtures[layer].router
    hook = router.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    try:
        texts = [bytes(token for token in tokens[0].tolist() if token < 256) for tokens in batches]
        for tokens in batches:
            model.routed(tokens)
    finally:
        hook.remove()
    return [(" ".join(text.decode(errors="replace").split())[:SHOWN], x) for text, x in zip(texts, found, strict=True)]


@dataclass(frozen=True)
class Frame:
    """One batch has gone by. Loads are in multiples of the mean."""

    text: str
    loads: tuple[float, ...]
    of_one: tuple[float, ...]
    """Of the first sequence alone."""
    bias: tuple[float, ...]
    busiest: tuple[float, ...]
    """The largest of loads, of this batch and all before it."""
    of_sequences: float
    """The busiest expert of each sequence by itself, the mean over the batch."""
    own_choice: float
    """The share of assignments that the scores alone would have made, too."""
    moved: float
    """How far the scores are from what they were before the first step, the mean."""


def stream(
    batches: Sequence[tuple[str, Tensor]],
    weight: Tensor,
    config: RouterConfig,
    *,
    bias: Tensor | None = None,
    rate: float = 0.0,
    loss: str = "",
    move: Callable = move_bias,
    balance: Callable = balance_loss,
) -> list[Frame]:
    """A frame for each batch.

    batches    (text, x (S, T, C)) each: the beginning of the first sequence, and what comes to the router
    weight     (E, C), the router's, which stays as it is; bias (E,), None for zeros
    rate, move    the bias's step after each batch, and what makes it
    loss, balance    "", "batch" or "sequence", and the balance loss
    """
    first = weight.clone()
    weight = weight.clone()
    bias = torch.zeros(len(weight)) if bias is None else bias.clone()
    frames, busiest = [], []
    for text, x in batches:
        S, T, _ = x.shape
        rows = x.flatten(0, 1)  # (N, C)
        weight.requires_grad_(bool(loss))
        routing = _route(rows, weight, config, bias)
        loads = routing.loads
        busiest.append(float(load_statistics(loads).busiest))
        of_each = routing.experts.view(S, -1)
        each = torch.stack([part.bincount(minlength=len(weight)) for part in of_each])  # (S, E)
        alone = _route(rows, weight, config, None).experts
        frames.append(
            Frame(
                text,
                _multiples(loads),
                _multiples(each[0]),
                tuple(bias.tolist()),
                tuple(busiest),
                float(load_statistics(each).busiest.mean()),
                float((routing.experts[:, :, None] == alone[:, None, :]).any(-1).float().mean()),
                float((routing.scores.detach() - torch.sigmoid(rows @ first.T)).abs().mean()),
            )
        )
        if loss:
            (gradient,) = torch.autograd.grad(balance(routing, sequences=S if loss == "sequence" else 1), weight)
            weight = weight.detach() - PULL * gradient
        if rate:
            move(bias, loads, rate)
    return frames


def _route(x: Tensor, weight: Tensor, config: RouterConfig, bias: Tensor | None) -> Routing:
    return route_sigmoid(
        x @ weight.T, config.k, bias=bias, groups=config.groups, kept_groups=config.kept_groups,
        normalise=config.normalise, scale=config.scale,
    )  # fmt: skip


def _multiples(loads: Tensor) -> tuple[float, ...]:
    return tuple((loads.double() / loads.double().mean()).tolist())
