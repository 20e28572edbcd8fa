"""The contiguous cache: K and V of a sequence in one buffer a layer, as long as it may become."""

import torch
from jaxtyping import Int
from torch import Tensor

from llmsys.attention import Attention, sdpa_attention
from llmsys.cache.backend import Batch, checked


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
        return checked(self.stage(q, keys[:, :, :end], values[:, :, :end], causal=True), q, v)
