"""A small server for the lesson: many prompts, one pool of blocks, greedy answers. (Lesson 09 writes a real one.)

    served = serve(model, prompts, pool, PagedCache(num_blocks=pool.num_blocks, block_size=16), new_tokens=16)
    served.tokens, served.computed

A prompt is admitted as soon as there are blocks for it, and its blocks are given back when it is answered: the next one
takes them. A pool with `match` and `register`, as exercise (b) asks for, is used to share what prompts have in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llmsys.cache import BlockTable, Chunk, OutOfBlocks, PagedCache, batch_of


@dataclass(frozen=True)
class Served:
    """What came of it."""

    tokens: list[list[int]]  #  new ones, of each prompt
    computed: int  #  tokens that went through the model
    hits: list[int]  #  of each prompt, the tokens that were in the cache when it was admitted
    steps: int
    most_at_once: int  #  sequences in one step
    most_blocks: int  #  in use at the end of a step


def serve(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    pool: object,
    cache: PagedCache,
    *,
    new_tokens: int,
    at_most: int | None = None,
) -> Served:
    """Continue each prompt, a list of token ids, by `new_tokens` likeliest tokens, at most `at_most` prompts at a time.

    Where a sequence needs another block and none is free, the youngest one gives its blocks back and waits again.
    OutOfBlocks where one prompt alone has no room.
    """
    texts = [list(prompt) for prompt in prompts]
    waiting, running = list(range(len(prompts))), {}
    computed, hits = [0] * len(prompts), [0] * len(prompts)
    through, steps, most_at_once, most_blocks = 0, 0, 0, 0
    shares = hasattr(pool, "match")
    while waiting or running:
        while waiting and len(running) < (at_most or len(prompts)):
            i = waiting[0]
            try:
                if shares:
                    hit = pool.match(texts[i])
                    running[i], computed[i] = pool.allocate(len(texts[i]), hit), hit.tokens
                    hits[i] = max(hits[i], hit.tokens)
                else:
                    running[i], computed[i] = pool.allocate(len(texts[i])), 0
            except OutOfBlocks:
                if not running:
                    raise
                break
            waiting.pop(0)
        cache.copy_blocks(_extended(pool, running, texts, waiting))
        chunks = [Chunk(texts[i][computed[i] :], computed[i], table.blocks) for i, table in running.items()]
        step = batch_of(chunks, block_size=pool.block_size, device=model.device)
        with torch.inference_mode():
            best = model(step.tokens, cache, step)[0].argmax(dim=-1).tolist()  # (sequences,)
        steps, through = steps + 1, through + step.tokens.shape[1]
        most_at_once, most_blocks = max(most_at_once, len(running)), max(
            most_blocks, pool.num_blocks - 1 - pool.free_blocks
        )
        for (i, table), token in zip(list(running.items()), best, strict=True):
            computed[i] = len(texts[i])
            if shares:
                pool.register(table, texts[i], computed[i])
            texts[i].append(token)
            if len(texts[i]) == len(prompts[i]) + new_tokens:
                pool.free(running.pop(i))
    tokens = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    return Served(tokens, through, hits, steps, most_at_once, most_blocks)


def _extended(pool: object, running: dict[int, BlockTable], texts: list[list[int]], waiting: list[int]) -> list:
    """Room for all tokens of every running sequence; the youngest ones go back to waiting where there is none. Returns
    the copies to be made."""
    copies = []
    for i in list(running):  # the oldest first
        while i in running:
            try:
                copies += pool.extend(running[i], len(texts[i])) or ()
                break
            except OutOfBlocks:
                youngest = list(running)[-1]
                if youngest == next(iter(running)):
                    raise
                pool.free(running.pop(youngest))
                waiting.insert(0, youngest)
    return copies
