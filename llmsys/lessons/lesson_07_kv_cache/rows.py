"""What exercise (a) has around it: a cache that is rows of slots, and whose `attend` is the reader's.

    cache = Rows(cached_attend, model.cache_spec(), rows=3, capacity=64)
    step = batch_of([Chunk(tokens=[5, 9, 2], computed=0, blocks=[2])], block_size=cache.block_size)
    logits = model(step.tokens, cache, step)

It keeps no count of anything: a step says how many tokens of each of its sequences are there (`Chunk.computed`), and in
which row. The library's `ContiguousCache` is the same with its arguments checked.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.attention import Attention, sdpa_attention
from llmsys.attention.rotary import Rotation, rotate
from llmsys.cache.batch import Batch, batch_of
from llmsys.cache.chunk import Chunk
from llmsys.cache.spec import CacheSpec


class Rows:
    """K and V of up to `rows` sequences, in rows of `capacity` slots. A model's backend.

    Parameters
    ----------
    attend
        attend(cache, layer, q, k, v, batch, *, turn=None, scale=None) -> o: the method of that name.
    spec
        The model's `cache_spec()`. The memory for all of it is allocated at once.
    stage
        Attention with the contract of `llmsys.attention.contract`, for `attend` to use.

    Attributes
    ----------
    keys, values : dict[int, Tensor]
        Of each layer, (rows · capacity, Hkv, Dk) and (rows · capacity, Hkv, Dv). Token i of the sequence in row r is in
        slot r · capacity + i.
    block_size : int
        `capacity`, under the name that a step asks for: a sequence's one block is its row.
    """

    def __init__(
        self,
        attend: Callable[..., Tensor],
        spec: CacheSpec,
        *,
        rows: int = 1,
        capacity: int,
        stage: Attention = sdpa_attention,
        device: torch.device | str = "cpu",
    ):
        if rows < 1 or capacity < 1:
            raise ValueError(f"rows and capacity must be at least 1, got {rows} and {capacity}")
        self.rows, self.capacity, self.stage = rows, capacity, stage
        self._attend = attend
        self._length = 0  # of the one sequence that `begin` goes on with
        slots = rows * capacity
        self.keys, self.values = {}, {}
        for each in spec.layers:
            self.keys[each.layer] = torch.empty(slots, each.heads, each.Dk, dtype=each.dtype, device=device)
            self.values[each.layer] = torch.empty(slots, each.heads, each.Dv, dtype=each.dtype, device=device)

    @property
    def block_size(self) -> int:
        return self.capacity

    @property
    def bytes(self) -> int:
        """Memory of all slots."""
        return sum(x.nbytes for x in (*self.keys.values(), *self.values.values()))

    def begin(self, tokens: Tensor) -> Batch:
        """The step of one sequence that goes on in row 0: how `generate` uses a backend. `tokens` are (1, T)."""
        T = tokens.shape[1]
        if tokens.shape[0] != 1:
            raise ValueError(f"tokens must be (1, T) here, got {tuple(tokens.shape)}: several sequences need a Batch")
        if self._length + T > self.capacity:
            raise ValueError(f"a row has {self.capacity} slots, {self._length} are taken, and {T} more do not fit")
        chunk = Chunk(tokens=[0] * T, computed=self._length, blocks=[0])  # where they stand, not what they are
        self._length += T
        return batch_of([chunk], block_size=self.capacity, device=tokens.device)

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor | None, batch: Batch, *, turn=None, scale: float | None = None
    ) -> Tensor:
        """The reader's function, its result looked at before the next matrix does."""
        o = self._attend(self, layer, q, k, v, batch, turn=turn, scale=scale)
        expected = (*q.shape[:3], v.shape[3])
        if not isinstance(o, Tensor) or tuple(o.shape) != expected or o.dtype != q.dtype:
            got = f"{o.dtype} of shape {tuple(o.shape)}" if isinstance(o, Tensor) else type(o).__name__
            raise ValueError(f"attend must return o, {q.dtype} of shape {expected}, got {got}")
        return o


def attend_in_rows(cache: Rows, layer: int, q, k, v, batch: Batch, *, turn: Rotation | None = None, scale=None):
    """What exercise (a) asks for: o (1, Hq, N, Dv) of a step's tokens, whose keys and values go into their slots."""
    q, k = rotate(q, turn), rotate(k, turn)
    keys, values = cache.keys[layer], cache.values[layer]
    keys[batch.slot_mapping] = k[0].transpose(0, 1)
    values[batch.slot_mapping] = v[0].transpose(0, 1)
    parts, start = [], 0
    for chunk in batch.chunks:
        T = len(chunk.tokens)
        first = chunk.blocks[0] * cache.capacity
        end = first + chunk.computed + T
        K, V = (x[first:end].transpose(0, 1)[None] for x in (keys, values))
        parts.append(cache.stage(q[:, :, start : start + T], K, V, causal=True, scale=scale))
        start += T
    return torch.cat(parts, dim=2)
