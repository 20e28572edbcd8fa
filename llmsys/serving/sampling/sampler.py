"""The next token of every sequence in a step, drawn where the logits are.

    chosen = choose(logits, [Draw(params, position) for ...])        # on the device; nobody waits
    chosen.fetch()                                                   # on the host: one `Choice` a row

A step has requests of all kinds: one greedy, one at temperature 0.8 with top_k, one that wants logprobs. Rows of one
kind are worked on together, and each row as if it were alone:

    greedy          the largest logit, the first of equal ones
    temperature     p = softmax(logits / temperature)
    top_k           only tokens whose logit is at least the k-th largest (those equal to it, too)
    min_p           only tokens of at least min_p times the largest probability
    top_p           only the likeliest tokens that together reach top_p, the one that crosses it included

**A seed means the same in any batch.** One random number u in [0, 1) draws a token: the first whose cumulated
probability is above u. It is made on the host from the request's seed and the position of the token in its sequence,
and from nothing else. So it does not matter who else is in the step, in how many chunks the prompt was computed, or
whether the request was preempted and has begun again: a generator with a state would have to be put back each time.
(What can differ is the logits, in their last bits, where a product of other sizes is summed in another order.)

**Logits that are not finite** make token −1 (`Choice.finite` is False): one row's trouble, which the others do not see.

Inverse transform sampling; top_p: https://arxiv.org/abs/1904.09751; min_p: https://arxiv.org/abs/2407.01082; the random
numbers are SplitMix64's, https://doi.org/10.1145/2660193.2660195, section 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.serving.sampling.draw import first_above
from llmsys.serving.sampling.sampling_params import SamplingParams

ELEMENTS_AT_ONCE = 2**24
"""Of (rows, V) that are worked on together: what bounds the memory, some 30 bytes an element."""


class Draw(NamedTuple):
    """How the token of one row of logits is chosen."""

    params: SamplingParams
    position: int  #  in its sequence, of the token to be chosen, prompt included
    seed: int = 0  #  without effect at temperature 0


class Choice(NamedTuple):
    """What came of a row."""

    token: int
    finite: bool  #  False: the logits were not, and there is no token
    logprob: float | None = None
    """Natural, of the model's own probabilities (temperature 1, nothing left out), where logprobs were asked for."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and theirs, as many as were asked for."""


