"""What is true of a block pool at any time, whoever uses it: for the pool's own tests and for those of an engine."""

from collections import Counter

from llmsys.cache import BlockPool, BlockTable
from llmsys.cache.block_hashes import Prefix


def assert_consistent(pool: BlockPool, tables: list[BlockTable]) -> None:
    """`tables` are all that are live. References equal table entries; free and used are disjoint and complete."""
    entries = Counter(block for table in tables for block in table.blocks)
    free = pool.reuse_order()
    assert 0 not in entries and 0 not in free, "block 0 is never handed out"
    assert [pool.references(block) for block in range(pool.num_blocks)] == [entries[n] for n in range(pool.num_blocks)]
    assert sorted([*free, *entries]) == list(range(1, pool.num_blocks))
    assert pool.free_blocks == pool.stats.free == len(free) and pool.stats.used == len(entries)
    assert all(len(table.blocks) == -(-table.length // pool.block_size) for table in tables)
    assert_tier_consistent(pool)


def assert_tier_consistent(pool: BlockPool) -> None:
    """Of a pool's host tier, if it has one: a slot holds one prefix, which knows it, and is found."""
    if pool.host is None:
        return
    held, stats = pool.host.contents(), pool.host.stats
    assert stats.held == len(held) <= stats.blocks == pool.host.blocks
    assert len(set(map(id, held.values()))) == len(held) and set(held) <= set(range(stats.blocks))
    assert all(prefix.slot == slot for slot, prefix in held.items())
    known = {id(each) for alike in pool._index._by_hash.values() for each in alike}
    assert {id(each) for each in held.values()} <= known, "what lies on the host can be found"


def content(prefix: Prefix) -> tuple[str | None, tuple[int, ...]]:
    """(salt, tokens): all that a block with this prefix depends on."""
    tokens: tuple[int, ...] = ()
    while isinstance(prefix, Prefix):
        prefix, tokens = prefix.before, prefix.tokens + tokens
    return prefix, tokens
