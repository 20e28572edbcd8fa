"""Exercise (a) on plain data: a schedule of steps is run on a `Rows`, and what came of it is handed back.

Inside, everything is what a model does: tokens of several sequences side by side, (1, H, N, D), laid out in memory as a
model's matrices leave them; one `Batch` a step, made on the host, for all layers.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from llmsys.attention.naive import naive_attention
from llmsys.attention.rotary import rotate, rotation
from llmsys.cache.batch import batch_of
from llmsys.cache.chunk import Chunk
from llmsys.cache.spec import CacheSpec, LayerCache
from llmsys.hardware.dispatch import Observer, is_view, tensors_in
from llmsys.lessons.common import exact, tokens_first
from llmsys.lessons.lesson_07_kv_cache.rows import Rows


def on_rows(attend: Callable) -> Callable:
    """`attend` as an ordinary function of plain tensors.

    q, k, v     lists: of each sequence (layers, Hq, T, Dk), (layers, Hkv, T, Dk), (layers, Hkv, T, Dv)
    steps       each a list of [sequence, how many tokens of it], in the order in which they lie side by side
    places      the row of each sequence
    capacity    slots a row
    turned      whether the model has rotary positions
    report      "o": of each sequence (layers, Hq, T, Dv) · "kept": keys and values, (layers, slots, Hkv, D), NaN where
                nothing was written · "calls": [query tokens, keys, whether K and V are the cache's own memory] of each
                sequence that the stage was called with · "made": the numbers of the largest tensor that a step made
    """

    def run(q, k, v, *, steps, places, capacity, turned=False, scale=None, report="o"):
        layers, _, _, Dk = q[0].shape
        each = {"heads": k[0].shape[1], "Dk": Dk, "Dv": v[0].shape[3], "dtype": k[0].dtype}
        spec = CacheSpec(tuple(LayerCache(layer, **each) for layer in range(layers)))
        calls: list[list] = []
        made = _Made() if report == "made" else nullcontext()
        cache = Rows(attend, spec, rows=max(places) + 1, capacity=capacity)
        for x in (*cache.keys.values(), *cache.values.values()):
            x.fill_(float("nan"))
        cache.stage = _noting(calls, cache)
        done = [0] * len(q)
        outputs: list[list[list[Tensor]]] = [[[] for _ in range(layers)] for _ in q]
        for step in steps:
            chunks = [Chunk(tokens=[0] * count, computed=done[s], blocks=[places[s]]) for s, count in step]
            batch = batch_of(chunks, block_size=capacity)
            turn = rotation(batch.positions, Dk, dtype=q[0].dtype) if turned else None
            for layer in range(layers):
                given = [_side_by_side(x, layer, step, done) for x in (q, k, v)]
                with made:
                    o = cache.attend(layer, *given, batch, turn=turn, scale=scale)
                for (s, _), part in zip(step, o[0].split([count for _, count in step], dim=1), strict=True):
                    outputs[s][layer].append(part)
            for s, count in step:
                done[s] += count
        if report == "calls":
            return calls
        if report == "made":
            return made.largest
        if report == "kept":
            return [torch.stack([x[layer] for layer in range(layers)]) for x in (cache.keys, cache.values)]
        return [torch.stack([torch.cat(parts, dim=1) for parts in sequence]) for sequence in outputs]

    return run


def expected(q, k, v, *, turned=False, scale=None) -> list[Tensor]:
    """What each sequence's attention is without a cache, all of its tokens at once: (layers, Hq, T, Dv) each."""
    found = []
    for q_s, k_s, v_s in zip(q, k, v, strict=True):
        turn = rotation(torch.arange(q_s.shape[2]), q_s.shape[3], dtype=q_s.dtype) if turned else None
        o, _ = exact(rotate(q_s, turn), rotate(k_s, turn), v_s, causal=True, scale=scale)
        found.append(o)
    return found


def expected_kept(k, v, *, places, capacity, turned=False) -> list[Tensor]:
    """What the rows hold in the end: keys and values, (layers, slots, Hkv, D), NaN where nothing was written."""
    kept = []
    for x, turns in ((k, turned), (v, False)):
        layers, Hkv, _, D = x[0].shape
        slots = torch.full((layers, (max(places) + 1) * capacity, Hkv, D), float("nan"), dtype=x[0].dtype)
        for x_s, row in zip(x, places, strict=True):
            T = x_s.shape[2]
            turn = rotation(torch.arange(T), D, dtype=x_s.dtype) if turns else None
            slots[:, row * capacity : row * capacity + T] = rotate(x_s, turn).transpose(1, 2)
        kept.append(slots)
    return kept


def _side_by_side(x: list[Tensor], layer: int, step: list, done: list[int]) -> Tensor:
    """The step's tokens of one layer, (1, H, N, D)."""
    parts = [x[s][layer, :, done[s] : done[s] + count] for s, count in step]
    return tokens_first(torch.cat(parts, dim=1)[None])


class _Made(Observer):
    """Context manager: `largest` is how many numbers the largest tensor had that an operation in its blocks made."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in tensors_in((args, kwargs))}
        result = operator(*args, **(kwargs or {}))
        if not is_view(operator):
            new = (x.numel() for x in tensors_in(result) if x.untyped_storage()._cdata not in given)
            self.largest = max(self.largest, *new, 0)
        return result


def _noting(calls: list[list], cache: Rows) -> Callable:
    """Naive attention, in float32, that notes what it is called with, each sequence of a call by itself."""
    memory = {x.untyped_storage().data_ptr() for x in (*cache.keys.values(), *cache.values.values())}

    def stage(q, k, v, *, causal=False, scale=None):
        own = all(x.untyped_storage().data_ptr() in memory for x in (k, v))
        calls.extend([q.shape[2], k.shape[2], own] for _ in range(q.shape[0]))
        exactly = (x.float() for x in (q, k, v))
        return naive_attention(*exactly, causal=causal, scale=scale).to(q.dtype)

    return stage
