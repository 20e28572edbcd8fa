"""A block pool that finds no prefixes: for workloads in which nobody shares any, where looking for them takes most of a
simulation's time and changes nothing."""

from collections.abc import Sequence

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import BlockTable, PrefixHit


class PlainPool(BlockPool):
    """Blocks are handed out and come back; what is in them is forgotten. Counts of blocks are a `BlockPool`'s."""

    def match(self, tokens: Sequence[int], *, salt: str | None = None) -> PrefixHit:
        return PrefixHit(salt=salt)

    def register(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        pass
