"""The block pool: vLLM's worked example, the faults of peers, what is refused, and that its time is constant. (Against
a naive model, over lives of sequences that are drawn: test_block_pool_model.py.)"""

import inspect
import pickle
import sys
from contextlib import contextmanager

import pytest

from llmsys.cache import BlockPool, BlockTable, Copy, OutOfBlocks, PrefixHit, block_hashes, block_pool
from llmsys.cache.block_hashes import block_hash, salt_hash
from tests.support.pools import assert_consistent


def begin(pool: BlockPool, tokens, *, salt=None, registered: bool = True) -> BlockTable:
    """A sequence whose tokens are all computed, and registered unless it says otherwise."""
    table = pool.allocate(len(tokens), pool.match(tokens, salt=salt))
    if registered:
        pool.register(table, tokens, len(tokens))
    return table


# What is reused, and in which order


def test_the_worked_example_of_vllm():
    """11 blocks of 16 with block 0 unused; 55 tokens, then 55 that share the first 53; both freed."""
    pool = BlockPool(num_blocks=11, block_size=16)
    common = list(range(53))
    first = begin(pool, [*common, 100, 101])
    assert first.blocks == [1, 2, 3, 4]
    hit = pool.match([*common, 200, 201])
    assert (hit.tokens, hit.blocks) == (48, (1, 2, 3))
    second = begin(pool, [*common, 200, 201])
    assert second.blocks == [1, 2, 3, 5]
    assert [pool.references(block) for block in range(7)] == [0, 2, 2, 2, 1, 1, 0]
    pool.free(first)
    pool.free(second)
    assert pool.reuse_order() == [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]
    assert begin(pool, range(1000, 1160)).blocks == [5, 4, 6, 7, 8, 9, 10, 3, 2, 1]  # and so it is


def test_blocks_without_a_hash_are_reused_first_however_late_they_were_freed():
    pool = BlockPool(num_blocks=6, block_size=2)
    cached = begin(pool, [1, 2, 3, 4])
    plain = begin(pool, [5, 6, 7, 8], registered=False)
    pool.free(cached)
    pool.free(plain)
    assert pool.reuse_order() == [4, 3, 5, 2, 1]


def test_a_hit_makes_blocks_the_most_recently_used():
    pool = BlockPool(num_blocks=5, block_size=2)
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
        pool.free(begin(pool, tokens))
    assert pool.reuse_order() == [2, 1, 4, 3]
    pool.free(begin(pool, [1, 2, 3]))  # hits block 1; its second block, which evicts block 2, is left without a hash
    assert pool.reuse_order() == [2, 4, 3, 1]


def test_a_look_at_what_is_cached_changes_no_order():
    pool = BlockPool(num_blocks=5, block_size=2)
    for tokens in ([1, 2], [3, 4]):
        pool.free(begin(pool, tokens))
    before = pool.reuse_order(), pool.stats
    assert pool.match([1, 2, 9]).blocks == (1,)
    assert (pool.reuse_order(), pool.stats) == before


def test_what_is_evicted_can_be_hit_no_more_and_the_rest_can():
    pool = BlockPool(num_blocks=4, block_size=2)
    pool.free(begin(pool, [1, 2, 3, 4, 5, 6]))
    table = begin(pool, [7, 8], registered=False)
    assert table.blocks == [3]  # the tail went first
    assert pool.match([1, 2, 3, 4, 5, 6, 7]).tokens == 4
    assert pool.stats.evictions == 1


def test_what_was_evicted_leaves_nothing_behind():
    pool = BlockPool(num_blocks=5, block_size=2)
    for n in range(100):
        pool.free(begin(pool, range(8 * n, 8 * n + 8)))
    assert len(pool._index._by_hash) == len(pool._index._by_block) == 4


# Hits


