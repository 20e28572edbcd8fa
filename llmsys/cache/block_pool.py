"""The block pool: who has which block of the cache, and which one is reused next.

A cache that gives each sequence one long buffer must make it as long as the sequence may become, and most of it stays
empty. A paged cache cuts its memory into `num_blocks` blocks of `block_size` tokens. A sequence has a **block table**,
the ids of its blocks in order, and takes another block when the last one is full: its token i lies in slot
blocks[i // block_size] · block_size + i % block_size, and at most block_size − 1 slots of it are empty. This file knows
ids, reference counts and tokens, and no tensor; the scheduler owns it.

    pool = BlockPool(num_blocks=11, block_size=16)
    hit = pool.match(prompt)                          # how much of the prompt is in the cache already?
    table = pool.allocate(hit.tokens + chunk, hit)    # the blocks of the hit, shared, and new ones for the rest
    ...                                               # the model computes `chunk` tokens
    pool.register(table, tokens, computed)            # full blocks can be hit from now on
    copies = pool.extend(table, computed + 1)         # room for one more token
    pool.free(table)

**Sharing.** A block has a reference for each table that it stands in. `match` finds the longest cached prefix
(`block_hashes`), and `allocate` shares its blocks; `fork` shares all blocks of a table, the last and unfinished one,
too. A block that is shared or registered is never written: `extend` puts a new block in its place where the next token
would go into one, and returns what is to be copied (**copy on write**). The last owner of an unregistered block writes
it in place.

**Order of reuse.** A block without references is free; a free block that was registered is still *cached*, until it is
needed. `allocate` and `extend` take

    1. blocks without a hash, which are of no use to anybody, the last freed first;
    2. cached blocks, the least recently used first.

Within one freed table the tail goes before the head, for a block can only be hit after all blocks before it: a cached
block's parent is thus always cached as well. The first kind is a stack. The second gains its newest, and loses its
oldest or, when one is hit, any member, in constant time: an `OrderedDict`, which is a dict and a doubly linked list in
one. (In a plain dict the oldest key lies behind the gaps of all that were deleted before it.)

**What is evicted** is gone, unless the pool has a host tier (`host_tier`): then it goes to main memory, `match` finds
it there, and `allocate` takes a new block to which it comes back. The copies for that are the tier's to say.

**Invariants.** (1) A block's references are the entries of live tables that name it. (2) Every block but block 0 is
either free or referenced. (3) A call that raises has changed nothing. (4) A hit leaves at least one token to compute:
the model must run to say what comes next. Block 0 is never handed out; padding may point to it.

PagedAttention: https://arxiv.org/abs/2309.06180, sections 4.2 to 4.4. In vLLM these are BlockPool (get_new_blocks,
touch, free_blocks, cache_full_blocks) and KVCacheManager (get_computed_blocks, allocate_slots).
"""

from collections import OrderedDict
from collections.abc import Sequence

from llmsys.cache.block_hashes import BlockHash, Prefix, PrefixIndex, block_hash
from llmsys.cache.block_table import AnyCopy, BlockTable, Copy, CopyIn, CopyOut, OutOfBlocks, PoolStats, PrefixHit
from llmsys.cache.host_tier import HostTier, TakesBack, always

NULL_BLOCK = 0


