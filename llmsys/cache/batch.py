"""A step of many sequences: their newest tokens side by side, and beside them what says whose they are and where.

    step = batch_of([Chunk(tokens=[5, 9, 2], computed=0, blocks=[3]), Chunk(tokens=[7], computed=40, blocks=[1])],
                    block_size=64)
    step.tokens             5   9   2   7        (1, N)
    step.positions          0   1   2  40        (N,)      where in its sequence each stands, for the rotation
    step.slot_mapping     192 193 194 104        (N,)      where its key and value are written, 3 · 64 + 0 on
    step.query_start_loc    0           3   4    (S + 1,)  the tokens of sequence i are those from [i] to below [i + 1]
    step.seq_lens           3          41        (S,)      the keys of each sequence, those of this step included
    step.block_table      [3]         [1]        (S, M)    its blocks in order, −1 behind the last
    step.logits_indices     2           3        (L,)      the tokens after which a next one is asked for

    logits = model(step.tokens, backend, step)   (1, L, V)

There is neither prefill nor decode in it: a sequence brings as many tokens as it likes, a whole prompt, a piece of one
or the newest token, and they attend to what it has kept and to each other. A cache is a row of slots, cut into blocks
of `block_size`; token i of a sequence lies in slot blocks[i // block_size] · block_size + i % block_size. A cache of
pages and one with a long row for each sequence are told in the same words: in the latter the row is the block.

**Made on the host, copied once.** All of it lies in one buffer of int32 (`Layout`), packed by NumPy and sent to the
device in one copy that nobody waits for. What launches need to know in advance stays on the host as well: `chunks`,
`max_query_len`, `max_seq_len`. So nothing in a step asks the device for a number. A step may be laid out for more than
it has (`layout=`): a CUDA graph is for tensors of one size, and gets each step by a copy over the same buffer.

**Padded**, (B, T), is the same in the same words (`padded_batch_of`): on the left, so sequence i has the tokens from
i · T to (i + 1) · T, and fewer keys than these where some are padding. Causal attention is aligned with the end, so a
row of padding sees no key, or too few of them, and nobody asks for it; its slot is −1, so nobody sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from llmsys.cache.chunk import Chunk, check_chunks, check_token_ids, joined, whole_numbers
from llmsys.cache.layout import Layout


@dataclass(frozen=True, eq=False)
class Batch:
    """The tokens of one step and what they are, see above. `batch_of` and `padded_batch_of` fill in everything.

    A step that a backend made by itself (`Backend.begin`), in which every row goes on with its own sequence, has no
    `chunks`: it says what that backend needs to be told, and the positions at least.
    """

    positions: Int[Tensor, "*B T"]
    """(T,), or (B, T) where the rows differ: counted from 0."""
    tokens: Int[Tensor, "R T"] | None = None
    """(1, N), or (B, T) padded on the left."""
    query_start_loc: Int[Tensor, " S1"] | None = None
    seq_lens: Int[Tensor, " S"] | None = None
    slot_mapping: Int[Tensor, " N"] | None = None
    """−1: the token is kept nowhere."""
    block_table: Int[Tensor, "S M"] | None = None
    logits_indices: Int[Tensor, " L"] | None = None
    """Counted through all rows. A model's logits are those of these tokens alone, (1, L, V)."""
    tree_mask: Bool[Tensor, "N W"] | None = None
    """[n, j]: token n sees the j-th of its sequence's tokens in this step. A token whose row is all False is in no
    tree, and sees all before it. None: there is no tree in this step."""

    chunks: tuple[Chunk, ...] = ()
    """What it was made of."""
    block_size: int | None = None
    """Of the cache that the slots are in; None: of none."""
    max_query_len: int = 0
    max_seq_len: int = 0
    layout: Layout | None = field(default=None, repr=False)
    buffer: Int[Tensor, " size"] | None = field(default=None, repr=False)
    """What all the tensors above are views of."""

    @property
    def padded(self) -> bool:
        """A row for each sequence, in place of all of them in one."""
        return bool(self.chunks) and self.tokens.shape[0] == len(self.chunks) > 1


def batch_of(
    chunks: Sequence[Chunk],
    *,
    block_size: int | None,
    device: torch.device | str = "cpu",
    vocab_size: int | None = None,
    layout: Layout | None = None,
) -> Batch:
    """The step that computes these chunks, with their tokens side by side: `tokens` is (1, N).

    Parameters
    ----------
    block_size
        The backend's, in tokens (`ContiguousCache.block_size` is its capacity). None where nothing is kept, as by
        `NoCache`: then blocks do not matter, and all slots are −1.
    device
        Where the model is.
    vocab_size
        The model's: the ids are checked, which on a GPU nobody does after this, for the model would have to wait for
        the answer. None where they are known to be right.
    layout
        Room for more than the step has. Tokens beyond its own are 0 with slot −1, sequences have no tokens and no keys,
        entries of the table are −1, and logits_indices point at token 0.

    Raises
    ------
    ValueError
        A chunk does not hold together, two tokens would be written to one slot, or the layout is too small. Says which.
    """
    return _batch_of(tuple(chunks), block_size, torch.device(device), vocab_size, layout, padded=False)


