"""How a request wants its tokens chosen, and when it has enough of them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from llmsys.models.sampling import sampler, whole_number

_NUMBERS = dict(max_tokens=int, temperature=float, top_k=int, top_p=float, min_p=float, seed=int, logprobs=int, n=int)


@dataclass(frozen=True)
class SamplingParams:
    """One request's settings: plain values, hashable and picklable. ValueError where one is out of its range."""

    max_tokens: int | None = 128
    """Tokens to generate at most. None: as many as the model's length and the pool have room for."""
    temperature: float = 0.0
    """0 takes the likeliest token; 1 draws from the model's own probabilities."""
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    """Only tokens at least `min_p` times as probable as the likeliest one can come."""
    seed: int | None = None
    """The same seed draws the same tokens, whoever else is in the batch. None: another draw each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the request, where they first appear in what it generated."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end it, besides the model's own end tokens."""
    ignore_eos: bool = False
    """Go on after the model's own end tokens."""
    logprobs: int | None = None
    """With each token its log-probability and those of so many likeliest ones (0: its own alone). None: without."""
    n: int = 1
    """Answers to one prompt. The prompt is computed once, and the others share its blocks."""

    def __post_init__(self):
        sampler(self.temperature, self.top_k, self.top_p, self.seed)  # whose rules hold here as well
        if self.max_tokens is not None:
            whole_number("max_tokens", self.max_tokens, at_least=1)
        if self.min_p is not None:
            if not (isinstance(self.min_p, Real) and not isinstance(self.min_p, bool) and 0 < self.min_p <= 1):
                raise ValueError(f"min_p must be above 0 and at most 1, or None, got {self.min_p!r}")
            if self.temperature == 0:
                raise ValueError("min_p has no effect at temperature 0, which is greedy: set temperature, e.g. 0.8")
        stop = (self.stop,) if isinstance(self.stop, str) else _several("stop", self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise ValueError(f"stop must be texts of at least one character, got {stop!r}")
        ids = tuple(
            whole_number("stop_token_ids", each, at_least=0) for each in _several("stop_token_ids", self.stop_token_ids)
        )
        if self.logprobs is not None:
            whole_number("logprobs", self.logprobs, at_least=0)
        whole_number("n", self.n, at_least=1)
        object.__setattr__(self, "stop", stop)  # frozen, and lists are welcome all the same
        object.__setattr__(self, "stop_token_ids", ids)
        for name, kind in _NUMBERS.items():  # and so are NumPy's and torch's numbers
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, kind(value))

    def of_answer(self, i: int) -> "SamplingParams":
        """The settings of the i-th of `n` answers: one answer, and where there is a seed, one of its own."""
        if self.n == 1 and i == 0:
            return self
        seed = None if self.seed is None else (self.seed + i) % 2**64 if i else self.seed
        return replace(self, n=1, seed=seed)

    @property
    def most_tokens(self) -> float:
        """`max_tokens` as a number that can be compared: infinite for None."""
        return math.inf if self.max_tokens is None else self.max_tokens


def _several(name: str, values: Iterable) -> tuple:
    if not isinstance(values, Sequence | set | frozenset) or isinstance(values, str | bytes):
        raise ValueError(f"{name} must be a list or a tuple, got {values!r}")
    return tuple(values)
