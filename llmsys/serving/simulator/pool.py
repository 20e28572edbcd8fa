"""A block pool that finds no prefixes: for workloads in which nobody shares any, where looking for them takes most of a
simulation's time and changes nothing. So every block has one owner, and blocks change hands in slices."""

from collections.abc import Sequence

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import BlockTable, PrefixHit


class PlainPool(BlockPool):
    """Blocks are handed out and come back; what is in them is forgotten. Counts of blocks are a `BlockPool`'s."""

    def match(self, tokens: Sequence[int], *, salt: str | None = None) -> PrefixHit:
        return PrefixHit(salt=salt)

    def register(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        pass

    def allocate(self, length: int, hit: PrefixHit | None = None, *, reserve: int = 0) -> BlockTable:
        new = self.blocks_for(length)
        self._check_room(new, reserve)
        blank = self._blank
        table = BlockTable(blank[len(blank) - new :], length)
        del blank[len(blank) - new :]
        self._tables.add(table)
        return table

    def truncate(self, table: BlockTable, length: int) -> None:
        self._check_live(table)
        kept = self.blocks_for(length)
        self._blank += table.blocks[kept:]
        del table.blocks[kept:]
        table.changed()
        table.length = length

    def _writable(self, block: int) -> bool:
        return True
