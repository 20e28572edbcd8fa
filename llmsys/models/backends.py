"""Who attends, and who keeps the keys and values: a model's attention is a backend.

A layer calls `backend.attend(layer, q, k, v, batch)` with the q, k and v of the tokens of this step, and gets o.
Whether these tokens are all there are, or the newest of a sequence whose keys are kept somewhere, is the backend's
affair:

    NoCache           the tokens of this step are the whole sequence
    ContiguousCache   they continue it: K and V of all steps lie in one buffer a layer

Both put any attention stage inside, for a stage's `causal` is aligned bottom-right: a query is the end of its sequence,
however many keys came before.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.attention import Attention, get_stage, sdpa_attention


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
        return _checked(self.stage(q, k, v, causal=True), q, v)


class ContiguousCache:
    """K and V of every token so far, in one buffer a layer; the step's queries attend to all of it, by any stage.

    The buffers are made at the first step, (B, Hkv, capacity, D) each, for that step's batch size.

    Parameters
    ----------
    stage
        Attention with the contract of `llmsys.attention.contract`. It will be called with Tq < Tk.
    capacity
        Tokens that a sequence may have.

    Attributes
    ----------
    length : int
        Tokens held.
    bytes : int
        Memory of the buffers: 2 · layers · B · Hkv · capacity · D · element size.
    """

    def __init__(self, stage: Attention = sdpa_attention, *, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1 token, got {capacity}")
        self.stage = stage
        self.capacity = capacity
        self.length = 0
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys, values

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for pair in self._buffers.values() for x in pair)

    def begin(self, tokens: Int[Tensor, "B T"]) -> Batch:
        B, T = tokens.shape
        start, end = self.length, self.length + T
        if end > self.capacity:
            raise ValueError(
                f"the cache holds {start} tokens of at most {self.capacity}, and {T} more do not fit: make it with a "
                "larger capacity"
            )
        if self._buffers and B != self._buffers[0][0].shape[0]:
            raise ValueError(f"tokens must have the cache's batch size, {self._buffers[0][0].shape[0]}, got {B}")
        self.length = end
        return Batch(torch.arange(start, end, device=tokens.device))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, batch: Batch) -> Tensor:
        if layer not in self._buffers:
            room = (*k.shape[:2], self.capacity)
            self._buffers[layer] = k.new_empty(*room, k.shape[3]), v.new_empty(*room, v.shape[3])
        keys, values = self._buffers[layer]
        end = self.length
        new = slice(end - k.shape[2], end)
        keys[:, :, new], values[:, :, new] = k, v
        return _checked(self.stage(q, keys[:, :, :end], values[:, :, :end], causal=True), q, v)


def as_backend(
    attention: str | Callable | Backend = "sdpa", *, cache: bool | None = None, capacity: int | None = None
) -> Backend:
    """The backend that `attention=` means.

    Parameters
    ----------
    attention
        A stage's name; any callable with a stage's contract; or a backend, which is handed back as it is.
    cache
        Whether to keep K and V between steps. None: a stage of the library, by its name, gets a cache; a callable of
        yours does not, so that it is only ever called with Tq = Tk.
    capacity
        Tokens that the cache is for. Needed where there is one.

    Raises
    ------
    ValueError
        No stage has that name; or `cache` or `capacity` does not go with the rest.
    """
    if hasattr(attention, "attend"):
        if cache is not None:
            raise ValueError("cache must be left out where attention is a backend: a backend owns its cache")
        return attention
    stage = get_stage(attention)
    if cache is None:
        cache = isinstance(attention, str)
    if not cache:
        return NoCache(stage)
    if capacity is None:
        raise ValueError("capacity must be given for a cache: the most tokens that a sequence will have")
    return ContiguousCache(stage, capacity=capacity)


def _checked(o: object, q: Tensor, v: Tensor) -> Tensor:
    # The stage may be a learner's: what it returns is looked at here, and not first noticed by the next matrix.
    expected = (*q.shape[:3], v.shape[3])
    if not isinstance(o, Tensor):
        raise ValueError(f"attention must return a tensor o of shape {expected}, got {type(o).__name__}")
    if tuple(o.shape) != expected or o.dtype != q.dtype:
        raise ValueError(
            f"attention must return o of shape {expected} and dtype {q.dtype}, got {tuple(o.shape)} and {o.dtype}"
        )
    return o
