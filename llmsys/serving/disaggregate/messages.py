"""What front and engines say to each other: plain picklable values. `key` is an attempt's number, which is never used
again: what comes late, of an attempt that was given up, is known by it, and left out.

    front ──► engine   Reserve, Prefill, Compute, GoOn, Cancel, Lost, Ping, Close
    engine ──► front   Hello, Granted, Landed, Refused, Broken, Report, Pong, Died
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from llmsys.cache import CacheSpec
from llmsys.serving.plan import TokenLogprobs
from llmsys.serving.sampling.sampling_params import SamplingParams

# To an engine


class Reserve(NamedTuple):
    """Make room for these tokens' keys and values, which another engine will compute."""

    key: int
    tokens: tuple[int, ...]
    sampling: SamplingParams  #  whose max_tokens are those that may still come
    salt: str | None = None


class Prefill(NamedTuple):
    """Compute these tokens and the next one; push the keys and values from the `start`-th token on to `to`."""

    key: int
    tokens: tuple[int, ...]
    sampling: SamplingParams
    salt: str | None
    to: str | None  #  an engine's name; None: nobody goes on, for the next token is the last
    start: int


class Compute(NamedTuple):
    """Compute these tokens, and go on to the end: the whole request here."""

    key: int
    tokens: tuple[int, ...]
    sampling: SamplingParams
    salt: str | None = None


class GoOn(NamedTuple):
    """The token after those that were reserved for: go on from it, as soon as all of them are here."""

    key: int
    token: int


class Cancel(NamedTuple):
    """Forget an attempt, and give its blocks back."""

    key: int


class Lost(NamedTuple):
    """An engine has died: what is on its way to it is given up."""

    name: str


class Ping(NamedTuple):
    """Are you there? To be answered between two steps."""


class Close(NamedTuple):
    """There will be no more."""


# From an engine


@dataclass(frozen=True)
class Hello:
    """An engine, described: what the front has to know, and by what it sees that two models are one."""

    name: str
    config: Any
    tokenizer: Any
    spec: CacheSpec
    device: str
    dtype: torch.dtype
    block_size: int
    num_blocks: int
    max_model_len: int
    max_sequences: int
    fingerprint: Hashable  #  of the weights
    process: int  #  its id, on its machine

    @property
    def model(self) -> tuple:
        """What must be the same in all engines."""
        return self.config, self.spec, self.dtype, self.fingerprint


class Granted(NamedTuple):
    """Blocks are reserved; the first `start` tokens are here already, and need not be sent."""

    key: int
    start: int


class Landed(NamedTuple):
    """All keys and values are here: who computed them is no longer needed for this."""

    key: int


class Refused(NamedTuple):
    """An attempt that cannot be."""

    key: int
    error: str


class Broken(NamedTuple):
    """The connection to another engine broke."""

    name: str


class Pong(NamedTuple):
    """To a Ping: yes."""


class Died(NamedTuple):
    """The last that is heard of an engine that can say why it dies."""

    why: str


class Said(NamedTuple):
    """Tokens that came of an attempt, or the error that ends it."""

    key: int
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    error: str | None = None


class Step(NamedTuple):
    """A step that an engine did, for the metrics."""

    seconds: dict[str, float]
    phase: str
    tokens: int
    sequences: int


@dataclass(frozen=True)
class Report:
    """What came of a turn."""

    said: tuple[Said, ...] = ()
    steps: tuple[Step, ...] = ()
    blocks_used: int = 0
    running: int = 0
    waiting: int = 0
    preempted: tuple[int, int] = (0, 0)  #  so far: how often, and tokens lost by it