def padded_batch_of(
    chunks: Sequence[Chunk],
    *,
    block_size: int | None,
    device: torch.device | str = "cpu",
    vocab_size: int | None = None,
) -> Batch:
    """The same step with a row for each chunk, padded on the left with token 0: `tokens` is (B, T).

    Arguments and errors as for `batch_of`.
    """
    return _batch_of(tuple(chunks), block_size, torch.device(device), vocab_size, None, padded=True)


def _batch_of(chunks, block_size, device, vocab_size, layout, padded) -> Batch:
    if not chunks:
        raise ValueError("chunks must be at least one: a step of no tokens computes nothing")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size must be at least 1 token, or None where nothing is kept, got {block_size}")
    check_chunks(chunks, block_size)
    tokens = joined("tokens", chunks)
    if vocab_size is not None:
        check_token_ids(tokens, vocab_size, "chunks: their tokens")

    S = len(chunks)
    lengths, computed, wanted, held = np.array(
        [(len(chunk.tokens), chunk.computed, chunk.logits, len(chunk.blocks)) for chunk in chunks]
    ).T
    longest = int(lengths.max())
    ends = longest * np.arange(1, S + 1) if padded else lengths.cumsum()
    places = _runs(ends - lengths, lengths)  # of the real tokens among all of the step's
    indices = _runs(computed, lengths)  #      and in their sequences
    needed = Layout(
        tokens=int(ends[-1]),
        sequences=S,
        blocks=0 if block_size is None else int(held.max()),
        logits=int(wanted.sum()),
        tree=max((len(chunk.tree) for chunk in chunks if chunk.tree is not None), default=0),
    )
    layout = layout or needed
    if lack := layout.lacks(needed):
        raise ValueError(f"layout is too small for this step: {lack}")

    # Pinned where there is a GPU: from such memory the copy runs while the host goes on.
    host = torch.empty(layout.size, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
    array = host.numpy()
    array[:] = 0
    parts = layout.views(array)
    parts["tokens"][places] = tokens
    parts["positions"][places] = _positions(chunks, lengths, indices)
    parts["query_start_loc"][1:] = ends[-1]
    parts["query_start_loc"][1 : S + 1] = ends
    parts["seq_lens"][:S] = computed + lengths
    table = parts["block_table"]
    table[:] = -1
    parts["slot_mapping"][:] = -1
    if block_size is not None:
        table[np.repeat(np.arange(S), held), _runs(np.zeros_like(held), held)] = joined("blocks", chunks)
        parts["slot_mapping"][places] = _slots(table, block_size, np.repeat(np.arange(S), lengths), indices)
    parts["logits_indices"][: needed.logits] = _runs(ends - wanted, wanted)
    for end, chunk in zip(ends, chunks, strict=True):
        if chunk.tree is not None:
            parts["tree_mask"][end - len(chunk.tree) : end, : len(chunk.tree)] = chunk.tree

    buffer = host.to(device, non_blocking=True)
    views = layout.views(buffer)
    if padded:
        views["positions"] = views["positions"].view(S, longest)
    views["tokens"] = views["tokens"].view(S if padded else 1, -1)
    if not layout.tree:
        views["tree_mask"] = None
    return Batch(
        **views,
        chunks=chunks,
        block_size=block_size,
        max_query_len=longest,
        max_seq_len=int((computed + lengths).max()),
        layout=layout,
        buffer=buffer,
    )


def _runs(firsts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """firsts[0], firsts[0] + 1, … counts[0] numbers, then as many from firsts[1] on as counts[1] says, and so on."""
    return np.repeat(firsts - (counts.cumsum() - counts), counts) + np.arange(counts.sum())


def _positions(chunks: tuple[Chunk, ...], lengths: np.ndarray, indices: np.ndarray) -> np.ndarray:
    found = indices.copy()
    for i, (chunk, end) in enumerate(zip(chunks, lengths.cumsum(), strict=True)):
        if chunk.positions is not None:
            found[end - lengths[i] : end] = whole_numbers(f"chunks[{i}].positions", chunk.positions)
    return found


def _slots(table: np.ndarray, block_size: int, sequence: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The slot of each token, given its sequence and its index there. ValueError where two have the same."""
    blocks = table[sequence, indices // block_size].astype(np.int64)
    slots = blocks * block_size + indices % block_size
    if slots.max() >= 2**31:
        raise ValueError(f"blocks of {block_size} tokens must be below {2**31 // block_size}, got {blocks.max()}")
    order = slots.argsort(kind="stable")
    if (same := np.flatnonzero(np.diff(slots[order]) == 0)).size:
        first, second = order[same[0]], order[same[0] + 1]
        raise ValueError(
            f"chunks[{sequence[first]}] and chunks[{sequence[second]}] would both be written to slot {slots[first]}: "
            f"block {blocks[first]} is in the blocks of both"
        )
    return slots
