"""What is true of a block pool at any time, whoever uses it: for the pool's own tests and for those of an engine."""

from collections import Counter

from llmsys.cache import BlockPool, BlockTable


def assert_consistent(pool: BlockPool, tables: list[BlockTable]) -> None:
    """`tables` are all that are live. References equal table entries; free and used are disjoint and complete."""
    entries = Counter(block for table in tables for block in table.blocks)
    free = pool.reuse_order()
    assert 0 not in entries and 0 not in free, "block 0 is never handed out"
    assert [pool.references(block) for block in range(pool.num_blocks)] == [entries[n] for n in range(pool.num_blocks)]
    assert sorted([*free, *entries]) == list(range(1, pool.num_blocks))
    assert pool.free_blocks == pool.stats.free == len(free) and pool.stats.used == len(entries)
    assert all(len(table.blocks) == -(-table.length // pool.block_size) for table in tables)
