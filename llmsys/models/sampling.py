"""From logits to the next token.

A sampler is a function `next_token(logits) -> ids`: logits (B, T, V) of a sequence's every position, ids (B,) of
what comes after the last. `greedy` takes the most probable; `sampler` makes functions that draw.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Sampler = Callable[[Tensor], Tensor]


def greedy(logits: Float[Tensor, "B T V"]) -> Int[Tensor, " B"]:
    """The most probable next token: of the last position, the largest logit."""
    return logits[:, -1].argmax(dim=-1)


def sampler(
    temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None, seed: int | None = None
) -> Sampler:
    """A function that draws the next token from softmax(logits / temperature), with its own random numbers.

    Parameters
    ----------
    temperature
        0 is `greedy`; 1 the model's own probabilities; more is flatter.
    top_k
        Only the k most probable tokens can come (ties with the k-th, too).
    top_p
        Only the most probable tokens that together reach probability p can come, the one that crosses it included
        ("nucleus", https://arxiv.org/abs/1904.09751). Taken after `temperature` and `top_k`.
    seed
        The same seed draws the same tokens. None is another each time.

    Raises
    ------
    ValueError
        An argument is out of its range; or top_k, top_p or seed is given and temperature is 0, where nothing is drawn.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, or None, got {top_p}")
    if temperature == 0:
        for name, value in (("top_k", top_k), ("top_p", top_p)):
            if value is not None:
                raise ValueError(f"{name} has no effect at temperature 0, which is greedy: set temperature, e.g. 0.8")
        return greedy
    random = torch.Generator()
    if seed is None:
        random.seed()
    else:
        random.manual_seed(seed)

    def draw(logits: Float[Tensor, "B T V"]) -> Int[Tensor, " B"]:
        p = probabilities(logits[:, -1], temperature, top_k, top_p).cpu()  # so that a seed means the same on any device
        return torch.multinomial(p, 1, generator=random)[:, 0].to(logits.device)

    return draw


def probabilities(
    logits: Float[Tensor, "B V"], temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "B V"]:
    """What `sampler` draws from: probabilities, zero for every token that top_k or top_p leaves out."""
    x = logits.float()
    x = (x - x.amax(dim=-1, keepdim=True)) / temperature  # the maximum first: no temperature can make it overflow
    if top_k is not None and top_k < x.shape[-1]:
        smallest = x.topk(top_k, dim=-1).values[:, -1:]
        x = x.masked_fill(x < smallest, float("-inf"))
    p = torch.softmax(x, dim=-1)
    if top_p is not None and top_p < 1:
        sorted_p, order = p.sort(dim=-1, descending=True)
        before = sorted_p.cumsum(dim=-1) - sorted_p  # the probability of all that are likelier
        p = torch.zeros_like(p).scatter(-1, order, sorted_p.masked_fill(before >= top_p, 0))
        p = p / p.sum(dim=-1, keepdim=True)
    return p
