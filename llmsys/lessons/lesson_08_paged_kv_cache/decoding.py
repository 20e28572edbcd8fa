"""Steps that decode one token a sequence, over pages: how exercises (c) and (d) are drawn, called and compared.

What a sequence has is drawn densely, and what is expected is computed from that: it never goes through a table. Slots
that no length reaches are NaN, table entries that none reaches are −1 or huge, pages are dealt at random, and two of
them belong to nobody: page 0, as in a pool, and another one.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llmsys.attention.paged.one_token import attend_one_token
from llmsys.course.checking.answer import Answer
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import triton_device
from llmsys.lessons.common import PoisonedResults, exact

NOBODYS = (-1, 2**31 - 1)  # entries of a table that no length reaches
SPARE = 2  # pages that belong to nobody; the first is one of them


class Step(NamedTuple):
    """What a step hands over, and what the attention of its tokens is: o (S, Hq, D) and lse (S, Hq)."""

    given: tuple[Tensor, ...]
    expected: tuple[Tensor, Tensor]


def draw(
    answer: Answer,
    lengths: Sequence[int],
    *,
    page: int = 16,
    G: int = 1,
    Hkv: int = 1,
    D: int = 16,
    scale: float | None = None,
    half: bool = False,
    spare: int = 1,
    in_order: bool = False,
    change: Callable[[Tensor, list[Tensor], list[Tensor]], tuple] = lambda q, k, v: (q, k, v),
) -> Step:
    """A step of sequences that have these lengths, in pages of `page` slots. `spare`: columns of the table beyond those
    of the longest. `in_order`: pages from the first on, and not dealt at random. `change` may replace q (S, Hq, D) and
    the dense k and v of each sequence, (length, Hkv, D)."""
    q = answer.randn(len(lengths), G * Hkv, D)
    k, v = ([answer.randn(length, Hkv, D) for length in lengths] for _ in "kv")
    q, k, v = change(q, k, v)
    if half:
        q, k, v = q.half(), [x.half() for x in k], [x.half() for x in v]
    needed = [-(-length // page) for length in lengths]
    blocks = sum(needed) + SPARE
    ids = torch.arange(blocks) if in_order else 1 + torch.randperm(blocks - 1, generator=answer.generator)
    table = torch.tensor(NOBODYS, dtype=torch.int32).repeat(len(lengths), max(needed) + spare)
    table = table[:, 1 : 1 + max(needed) + spare].contiguous()
    pages = [torch.full((blocks, page, Hkv, D), math.nan, dtype=q.dtype) for _ in "kv"]
    for sequence, (length, n) in enumerate(zip(lengths, needed, strict=True)):
        mine, ids = ids[:n], ids[n:]
        table[sequence, :n] = mine
        for dense, memory in zip((k, v), pages, strict=True):
            rows = torch.full((n * page, Hkv, D), math.nan, dtype=q.dtype)
            rows[:length] = dense[sequence]
            memory[mine.long()] = rows.unflatten(0, (n, page))
    found = [_one(*each, scale) for each in zip(q, k, v, strict=True)]
    expected = tuple(torch.stack(each) for each in zip(*found, strict=True))
    return Step((q, *pages, torch.tensor(lengths, dtype=torch.int32), table), expected)


def _one(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    """o (Hq, D) and lse (Hq,) of one token, from the definition."""
    o, lse = exact(q[None, :, None], *(x.transpose(0, 1)[None] for x in (k, v)), scale=scale)
    return o[0, :, 0], lse[0, :, 0]


def with_kernel(kernel) -> Callable:
    """A kernel with the arguments of exercise (c) as an ordinary function that gives (o, lse), or the one that `only`
    names. `apart`: the pages are those of one layer of several, keys and values in different orders, and the tables'
    rows are longer than they are wide. `far`: the numbers of the pages are so large that `page * stride` needs more
    than 32 bits (`far_pages`), where the sanitizer watches."""

    def attend(
        q, key_pages, value_pages, seq_lens, block_table, *, apart=False, far=False, only="", block_n=16, scale=None
    ):
        given = [x.to(triton_device()) for x in (q, key_pages, value_pages, seq_lens, block_table)]
        if apart:
            given[1:3], given[4] = in_a_larger_cache(*given[1:3]), in_longer_rows(given[4])
        launched = kernel
        if far and sanitizer.available():  # compiled, or unwatched, a wrong address would end the process
            from llmsys.lessons.lesson_08_paged_kv_cache.far_pages import FAR, FarAway  # Triton: not before now

            launched = FarAway(kernel)
            columns = torch.arange(block_table.shape[1], device=given[3].device)
            reached = columns < -(-given[3][:, None] // key_pages.shape[1])
            given[4] = torch.where(reached, given[4] + FAR, given[4])
        poisoned = PoisonedResults(launched, slice(3, 5))
        found = attend_one_token(*given, scale=scale, block_n=block_n, kernel=poisoned)
        o, lse = (x.to(q.device) for x in found)
        return {"o": o, "lse": lse}[only] if only else (o, lse)

    return attend


def in_a_larger_cache(key_pages: Tensor, value_pages: Tensor) -> list[Tensor]:
    """The same pages as those of layer 1 of two, with eight elements behind each head; those of the values with their
    heads first, (blocks, Hkv, P, D)."""
    blocks, page, Hkv, D = key_pages.shape
    keys = key_pages.new_full((blocks, 2, page, Hkv, D + 8), math.nan)[:, 1, :, :, :D]
    values = value_pages.new_full((blocks, 2, Hkv, page + 1, D), math.nan)[:, 1, :, :page].transpose(1, 2)
    return [keys.copy_(key_pages), values.copy_(value_pages)]


def in_longer_rows(table: Tensor) -> Tensor:
    """The same table as the left part of a wider one."""
    S, M = table.shape
    return table.new_full((S, M + 3), NOBODYS[1])[:, :M].copy_(table)
