"""What exercise (b) has around it: a pool with everything but what sharing adds.

What exercise (a) did is here (numbers of blocks, tables in use, errors), and so is the bookkeeping of who holds what.
The reader's class is built on it, and decides: what is a hit, who shares a block, when it is copied, who goes first.
"""

from collections import OrderedDict
from collections.abc import Sequence

from llmsys.cache import BlockTable, OutOfBlocks
from llmsys.cache.block_hashes import BlockHash, Prefix, block_hash


class SharingParts:
    """The state of a pool that shares its blocks, and what is plain about it.

    Attributes
    ----------
    num_blocks, block_size : int
        As in exercise (a); block 0 is never handed out.
    references : list[int]
        In how many tables each block stands.
    blank : list[int]
        A stack: free blocks that hold nothing of use. The last one is taken first.
    cached : OrderedDict[int, None]
        Free blocks that can still be hit; the least recently used one stands first.
    held : dict[int, Prefix]
        What each registered block holds.
    by_hash : dict[bytes, list[Prefix]]
        The prefixes that some block holds, by their hashes.
    """

    def __init__(self, num_blocks: int, block_size: int, hash_block: BlockHash = block_hash):
        if num_blocks < 2 or block_size < 1:
            raise ValueError(f"num_blocks must be at least 2 and block_size at least 1, got {num_blocks}, {block_size}")
        self.num_blocks, self.block_size, self.hash_block = num_blocks, block_size, hash_block
        self.references = [0] * num_blocks
        self.blank = list(range(num_blocks - 1, 0, -1))
        self.cached: OrderedDict[int, None] = OrderedDict()
        self.held: dict[int, Prefix] = {}
        self.by_hash: dict[bytes, list[Prefix]] = {}
        self._tables: set[BlockTable] = set()

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out, the cached ones included."""
        return len(self.blank) + len(self.cached)

    def blocks_for(self, length: int) -> int:
        """How many blocks hold `length` tokens."""
        return -(-length // self.block_size)

    def tokens_of(self, tokens: Sequence[int], n: int) -> tuple[int, ...]:
        """Those of block number n of a sequence."""
        return tuple(tokens[n * self.block_size : (n + 1) * self.block_size])

    def new_table(self, blocks: list[int], length: int, prefixes: Sequence[Prefix] = ()) -> BlockTable:
        """A table that is in use from now on."""
        table = BlockTable(blocks, length, prefixes=list(prefixes))
        self._tables.add(table)
        return table

    def check_room(self, needed: int) -> None:
        """OutOfBlocks where fewer than `needed` blocks are free."""
        if needed > self.free_blocks:
            raise OutOfBlocks(f"{needed} blocks are needed, and {self.free_blocks} are free", needed, self.free_blocks)

    def check_table(self, table: BlockTable, length: int | None = None) -> None:
        """ValueError where the table is not in use, or has more tokens than `length`."""
        if table not in self._tables:
            raise ValueError("table is not in use in this pool: it was freed already, or another pool made it")
        if length is not None and length < table.length:
            raise ValueError(f"length must be at least the table's {table.length}, got {length}")

    def hold(self, block: int, prefix: Prefix) -> None:
        """From now on, `block` holds `prefix` and can be hit."""
        if not prefix.blocks:
            self.by_hash.setdefault(prefix.hash, []).append(prefix)
        prefix.blocks[block] = None
        self.held[block] = prefix

    def forget(self, block: int) -> None:
        """`block` will be overwritten: it holds nothing any more."""
        prefix = self.held.pop(block)
        del prefix.blocks[block]
        if not prefix.blocks:
            self.by_hash[prefix.hash].remove(prefix)
            if not self.by_hash[prefix.hash]:
                del self.by_hash[prefix.hash]

    def free(self, table: BlockTable) -> None:
        """The sequence is finished, or was stopped: the reader's `release` lets go of its blocks."""
        self.check_table(table)
        self._tables.remove(table)
        self.release(table.blocks)
        table.blocks, table.length, table.prefixes = [], 0, []