class BlockPool:
    """Blocks with reference counts, a prefix cache and copy on write. Every method's time is per block it touches.

    Parameters
    ----------
    num_blocks
        Blocks that the cache's memory has, block 0 included.
    block_size
        Tokens in a block.
    hash_block
        See `PrefixIndex`.
    host_blocks
        Blocks of main memory that evicted ones may take. 0: they are lost, there is no host tier.
    takes_back
        Which of those that are hit there come back. (A tier's copies must be made: by whom, says `HostTier.copies`.)

    Attributes
    ----------
    host : HostTier or None
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        hash_block: BlockHash = block_hash,
        host_blocks: int = 0,
        takes_back: TakesBack = always,
    ):
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2, for block 0 is never handed out, got {num_blocks}")
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1 token, got {block_size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._references = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, NULL_BLOCK, -1))  # a stack: block 1 is taken first
        self._cached: OrderedDict[int, None] = OrderedDict()  # the least recently used first
        self._index = PrefixIndex(hash_block)
        self.host = HostTier(host_blocks, block_size, self._index, takes_back) if host_blocks else None
        self._tables: set[BlockTable] = set()
        self._hit_tokens = self._evictions = self._copies = 0

    @property
    def free_blocks(self) -> int:
        """Blocks that can be handed out, the cached ones included."""
        return len(self._blank) + len(self._cached)

    @property
    def stats(self) -> PoolStats:
        blocks, free = self.num_blocks - 1, self.free_blocks
        happened = (self._hit_tokens, self._evictions, self._copies)
        return PoolStats(blocks, blocks - free, free, len(self._cached), *happened)

    def blocks_for(self, length: int) -> int:
        """How many blocks hold `length` tokens."""
        return -(-length // self.block_size)

    # A sequence's life

    def match(self, tokens: Sequence[int], *, salt: str | None = None) -> PrefixHit:
        """The longest cached prefix of `tokens`, in whole blocks and short of the last token. Changes nothing."""
        prefixes: list[Prefix] = []
        for n in range((len(tokens) - 1) // self.block_size):
            found = self._index.find(prefixes[-1] if prefixes else salt, self._tokens_of_block(tokens, n))
            if found is None:
                break
            prefixes.append(found)
        if self.host is not None:
            prefixes = self.host.worthwhile(prefixes, len(tokens))
        blocks = tuple(self._index.block_of(each) for each in prefixes)
        return PrefixHit(blocks, len(blocks) * self.block_size, salt, tuple(prefixes))

    def allocate(self, length: int, hit: PrefixHit | None = None, *, reserve: int = 0) -> BlockTable:
        """A new sequence's table with slots for `length` tokens, of which the first `hit.tokens` are computed.

        OutOfBlocks where fewer than `reserve` blocks would be left free. ValueError if `length` is below the hit's, or
        the pool has changed since `match`.
        """
        hit = hit or PrefixHit()
        if length < hit.tokens:
            raise ValueError(f"length must be at least the hit's {hit.tokens} tokens, got {length}")
        if reserve < 0:
            raise ValueError(f"reserve must be at least 0 blocks, got {reserve}")
        if not all(self._holds(*each) for each in zip(hit.blocks, hit.prefixes, strict=True)):
            raise ValueError("hit is out of date, for one of its blocks holds something else by now: call match again")
        here = [block for block in hit.blocks if block is not None]
        new = self.blocks_for(length) - len(here)
        # What is hit must not be evicted to make room for the rest: it counts as taken, and is taken first.
        taken = sum(self._references[block] == 0 for block in here)
        self._check_room(new + taken, reserve)
        for block in here:
            self._share(block)
        shared = hit.blocks if len(here) == len(hit.blocks) else self._bring_back(hit)
        blocks = [*shared, *(self._take() for _ in range(self.blocks_for(length) - len(shared)))]
        table = BlockTable(blocks, length, hit.salt, list(hit.prefixes))
        self._tables.add(table)
        self._hit_tokens += hit.tokens
        return table

    def extend(self, table: BlockTable, length: int) -> list[Copy]:
        """Makes room for the tokens from table.length to `length`, which may be written after the copies are made.

        OutOfBlocks if that is impossible; ValueError if `length` is below table.length (`truncate` shortens).
        """
        self._check_live(table)
        if length < table.length:
            raise ValueError(f"length must be at least the table's, {table.length} (truncate shortens), got {length}")
        if length <= len(table.blocks) * self.block_size and (
            length == table.length or self._writable(table.blocks[-1])
        ):
            table.length = length  # as nearly always: there is room in the last block
            return []
        into_last = length > table.length and table.length % self.block_size > 0
        replace = into_last and not self._writable(table.blocks[-1])
        new = self.blocks_for(length) - len(table.blocks)
        self._check_room(new + replace)
        copies = []
        if replace:
            source, target = table.blocks[-1], self._take()
            table.blocks[-1] = target
            self._release([source])
            copies.append(Copy(source, target))
            self._copies += 1
        table.blocks += [self._take() for _ in range(new)]
        table.changed()
        table.length = length
        return copies

    def register(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        """Lets others hit the table's full blocks, as far as the first `computed` of the sequence's `tokens` fill them.

        Computed means that the step that writes their keys and values has at least been launched, and that these tokens
        are final. ValueError if `computed` is more than `tokens` or slots, or a block is known to hold other tokens.
        """
        self._check_live(table)
        if not 0 <= computed <= min(len(tokens), table.length):
            raise ValueError(
                f"computed must be at most the {len(tokens)} tokens given and the table's {table.length} slots, "
                f"got {computed}"
            )
        first, full = len(table.prefixes), computed // self.block_size
        before = table.prefixes[-1] if table.prefixes else table.salt
        prefixes: list[Prefix] = []
        for n in range(first, full):
            before = self._index.describe(before, self._tokens_of_block(tokens, n))
            if self._index.of(table.blocks[n]) not in (None, before):
                raise ValueError(
                    f"tokens must be those of the table's blocks: block {table.blocks[n]} was registered with others"
                )
            prefixes.append(before)
        for n, prefix in enumerate(prefixes, first):
            self._index.hold(table.blocks[n], prefix)
        table.prefixes += prefixes

    def fork(self, table: BlockTable) -> BlockTable:
        """Another sequence with the same tokens so far. Takes no block: every block of the table is shared."""
        self._check_live(table)
        self._check_blocks(table.blocks)
        for block in table.blocks:
            self._share(block)
        copy = BlockTable(list(table.blocks), table.length, table.salt, list(table.prefixes))
        self._tables.add(copy)
        return copy

    def truncate(self, table: BlockTable, length: int) -> None:
        """Takes back the tokens from `length` on (as rejected drafts), and frees the blocks that held no others."""
        self._check_live(table)
        if not 0 <= length <= table.length:
            raise ValueError(f"length must be from 0 to the table's, {table.length} (extend lengthens), got {length}")
        kept = self.blocks_for(length)
        self._check_blocks(table.blocks[kept:])
        self._release(table.blocks[kept:])
        del table.blocks[kept:], table.prefixes[length // self.block_size :]
        table.changed()
        table.length = length

    def free(self, table: BlockTable) -> None:
        """The sequence is finished, aborted or preempted. What was registered can be hit until its block is needed."""
        self.truncate(table, 0)
        self._tables.remove(table)

    def distrust(self, copies: Sequence[AnyCopy]) -> None:
        """A step that was to make these copies has failed, and nobody knows whether they were made: what they would
        have brought to a block or to the host cannot be hit any more."""
        for copy in copies:
            if isinstance(copy, CopyOut) and self.host is not None:
                self.host.forget(copy.slot)
            elif isinstance(copy, CopyIn) and copy.block in self._index:
                self._index.forget(copy.block)
                if self._references[copy.block] == 0:
                    del self._cached[copy.block]
                    self._blank.append(copy.block)

    # What one can look at

    def references(self, block: int) -> int:
        """In how many tables the block stands."""
        if not NULL_BLOCK <= block < self.num_blocks:
            raise ValueError(f"block must be from 0 to {self.num_blocks - 1}, got {block}")
        return self._references[block]

    def reuse_order(self) -> list[int]:
        """The free blocks, the one that will be taken next first."""
        return [*reversed(self._blank), *self._cached]

    # How blocks change hands

    def _take(self) -> int:
        """A free block, which loses what it held."""
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            if self.host is not None:
                self.host.keep(block, self._index.of(block))
            self._index.forget(block)
            self._evictions += 1
        self._references[block] = 1
        return block

    def _holds(self, block: int | None, prefix: Prefix) -> bool:
        """Whether the block, or where that is None the host alone, holds it."""
        if block is None:
            return prefix.slot is not None and not prefix.blocks
        return self._index.of(block) is prefix

    def _bring_back(self, hit: PrefixHit) -> list[int]:
        """The hit's blocks, with new ones for those that come back from the host."""
        absent = [prefix for block, prefix in zip(hit.blocks, hit.prefixes, strict=True) if block is None]
        self.host.lock(absent)
        blocks = [self._take() for _ in absent]
        for block, prefix in zip(blocks, absent, strict=True):
            self._index.hold(block, prefix)
        self.host.bring_back(absent, blocks)
        new = iter(blocks)
        return [next(new) if block is None else block for block in hit.blocks]

    def _share(self, block: int) -> None:
        """One more reference; a cached block comes back into use."""
        if self._references[block] == 0:
            del self._cached[block]
        self._references[block] += 1

    def _release(self, blocks: list[int]) -> None:
        """One reference less for each of a table's last blocks, given in the table's order; the tail is freed first."""
        blank = []
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0 and block in self._index:
                self._cached[block] = None
                self._index.put_last(block)
            elif self._references[block] == 0:
                blank.append(block)
        self._blank += reversed(blank)  # the tail on top

    def _writable(self, block: int) -> bool:
        return self._references[block] == 1 and block not in self._index

    def _tokens_of_block(self, tokens: Sequence[int], n: int) -> tuple[int, ...]:
        return tuple(tokens[n * self.block_size : (n + 1) * self.block_size])

    # What is refused

    def _check_room(self, needed: int, reserve: int = 0) -> None:
        if needed and needed + reserve > self.free_blocks:
            kept = f", of which {reserve} must stay free" if reserve else ""
            raise OutOfBlocks(
                f"{needed} blocks of {self.block_size} tokens are needed, and {self.free_blocks} of "
                f"{self.num_blocks - 1} are free{kept}: free or preempt a sequence, or make the pool larger",
                needed,
                self.free_blocks,
            )

    def _check_live(self, table: BlockTable) -> None:
        if table not in self._tables:
            raise ValueError(
                "table is not in use in this pool: it was freed already (free each table once), or another pool made it"
            )

    def _check_blocks(self, blocks: list[int]) -> None:
        for block in blocks:
            if not NULL_BLOCK < block < self.num_blocks or self._references[block] == 0:
                raise ValueError(
                    f"table.blocks names block {block}, which no table of this pool has: leave tables to the pool"
                )
