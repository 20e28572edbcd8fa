"""Attention in a step of many sequences by stages, which know of batches only whose rows are alike.

Sequences that have as many tokens and as many keys as their neighbours are one call of the stage, the others one call
each. How many there are is known on the host, so nothing is waited for; but the calls are many where lengths are mixed,
which is what a kernel for ragged batches is for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.attention import Attention
from llmsys.cache.backend import run_stage
from llmsys.cache.batch import Batch


@dataclass(frozen=True)
class Group:
    """Sequences side by side that are alike."""

    start: int  #      its first token among the step's, counted through all rows
    row: int  #        of the first sequence, in the cache or the step; the others have the next ones
    sequences: int  #  n
    queries: int  #    tokens of each
    keys: int  #       of each, the queries' own included


def groups_of(batch: Batch, rows: list[int]) -> list[Group]:
    """The step's sequences, in groups. `rows` are theirs, one a chunk: neighbours are those with consecutive rows."""
    found: list[Group] = []
    start = 0
    for chunk, row in zip(batch.chunks, rows, strict=True):
        queries = batch.max_query_len if batch.padded else len(chunk.tokens)
        keys = chunk.computed + len(chunk.tokens)
        last = found[-1] if found else None
        if last and (last.queries, last.keys, last.row + last.sequences) == (queries, keys, row):
            found[-1] = Group(last.start, last.row, last.sequences + 1, queries, keys)
        else:
            found.append(Group(start, row, 1, queries, keys))
        start += queries
    return found


def attend_in_groups(
    stage: Attention,
    q: Tensor,
    groups: list[Group],
    keys_and_values: Callable[[Group], tuple[Tensor, Tensor]],
    scale: float | None,
) -> Tensor:
    """o (B, Hq, T, Dv) of q (B, Hq, T, Dk), whose tokens belong to `groups`; 0 for those behind the last group.

    `keys_and_values` are of a group: k (n, Hkv, keys, Dk), v (n, Hkv, keys, Dv).
    """
    B, _, T, _ = q.shape
    if len(groups) == 1 and (groups[0].sequences, groups[0].queries) == (B, T):
        return run_stage(stage, q, *keys_and_values(groups[0]), scale)
    flat = tokens_first(q)
    parts = []
    end = 0
    for group in groups:
        end = group.start + group.sequences * group.queries
        o = run_stage(stage, heads_first(flat[group.start : end], group.sequences), *keys_and_values(group), scale)
        parts.append(tokens_first(o))
    if end < B * T:
        parts.append(parts[0].new_zeros(B * T - end, *parts[0].shape[1:]))
    return heads_first(torch.cat(parts), B)


def tokens_first(x: Tensor) -> Tensor:
    """(B, H, T, D) as (B · T, H, D)."""
    return x.transpose(1, 2).flatten(0, 1)


def heads_first(x: Tensor, rows: int) -> Tensor:
    """(rows · T, H, D) as (rows, H, T, D)."""
    return x.unflatten(0, (rows, -1)).transpose(1, 2)
