"""Who attends, and who keeps the keys and values: a model's attention is a backend.

A layer calls `backend.attend(layer, q, k, v, batch)` with the q, k and v of the tokens of this step, and gets o.
Whether these tokens are all there are, or the newest of a sequence whose keys are kept somewhere, is the backend's
affair:

    NoCache           the tokens of this step are the whole sequence
    ContiguousCache   they continue it: K and V of all steps lie in one buffer a layer

Both put any attention stage inside, for a stage's `causal` is aligned bottom-right: a query is the end of its sequence,
however many keys came before.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention import Attention, sdpa_attention


@dataclass(frozen=True)
class Batch:
    """Where the tokens of one step stand: `positions` (T,), or (B, T) where the rows differ, counted from 0."""

    positions: Int[Tensor, "*B T"]


@runtime_checkable
class Backend(Protocol):
    """The contract of a model's attention."""

    def begin(self, tokens: Int[Tensor, "B T"]) -> Batch:
        """Called once a step, before the first layer: where do these tokens stand?"""

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "B Hq T D"],
        k: Float[Tensor, "B Hkv T D"],
        v: Float[Tensor, "B Hkv T Dv"],
        batch: Batch,
    ) -> Float[Tensor, "B Hq T Dv"]:
        """Causal attention of the step's queries over every key up to their own. q and k already carry positions."""


class NoCache:
    """Attention over the tokens of this step alone, by any stage. To go on, run the whole sequence again."""

    def __init__(self, stage: Attention = sdpa_attention):
        self.stage = stage

    def begin(self, tokens: Int[Tensor, "B T"]) -> Batch:
        return Batch(torch.arange(tokens.shape[1], device=tokens.device))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        return checked(self.stage(q, k, v, causal=True), q, v)


def checked(o: object, q: Tensor, v: Tensor) -> Tensor:
    # The stage may be a learner's: what it returns is looked at here, and not first noticed by the next matrix.
    expected = (*q.shape[:3], v.shape[3])
    if not isinstance(o, Tensor):
        raise ValueError(f"attention must return a tensor o of shape {expected}, got {type(o).__name__}")
    if tuple(o.shape) != expected or o.dtype != q.dtype:
        raise ValueError(
            f"attention must return o of shape {expected} and dtype {q.dtype}, got {tuple(o.shape)} and {o.dtype}"
        )
    return o
