"""How long a step takes, by its load: a model of a device, fitted to steps that it did.

    times = fit(recorder.steps)
    times.seconds(StepLoad(tokens=64, sequences=64, attended=80_000, pairs=80_000))        0.0089

The time is a sum of what there is to do, each with a price of its own (`StepLoad` says what is counted):

    t = fixed + per_token · tokens + beyond · max(0, tokens − knee)
              + per_sequence · sequences + per_attended · attended + per_pair · pairs

*fixed* is what every step costs: to read the weights, to launch, to plan. *per_attended* is the reading of a token's keys
and values; *per_pair* the arithmetic of attention in a long prompt. Up to a *knee* of tokens the matrices are bound by
the reading of weights, so a token costs little; beyond it by arithmetic, so each costs *beyond* more: that is the
roofline of lesson 01, with its corner in the knee.

**Fitted** are the prices, none below zero: of all subsets of the terms the one is taken whose least-squares solution has
no negative price and the smallest error. There are 64 subsets, so nothing cleverer is needed. (That is the
non-negative least-squares solution: the terms that are zero in it are left out of one of these subsets.) Errors count
relative to the time, or the longest steps alone would decide. The knee is tried at several places.

**Counted in whole femtoseconds**, so that the time of a thousand steps is the same to the last bit whether they are
added one by one or as an arithmetic series (`runs`).

Vidur fits such a model for each operator, https://arxiv.org/abs/2405.05465, section 4; DistServe one of a whole step,
appendix A of https://arxiv.org/abs/2401.09670.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from llmsys.serving.simulator.load import StepLoad, TimedStep

TICKS = 10**15
"""Of the simulator's clock, in a second."""
KNEES = (32, 64, 96, 128, 192, 256, 384, 512)
"""Where the fit looks for the knee, in tokens."""


@dataclass(frozen=True)
class StepTimes:
    """A device's prices, in seconds; the knee in tokens. ValueError where one is negative, or all are 0."""

    fixed: float = 0.0
    per_token: float = 0.0
    per_sequence: float = 0.0
    per_attended: float = 0.0
    per_pair: float = 0.0
    beyond: float = 0.0
    knee: int = 0

    def __post_init__(self):
        for field in fields(self):
            if not (isinstance(value := getattr(self, field.name), int | float) and 0 <= value < math.inf):
                raise ValueError(f"{field.name} must be a number from 0 on, got {value!r}")
        in_ticks = tuple(round(getattr(self, name) * TICKS) for name in TERMS)
        if not self.fixed and not any(in_ticks[1:3]):
            raise ValueError("a step must take time: give fixed, per_token or per_sequence a price")
        object.__setattr__(self, "_in_ticks", in_ticks)

    def ticks(self, load: StepLoad) -> int:
        """How long a step takes, in whole ticks: TICKS are a second."""
        tokens, sequences, attended, pairs = load
        fixed, per_token, per_sequence, per_attended, per_pair, beyond = self._in_ticks
        time = fixed + per_token * tokens + per_sequence * sequences + per_attended * attended + per_pair * pairs
        return time + beyond * (tokens - self.knee) if tokens > self.knee else time

    def growth(self, sequences: int) -> int:
        """How many ticks more the next step takes, if so many sequences decode: each attends to one token more."""
        return (self._in_ticks[3] + self._in_ticks[4]) * sequences

    def seconds(self, load: StepLoad) -> float:
        return self.ticks(load) / TICKS


TERMS = ("fixed", "per_token", "per_sequence", "per_attended", "per_pair", "beyond")


def fit(steps: Iterable[TimedStep], *, weights: Sequence[float] | None = None) -> StepTimes:
    """The prices of the device that did these steps.

    weights      how much each step counts; None: all alike

    ValueError for fewer than two steps, or a time that is not above 0.
    """
    steps = list(steps)
    if len(steps) < 2:
        raise ValueError(f"steps must be at least two, of different loads, got {len(steps)}")
    seconds = np.array([step.seconds for step in steps])  # (N,)
    if not (np.isfinite(seconds).all() and (seconds > 0).all()):
        raise ValueError("steps must have times above 0")
    loads = np.array([step.load for step in steps], dtype=float)  # (N, 4)
    scale = np.ones(len(steps)) if weights is None else np.sqrt(np.asarray(weights, dtype=float))
    best, least = None, math.inf
    for knee in KNEES:
        beyond = np.maximum(0.0, loads[:, :1] - knee)
        terms = np.hstack([np.ones((len(steps), 1)), loads, beyond]) / seconds[:, None]  # (N, 6), of relative errors
        prices, error = non_negative(terms * scale[:, None], scale)
        if error < least and prices[:3].any():
            best, least = StepTimes(*map(float, prices), knee=knee), error
    if best is None:
        raise ValueError("steps must differ in their loads, and no price of a step was found from these")
    return best


def non_negative(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, float]:
    """The x ≥ 0 for which |a x − b|² is smallest, and that: a (N, K), b (N,), x (K,). Time grows as 2^K."""
    columns = a.shape[1]
    best, least = np.zeros(columns), float(b @ b)
    size = np.linalg.norm(a, axis=0)
    size[size == 0] = 1.0  # columns of one size are solved for more exactly
    for count in range(1, columns + 1):
        for chosen in map(list, itertools.combinations(range(columns), count)):
            x, *_ = np.linalg.lstsq(a[:, chosen] / size[chosen], b, rcond=None)
            if (x < 0).any():
                continue
            error = float(((a[:, chosen] / size[chosen]) @ x - b) @ ((a[:, chosen] / size[chosen]) @ x - b))
            if error < least:
                best, least = np.zeros(columns), error
                best[chosen] = x / size[chosen]
    return best, least


def relative_errors(times: StepTimes, steps: Iterable[TimedStep]) -> list[float]:
    """By how much the model's time of each step is longer than the real one, as a share of the real one."""
    return [times.seconds(step.load) / step.seconds - 1 for step in steps]
