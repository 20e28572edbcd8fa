# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: llmsys
#     language: python
#     name: llmsys
# ---

# %% [markdown]
# ## Exercise (a): the block pool (30 minutes)
#
# The memory is cut into `num_blocks` blocks of `block_size` tokens. A sequence has a **block table**: the ids of its
# blocks in order, and its length. Token $i$ lies in
#
# $$ \text{slot} = \text{blocks}[\,\lfloor i / \text{block\_size} \rfloor\,] \cdot \text{block\_size} + i \bmod \text{block\_size} $$
#
# so blocks may lie anywhere, and at most `block_size − 1` slots of a table are empty. The *pool* knows who has which
# block. It sees no tensor: ids, lengths and nothing else.
#
# Write it so that each call costs a constant for each block that it touches, however many blocks there are: a server
# asks it for every sequence in every step. And so that a call that cannot be done changes nothing: whoever is told
# `OutOfBlocks` will free somebody and ask again.

# %% tags=["exercise"] exercise="08.block_pool"
from llmsys.cache import BlockTable, OutOfBlocks


class Pool:
    """Hands out the blocks of a cache, and takes them back.

    num_blocks   int, blocks of the memory: 0, 1, …, num_blocks − 1. Block 0 is never handed out: padding points to it
    block_size   int, tokens in a block

    A table is a BlockTable(blocks, length): table.blocks is a list of ids, table.length says how many tokens have a
    slot, and blocks are as many as that needs. A new pool hands out 1, 2, 3, … Of the blocks that were given back, the
    last one is taken first, and all of them before blocks that nobody had yet; of one table, the tail before the head:
    [4, 5, 6] comes back as 6, 5, 4.

    Raises OutOfBlocks(message) where too few blocks are free, and ValueError(message) for a table that is not in use
    in this pool (freed already, or another pool's) or a length below that of the table. Then nothing has changed.
    """

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        ### BEGIN SOLUTION
        self.stack = list(range(num_blocks - 1, 0, -1))  # block 1 on top
        self.tables = set()  # those in use
        ### END SOLUTION

    @property
    def free_blocks(self):
        """How many blocks can be handed out."""
        ### BEGIN SOLUTION
        return len(self.stack)
        ### END SOLUTION

    def allocate(self, length):
        """A new table with slots for `length` tokens, 0 or more."""
        ### BEGIN SOLUTION
        needed = -(-length // self.block_size)
        if needed > self.free_blocks:
            raise OutOfBlocks(f"{needed} blocks are needed, and {self.free_blocks} are free")
        table = BlockTable([self.stack.pop() for _ in range(needed)], length)
        self.tables.add(table)
        return table
        ### END SOLUTION

    def extend(self, table, length):
        """Gives the table slots for `length` tokens in all. Blocks are added at its end where the last one is full."""
        ### BEGIN SOLUTION
        if table not in self.tables:
            raise ValueError("table is not in use in this pool")
        if length < table.length:
            raise ValueError(f"length must be at least the table's {table.length}, got {length}")
        needed = -(-length // self.block_size) - len(table.blocks)
        if needed > self.free_blocks:
            raise OutOfBlocks(f"{needed} blocks are needed, and {self.free_blocks} are free")
        table.blocks += [self.stack.pop() for _ in range(needed)]
        table.length = length
        ### END SOLUTION

    def free(self, table):
        """The sequence is finished: its blocks can be handed out again. The table is left with none, and length 0."""
        ### BEGIN SOLUTION
        if table not in self.tables:
            raise ValueError("table is not in use in this pool")
        self.tables.remove(table)
        self.stack += table.blocks  # the tail on top
        table.blocks, table.length = [], 0
        ### END SOLUTION


# %% tags=["check"] exercise="08.block_pool"
check("08.block_pool", Pool)

# %% [markdown]
# In the real model: `PagedCache` keeps keys and values in pages, one page a block, and asks a pool which. Give it yours.

# %% tags=["claim"]
pool = mine("Pool", default=PlainPool)(num_blocks=13, block_size=16)
cache = PagedCache(pool=pool)
question = "Why is the sky blue? Answer in one sentence."
paged = generate(model, question, attention=cache, max_new_tokens=16)
contiguous = generate(model, question, max_new_tokens=16)
print("the same tokens as with a contiguous cache:", paged.tokens == contiguous.tokens)
print(f"{cache.length} tokens in {12 - pool.free_blocks} blocks of 16, {pool.free_blocks} free")
cache.end()
print("when the sequence has ended:", pool.free_blocks, "free")

# %% [markdown]
# And a small server (`serve`, 60 lines in the lesson's package): nine questions in a memory of twelve blocks, 192
# tokens. A prompt is admitted as soon as there are blocks for it, and a finished one's blocks go to the next.

# %% tags=["claim"]
questions = [f"Name {n} {things}." for n in ("three", "four", "five") for things in ("colours", "rivers", "planets")]
alone = [generate(model, each, max_new_tokens=12) for each in questions]
prompts = [each.prompt_tokens for each in alone]
cache = PagedCache(num_blocks=pool.num_blocks, block_size=pool.block_size)
served = serve(model, prompts, pool, cache, new_tokens=12)
print(f"{served.steps} steps, at most {served.most_at_once} sequences at once, in at most {served.most_blocks} blocks")
same = [each.tokens == said[: len(each.tokens)] for each, said in zip(alone, served.tokens, strict=True)]
print(f"as if they were alone: {sum(same)} of {len(same)}")

# %% [markdown]
# ## Exercise (b): sharing prefixes (45 minutes)
#
# Requests begin alike: the same system prompt, the same document, the conversation so far. Keys and values of a token
# depend on the tokens up to it and on nothing else, so a block that is full of the same tokens, *after the same
# tokens*, is the same block. Compute it once, and let it stand in many tables.
#
# - A block has a **reference** for each table that it stands in. It is free when it has none.
# - A full block that is computed is **registered**: it holds a `Prefix`, its own tokens and the `Prefix` before it. To
#   find it, hashes are chained: a block's hash is `hash_block(hash before, its tokens)`. A hash is a hint. Two contents
#   may have the same one, so a hit compares the tokens, and what came before.
# - A registered block that nobody uses is **cached**: it stays as it is, and can be hit, until its memory is needed.
#   *Blank* blocks are taken first; then the cached ones, the least recently used first, and of one table the tail first:
#   without the blocks before it, nobody can hit it.
# - A **fork** is a second sequence with the same blocks, the last and unfinished one too. Whoever writes into a block
#   that others use, copies it first: **copy on write**.
#
# What exercise (a) did is given, and the bookkeeping, too: `SharingParts`. Have a look at it (`SharingParts??`).

# %% tags=["exercise"] exercise="08.prefix_sharing"
from llmsys.cache import Copy, PrefixHit
from llmsys.cache.block_hashes import Prefix
from llmsys.lessons.lesson_08_paged_kv_cache.sharing_parts import SharingParts


class SharingPool(SharingParts):
    """A pool whose blocks may stand in several tables.

    SharingParts has these, and you may use and change them all:

    self.num_blocks, self.block_size, self.free_blocks, self.hash_block(hash before as bytes, tokens as a tuple) -> bytes
    self.references[block]      in how many tables it stands
    self.blank                  a list, a stack: free blocks that hold nothing. The last one is taken first
    self.cached                 an OrderedDict of the free blocks that can still be hit, the least recently used first:
                                self.cached[block] = None, del self.cached[block], self.cached.popitem(last=False)
    self.held[block]            the Prefix of a registered block: prefix.before (a Prefix, or None), prefix.tokens,
                                prefix.hash, prefix.blocks (a dict whose keys are the blocks that hold it)
    self.by_hash                hash -> list of the Prefixes that some block holds
    self.hold(block, prefix), self.forget(block)    keep held, by_hash and prefix.blocks up to date
    self.blocks_for(length), self.tokens_of(tokens, n)      how many blocks; those of block number n, as a tuple
    self.new_table(blocks, length, prefixes)    a table that is in use: .blocks, .length, .prefixes (of its first blocks,
                                                as far as they are registered: a list)
    self.check_room(needed)     raises OutOfBlocks where fewer blocks are free
    self.check_table(table)     raises ValueError where the table is not in use
    self.free(table)            is there already: it calls your release(table.blocks)
    """

    def find(self, before, tokens):
        """The Prefix of these tokens (a tuple, a whole block) after `before` (a Prefix; None at the beginning).

        The one that is known, if there is one, else a new one: Prefix(before, tokens, hash).
        """
        ### BEGIN SOLUTION
        hashed = self.hash_block(before.hash if before else b"", tokens)
        for prefix in self.by_hash.get(hashed, []):
            if prefix.before is before and prefix.tokens == tokens:
                return prefix
        return Prefix(before, tokens, hashed)
        ### END SOLUTION

    def match(self, tokens):
        """PrefixHit(blocks, hit tokens, prefixes=…): the longest prefix of `tokens` that blocks hold, in whole blocks.

        It leaves at least one token to compute. Changes nothing.
        """
        ### BEGIN SOLUTION
        prefixes, before = [], None
        for n in range((len(tokens) - 1) // self.block_size):
            before = self.find(before, self.tokens_of(tokens, n))
            if not before.blocks:
                break
            prefixes.append(before)
        blocks = tuple(next(iter(prefix.blocks)) for prefix in prefixes)
        return PrefixHit(blocks, len(blocks) * self.block_size, prefixes=tuple(prefixes))
        ### END SOLUTION

    def register(self, table, tokens, computed):
        """Lets others hit the table's blocks, those that the first `computed` of the sequence's `tokens` fill.

        Called again and again as the sequence grows.
        """
        self.check_table(table)
        ### BEGIN SOLUTION
        for n in range(len(table.prefixes), computed // self.block_size):
            prefix = self.find(table.prefixes[-1] if table.prefixes else None, self.tokens_of(tokens, n))
            self.hold(table.blocks[n], prefix)
            table.prefixes.append(prefix)
        ### END SOLUTION

    def take(self):
        """A free block, which has one reference from now on, and holds nothing any more."""
        ### BEGIN SOLUTION
        if self.blank:
            block = self.blank.pop()
        else:
            block, _ = self.cached.popitem(last=False)
            self.forget(block)
        self.references[block] = 1
        return block
        ### END SOLUTION

    def share(self, blocks):
        """One more reference for each of these blocks, which are in use or cached."""
        ### BEGIN SOLUTION
        for block in blocks:
            if self.references[block] == 0:
                del self.cached[block]
            self.references[block] += 1
        ### END SOLUTION

    def release(self, blocks):
        """One reference less for each of these, in a table's order. Those that have none left are cached, or blank."""
        ### BEGIN SOLUTION
        for block in blocks:
            self.references[block] -= 1
        unused = [block for block in blocks if self.references[block] == 0]
        self.blank += [block for block in unused if block not in self.held]  # the tail on top
        for block in reversed(unused):
            if block in self.held:
                self.cached[block] = None
        ### END SOLUTION

    def allocate(self, length, hit=None):
        """A new table with slots for `length` tokens, which begins with the blocks of the hit: match made it just now.

        OutOfBlocks, and nothing has changed, where the free blocks are too few: a block of the hit that nobody uses is
        one of them.
        """
        hit = hit or PrefixHit()  # no hit: one of no blocks
        ### BEGIN SOLUTION
        new = self.blocks_for(length) - len(hit.blocks)
        self.check_room(new + sum(self.references[block] == 0 for block in hit.blocks))
        self.share(hit.blocks)  # first: what is hit must not be evicted for the rest
        return self.new_table([*hit.blocks, *(self.take() for _ in range(new))], length, hit.prefixes)
        ### END SOLUTION

    def fork(self, table):
        """A second table with the same blocks, length and prefixes. Takes no block."""
        self.check_table(table)
        ### BEGIN SOLUTION
        self.share(table.blocks)
        return self.new_table(list(table.blocks), table.length, table.prefixes)
        ### END SOLUTION

    def extend(self, table, length):
        """Slots for `length` tokens in all. Returns a list of Copy(source, target), to be made before they are written.

        Where the next token would go into a block that others use, a new block takes its place in this table. OutOfBlocks
        where that, or the rest, is not to be had: then nothing has changed.
        """
        self.check_table(table)
        ### BEGIN SOLUTION
        into_last = length > table.length and table.length % self.block_size > 0
        replace = into_last and self.references[table.blocks[-1]] > 1
        new = self.blocks_for(length) - len(table.blocks)
        self.check_room(new + replace)
        copies = []
        if replace:
            source, target = table.blocks[-1], self.take()
            self.release([source])
            table.blocks[-1] = target
            copies.append(Copy(source, target))
        table.blocks += [self.take() for _ in range(new)]
        table.length = length
        return copies
        ### END SOLUTION


# %% tags=["check"] exercise="08.prefix_sharing"
check("08.prefix_sharing", SharingPool)

# %% [markdown]
# In the real model: six questions about one text. The text is computed once.

# %% tags=["claim"]
text = (
    "A cache is cut into blocks. A sequence has a table of its blocks, and takes another one when the last is full. "
    "Sequences that begin alike share the blocks of their beginning. When memory is short, blocks that nobody uses are "
    "evicted, the least recently used first."
)
questions = ["What is cut?", "Who has a table?", "Who shares?", "What is evicted?", "When?", "In which order?"]
alone = [generate(model, f"{text}\n{each}", max_new_tokens=8) for each in questions]
prompts = [each.prompt_tokens for each in alone]
for kind in (mine("Pool", default=PlainPool), mine("SharingPool", default=BlockPool)):
    pool = kind(num_blocks=100, block_size=16)
    cache = PagedCache(num_blocks=pool.num_blocks, block_size=pool.block_size)
    served = serve(model, prompts, pool, cache, new_tokens=8, at_most=1)
    same = [each.tokens == said[: len(each.tokens)] for each, said in zip(alone, served.tokens, strict=True)]
    print(f"{served.computed} tokens computed, hits of {served.hits}; as if they were alone: {sum(same)} of {len(same)}")

# %% [markdown]
# And a fork: two continuations of one prompt, whose last block is shared until one of them writes into it.

# %% tags=["claim"]
pool = mine("SharingPool", default=BlockPool)(num_blocks=100, block_size=16)
first = pool.allocate(len(prompts[0]))
second = pool.fork(first)
print(f"{len(first.blocks)} blocks each, {99 - pool.free_blocks} in all")
print("the first one goes on: ", pool.extend(first, first.length + 1))
print("the second one goes on:", pool.extend(second, second.length + 1))
