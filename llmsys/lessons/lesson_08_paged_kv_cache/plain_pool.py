"""A right answer to exercise (a): a pool that hands blocks out and takes them back, and shares none.

    pool = PlainPool(num_blocks=11, block_size=16)
    table = pool.allocate(55)         # BlockTable(blocks=[1, 2, 3, 4], length=55)
    pool.extend(table, 65)            # blocks=[1, 2, 3, 4, 5]
    pool.free(table)

The library's `llmsys.cache.BlockPool` does this and shares.
"""

from llmsys.cache import BlockTable, OutOfBlocks


class PlainPool:
    """Blocks 1 … num_blocks − 1 of `block_size` tokens each. Every call costs a constant for each block it touches."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.stack = list(range(num_blocks - 1, 0, -1))  # block 1 on top
        self.tables = set()  # that are in use

    @property
    def free_blocks(self):
        """How many blocks can be handed out."""
        return len(self.stack)

    def allocate(self, length):
        """A new table with slots for `length` tokens. OutOfBlocks where it would need more blocks than are free."""
        table = BlockTable([], 0)
        self.tables.add(table)
        try:
            self.extend(table, length)
        except (OutOfBlocks, ValueError):
            self.tables.remove(table)
            raise
        return table

    def extend(self, table, length):
        """Slots for `length` tokens in all: takes blocks only where the last one has no room."""
        if table not in self.tables:
            raise ValueError("table is not in use in this pool: it was freed already, or another pool made it")
        if length < table.length:
            raise ValueError(f"length must be at least the table's {table.length}, got {length}")
        needed = -(-length // self.block_size) - len(table.blocks)
        if needed > self.free_blocks:
            raise OutOfBlocks(f"{needed} blocks are needed, and {self.free_blocks} are free", needed, self.free_blocks)
        table.blocks += [self.stack.pop() for _ in range(needed)]
        table.length = length

    def free(self, table):
        """The table's blocks can be handed out again: the last one of the table first."""
        if table not in self.tables:
            raise ValueError("table is not in use in this pool: it was freed already, or another pool made it")
        self.tables.remove(table)
        self.stack += table.blocks
        table.blocks, table.length = [], 0
