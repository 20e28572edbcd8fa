"""What passes between the block pool and who calls it: block tables, hits, copies, and that there is no room."""

from dataclasses import dataclass, field
from typing import NamedTuple

from llmsys.cache.block_hashes import Prefix


class OutOfBlocks(RuntimeError):
    """There are too few free blocks. Nothing has changed; `needed` and `free` are numbers of blocks."""

    def __init__(self, message: str, needed: int = 0, free: int = 0):
        super().__init__(message, needed, free)
        self.needed, self.free = needed, free

    def __str__(self) -> str:
        return self.args[0]


class Copy(NamedTuple):
    """Copy block `source` to block `target` in all layers, before the step writes anything; several copies in order."""

    source: int
    target: int


class CopyOut(NamedTuple):
    """Copy a block to a slot of the host's memory in all layers, before the step writes anything; in order with all."""

    block: int
    slot: int


class CopyIn(NamedTuple):
    """Copy a slot of the host's memory to a block in all layers, before the step reads anything; in order with all."""

    slot: int
    block: int


AnyCopy = Copy | CopyOut | CopyIn


@dataclass(frozen=True)
class PrefixHit:
    """The cached blocks with which a sequence may begin: what `match` found. Good until the pool changes."""

    blocks: tuple[int | None, ...] = ()
    """None: this one lies on the host, and comes back to a new block. (Only where the pool has a host tier.)"""
    tokens: int = 0  #  in these blocks
    salt: str | None = None
    prefixes: tuple[Prefix, ...] = field(default=(), repr=False)


@dataclass(eq=False)
class BlockTable:
    """The blocks of one sequence in order, made by `BlockPool.allocate` and changed by the pool alone."""

    blocks: list[int]
    length: int  #  tokens that have a slot
    salt: str | None = None
    prefixes: list[Prefix] = field(default_factory=list, repr=False)  #  of its first blocks, as far as registered
    _told: tuple[int, ...] | None = field(default=None, init=False, repr=False)

    def told(self) -> tuple[int, ...]:
        """`blocks`, to hand on: the same tuple until they are others, so that who gets it each step need not look."""
        if self._told is None:
            self._told = tuple(self.blocks)
        return self._told

    def changed(self) -> None:
        """The pool says that `blocks` are others now."""
        self._told = None


@dataclass(frozen=True)
class PoolStats:
    """A pool's state (in blocks) and what happened so far."""

    blocks: int  #  without block 0; used + free
    used: int
    free: int
    cached: int  #  of the free ones: may still be hit
    hit_tokens: int
    evictions: int
    copies: int
