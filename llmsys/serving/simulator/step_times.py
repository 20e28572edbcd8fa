"""How long a step takes, by its load: a model of a device, fitted to steps that it did.

    times = fit(recorder.steps)
    times.seconds(StepLoad(tokens=64, sequences=64, attended=80_000, pairs=80_000))        0.0078

The time is a sum of what there is to do, each with a price of its own (`StepLoad` says what is counted):

    t = fixed + per_token · tokens + per_sequence · sequences + per_attended · attended + per_pair · pairs

*fixed* is what every step costs: to read the weights, to launch. *per_token* is the arithmetic of the matrices,
*per_attended* the reading of a token's keys and values, *per_pair* the arithmetic of attention in a long prompt. Steps
that decode and nothing else are done by other kernels than those with a prompt in them, so each kind has its own
prices: while the weights are read, another decoding sequence costs next to nothing, and a prompt's tokens are paid for.

Of steps with a prompt, **short** ones may have prices of their own, too: with few tokens attention does not fill the
device, and a token of context is dear. On an H200, with a model of Mistral-7B's shape, it is 78 ns in a step of at most
512 tokens, 24 in a longer one, and 30 beside no prompt. With one price for the first two, waits for a first token at 22
requests a second, where queues grow, are told 134% too long, and with two 23% (`llmsys.bench.goodput`).

**Filled up**: an engine that captures steps as graphs has graphs of some sizes, and a step with prompts takes as long
as the size that it is filled up to. With `sizes` that is what is counted as tokens.

**Fitted** are the prices, none below zero: of all subsets of the terms the one is taken whose least-squares solution
has no negative price and the smallest error. There are 32 subsets, so nothing cleverer is needed. (That is the
non-negative least-squares solution: the terms that are zero in it are left out of one of these subsets.) Errors count
relative to the time, or the longest steps alone would decide.

**Counted in whole femtoseconds**, so that the time of a thousand steps is the same to the last bit whether they are
added one by one or as an arithmetic series (`runs`).

Vidur fits a model for each operator, https://arxiv.org/abs/2405.05465; DistServe one of a whole step, in the appendix
of https://arxiv.org/abs/2401.09670.
"""

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np

from llmsys.models.sampling import whole_number
from llmsys.serving.simulator.load import StepLoad, TimedStep

TICKS = 10**15
"""Of the simulator's clock, in a second."""


@dataclass(frozen=True)
class Prices:
    """What things cost, in seconds. ValueError where one is negative, or a step might take no time."""

    fixed: float = 0.0
    per_token: float = 0.0
    per_sequence: float = 0.0
    per_attended: float = 0.0
    per_pair: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            if not (isinstance(value := getattr(self, field.name), int | float) and 0 <= value < math.inf):
                raise ValueError(f"{field.name} must be seconds from 0 on, got {value!r}")
        in_ticks = tuple(round(getattr(self, field.name) * TICKS) for field in fields(self))
        if not any(in_ticks[:3]):
            raise ValueError("a step must take time: give fixed, per_token or per_sequence a price")
        object.__setattr__(self, "in_ticks", in_ticks)


@dataclass(frozen=True)
class StepTimes:
    """A device's prices.

    Attributes
    ----------
    decode
        Of steps in which each sequence has one token.
    mixed
        Of the others. None: the same.
    sizes
        To how many tokens these others are filled up, in order; a longer step is not filled up. (): none is.
    short
        Of those of the others that are filled up to `short_tokens` at most. None: as mixed.
    short_tokens
        How many tokens a short step may have.

    ValueError where something is of another type, or sizes are not in order.
    """

    decode: Prices
    mixed: Prices | None = None
    sizes: tuple[int, ...] = ()
    short: Prices | None = None
    short_tokens: int = 0

    def __post_init__(self):
        for name in ("decode", "mixed", "short"):
            if not isinstance(getattr(self, name), Prices | None) or (name == "decode" and self.decode is None):
                raise ValueError(f"{name} must be Prices, got {getattr(self, name)!r}")
        if self.short is not None and self.mixed is None:
            raise ValueError("mixed must have prices where short has: those of the steps that are not short")
        whole_number("short_tokens", self.short_tokens, at_least=0)
        object.__setattr__(self, "sizes", _sizes(self.sizes))

    def ticks(self, load: StepLoad) -> int:
        """How long a step takes, in whole ticks: TICKS are a second."""
        tokens, sequences, attended, pairs = load
        prices = self.decode
        if tokens > sequences:
            tokens = filled_up(tokens, self.sizes)
            prices = (self.short if tokens <= self.short_tokens else self.mixed) or self.mixed or prices
        fixed, per_token, per_sequence, per_attended, per_pair = prices.in_ticks
        return fixed + per_token * tokens + per_sequence * sequences + per_attended * attended + per_pair * pairs

    def growth(self, sequences: int) -> int:
        """How many ticks more the next step takes, if so many sequences decode: each attends to one token more."""
        return sum(self.decode.in_ticks[3:]) * sequences

    def seconds(self, load: StepLoad) -> float:
        return self.ticks(load) / TICKS


