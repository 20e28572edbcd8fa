"""The stepper of lesson 08: a pool of blocks, block tables and reference counts, as a small chat service runs on it.

The pool is played, the library's or the reader's own: every id, reference and copy in a frame is what it answered.
"""

from collections.abc import Callable

from llmsys.cache.block_pool import BlockPool
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.paged_kv_cache.chat import SLOTS, Moment, play
from llmsys.viz.paged_kv_cache.pool_frame import draw

SIZES = (2, 4, 8)


def stepper(pool: Callable[[int, int], object] = BlockPool, *, block_size: int = 4) -> Stepper:
    """Step through a small chat service: six requests that share prefixes, a fork, a conversation's second turn.

    pool          makes the pool: pool(num_blocks, block_size), with the contract of `llmsys.cache.BlockPool`
    block_size    tokens in a block at first: 2, 4 or 8

    Raises ValueError for another block size.
    """

    def frames(block_size: int, sharing: bool) -> list[Moment]:
        return play(pool(1 + SLOTS // block_size, block_size), sharing=sharing)

    return Stepper(
        frames,
        draw,
        title="A pool of blocks",
        describe=describe,
        controls=[
            Choice("block_size", "Block size", {str(size): size for size in SIZES}, start=block_size),
            Choice("sharing", "Prefixes", {"shared": True, "not shared": False}),
        ],
        static=most_telling,
        keep_place=True,
    )


def most_telling(frames: list[Moment]) -> int:
    """The frame that stands for all: the first in which a block is copied, otherwise that with the most sequences."""
    for n, moment in enumerate(frames):
        if any(block.copied_from is not None for block in moment.blocks):
            return n
    return max(range(len(frames)), key=lambda n: (len(frames[n].tables), n))


def describe(moment: Moment) -> str:
    """The caption of a frame: what happened, the tables, and how many blocks are in use, cached and free."""
    tables = "; ".join(
        f"{table.name} has {len(table.words)} tokens in blocks {', '.join(map(str, table.blocks))}"
        for table in moment.tables
    )
    shared = [f"block {block.id} × {len(block.owners)}" for block in moment.blocks if len(block.owners) > 1]
    return (
        f"{moment.head} {moment.tail} {tables or 'Nobody is here'}. "
        + (f"Shared: {', '.join(shared)}. " if shared else "")
        + f"In use {moment.count('used')}, free but cached {moment.count('cached')}, free {moment.count('free')}; "
        f"{moment.computed} tokens were computed, {moment.hit} found."
    )