def choose(logits: Float[Tensor, "L V"], draws: Sequence[Draw]) -> "Chosen":
    """The next tokens of all rows, still on the device. `draws` has one for each row."""
    L, V = logits.shape
    if len(draws) != L:
        raise ValueError(f"draws must be one for each of the {L} rows of logits, got {len(draws)}")
    asked = [0 if draw.params.logprobs is None else min(draw.params.logprobs, V) for draw in draws]
    wanted = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    most = max(asked, default=0)
    # One tensor holds all that the host wants to know, so that it comes in one copy: ids are exact in float64.
    found = logits.new_zeros(L, 1 + (1 + 2 * most if wanted else 0), dtype=torch.float64)
    for first, last, kind in _groups(draws, V):
        rows = _rows(kind, first, last, L, logits.device)
        x = logits if rows is None else logits.index_select(0, rows)
        some = [draws[row] for row in kind[first:last]]
        tokens = _greedy(x) if some[0].params.temperature == 0 else _drawn(x, some)
        tokens = torch.where(torch.isfinite(x.amax(dim=1)), tokens, -1).double()
        if rows is None:
            found[:, 0] = tokens
        else:
            found[:, 0].index_copy_(0, rows, tokens)
    step = max(1, ELEMENTS_AT_ONCE // V)
    for first in range(0, len(wanted), step):
        rows = _rows(wanted, first, first + step, L, logits.device)
        x, mine = (logits, found) if rows is None else (logits.index_select(0, rows), found.index_select(0, rows))
        _add_logprobs(x, mine, most)
        if rows is not None:
            found.index_copy_(0, rows, mine)
    return Chosen(found, asked if wanted else None, frozenset(wanted))


class Chosen:
    """Tokens on their way to the host."""

    def __init__(self, found: Tensor, asked: list[int] | None, wanted: frozenset[int]):
        self._asked, self._wanted = asked, wanted
        self._event = None
        self.on_device = found
        self._host = found
        if found.is_cuda:
            self._host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self._host.copy_(found, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def fetch(self) -> list[Choice]:
        """One a row. The only place where the host waits for a step."""
        if self._event is not None:
            self._event.synchronize()
        rows = self._host.tolist()
        return [self._choice(i, row) for i, row in enumerate(rows)]

    def _choice(self, i: int, row: list[float]) -> Choice:
        token = int(row[0])
        if token < 0 or i not in self._wanted:
            return Choice(token, token >= 0)
        n, most = self._asked[i], (len(row) - 2) // 2
        ids, values = map(int, row[2 : 2 + n]), row[2 + most : 2 + most + n]
        return Choice(token, True, row[1], tuple(zip(ids, values, strict=True)))


def uniform(seeds: Sequence[int] | np.ndarray, positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """A number in [0, 1), float64, for each seed (64 bits) and position: equal ones for equal ones, else unrelated.

    Of arrays, `seeds` is uint64.
    """
    if not (isinstance(seeds, np.ndarray) and seeds.dtype == np.uint64):
        seeds = np.array([seed & _MASK for seed in seeds], dtype=np.uint64)
    positions = np.asarray(positions).astype(np.uint64)
    # Mixed first: streams that begin at neighbouring seeds would else be one stream, a position apart.
    bits = _mixed(_mixed(seeds + _STEP) + (positions + np.uint64(1)) * _STEP)
    # 52 bits: u · total is below total in float64, whatever total is, so there always is a token above it.
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52


_MASK = 2**64 - 1
_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _greedy(x: Tensor) -> Tensor:
    return x.argmax(dim=1)


def _drawn(x: Tensor, draws: list[Draw]) -> Tensor:
    """Of rows that are all drawn, and all of them with top_k, min_p or top_p, or none."""
    device, several = x.device, [draw.params for draw in draws]
    u = uniform([draw.seed for draw in draws], [draw.position for draw in draws])
    numbers = np.stack([[_within_fp32(each.temperature) for each in several], u])
    temperature, u = _to(numbers, device)[:, :, None]  # (rows, 1) each
    # The maximum first, so that nothing overflows, and 0 stays 0.
    x = x if x.dtype == torch.float64 else x.float()
    x = (x - x.amax(dim=1, keepdim=True)) / temperature.to(x.dtype)
    if not _cuts(several[0]):
        return first_above(torch.softmax(x, dim=1), u)
    x, order = x.sort(dim=1, descending=True, stable=True)
    V = x.shape[1]
    limits = [(min(each.top_k or V, V), each.min_p or 0.0, each.top_p or 1.0) for each in several]
    top_k, min_p, top_p = _to(np.array(limits, dtype=np.float64).T, device)[:, :, None]
    smallest = x.gather(1, top_k.long() - 1)
    p = torch.softmax(x.masked_fill(x < smallest, float("-inf")), dim=1).double()
    out = p < min_p * p[:, :1]
    p = p.masked_fill(out, 0.0)
    p = p / p.sum(dim=1, keepdim=True)
    before = p.cumsum(dim=1) - p  # the probability of all that are likelier
    out = (before >= top_p) & (top_p < 1)
    out[:, 0] = False  # one is left, however little top_p is
    place = first_above(p.masked_fill(out, 0.0), u)
    return order.gather(1, place[:, None])[:, 0]


def _add_logprobs(x: Tensor, found: Tensor, most: int) -> None:
    """Fill in, behind the token of each row, its logprob, the likeliest tokens' ids, and their logprobs."""
    log_p = torch.log_softmax(x if x.dtype == torch.float64 else x.float(), dim=1)
    found[:, 1] = log_p.gather(1, found[:, :1].long().clamp(min=0))[:, 0]
    if most:
        top = log_p.topk(most, dim=1)
        found[:, 2 : 2 + most], found[:, 2 + most :] = top.indices, top.values


def _groups(draws: Sequence[Draw], V: int):
    """(first, last, rows): the rows of one kind, and from which to which of them at a time."""
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for row, draw in enumerate(draws):
        drawn = draw.params.temperature > 0
        kinds.setdefault((drawn, drawn and _cuts(draw.params)), []).append(row)
    for (drawn, _), rows in kinds.items():
        step = max(1, ELEMENTS_AT_ONCE // V) if drawn else len(rows)
        for first in range(0, len(rows), step):
            yield first, min(first + step, len(rows)), rows


def _rows(kind: list[int], first: int, last: int, L: int, device: torch.device) -> Tensor | None:
    """Which rows these are, on the device; None for all of them, which need not be picked out."""
    part = kind[first:last]
    return None if len(part) == L else _to(np.array(part, dtype=np.int64), device)


def _cuts(params: SamplingParams) -> bool:
    return params.top_k is not None or params.min_p is not None or (params.top_p is not None and params.top_p < 1)


def _within_fp32(temperature: float) -> float:
    """One that fp32 holds, with its reciprocal."""
    return min(max(float(temperature), 1e-37), 1e37)


def _to(numbers: np.ndarray, device: torch.device) -> Tensor:
    host = torch.from_numpy(np.ascontiguousarray(numbers))
    # From pinned memory the copy runs while the host goes on.
    return (host.pin_memory() if device.type == "cuda" else host).to(device, non_blocking=True)