def _sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(sizes, Iterable):
        raise ValueError(f"sizes must be numbers of tokens, as (64, 128), or () for none, got {sizes!r}")
    sizes = tuple(whole_number("each of sizes", size, at_least=1) for size in sizes)
    if list(sizes) != sorted(sizes):
        raise ValueError(f"sizes must be in order, got {sizes}")
    return sizes


def filled_up(tokens: int, sizes: Sequence[int]) -> int:
    """The smallest of the sizes that has room for so many; where none has, as many."""
    i = bisect_left(sizes, tokens)
    return sizes[i] if i < len(sizes) else tokens


def fit(
    steps: Iterable[TimedStep],
    *,
    weights: Sequence[float] | None = None,
    sizes: Sequence[int] = (),
    short_tokens: int = 0,
) -> StepTimes:
    """The prices of the device that did these steps.

    weights           how much each step counts; None: all alike
    sizes             see `StepTimes`
    short_tokens      steps with prompts that are filled up to so many tokens at most have prices of their own

    ValueError for fewer than two steps that decode, a time that is not above 0, or what is no step. Where fewer than
    two steps have prompts in them, these cost what the others do; where fewer than two of them are short, or not, all
    have one price.
    """
    steps, sizes = _timed(steps), _sizes(sizes)
    weights = [1.0] * len(steps) if weights is None else _weights(weights, len(steps))
    whole_number("short_tokens", short_tokens, at_least=0)
    kinds: dict[str, list[tuple[TimedStep, float]]] = {"decode": [], "mixed": [], "short": []}
    for step, weight in zip(steps, weights, strict=True):
        load, kind = step.load, "decode"
        if load.tokens > load.sequences:
            step = step._replace(load=load._replace(tokens=(tokens := filled_up(load.tokens, sizes))))
            kind = "short" if tokens <= short_tokens else "mixed"
        kinds[kind].append((step, weight))
    if len(kinds["decode"]) < 2:
        raise ValueError(f"steps must have at least two that decode and do nothing else, got {len(kinds['decode'])}")
    if min(len(kinds["short"]), len(kinds["mixed"])) < 2:
        kinds["mixed"], kinds["short"], short_tokens = kinds["mixed"] + kinds["short"], [], 0
    decode, mixed, short = (_prices(each) if len(each) > 1 else None for each in kinds.values())
    return StepTimes(decode, mixed, sizes, short, short_tokens)


def _timed(steps: Iterable[TimedStep]) -> list[TimedStep]:
    steps = list(steps) if isinstance(steps, Iterable) else [steps]
    for step in steps:
        if not (isinstance(step, TimedStep) and isinstance(step.load, StepLoad)):
            raise ValueError(f"steps must be TimedStep(StepLoad(…), seconds), as a StepRecorder has them, got {step!r}")
        if not (isinstance(step.seconds, Real) and 0 < step.seconds < math.inf):
            raise ValueError(f"steps must have times above 0, in seconds, got {step.seconds!r}")
    return steps


def _weights(weights: Sequence[float], count: int) -> list[float]:
    weights = list(weights) if isinstance(weights, Iterable) else [weights]
    for weight in weights:
        if not (isinstance(weight, Real) and 0 <= weight < math.inf):
            raise ValueError(f"weights must be numbers from 0 on, got {weight!r}")
    if len(weights) != count:
        raise ValueError(f"weights must be one for each of {count} steps, got {len(weights)}")
    return weights


def _prices(steps: list[tuple[TimedStep, float]]) -> Prices:
    seconds = np.array([step.seconds for step, _ in steps])  # (N,)
    scale = np.sqrt([weight for _, weight in steps])
    loads = np.array([[1, *step.load] for step, _ in steps], dtype=float)  # (N, 5)
    prices, _ = non_negative(loads / seconds[:, None] * scale[:, None], scale)
    return Prices(*map(float, prices))


def non_negative(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """The x ≥ 0 for which |a x − b|² is smallest, and that: a (N, K), b (N,), x (K,). Time grows as 2^K."""
    size = np.linalg.norm(a, axis=0)
    size[size == 0] = 1.0
    a, columns = a / size, a.shape[1]  # columns of one size are solved for more exactly
    best, least = np.zeros(columns), float(b @ b)
    for count in range(1, columns + 1):
        for chosen in map(list, itertools.combinations(range(columns), count)):
            x, *_ = np.linalg.lstsq(a[:, chosen], b, rcond=None)
            if (x < 0).any():
                continue
            error = float((rest := a[:, chosen] @ x - b) @ rest)
            if error < least:
                best, least = np.zeros(columns), error
                best[chosen] = x / size[chosen]
    return best, least


def relative_errors(times: StepTimes, steps: Iterable[TimedStep]) -> list[float]:
    """By how much the model's time of each step is longer than the real one, as a share of the real one."""
    return [times.seconds(step.load) / step.seconds - 1 for step in steps]
