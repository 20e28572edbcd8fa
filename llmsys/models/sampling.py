"""From logits to the next token.

A sampler is a function `next_token(logits) -> ids`: logits (B, T, V) of a sequence's every position, ids (B,) of
what comes after the last. `greedy` takes the most probable; `sampler` makes functions that draw.

Logits that are not finite are an error. The largest of several NaN is the first, so a model whose numbers overflowed
would say token 0 for ever.
"""

import hashlib
import math
from collections.abc import Callable
from numbers import Real
from operator import index
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

Sampler = Callable[[Tensor], Tensor]


def greedy(logits: Float[Tensor, "B T V"]) -> Int[Tensor, " B"]:
    """The most probable next token: of the last position, the largest logit. Errors as for `check_logits`."""
    check_logits(logits[:, -1])
    return logits[:, -1].argmax(dim=-1)


def sampler(
    temperature: Real = 0.0,
    top_k: SupportsIndex | None = None,
    top_p: Real | None = None,
    seed: SupportsIndex | None = None,
) -> Sampler:
    """A function that draws the next token from softmax(logits / temperature), with its own random numbers.

    Parameters
    ----------
    temperature
        0 is `greedy`; 1 the model's own probabilities; more is flatter, and less comes as close to greedy as you like.
    top_k
        Only the k most probable tokens can come (ties with the k-th, too).
    top_p
        Only the most probable tokens that together reach probability p can come, the one that crosses it included
        ("nucleus", https://arxiv.org/abs/1904.09751). Taken after `temperature` and `top_k`.
    seed
        The same seed draws the same tokens: any whole number of 64 bits, with a sign or without. None is another each
        time. Without effect at temperature 0, where nothing is drawn.

    Raises
    ------
    ValueError
        An argument is out of its range; or top_k or top_p is given and temperature is 0.
    FloatingPointError
        By the function that was made: the logits are not finite (`check_logits`).
    """
    if not (_is_number(temperature) and 0 <= temperature < math.inf):
        raise ValueError(f"temperature must be 0 (greedy) or a positive number, got {temperature!r}")
    if top_k is not None:
        top_k = whole_number("top_k", top_k, at_least=1)
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise ValueError(f"top_p must be above 0 and at most 1, or None, got {top_p!r}")
    random = _random_numbers(seed)
    if temperature == 0:
        for name, value in (("top_k", top_k), ("top_p", top_p)):
            if value is not None:
                raise ValueError(f"{name} has no effect at temperature 0, which is greedy: set temperature, e.g. 0.8")
        return greedy

    def draw(logits: Float[Tensor, "B T V"]) -> Int[Tensor, " B"]:
        p = probabilities(logits[:, -1], temperature, top_k, top_p).cpu()  # so that a seed means the same on any device
        return torch.multinomial(p, 1, generator=random)[:, 0].to(logits.device)

    return draw


def probabilities(
    logits: Float[Tensor, "B V"],
    temperature: Real,
    top_k: SupportsIndex | None = None,
    top_p: Real | None = None,
) -> Float[Tensor, "B V"]:
    """What `sampler` draws from: probabilities, zero for every token that top_k or top_p leaves out."""
    check_logits(logits)
    x = logits if logits.dtype == torch.float64 else logits.float()
    # The maximum first, and a divisor that fp32 holds, with its reciprocal: nothing overflows, and 0 stays 0.
    x = (x - x.amax(dim=-1, keepdim=True)).float() / min(max(float(temperature), 1e-37), 1e37)
    if top_k is not None and top_k < x.shape[-1]:
        smallest = x.topk(top_k, dim=-1).values[:, -1:]
        x = x.masked_fill(x < smallest, float("-inf"))
    p = torch.softmax(x, dim=-1)
    if top_p is not None and top_p < 1:
        sorted_p, order = p.sort(dim=-1, descending=True)
        before = sorted_p.cumsum(dim=-1) - sorted_p  # the probability of all that are likelier
        out = before >= float(top_p)
        out[:, 0] = False  # one is left, also where top_p is less than fp32 can tell from 0
        p = torch.zeros_like(p).scatter(-1, order, sorted_p.masked_fill(out, 0))
        p = p / p.sum(dim=-1, keepdim=True)
    return p


def check_logits(logits: Float[Tensor, "*B V"]) -> None:
    """Raise FloatingPointError where a row of logits has NaN or +∞ in it, or nothing but −∞. (Some −∞ may be.)"""
    highest = logits.amax(dim=-1)  # NaN where there is one
    if torch.isfinite(highest).all():
        return
    found = "NaN" if highest.isnan().any() else "+∞" if highest.isposinf().any() else "−∞ all of them"
    raise FloatingPointError(
        f"the model's logits are not finite ({found}), so there is no likeliest token: a weight or an activation has "
        "overflowed, or the checkpoint is damaged. A model in float16 may do better in bfloat16 or float32; an "
        "attention of your own may be at fault, too"
    )


def whole_number(name: str, value: Any, *, at_least: int) -> int:
    """`value` as an int, Python's, NumPy's or torch's; a ValueError that names it where it is none (True and False are
    none) or too small."""
    try:
        number = index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _random_numbers(seed: SupportsIndex | None) -> torch.Generator:
    random = torch.Generator()
    if seed is None:
        random.seed()
        return random
    seed = whole_number("seed", seed, at_least=-(2**63))
    if seed >= 2**64:
        raise ValueError(f"seed must have at most 64 bits, from -2^63 to 2^64 - 1, got {seed}")
    if not 0 <= seed < 2**32:  # of which torch's generator on the CPU sees 32 alone, and 2^32 + 1 were the same as 1
        seed = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    return random.manual_seed(seed)
