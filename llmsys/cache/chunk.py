"""What a step computes of one sequence, and whether it holds together."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Numbers = Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Chunk:
    """The tokens of one sequence that a step computes: a prompt, a piece of one, the newest token, a draft."""

    tokens: Numbers
    """At least one."""
    computed: int = 0
    """How many tokens of this sequence are in the cache already."""
    blocks: Numbers = ()
    """The sequence's blocks in order, enough for what is computed and these. In a contiguous cache: its row."""
    positions: Numbers | None = None
    """Where in the text these tokens stand; None: computed, computed + 1, … Other positions move no slot."""
    logits: int = 1
    """Of how many of its last tokens the logits are wanted: 0 where more of the prompt is to come, 1 for the next
    token, k + 1 to check k guesses."""
    tree: np.ndarray | None = None
    """Bool (T, T): row i sees itself and its ancestors among these tokens. None: each sees all before it."""


def check_chunks(chunks: Sequence[Chunk], block_size: int | None) -> None:
    """Raise ValueError, with the number of the chunk, where one does not hold together."""
    for i, chunk in enumerate(chunks):
        _check(f"chunks[{i}]", chunk, block_size)


def check_token_ids(ids: np.ndarray, vocab_size: int, name: str = "tokens") -> None:
    """Raise ValueError where some of `ids` are not from 0 to vocab_size − 1."""
    if not ids.size:
        return
    low, high = ids.min(), ids.max()
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name} must be from 0 to {vocab_size - 1}, got {low} to {high}")


def joined(name: str, chunks: tuple[Chunk, ...]) -> np.ndarray:
    """The chunks' tokens or blocks one after the other, whole numbers from 0 on. ValueError says of which they are not.

    They are looked at together, for a step may have hundreds of chunks, and one by one where something is wrong.
    """
    parts = [getattr(chunk, name) for chunk in chunks]
    with contextlib.suppress(ValueError):  # of different dimensions
        found = np.concatenate(parts)
        if found.dtype.kind in "iu" and found.ndim == 1 and 0 <= found.min() <= found.max() < 2**31:
            return found
    return np.concatenate([whole_numbers(f"chunks[{i}].{name}", part) for i, part in enumerate(parts)])


def whole_numbers(name: str, values: Numbers) -> np.ndarray:
    """`values` as int64 (n,). ValueError unless they are whole numbers from 0 on, in one row."""
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iu" and found.size:
        raise ValueError(f"{name} must be whole numbers in a row, got {found.dtype} of shape {found.shape}")
    if found.size and not 0 <= found.min() <= found.max() < 2**31:
        raise ValueError(f"{name} must be from 0 to {2**31 - 1}, got {found.min()} to {found.max()}")
    return found.astype(np.int64)


def _check(name: str, chunk: Chunk, block_size: int | None) -> None:
    T, blocks = len(chunk.tokens), len(chunk.blocks)
    if T == 0:
        raise ValueError(f"{name}.tokens must be at least one: leave out a sequence that computes nothing")
    if chunk.computed < 0:
        raise ValueError(f"{name}.computed must be at least 0, got {chunk.computed}")
    if not 0 <= chunk.logits <= T:
        raise ValueError(f"{name}.logits must be from 0 to its {T} tokens, got {chunk.logits}")
    if chunk.positions is not None and len(chunk.positions) != T:
        raise ValueError(f"{name}.positions must be one for each of its {T} tokens, got {len(chunk.positions)}")
    if block_size is not None and chunk.computed + T > blocks * block_size:
        raise ValueError(
            f"{name}: {chunk.computed} tokens and {T} more do not fit into {blocks} blocks of {block_size} tokens: "
            "give it more blocks, or of a contiguous cache, make it with a larger capacity"
        )
    if chunk.tree is not None:
        tree = np.asarray(chunk.tree)
        if tree.dtype != np.bool_ or tree.shape != (T, T):
            raise ValueError(f"{name}.tree must be bool ({T}, {T}), got {tree.dtype} of shape {tree.shape}")
        if not tree.diagonal().all() or np.triu(tree, 1).any():
            raise ValueError(f"{name}.tree: a token must see itself, and its ancestors must come before it")
