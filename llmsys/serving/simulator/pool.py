"""The block pools of simulated engines: as an engine's, in less time where nobody looks at tokens one by one.

A `SimulatedPool` finds prefixes as a `BlockPool` does. What a block holds is said by its runs of equal tokens
(`KnownTokens.runs`), and a hash need not be the same in every process, so Python's own will do.

A `PlainPool` finds none: for workloads in which nobody shares any, where looking for them takes most of a simulation's
time and changes nothing. There every block has one owner, and blocks change hands in slices.
"""

from collections.abc import Hashable, Iterator, Sequence

from llmsys.cache.block_hashes import BlockHash, Prefix, PrefixIndex, salt_hash
from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import BlockTable, PrefixHit
from llmsys.serving.simulator.known_tokens import KnownTokens


class SimulatedPool(BlockPool):
    """A pool that finds prefixes. Its requests are all `SimulatedRequest`s, or none is."""

    def __init__(self, num_blocks: int, block_size: int):
        super().__init__(num_blocks, block_size, hash_block=_hash)

    def watch(self) -> None:
        """From now on `changes` are kept. The pool is new."""
        self._index = WatchedIndex(_hash)

    def changes(self) -> list[tuple[Hashable, bool]]:
        """Since this was asked last: the hash of each prefix that is held now, or is not any more."""
        found, self._index.changes = self._index.changes, []
        return found

    def hashes(self, tokens: Sequence[int]) -> Iterator[Hashable]:
        """Of the prefixes that `match` looks for."""
        before = salt_hash(None)
        for n in range((len(tokens) - 1) // self.block_size):
            before = _hash(before, self._tokens_of_block(tokens, n))
            yield before

    def take(self, count: int) -> list[int]:
        """So many free blocks, for tables to which the caller adds them."""
        return [self._take() for _ in range(count)]

    def _tokens_of_block(self, tokens: Sequence[int], n: int) -> tuple:
        if type(tokens) is KnownTokens:
            return tokens.runs(n * self.block_size, (n + 1) * self.block_size)
        return super()._tokens_of_block(tokens, n)


class WatchedIndex(PrefixIndex):
    """An index that keeps a list of what has changed."""

    def __init__(self, hash_block: BlockHash):
        super().__init__(hash_block)
        self.changes: list[tuple[Hashable, bool]] = []

    def hold(self, block: int, prefix: Prefix) -> None:
        if not prefix.held:
            self.changes.append((prefix.hash, True))
        super().hold(block, prefix)

    def _let_go(self, prefix: Prefix) -> None:
        if not prefix.held:
            self.changes.append((prefix.hash, False))
        super()._let_go(prefix)


def _hash(before: Hashable, tokens: tuple) -> Hashable:
    return hash((before, tokens))


class PlainPool(BlockPool):
    """Blocks are handed out and come back; what is in them is forgotten. Counts of blocks are a `BlockPool`'s."""

    def match(self, tokens: Sequence[int], *, salt: str | None = None) -> PrefixHit:
        return PrefixHit(salt=salt)

    def register(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        pass

    def allocate(self, length: int, hit: PrefixHit | None = None, *, reserve: int = 0) -> BlockTable:
        new = self.blocks_for(length)
        self._check_room(new, reserve)
        table = BlockTable(self.take(new), length)
        self._tables.add(table)
        return table

    def take(self, count: int) -> list[int]:
        """So many free blocks, for tables to which the caller adds them."""
        first = len(self._blank) - count
        taken = self._blank[first:]
        del self._blank[first:]
        return taken

    def truncate(self, table: BlockTable, length: int) -> None:
        self._check_live(table)
        kept = self.blocks_for(length)
        self._blank += table.blocks[kept:]
        del table.blocks[kept:]
        table.changed()
        table.length = length

    def _writable(self, block: int) -> bool:
        return True
