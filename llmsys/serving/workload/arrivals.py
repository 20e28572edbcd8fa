"""A workload: when requests come, how long they are, and which prefixes they share.

    workload = synthetic("azure-conversation", 1000, rate=8.0, seed=0)       Poisson arrivals, 8 a second on average
    workload = synthetic("azure-code", 1000, rate=8.0, seed=0, cv=4.0)       the same rate in bursts
    workload = at_rate(read_mooncake("conversation_trace.jsonl"), 2.0)       a trace, slower or faster

A workload is a list of `Arrival`s in the order in which they come: plain numbers, and no token. What the tokens are
matters to a cache alone, which must find equal prefixes where there are some, and none where there are none;
`prompt_tokens` makes such ones up.

**Pauses** between two arrivals are drawn from a Gamma distribution with the mean 1 / rate and the coefficient of
variation `cv` = standard deviation / mean. Its shape is 1/cv², its scale cv²/rate. cv = 1 is the exponential
distribution, so a Poisson process: everybody comes independently of everybody else. Above 1 arrivals come in bursts,
and below 1 more evenly, up to one each 1/rate seconds at 0. (AlpaServe, https://arxiv.org/abs/2302.11665, is
measured on such a process; `vllm bench serve` calls the shape 1/cv² its burstiness.)

One seed draws one workload whatever the rate is: at twice the rate the same requests come, in the same order, after
half the pauses. So what changes with the rate is due to the rate.
"""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from llmsys.serving.workload.lengths import Lengths, draw_lengths

BLOCK = 512
"""Tokens of a block of `Arrival.blocks`."""
ALONE = 1 << 40
"""Keys of prompts that share nothing begin here, above any trace's blocks."""


class Arrival(NamedTuple):
    """A request of a workload."""

    at: float  #  seconds after the workload began
    prompt: int  #  tokens
    output: int  #  tokens of its answer
    blocks: tuple[int, ...] = ()
    """What its prompt begins with: a key for each BLOCK tokens, the last one perhaps of fewer. Two prompts are equal as
    far as their keys are. (): shares nothing with anybody."""


def synthetic(trace: str | Lengths, count: int, *, rate: float, seed: int, cv: float = 1.0) -> list[Arrival]:
    """`count` requests as long as a trace's (a name in LENGTHS, or a table), which share nothing.

    Parameters
    ----------
    rate
        Requests a second, on average.
    cv
        Coefficient of variation of the pauses: 1 for a Poisson process, above for bursts, 0 for even pauses.

    ValueError for a trace that is not there, or a number that is out of its range.
    """
    _positive("rate", rate, "requests a second")
    if not (math.isfinite(cv) and cv >= 0):
        raise ValueError(f"cv must be a number from 0 on: 1 for a Poisson process, above for bursts; got {cv}")
    draw = random.Random(f"pauses {seed}")
    at, found = 0.0, []
    for prompt, output in draw_lengths(trace, count, seed=seed):
        found.append(Arrival(at / rate, prompt, output))
        at += draw.gammavariate(1 / cv**2, cv**2) if cv else 1.0
    return found


def at_rate(workload: Sequence[Arrival], rate: float) -> list[Arrival]:
    """The same requests, `rate` a second on average: all pauses become longer or shorter by one factor, and the first
    one comes at 0. ValueError for a workload that has no rate of its own: of one request, or of one moment."""
    _positive("rate", rate, "requests a second")
    if len(workload) < 2 or not workload[-1].at > workload[0].at:
        raise ValueError("workload must have requests that come at two times at least, or it has no rate to change")
    first = workload[0].at
    factor = (len(workload) - 1) / (workload[-1].at - first) / rate
    return [each._replace(at=(each.at - first) * factor) for each in workload]


def prompt_tokens(arrival: Arrival, number: int, *, vocab: int | None = None) -> tuple[int, ...]:
    """Token ids for a prompt that is the `number`-th of its workload: equal to another's as far as `blocks` are, and no
    further (but for the first few tokens of a block, which are its key in digits).

    vocab      below which ids stay; None: any whole number may be one, as for a simulator
    """
    if vocab is not None and vocab < 2:
        raise ValueError(f"vocab must be at least 2 tokens, to tell two prompts apart, got {vocab}")
    if not arrival.blocks:
        return _block(ALONE + number, arrival.prompt, vocab)
    whole, rest = divmod(arrival.prompt, BLOCK)
    if len(arrival.blocks) != whole + (rest > 0):
        raise ValueError(
            f"blocks must be one for each {BLOCK} tokens of a prompt of {arrival.prompt}: {whole + (rest > 0)}, "
            f"got {len(arrival.blocks)}"
        )
    tokens: list[int] = []
    for i, key in enumerate(arrival.blocks):
        tokens += _block(key, BLOCK if i < whole else rest, vocab)
    return tuple(tokens)


def shared_share(workload: Sequence[Arrival]) -> float:
    """The share of all prompt tokens that a cache without a limit hits, in blocks of BLOCK tokens: of each prompt the
    longest beginning that somebody before it had, too."""
    seen: set[int] = set()
    hit = total = 0
    for each in workload:
        total += each.prompt
        for i, key in enumerate(each.blocks):
            if key not in seen:
                break
            hit += min(BLOCK, each.prompt - i * BLOCK)
        seen.update(each.blocks)
    return hit / total if total else 0.0


def _block(key: int, count: int, vocab: int | None) -> tuple[int, ...]:
    """`count` tokens that no other key's begin with: the key's digits in base `vocab`, and then the first digit on."""
    if vocab is None:
        return (key,) * count
    digits, rest = [], key
    while rest or not digits:
        rest, digit = divmod(rest, vocab)
        digits.append(digit)
    return (*digits, *(digits[:1] * (count - len(digits))))[:count]


def _positive(name: str, value: float, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be above 0 {what}, got {value}")
