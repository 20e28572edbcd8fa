"""The block pool against a naive model, over lives of sequences that are drawn by hypothesis, with good and bad hashes.

Two things are believed here, and neither has a reference count or a hash. The *model* keeps lists: who has which
blocks, what each block holds (a salt and all tokens up to the block's end), and in which order free blocks are reused.
The *memory* is what a pool is for: every slot holds what keys and values depend on, the salt and all tokens up to its
own. Sequences write it through their tables as a step would, and must find there what they wrote, whatever others did.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmsys.cache import BlockPool, BlockTable, OutOfBlocks
from llmsys.cache.block_hashes import block_hash
from tests.support.pools import assert_consistent
from tests.support.size import sized

TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=9)  # two tokens: prefixes are shared often
SALTS = st.sampled_from([None, None, None, "adapter"])


@dataclass(eq=False)
class Sequence:
    salt: str | None
    tokens: list[int]
    table: BlockTable | None = None  # None while it is preempted
    computed: int = 0
    blocks: list[int] = field(default_factory=list)  # what the model says that the table is


class Lives(RuleBasedStateMachine):
    """Sequences come, are computed in chunks, fork, roll back, are preempted, finish."""

    hash_block = staticmethod(block_hash)

    @initialize(num_blocks=st.integers(2, 9), block_size=st.integers(1, 3))
    def make(self, num_blocks, block_size):
        self.hash_fails = False

        def hash_block(before, tokens):
            if self.hash_fails:
                raise MemoryError("injected")
            return type(self).hash_block(before, tokens)

        self.pool = BlockPool(num_blocks, block_size, hash_block=hash_block)
        self.size = block_size
        self.order = list(range(1, num_blocks))  # reused from the left
        self.holds: dict[int, tuple] = {}  # of blocks that were registered
        self.memory = [[None] * block_size for _ in range(num_blocks)]
        self.sequences: list[Sequence] = []
        self.evictions = self.hit_tokens = self.copies = 0

    # The model, in the plainest words

    def running(self):
        return [each for each in self.sequences if each.table is not None]

    def in_use(self):
        return {block for each in self.running() for block in each.blocks}

    def content(self, sequence, n):
        return sequence.salt, tuple(sequence.tokens[: (n + 1) * self.size])

    def model_take(self):
        block = self.order.pop(0)
        self.evictions += self.holds.pop(block, None) is not None
        return block

    def model_release(self, blocks):
        """`blocks` have left a table already: those that stand in no other are free, the tail first."""
        idle = [block for block in reversed(blocks) if block not in self.in_use()]
        self.order = [
            *(block for block in idle if block not in self.holds),
            *self.order,
            *(block for block in idle if block in self.holds),
        ]

    def write(self, sequence, start, end):
        for n in range(start, end):
            slot = sequence.table.blocks[n // self.size], n % self.size
            self.memory[slot[0]][slot[1]] = (sequence.salt, tuple(sequence.tokens[: n + 1]))

    def snapshot(self):
        pool = self.pool
        tables = [(list(each.table.blocks), each.table.length, len(each.table.prefixes)) for each in self.running()]
        return pool.reuse_order(), pool.stats, tables, [pool.references(block) for block in range(pool.num_blocks)]

    # What happens

    @rule(tokens=TOKENS, salt=SALTS)
    def come(self, tokens, salt):
        if len(self.sequences) < 6:
            self.sequences.append(Sequence(salt, tokens))

    @rule(data=st.data(), more=TOKENS)
    def come_with_the_tokens_of_another(self, data, more):
        if self.sequences and len(self.sequences) < 6:
            other = data.draw(st.sampled_from(self.sequences))
            self.sequences.append(Sequence(other.salt, other.tokens + more))

    @rule(tokens=TOKENS, salt=SALTS)
    def come_and_go(self, tokens, salt):
        """A whole life at once: it leaves cached blocks behind, so that pools fill up with these."""
        sequence = Sequence(salt, tokens)
        self.sequences.append(sequence)
        self.allocate(sequence, lambda hit: len(tokens), reserve=0)
        if sequence.table is not None:
            self.register_up_to(sequence, sequence.computed)
            self.leave(sequence)
        self.sequences.remove(sequence)

    @precondition(lambda self: any(each.table is None for each in self.sequences))
    @rule(data=st.data(), reserve=st.integers(0, 2), whole=st.booleans())
    def admit(self, data, reserve, whole):
        sequence = data.draw(st.sampled_from([each for each in self.sequences if each.table is None]))
        end = len(sequence.tokens)
        self.allocate(sequence, lambda hit: data.draw(st.integers(end if whole else hit, end)), reserve)

    def allocate(self, sequence, choose_length, reserve):
        hit = self.pool.match(sequence.tokens, salt=sequence.salt)
        cached, expected = set(self.holds.values()), 0
        while (expected + 1) * self.size < len(sequence.tokens) and self.content(sequence, expected) in cached:
            expected += 1
        assert len(hit.blocks) == expected and hit.tokens == expected * self.size < len(sequence.tokens)
        for n, block in enumerate(hit.blocks):
            assert self.holds[block] == self.content(sequence, n)
            copies = {other for other, content in self.holds.items() if content == self.holds[block]}
            assert block in self.in_use() or not copies & self.in_use(), "a copy in use is shared first"
        length = choose_length(hit.tokens)
        new = -(-length // self.size) - expected
        needed = new + len(set(hit.blocks) - self.in_use())
        before = self.snapshot()
        try:
            table = self.pool.allocate(length, hit, reserve=reserve)
        except OutOfBlocks as error:
            assert needed and needed + reserve > len(self.order) and error.needed == needed
            assert self.snapshot() == before
            return
        assert not needed or needed + reserve <= len(self.order)
        self.order = [block for block in self.order if block not in hit.blocks]
        self.hit_tokens += hit.tokens
        sequence.blocks = [*hit.blocks, *(self.model_take() for _ in range(new))]
        sequence.table, sequence.computed = table, hit.tokens
        self.compute(sequence, length)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=5))
    def go_on(self, data, more):
        """Another chunk of what is known, or more tokens; where there is no room, nothing changes."""
        sequence = data.draw(st.sampled_from(self.running()))
        tokens = sequence.tokens if sequence.computed < len(sequence.tokens) else sequence.tokens + more
        length = data.draw(st.integers(sequence.table.length, len(tokens)))
        inside = length > sequence.table.length and sequence.table.length % self.size
        last = sequence.blocks[-1] if inside else None
        shared = sum(each.blocks.count(last) for each in self.running()) > 1
        replace = bool(inside) and (shared or last in self.holds)
        needed = -(-length // self.size) - len(sequence.blocks) + replace
        before = self.snapshot()
        try:
            copies = self.pool.extend(sequence.table, length)
        except OutOfBlocks:
            assert needed > len(self.order) and self.snapshot() == before
            return
        assert needed <= len(self.order)
        if replace:
            sequence.blocks[-1] = self.model_take()
            self.model_release([last])
            self.copies += 1
        assert copies == ([(last, sequence.blocks[-1])] if replace else [])
        sequence.blocks += [self.model_take() for _ in range(needed - replace)]
        for source, target in copies:
            self.memory[target] = list(self.memory[source])
        sequence.tokens = tokens
        self.compute(sequence, length)

    def compute(self, sequence, length):
        self.write(sequence, sequence.computed, length)
        sequence.computed = length

    @precondition(lambda self: self.running())
    @rule(data=st.data(), all_of_it=st.booleans())
    def register(self, data, all_of_it):
        sequence = data.draw(st.sampled_from(self.running()))
        self.register_up_to(sequence, data.draw(st.integers(sequence.computed if all_of_it else 0, sequence.computed)))

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fail_to_register(self, data):
        sequence = data.draw(st.sampled_from(self.running()))
        before, self.hash_fails = self.snapshot(), True
        try:
            self.pool.register(sequence.table, sequence.tokens, sequence.computed)
        except MemoryError:
            pass  # where there was anything to hash
        finally:
            self.hash_fails = False
        assert self.snapshot() == before

    def register_up_to(self, sequence, computed):
        self.pool.register(sequence.table, sequence.tokens, computed)
        for n in range(computed // self.size):
            self.holds[sequence.blocks[n]] = self.content(sequence, n)

    @precondition(lambda self: self.running())
    @rule(data=st.data())
    def fork(self, data):
        one = data.draw(st.sampled_from(self.running()))
        if len(self.sequences) < 8:
            table = self.pool.fork(one.table)
            self.sequences.append(Sequence(one.salt, list(one.tokens), table, one.computed, list(one.blocks)))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), tokens=TOKENS)
    def roll_back(self, data, tokens):
        """And go another way from there."""
        sequence = data.draw(st.sampled_from(self.running()))
        length = data.draw(st.integers(0, sequence.table.length))
        self.pool.truncate(sequence.table, length)
        kept = -(-length // self.size)
        gone, sequence.blocks = sequence.blocks[kept:], sequence.blocks[:kept]
        self.model_release(gone)
        sequence.tokens, sequence.computed = sequence.tokens[:length] + tokens, length

    @precondition(lambda self: self.running())
    @rule(data=st.data(), comes_back=st.booleans())
    def stop(self, data, comes_back):
        """Finished or aborted; or preempted, and it comes back and may hit its own blocks."""
        sequence = data.draw(st.sampled_from(self.running()))
        self.leave(sequence)
        if not comes_back:
            self.sequences.remove(sequence)

    def leave(self, sequence):
        table, blocks = sequence.table, sequence.blocks
        self.pool.free(table)
        sequence.table, sequence.blocks, sequence.computed = None, [], 0
        self.model_release(blocks)
        before = self.snapshot()
        with pytest.raises(ValueError, match="freed already"):
            self.pool.free(table)
        assert self.snapshot() == before

    # What is always true

    @invariant()
    def tables_and_references_are_the_model_s(self):
        assert [each.table.blocks for each in self.running()] == [each.blocks for each in self.running()]
        assert [each.table.told() for each in self.running()] == [tuple(each.blocks) for each in self.running()]
        assert_consistent(self.pool, [each.table for each in self.running()])

    @invariant()
    def the_order_of_reuse_is_what_it_says(self):
        assert self.pool.reuse_order() == self.order
        kinds = [block in self.holds for block in self.order]
        assert kinds == sorted(kinds), "blocks without a hash first"
        stats = self.pool.stats
        assert (stats.cached, stats.evictions) == (sum(kinds), self.evictions)
        assert (stats.hit_tokens, stats.copies) == (self.hit_tokens, self.copies)

    @invariant()
    def every_sequence_finds_what_it_wrote(self):
        for each in self.running():
            found = [self.memory[each.table.blocks[n // self.size]][n % self.size] for n in range(each.computed)]
            assert found == [(each.salt, tuple(each.tokens[: n + 1])) for n in range(each.computed)]

    @invariant()
    def what_a_block_is_known_to_hold_is_what_it_holds(self):
        for block, (salt, tokens) in self.holds.items():
            first = len(tokens) - self.size
            assert self.memory[block] == [(salt, tokens[: first + n + 1]) for n in range(self.size)]

    @invariant()
    def whatever_is_cached_can_be_hit(self):
        for salt, tokens in set(self.holds.values()):
            assert self.pool.match([*tokens, 0], salt=salt).tokens == len(tokens)

    def teardown(self):
        """Nothing leaks: when all are gone, everything is free, and can be handed out at once."""
        if hasattr(self, "pool"):
            for each in self.running():
                self.pool.free(each.table)
            assert self.pool.stats.used == 0
            assert sorted(self.pool.allocate((self.pool.num_blocks - 1) * self.size).blocks) == sorted(
                range(1, self.pool.num_blocks)
            )


class LivesWithEqualHashes(Lives):
    hash_block = staticmethod(lambda before, tokens: b"")


class LivesWithHashesThatForgetWhatCameBefore(Lives):
    hash_block = staticmethod(lambda before, tokens: block_hash(b"", tokens))


EXAMPLES = sized(short=50, full=1000)


@pytest.mark.parametrize("machine", [Lives, LivesWithEqualHashes, LivesWithHashesThatForgetWhatCameBefore])
def test_the_pool_does_what_the_model_does(machine):
    case = machine.TestCase
    case.settings = settings(case.settings, max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
    case("runTest").runTest()
