"""The paged cache: K and V of each sequence in blocks of a few tokens, wherever in one large memory there is room.

    generate(model, "The capital of France is", attention="paged")

    cache = PagedCache(num_blocks=1000, block_size=16, spec=model.cache_spec())          # for who makes the batches
    step = batch_of([Chunk([5, 9, 2], computed=0, blocks=[3])], block_size=cache.block_size)
    logits = model(step.tokens, cache, step)

A layer's keys are one tensor of pages (num_blocks, block_size, Hkv, Dk), and its values another. Which pages are whose
is not known here: that is what a step's block tables say, and who makes those is the scheduler with its `BlockPool`, or
in `generate`, where nobody does, the cache itself with a pool of its own, or with one that it is given:

    pool = BlockPool(num_blocks=100, block_size=16)
    generate(model, "The capital of France is", attention=PagedCache(pool=pool))
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from llmsys.attention import Attention
from llmsys.attention.head_norms import HeadNorms, normalise
from llmsys.attention.latent import LARGEST_LATENT, LARGEST_ROPE, paged_latent_attention
from llmsys.attention.paged import (
    PagedAttention,
    paged_attention,
    paged_attention_reference,
    write_pages,
    write_pages_reference,
)
from llmsys.attention.paged.forward import LARGEST_HEAD
from llmsys.attention.rotary import Rotation, rotate
from llmsys.cache.batch import Batch, padded_batch_of
from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import AnyCopy, BlockTable, Copy, CopyOut, OutOfBlocks
from llmsys.cache.chunk import Chunk
from llmsys.cache.groups import heads_first, tokens_first
from llmsys.cache.host_pages import HostPages
from llmsys.cache.layers import Layers
from llmsys.cache.spec import CacheSpec, LayerCache
from llmsys.hardware.tier import interpreting, triton_installed


class PagedCache:
    """K and V in pages, which a step's block tables name; attention by kernels that read them where they are.

    A layer's pages are made in its first step. Keys are kept rotated. Where v is None (absorbed latent attention) the
    keys alone are kept, and the values are a view of them.

    Used with `begin`, every row goes on with its own sequence, in blocks of the cache's `pool`; `end` gives them back.
    Where the caller makes the batches, the caller's tables rule, and nobody here checks that two sequences do not write
    to one block.

    Parameters
    ----------
    kernel
        Who attends, with the contract of `llmsys.attention.paged.arguments`: a function, "triton" for the library's
        kernels, or "torch" for the form in plain PyTorch, which on a GPU waits. None: Triton's on a GPU where they can
        (heads of at most 256, or latents of at most 512 + 128 with a `scale`; 16 or 32 bits), else torch's.
    stage
        In place of a kernel: any stage, which attends to a copy of each sequence's pages.
    num_blocks
        Blocks in all, block 0 included, which a pool hands to nobody. None: what `capacity` and `sequences` need.
    block_size
        Tokens in a block, 16 where neither this nor a pool is given.
    pool
        Who hands out the blocks, in place of a `BlockPool` of the cache's own: another object with its num_blocks,
        block_size, free_blocks, allocate, extend and free will do. (What `extend` returns is copied; None is nothing.)
    capacity
        Tokens that a sequence may have, for `begin`; None for as many as there are blocks for.
    sequences
        How many sequences of `capacity` tokens there shall be room for. None: as many as the first step has rows,
        which `begin` must then see.
    spec
        The model's `cache_spec()`: what each layer will hand over. None takes it from the first step.
    host
        Main memory for the blocks that a pool with a host tier evicts.

    Attributes
    ----------
    pool : BlockPool or None
        Of the sequences that `begin` knows: the given one, or from its first call on one of its own.
    length : int
        Tokens held of each sequence, as far as `begin` knows.
    after_layer : callable or None
        Called with a layer's number at the end of its `attend`: what the step has written of that layer is in its pages
        by then (on a GPU: when the work that has been queued so far is done). None: nobody is. A graph that is replayed
        asks no `attend`, and a kernel that writes pages itself (`pages_of`) calls nobody.

    Raises
    ------
    ValueError
        At once: a number below 1, none of `num_blocks`, `capacity` and `pool`, a pool and other numbers than its own,
        or a spec with further entries. In a step: more tokens than `capacity`, another batch size, a batch made for
        other blocks, or a layer that hands over something else than the spec (or its first step) said.
    OutOfBlocks
        In `begin`, which then has changed nothing.
    """

    def __init__(
        self,
        kernel: str | PagedAttention | None = None,
        *,
        stage: Attention | None = None,
        num_blocks: int | None = None,
        block_size: int | None = None,
        capacity: int | None = None,
        sequences: int | None = None,
        pool: object | None = None,
        spec: CacheSpec | None = None,
        host: HostPages | None = None,
    ):
        if not (kernel in (None, "torch", "triton") or callable(kernel)):
            raise ValueError(f'kernel must be "torch", "triton", a function or None, got {kernel!r}')
        if kernel is not None and stage is not None:
            raise ValueError("kernel and stage cannot both be given: either attends, in place of the other")
        if pool is not None:
            num_blocks, block_size = _numbers_of(pool, num_blocks, block_size)
        block_size = 16 if block_size is None else block_size
        if num_blocks is None and capacity is None:
            raise ValueError("num_blocks must be given, or a pool, or capacity, from which it follows")
        for name, value, least in (
            ("num_blocks", num_blocks, 2), ("block_size", block_size, 1), ("capacity", capacity, 1),
            ("sequences", sequences, 1),
        ):  # fmt: skip
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.kernel = partial(paged_attention_reference, stage=stage) if stage is not None else kernel
        self.block_size, self.capacity, self.sequences, self.spec = block_size, capacity, sequences, spec
        self.num_blocks = num_blocks
        self.pool, self.host = pool, host
        self.length = 0
        self.after_layer: Callable[[int], object] | None = None
        self._layers = Layers(spec, "the paged cache")
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}  # of layers whose values are not in their keys
        self._tables: list[BlockTable] = []
        self._given_sequences = sequences
        self._counts_itself = True  # until a caller says how much is computed
        self._checked: Batch | None = None
        if num_blocks is None and sequences is not None:
            self.num_blocks = self._blocks_for(sequences)

    @property
    def bytes(self) -> int:
        """Memory of the pages made so far, used or not."""
        return sum(pages.nbytes for pages in (*self._keys.values(), *self._values.values()))

    def begin(self, tokens: Shaped[Tensor, "B T *C"]) -> Batch:
        B, T = tokens.shape[:2]
        if not self._counts_itself:
            raise ValueError(
                "the cache has been given batches, which say how many tokens each sequence holds, so it cannot go on "
                "by itself: give it one again (llmsys.cache.batch_of)"
            )
        if self.capacity is not None and self.length + T > self.capacity:
            raise ValueError(
                f"the cache holds {self.length} tokens of at most {self.capacity}, and {T} more do not fit: make it "
                "with a larger capacity"
            )
        if not self._tables:
            self.sequences = self.sequences or B
            self.num_blocks = self.num_blocks or self._blocks_for(B)
            if self.pool is None:
                self.pool = BlockPool(self.num_blocks, self.block_size)
            self._tables = [self.pool.allocate(0) for _ in range(self.sequences)]
        if B != self.sequences:
            raise ValueError(f"tokens must have the cache's batch size, {self.sequences}, got {B}")
        self._check_room(self.length + T)
        for table in self._tables:
            self.copy_blocks(self.pool.extend(table, self.length + T) or ())
        chunks = [Chunk(np.zeros(T, int), self.length, table.blocks) for table in self._tables]
        self.length += T
        batch = padded_batch_of(chunks, block_size=self.block_size, device=tokens.device)
        # The ids are in `tokens`, if they are ids at all, and the logits of all of them are wanted.
        return replace(batch, tokens=None, logits_indices=None, chunks=())

    def end(self) -> None:
        """The sequences that `begin` knows are finished: their blocks go back to the pool, and the next step begins new
        ones, as many as it has rows."""
        for table in self._tables:
            self.pool.free(table)
        self._tables, self.length, self.sequences = [], 0, self._given_sequences

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor | None,
        batch: Batch,
        *,
        turn: Rotation | None = None,
        scale: float | None = None,
        norms: HeadNorms | None = None,
    ) -> Tensor:
        Dv = self._layers.check(layer, k, v, turn)
        self.check_batch(batch)
        self._counts_itself = self._counts_itself and not batch.chunks
        if layer not in self._keys:
            memory = (self.num_blocks, self.block_size, k.shape[1])
            self._keys[layer] = k.new_empty(*memory, k.shape[3])
            if v is not None:
                self._values[layer] = v.new_empty(*memory, Dv)
        keys, values = self._keys[layer], self._values.get(layer)
        latent = values is None and keys.shape[2] == 1 and Dv < keys.shape[3] and scale is not None
        compiled = self.kernel == "triton" or (self.kernel != "torch" and _triton_can(q, keys, Dv, latent))
        B = q.shape[0]
        if compiled:
            q, k, v = (x if x is None else tokens_first(x) for x in (q, k, v))
            named = dict(q_norm=norms.q, k_norm=norms.k, eps=norms.eps) if norms else {}
            q = write_pages(k, v, keys, values, batch.slot_mapping, q=q, turn=turn, **named)
        else:
            if norms:
                q, k = normalise(q, norms.q, norms.eps), normalise(k, norms.k, norms.eps)
            q, k, v = (x if x is None else tokens_first(x) for x in (rotate(q, turn), rotate(k, turn), v))
            write_pages_reference(k, v, keys, values, batch.slot_mapping)
        form = "torch" if not compiled else "latent" if latent else "triton"
        attention = self.kernel if callable(self.kernel) else _FORMS[form]
        o = attention(
            q, keys, keys[..., :Dv] if values is None else values,
            query_start_loc=batch.query_start_loc, seq_lens=batch.seq_lens, block_table=batch.block_table,
            max_query_len=batch.max_query_len, max_seq_len=batch.max_seq_len, scale=scale, tree_mask=batch.tree_mask,
        )  # fmt: skip
        expected = (*q.shape[:2], Dv)
        if not isinstance(o, Tensor) or tuple(o.shape) != expected or o.dtype != q.dtype:
            got = f"{tuple(o.shape)} in {o.dtype}" if isinstance(o, Tensor) else type(o).__name__
            raise ValueError(f"kernel must return o (N, Hq, Dv) = {expected} in {q.dtype}, got {got}")
        if self.after_layer is not None:
            self.after_layer(layer)
        return heads_first(o, B)

    def pages_of(self, layer: LayerCache, device: torch.device) -> tuple[Tensor, Tensor]:
        """A layer's pages of keys and of values, made here if no step has made them yet: for who writes and reads them
        by itself, as a batch's slots and tables say, and does not ask `attend`. Where values are in the keys, their
        pages are a view of the keys'."""
        if layer.layer not in self._keys:
            memory = (self.num_blocks, self.block_size, layer.heads)
            self._keys[layer.layer] = torch.empty(*memory, layer.Dk, dtype=layer.dtype, device=device)
            if not layer.values_in_keys:
                self._values[layer.layer] = torch.empty(*memory, layer.Dv, dtype=layer.dtype, device=device)
        keys = self._keys[layer.layer]
        return keys, self._values.get(layer.layer, keys[..., : layer.Dv])

    def copy_blocks(self, copies: Sequence[AnyCopy]) -> None:
        """Copy pages in all layers made so far, in order: what `BlockPool.extend`, and the pool's host tier, ask for
        before the step is run. ValueError for a copy out or in where there is no `host`, before any is made."""
        runs = [(kind, list(run)) for kind, run in itertools.groupby(copies, type)]
        if self.host is None and any(kind is not Copy for kind, _ in runs):
            raise ValueError("host must be given to a paged cache whose pool has a host tier: llmsys.cache.HostPages")
        for kind, run in runs:
            if kind is Copy:
                self._copy_in_order(run)
            elif kind is CopyOut:
                self.host.copy_out(run, self._keys, self._values)
            else:
                self.host.copy_in(run, self._keys, self._values)

    def _copy_in_order(self, copies: list[Copy]) -> None:
        together: list[Copy] = []  # none of which reads what another one wrote
        for copy in copies:
            written = {each.target for each in together}
            if copy.source in written or copy.target in written:
                self._copy(together)
                together = []
            together.append(copy)
        self._copy(together)

    def _copy(self, copies: list[Copy]) -> None:
        host = torch.tensor(copies, dtype=torch.int64).T
        for pages in (*self._keys.values(), *self._values.values()):
            source, target = host.to(pages.device, non_blocking=True)
            pages.index_copy_(0, target, pages.index_select(0, source))

    def _check_room(self, length: int) -> None:
        """Of all rows at once, so that none has been extended where the next one cannot be."""
        needed = sum(max(-(-length // self.block_size) - len(table.blocks), 0) for table in self._tables)
        if needed > self.pool.free_blocks:
            raise OutOfBlocks(
                f"{needed} blocks of {self.block_size} tokens are needed for {len(self._tables)} sequences of {length} "
                f"tokens, and {self.pool.free_blocks} are free: make the pool larger",
                needed,
                self.pool.free_blocks,
            )

    def _blocks_for(self, sequences: int) -> int:
        return 1 + sequences * -(-self.capacity // self.block_size)

    def check_batch(self, batch: Batch) -> None:
        """Refuse a batch that this cache cannot take; each is looked at once.

        Raises
        ------
        ValueError
            It has no tables, is made for blocks of another size, or names blocks that are not there; or the cache does
            not know how many blocks it has. Says what to do.
        """
        if batch is self._checked:
            return
        if batch.query_start_loc is None or batch.block_table is None:
            raise ValueError("batch must be what begin returned, or made by llmsys.cache.batch_of: it has no tables")
        if batch.block_size != self.block_size:
            raise ValueError(
                f"batch must be made with the cache's block_size, {self.block_size}, got {batch.block_size}"
            )
        if self.num_blocks is None:
            raise ValueError("num_blocks (or sequences) must be given to a paged cache whose caller makes the batches")
        for i, chunk in enumerate(batch.chunks):
            if (highest := int(np.max(chunk.blocks))) >= self.num_blocks:
                raise ValueError(f"chunks[{i}].blocks must be from 0 to {self.num_blocks - 1}, got {highest}")
        self._checked = batch


def _numbers_of(pool: object, num_blocks: int | None, block_size: int | None) -> tuple[int, int]:
    """A given pool's `num_blocks` and `block_size`, beside which the cache may have been given the same."""
    wanted = ("num_blocks", "block_size", "free_blocks", "allocate", "extend", "free")
    missing = [name for name in wanted if not hasattr(pool, name)]
    if missing or isinstance(pool, type):
        got = pool if isinstance(pool, type) else f"a {type(pool).__name__} without {' and '.join(missing)}"
        raise ValueError(f"pool must be a BlockPool, or an object with its {', '.join(wanted)}; got {got}")
    for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
        if value not in (None, own := getattr(pool, name)):
            raise ValueError(f"{name} must be left out where a pool is given, which has {own}, got {value}")
    return pool.num_blocks, pool.block_size


_FORMS = {"torch": paged_attention_reference, "triton": paged_attention, "latent": paged_latent_attention}


def _triton_can(q: Tensor, keys: Tensor, Dv: int, latent: bool) -> bool:
    if not q.is_cuda or not triton_installed() or interpreting():
        return False
    Dk = keys.shape[3]
    fits = Dv <= LARGEST_LATENT and 0 < Dk - Dv <= LARGEST_ROPE if latent else max(Dk, Dv) <= LARGEST_HEAD
    return fits and q.dtype in (torch.float32, torch.float16, torch.bfloat16)