@pytest.mark.parametrize(("length", "tokens"), [(0, 0), (1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_a_full_hit_leaves_at_least_one_token_to_compute(length, tokens):
    pool = BlockPool(num_blocks=9, block_size=4)
    begin(pool, list(range(12)))
    hit = pool.match(list(range(length)))
    assert hit.tokens == tokens
    if length:
        assert pool.allocate(length, hit).length - hit.tokens >= 1


def test_of_blocks_of_one_token_the_last_is_computed_again():
    pool = BlockPool(num_blocks=9, block_size=1)
    begin(pool, [1, 2, 3])
    assert pool.match([1, 2, 3]).tokens == 2


def test_what_is_not_computed_is_not_hit():
    pool = BlockPool(num_blocks=9, block_size=2)
    tokens = [1, 2, 3, 4, 5, 6]
    table = begin(pool, tokens, registered=False)
    assert pool.match([*tokens, 7]).tokens == 0
    for computed, expected in [(0, 0), (1, 0), (3, 2), (2, 2), (4, 4), (6, 6), (6, 6)]:
        pool.register(table, tokens, computed)
        assert pool.match([*tokens, 7]).tokens == expected


def test_a_block_matches_after_the_same_tokens_alone():
    pool = BlockPool(num_blocks=9, block_size=2)
    begin(pool, [1, 2, 3, 4])
    assert pool.match([3, 4, 5]).tokens == 0
    assert pool.match([9, 9, 3, 4, 5]).tokens == 0
    assert pool.match([1, 2, 3, 5, 5]).tokens == 2


def test_a_salt_keeps_equal_tokens_apart():
    pool = BlockPool(num_blocks=20, block_size=2)
    tables = {salt: begin(pool, [1, 2, 3, 4, 5], salt=salt) for salt in ("adapter", "", None)}
    for salt, table in tables.items():
        assert pool.match([1, 2, 3, 4, 5], salt=salt).blocks == tuple(table.blocks[:2])
    assert pool.match([1, 2, 3, 4, 5], salt="another").tokens == 0


COLLIDING = {
    "all hashes are equal": lambda before, tokens: b"",
    "the hash is the last token's": lambda before, tokens: bytes([tokens[-1] % 256]),
    "the hash forgets what came before": lambda before, tokens: block_hash(b"", tokens),
}


@pytest.mark.parametrize("hash_block", COLLIDING.values(), ids=COLLIDING)
def test_equal_hashes_with_unequal_tokens_never_match(hash_block):
    pool = BlockPool(num_blocks=40, block_size=2, hash_block=hash_block)
    prompts = [
        [1, 2, 7, 8],
        [3, 2, 7, 8],
        [5, 2, 7, 8],
        [7, 8, 7, 8],
    ]  # the last blocks are equal, what is before is not
    tables = [begin(pool, prompt) for prompt in prompts]
    salted = begin(pool, prompts[0], salt="adapter")
    for prompt, table in zip(prompts, tables, strict=True):
        assert pool.match([*prompt, 0]).blocks == tuple(table.blocks)
    assert pool.match([*prompts[0], 0], salt="adapter").blocks == tuple(salted.blocks)
    assert pool.match([9, 2, 7, 8, 0]).tokens == 0
    assert pool.match([1, 2, 9, 8, 0]).tokens == 2
    for table in [*tables, salted]:
        pool.free(table)
    begin(pool, range(100, 178))  # evicts everything
    assert all(pool.match([*prompt, 0]).tokens == 0 for prompt in prompts)


def test_hashes_are_chained_and_the_same_in_every_process():
    start = salt_hash(None)
    assert block_hash(start, (1, 2)).hex() == "9b39f61446f7f52a663c2618142dda11"  # as another process said
    assert len({block_hash(start, (1, 2)), block_hash(start, (2, 1)), block_hash(salt_hash(""), (1, 2))}) == 3
    assert block_hash(block_hash(start, (1, 2)), (3, 4)) != block_hash(block_hash(start, (1, 3)), (3, 4))


# The faults of peers


def test_two_identical_prompts_in_flight_one_freed():
    pool = BlockPool(num_blocks=9, block_size=2)
    tokens = [1, 2, 3, 4, 5]
    first, second = (pool.allocate(5, pool.match(tokens)) for _ in range(2))  # neither is computed, so neither hits
    pool.register(first, tokens, 5)
    pool.register(second, tokens, 5)
    pool.free(first)
    assert not set(second.blocks) & set(pool.reuse_order())
    newcomer = pool.allocate(2 * pool.free_blocks)
    assert not set(newcomer.blocks) & set(second.blocks)
    third = pool.allocate(4, pool.match(tokens))  # what the second one holds can still be hit
    assert third.blocks == second.blocks[:2]
    assert_consistent(pool, [second, third, newcomer])


def test_two_identical_prompts_share_blocks_that_were_computed_in_time_and_one_is_freed():
    pool = BlockPool(num_blocks=9, block_size=2)
    first, second = begin(pool, [1, 2, 3, 4, 5]), begin(pool, [1, 2, 3, 4, 5])
    assert first.blocks[:2] == second.blocks[:2]
    pool.free(first)
    assert not set(second.blocks) & set(pool.reuse_order())


@pytest.mark.parametrize("stays", [0, 1, 2])
def test_a_copy_that_is_in_use_is_hit_before_free_ones(stays):
    pool = BlockPool(num_blocks=9, block_size=2)
    tables = [begin(pool, [1, 2], registered=False) for _ in range(3)]
    for table in tables:
        pool.register(table, [1, 2], 2)
    in_use = tables.pop(stays).blocks
    for table in tables:
        pool.free(table)
    free = pool.free_blocks
    assert pool.allocate(2, pool.match([1, 2, 3])).blocks == in_use and pool.free_blocks == free


def test_a_preempted_sequence_hits_its_own_blocks_even_where_they_are_all_that_is_free():
    pool = BlockPool(num_blocks=5, block_size=2)
    tokens = list(range(8))
    table = begin(pool, tokens)
    pool.free(table)
    assert pool.reuse_order() == [4, 3, 2, 1]
    again = pool.allocate(8, pool.match(tokens))  # hits 1, 2, 3, and evicts 4: no block that is hit
    assert again.blocks == [1, 2, 3, 4]
    assert_consistent(pool, [again])


def test_a_preempted_sequence_does_not_evict_what_it_hits_though_that_is_the_least_recently_used():
    pool = BlockPool(num_blocks=5, block_size=2)
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8]):
        pool.free(begin(pool, tokens))
    assert pool.reuse_order() == [2, 1, 4, 3]
    again = pool.allocate(8, pool.match([1, 2, 3, 4, 9, 9, 9, 9]))
    assert again.blocks == [1, 2, 4, 3]
    assert_consistent(pool, [again])


def test_a_hit_on_free_blocks_counts_as_room_that_is_taken():
    pool = BlockPool(num_blocks=5, block_size=2)
    pool.free(begin(pool, [1, 2, 3, 4]))
    other = begin(pool, [9], registered=False)
    hit = pool.match([1, 2, 3, 4, 5])
    before = pool.reuse_order(), pool.stats
    with pytest.raises(OutOfBlocks) as raised:
        pool.allocate(8, hit)  # two blocks of the hit and two more, of three
    assert (raised.value.needed, raised.value.free) == (4, 3) and (pool.reuse_order(), pool.stats) == before
    assert_consistent(pool, [other])
    assert len(pool.allocate(6, hit).blocks) == 3


# Sequences that branch


def test_a_fork_copies_a_shared_block_when_it_is_written_and_the_last_owner_writes_in_place():
    pool = BlockPool(num_blocks=9, block_size=4)
    table = begin(pool, [1, 2, 3, 4, 5, 6])
    fork = pool.fork(table)
    assert fork.blocks == table.blocks == [1, 2] and pool.stats.used == 2
    assert pool.extend(fork, 7) == [Copy(source=2, target=3)]
    assert (table.blocks, fork.blocks) == ([1, 2], [1, 3])
    assert pool.extend(table, 7) == [] and table.blocks == [1, 2]
    assert pool.stats.copies == 1
    assert_consistent(pool, [table, fork])


def test_forks_at_a_block_boundary_copy_nothing():
    pool = BlockPool(num_blocks=9, block_size=4)
    table = begin(pool, [1, 2, 3, 4])
    fork = pool.fork(table)
    assert pool.extend(fork, 5) == pool.extend(table, 5) == []
    assert (table.blocks, fork.blocks) == ([1, 3], [1, 2])


def test_a_table_is_told_as_one_tuple_until_its_blocks_are_others():
    pool = BlockPool(num_blocks=9, block_size=4)
    table = pool.allocate(2)
    told = table.told()
    pool.extend(table, 4)
    assert table.told() is told == (1,)
    pool.extend(table, 5)
    assert table.told() == (1, 2)
    fork = pool.fork(table)
    pool.extend(fork, 6)  # copied on write
    assert table.told() == (1, 2) and fork.told() == (1, 3)
    pool.truncate(table, 3)
    assert table.told() == (1,)


def test_to_extend_by_nothing_copies_nothing():
    pool = BlockPool(num_blocks=9, block_size=4)
    table = begin(pool, [1, 2])
    fork = pool.fork(table)
    assert pool.extend(fork, 2) == [] and fork.blocks == table.blocks


def test_a_fork_goes_on_as_registered_as_it_was():
    pool = BlockPool(num_blocks=9, block_size=2)
    fork = pool.fork(begin(pool, [1, 2, 3]))
    pool.extend(fork, 4)
    pool.register(fork, [1, 2, 3, 4], 4)
    assert pool.match([1, 2, 3, 4, 5]).blocks == tuple(fork.blocks)


def test_a_fork_keeps_the_salt_of_what_is_not_registered_yet():
    pool = BlockPool(num_blocks=9, block_size=2)
    pool.register(pool.fork(begin(pool, [1, 2], salt="adapter", registered=False)), [1, 2], 2)
    assert pool.match([1, 2, 3], salt="adapter").tokens == 2 and pool.match([1, 2, 3]).tokens == 0


def test_a_registered_block_is_not_overwritten_after_a_rollback():
    pool = BlockPool(num_blocks=9, block_size=4)
    table = begin(pool, [1, 2, 3, 4, 5])
    pool.truncate(table, 3)
    assert table.blocks == [1] and pool.free_blocks == 7
    assert pool.extend(table, 4) == [Copy(1, 2)]
    pool.register(table, [1, 2, 3, 9], 4)
    assert pool.match([1, 2, 3, 4, 5]).blocks == (1,) and pool.match([1, 2, 3, 9, 5]).blocks == (2,)


def test_a_rollback_frees_whole_blocks_and_the_rest_is_written_in_place():
    pool = BlockPool(num_blocks=9, block_size=4)
    table = begin(pool, list(range(6)))
    pool.extend(table, 13)
    pool.truncate(table, 6)
    assert table.blocks == [1, 2] and table.length == 6
    assert pool.extend(table, 8) == [] and table.blocks == [1, 2]


# All or nothing, and what is refused


def state(pool: BlockPool):
    return pool.reuse_order(), pool.stats, [pool.references(block) for block in range(pool.num_blocks)]


def test_a_failed_allocation_changes_nothing():
    pool = BlockPool(num_blocks=6, block_size=4)
    table = begin(pool, list(range(10)))
    fork = pool.fork(table)
    rest = pool.allocate(4)
    before = state(pool), list(fork.blocks)
    for refused in (
        lambda: pool.allocate(5),
        lambda: pool.allocate(16, pool.match(list(range(10)))),
        lambda: pool.allocate(4, reserve=1),
        lambda: pool.extend(fork, 13),  # a copy of block 3, and one more
        lambda: pool.extend(rest, 9),
    ):
        with pytest.raises(OutOfBlocks, match="preempt a sequence, or make the pool larger"):
            refused()
        assert (state(pool), fork.blocks) == before and (fork.length, rest.length) == (10, 4)
    assert pool.extend(fork, 12) == [Copy(3, 5)]


def test_the_reserve_stays_free_and_a_sequence_that_takes_nothing_needs_none():
    pool = BlockPool(num_blocks=6, block_size=4)
    running = begin(pool, list(range(12)))
    assert pool.allocate(4, reserve=1).blocks == [4]
    with pytest.raises(OutOfBlocks, match="1 blocks of 4 tokens are needed, and 1 of 5 are free, of which 1 must stay"):
        pool.allocate(1, reserve=1)
    assert pool.allocate(8, pool.match(list(range(12))), reserve=1).blocks == running.blocks[:2]


def test_a_failed_registration_changes_nothing():
    def failing(before, tokens):
        if 13 in tokens:
            raise MemoryError
        return block_hash(before, tokens)

    pool = BlockPool(num_blocks=6, block_size=2, hash_block=failing)
    table = begin(pool, [1, 2, 3, 13], registered=False)
    with pytest.raises(MemoryError):
        pool.register(table, [1, 2, 3, 13], 4)
    assert pool.match([1, 2, 3]).tokens == 0 and table.prefixes == []
    pool.free(table)
    assert pool.stats.cached == 0 and pool.free_blocks == 5


def test_what_is_refused_names_the_argument_and_the_remedy():
    pool = BlockPool(num_blocks=9, block_size=2)
    table = begin(pool, [1, 2, 3])
    freed = begin(pool, [7])
    pool.free(freed)
    stale = pool.match([1, 2, 9])
    tampered, strange = BlockPool(5, 2), BlockPool(5, 2)
    altered, unknown = tampered.allocate(2), strange.allocate(2)
    altered.blocks.append(4)
    unknown.blocks[0] = 99
    for refused, words in [
        (lambda: BlockPool(1), "num_blocks must be at least 2, for block 0 is never handed out, got 1"),
        (lambda: BlockPool(2, 0), "block_size must be at least 1 token, got 0"),
        (lambda: pool.allocate(1, stale), "length must be at least the hit's 2 tokens, got 1"),
        (lambda: pool.allocate(-1), "length must be at least the hit's 0 tokens, got -1"),
        (lambda: pool.allocate(1, reserve=-1), "reserve must be at least 0 blocks, got -1"),
        (lambda: pool.free(freed), "table is not in use in this pool: it was freed already"),
        (lambda: pool.extend(freed, 1), "freed already"),
        (lambda: pool.fork(freed), "freed already"),
        (lambda: pool.register(freed, [7], 1), "freed already"),
        (lambda: BlockPool(9, 2).free(table), "another pool made it"),
        (lambda: pool.extend(table, 2), r"length must be at least the table's, 3 \(truncate shortens\), got 2"),
        (lambda: pool.truncate(table, 4), r"length must be from 0 to the table's, 3 \(extend lengthens\), got 4"),
        (lambda: pool.truncate(table, -1), "from 0 to the table's, 3"),
        (lambda: pool.register(table, [1, 2, 3, 4], 4), "at most the 4 tokens given and the table's 3 slots, got 4"),
        (lambda: pool.register(table, [1, 2], 3), "at most the 2 tokens given"),
        (lambda: pool.register(table, [1, 2], -1), "computed must be"),
        (lambda: pool.match([2**63, 1, 1]), "tokens must be integers of at most 64 bits"),
        (lambda: pool.references(9), "block must be from 0 to 8, got 9"),
        (lambda: tampered.free(altered), "table.blocks names block 4, which no table of this pool has"),
        (lambda: tampered.fork(altered), "names block 4"),
        (lambda: strange.free(unknown), "names block 99"),
    ]:
        before = state(pool), state(tampered), state(strange)
        with pytest.raises(ValueError, match=words):
            refused()
        assert (state(pool), state(tampered), state(strange)) == before


def test_a_salt_that_is_no_string_is_refused():
    with pytest.raises(
        ValueError, match="salt must be a string, as an adapter's or a tenant's name is, or None, got 7"
    ):
        inspect.unwrap(salt_hash)(7)  # as it is without the tests' own check of types


def test_a_hit_that_is_out_of_date_is_refused():
    pool = BlockPool(num_blocks=3, block_size=2)
    pool.free(begin(pool, [1, 2]))
    hit = pool.match([1, 2, 3])
    pool.free(begin(pool, [5, 6, 7, 8]))  # in both blocks
    before = state(pool)
    with pytest.raises(ValueError, match="hit is out of date.*call match again"):
        pool.allocate(3, hit)
    assert state(pool) == before


def test_a_block_that_is_registered_with_some_tokens_is_not_registered_with_others():
    pool = BlockPool(num_blocks=9, block_size=2)
    table = begin(pool, [1, 2], registered=False)
    fork = pool.fork(table)
    pool.register(table, [1, 2], 2)
    with pytest.raises(ValueError, match="tokens must be those of the table's blocks: block 1 was registered"):
        pool.register(fork, [1, 3], 2)
    assert fork.prefixes == []
    pool.register(fork, [1, 2], 2)


def test_being_out_of_blocks_survives_the_way_to_another_process():
    error = pickle.loads(pickle.dumps(OutOfBlocks("no room", 3, 2)))
    assert (str(error), error.needed, error.free) == ("no room", 3, 2)


def test_a_table_of_no_tokens_has_no_blocks():
    pool = BlockPool(num_blocks=3, block_size=2)
    table = pool.allocate(0, PrefixHit(salt="adapter"))
    assert table.blocks == [] and pool.free_blocks == 2
    pool.extend(table, 2)
    pool.register(table, [1, 2], 2)
    pool.free(table)
    assert pool.match([1, 2, 3], salt="adapter").tokens == 2 and pool.match([1, 2, 3]).tokens == 0


# Constant time, counted


class Counted(int):
    """A block's id that counts what is done with it: a search in a list compares, a search in a dict hashes."""

    work = 0

    def __eq__(self, other):
        Counted.work += 1
        return int(self) == other

    def __lt__(self, other):
        Counted.work += 1
        return int(self) < other

    def __hash__(self):
        Counted.work += 1
        return int.__hash__(self)


@contextmanager
def counting():
    """Counts lines that run in the pool's two files, and comparisons and hashes of ids."""
    files = {block_pool.__file__, block_hashes.__file__}

    def on_line(frame, event, argument):
        Counted.work += event == "line"
        return on_line

    def on_call(frame, event, argument):
        return on_line if frame.f_code.co_filename in files else None

    Counted.work, old = 0, sys.gettrace()
    sys.settrace(on_call)
    try:
        yield
    finally:
        sys.settrace(old)


def work_of_a_life(num_blocks: int, *, others: int) -> dict[str, int]:
    """What each call costs for a sequence of eight blocks, in a full pool: of `others`, half run and half are free."""
    pool = BlockPool(num_blocks, 2)
    pool._blank = [Counted(block) for block in pool._blank]
    tables = [begin(pool, [1000 + n, 1, n, 2]) for n in range(others)]
    for table in tables[::2]:
        pool.free(table)
    used = [pool.allocate(2 * (pool.free_blocks - others)), *tables[1::2]]
    assert pool.stats.cached == pool.free_blocks  # so every further block is an eviction, or a hit in the middle
    tokens, costs = [1000 + others // 2 // 2 * 2, 1, others // 2 // 2 * 2, 2, *range(12)], {}

    def cost(name, call):
        with counting():
            result = call()
        costs[name] = Counted.work
        return result

    hit = cost("match", lambda: pool.match(tokens))
    assert hit.tokens == 4
    table = cost("allocate", lambda: pool.allocate(16, hit))
    cost("register", lambda: pool.register(table, tokens, 15))
    fork = cost("fork", lambda: pool.fork(table))
    cost("extend", lambda: pool.extend(fork, 18))
    cost("truncate", lambda: pool.truncate(fork, 5))
    cost("free", lambda: pool.free(fork))
    cost("free the other", lambda: pool.free(table))
    assert pool.stats.evictions == 7
    assert_consistent(pool, used)
    return costs


def test_what_a_call_costs_does_not_depend_on_the_size_of_the_pool():
    small, large = work_of_a_life(100, others=24), work_of_a_life(3000, others=1200)
    assert small == large
    assert all(small.values())


def test_the_count_sees_a_search_through_a_list():
    ids = [Counted(n) for n in range(100)]
    with counting():
        ids.remove(99)
    assert Counted.work >= 99
