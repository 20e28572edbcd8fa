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
# # 08 · Paged KV cache
#
# The cache of lesson 07 gave every sequence a row, as long as the sequence may ever become. Nobody knows in advance how
# long an answer will be, so a row has an empty end, and nobody else may have it. And two users who begin with the same
# page of instructions have it computed twice, and kept twice.
#
# **The idea** is forty years older than language models: an operating system does not give a program one long piece of
# memory, either. Cut the memory into small *blocks*. A sequence takes another block when its last one is full, wherever
# there is one, and a *block table* says which are its own. Then blocks can be shared, too.
#
# You will write the pool that deals out blocks; teach it to find what was computed before, and to copy what is shared
# before it is written; write the kernel that attends through a table; and divide one long sequence among all of a GPU.
# In the end, SmolLM2 answers with your pool and your kernels, and two branches of one conversation share its beginning.

# %% tags=["setup"]
import time
from dataclasses import dataclass
from functools import partial

import torch

from llmsys import viz
from llmsys.attention.paged import gather_pages
from llmsys.bench import all_recorded
from llmsys.bench.paged_decode import measure
from llmsys.cache import BlockPool, Chunk, PagedCache, batch_of
from llmsys.course import check, hint, measured, mine, predict
from llmsys.lessons.lesson_08_paged_kv_cache.fragmentation import Blocks, EqualRows, Pieces, fill
from llmsys.lessons.lesson_08_paged_kv_cache.plain_pool import PlainPool
from llmsys.lessons.lesson_08_paged_kv_cache.serve import serve
from llmsys.models import generate, generate_batch, load_model
from llmsys.serving import LENGTHS, draw_lengths
from llmsys.viz.paged_kv_cache.chat import SLOTS, play

device = "cuda" if torch.cuda.is_available() else "cpu"
model = load_model(device=device)

# %%
viz.paged_kv_cache.overview()

# %% [markdown]
# ## Predict: how full is a full cache?
#
# Llama-3-8B on an H100: beside the weights there is room for 65 rows of 8192 tokens, lesson 07 said, which is 532,480
# slots. Serve conversations from it, and let the longest have 16,384 tokens, prompt and answer together; so that is a
# row. As many sequences as fit are in the cache, and more are waiting. Averaged over time, **what share of the slots
# holds a token?** (Lengths are those of a real service: half of the prompts have at most 1,020 tokens, half of the
# answers at most 129.) <!-- source: llmsys/serving/workload.py -->

# %% tags=["predict"]
predict("08.kept", None, "%")

# %% [markdown]
# ## What rows waste
#
# Three traces of real services have been published with the lengths of their requests: one hour of an assistant for
# programmers and one of conversations, from Azure ([the data](https://github.com/Azure/AzurePublicDataset); [Patel et
# al., 2024](https://arxiv.org/abs/2311.18677)), and conversations with long documents, from Moonshot ([the
# data](https://github.com/kvcache-ai/Mooncake); [Qin et al., 2025](https://arxiv.org/abs/2407.00079)). The library has
# their quantiles, and draws requests like theirs.

# %% tags=["claim"]
print(f"{'':24}{'prompt: half':>14} {'1 in 100':>9} {'longest':>9}{'answer: half':>16} {'longest':>9}")
for name, trace in LENGTHS.items():
    print(f"{name:24}{trace.prompt[5]:14,} {trace.prompt[9]:9,} {trace.prompt[10]:9,}", end="")
    print(f"{trace.output[5]:16,} {trace.output[10]:9,}")

# %% [markdown]
# (The programmers' assistant seems to cut its prompts: one in a hundred has 7,436 tokens, and none more than 7,437.)
#
# Half is one thing and the longest another: that is all of the trouble. A memory for keys and values can lose slots in
# four ways:
#
# - **Reserved for later**: the sequence will fill them, with the answer that is still to come.
# - **Reserved for nothing**: the sequence will end before. This is *internal* fragmentation, waste inside of what
#   somebody has.
# - **Free, in holes**: there are enough for the next sequence, but not in one piece. This is *external*
#   fragmentation, waste between what others have.
# - **Free, too few**: even in one piece they would not be enough. That is no fragmentation, just the end.
#
# And there are several ways to divide it. *Rows* are lesson 07's. Or a sequence gets a piece that is cut for it: its
# prompt, which is known, and room for an answer of 2,048 tokens, which is not. Suppose that an oracle knew the answer's
# length, too: then the piece is exact. Or blocks, of 16 tokens or of 256, one more whenever the last is full. `fill`
# plays a service under full load, step by step: whoever fits comes in, each step gives everybody a token, and who has
# its answer leaves.

# %% tags=["claim"]
slots = 65 * 8192
ways, waiting = {}, {"azure-code": 800, "azure-conversation": 1000, "mooncake-conversation": 150}
for name, count in waiting.items():
    requests = draw_lengths(name, count, seed=8)
    row = 131_072 if name.startswith("mooncake") else 16_384
    ways[name] = {
        f"rows of {row // 1024}k": fill(EqualRows(slots, row=row), requests),
        "prompt + 2,048": fill(Pieces(slots, answer=2048), requests),
        "the exact length": fill(Pieces(slots, answer=None), requests),
        "blocks of 256": fill(Blocks(slots, block_size=256), requests),
        "blocks of 16": fill(Blocks(slots, block_size=16), requests),
    }
print(f"{'':22}{'a token':>8} {'later':>7} {'nothing':>8} {'holes':>7} {'too few':>8} {'sequences':>10}")
for name, shares in ways.items():
    print(name)
    for way, s in shares.items():
        print(f"    {way:18}{s.kept:8.0%} {s.later:7.1%} {s.never:8.1%} {s.holes:7.1%} {s.too_few:8.1%}", end="")
        print(f" {s.sequences:10.0f}")

# %%
viz.paged_kv_cache.fragmentation(ways)

# %% tags=["measure"]
measured("08.kept", 100 * ways["azure-conversation"]["rows of 16k"].kept, "%")

# %% [markdown]
# Look at the conversations. Of the rows, 8% holds tokens. Nine tenths are their empty ends: each row is long enough for
# the longest conversation of the hour, and hardly any conversation is long. With a piece for each sequence, more than
# four times as many sequences are in the same memory, and now there are holes: what one of them leaves behind is too
# small for the next. The oracle shows what is lost even when nobody reserves too much: nearly a quarter of the memory,
# in holes and for answers still to come; and a third where lengths are as different as Moonshot's.
#
# Blocks have no holes, for any block is as good as another. They waste only what is left of a sequence's last block:
# that is what stands there as "later", where the sequence will come to it, and as "nothing", where it ends before. With
# blocks of $P$ tokens (in this lesson $P$ is that, and $S$ the number of sequences, while
# scores and weights have small letters), a sequence of $T$ tokens wastes
#
# $$ P \cdot \lceil T / P \rceil - T \;<\; P \quad \text{slots, about } \tfrac{P - 1}{2} \text{ on average} \tag{1} $$
#
# so with 16 it is seven or eight slots of a thousand, and 98% hold a token. That is twelve times as many sequences as
# there were rows, and lesson 07 has shown what that is worth: the weights are read once for all of them. And by (1),
# 256 is a large block for conversations of a thousand tokens. Why not blocks of a single token? Ask again when you have
# seen what a kernel does with blocks.
#
# (The system that introduced blocks compared itself with three such ways, in its own traces: rows, powers of two, and
# an oracle kept 20.4%, 26.8% and 38.2% of their memory for tokens, blocks 96.3%. [Kwon et al.,
# 2023](https://arxiv.org/abs/2309.06180), figure 2.)
#
# ## Tables
#
# A block table is a list: entry $n$ is the block that holds the sequence's tokens from $nP$ to $nP + P - 1$. So token
# $i$ lies in
#
# $$ \text{slot} = \text{table}\big[\lfloor i / P \rfloor\big] \cdot P + i \bmod P \tag{2} $$
#
# With one block for a sequence this is lesson 07's row. Nothing else of a step changes: `slot_mapping` says where the
# new tokens' keys and values are written, and beside it the step brings the tables, as rows of one tensor with $M$
# columns. A table that is shorter than $M$ ends with −1: no length reaches these entries, and nobody reads them. Not to
# be mixed up with it is block 0, which no pool hands out: a place in memory that is nobody's, for whoever must read or
# write *something* where a step is filled up with tokens that are none. (Our kernels need not: such a token's slot is
# −1, and nothing is written.)
#
# Here are two sequences that grow by turns, so that their blocks lie mixed:

# %% tags=["claim"]
pool = BlockPool(num_blocks=9, block_size=4)  # it hands out 1 to 8
one, other = pool.allocate(5), pool.allocate(3)  # room for 5 and for 3 tokens
for length in range(6, 12):
    pool.extend(one, length)
    pool.extend(other, length - 3)
print("tables:", one.blocks, "and", other.blocks)
step = batch_of(
    [
        Chunk(tokens=[7], computed=10, blocks=one.blocks),  # its token 10, the eleventh
        Chunk(tokens=[3, 1], computed=6, blocks=other.blocks),  # tokens 6 and 7
    ],
    block_size=4,
)
print("slots: ", step.slot_mapping.tolist())
print("tables of the step:", step.block_table.tolist())

# %% [markdown]
# Check one by hand: token 10 of the first is in entry 10 // 4 = 2 of its table, in place 10 % 4 = 2.
#
# ## Exercise (a): the block pool (30 minutes)
#
# The *pool* knows which block is whose. It sees no tensor: ids, lengths and nothing else. (Whoever has a table gets the
# slots by (2).)
#
# Write it so that each call costs a constant for each block that it touches, however many blocks there are: a server
# asks it for every sequence in every step. And so that a call that cannot be done changes nothing: whoever is told
# `OutOfBlocks` will free somebody and ask again.

# %% tags=["exercise"] exercise="08.block_pool"
from llmsys.cache import BlockTable, OutOfBlocks


class Pool:
    """Hands out the blocks of a cache, and takes them back.

    num_blocks   int, blocks of the memory: 0, 1, …, num_blocks − 1. Block 0 is never handed out: it is there for padding
    block_size   int, tokens in a block

    A table is a BlockTable(blocks, length): table.blocks is a list of ids, table.length says how many tokens have a
    slot, and blocks are as many as that needs. A new pool hands out 1, 2, 3, … Of the blocks that were given back, the
    last one is taken first, and all of them before blocks that nobody had yet; of one table, the tail before the head:
    what was [4, 5, 6] is handed out again as 6, 5, 4.

    Raises OutOfBlocks(message) where too few blocks are free, and ValueError(message) for a table that is not in use
    in this pool (freed already, or another pool's) or a length below that of the table. Then nothing has changed, and
    nothing is kept of it.
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
pool = mine("Pool", default=PlainPool)(num_blocks=9, block_size=16)
cache = PagedCache(pool=pool)
question = "Why is the sky blue? Answer in one sentence."
paged = generate(model, question, attention=cache, max_new_tokens=8)
contiguous = generate(model, question, max_new_tokens=8)
print("the same tokens as with a contiguous cache:", paged.tokens == contiguous.tokens)
print(f"{cache.length} tokens in {8 - pool.free_blocks} blocks of 16, {pool.free_blocks} free")
cache.end()
print("when the sequence has ended:", pool.free_blocks, "free")

# %% [markdown]
# And a small server (`serve`, in the lesson's package): six questions in a memory of nine blocks, which are 144 tokens.
# A prompt comes in as soon as there are blocks for it, and whoever is answered makes room for the next.

# %% tags=["claim"]
questions = [f"Name {n} {things}." for n in ("three", "four") for things in ("colours", "rivers", "planets")]
in_rows = generate_batch(model, questions, max_new_tokens=4)
prompts = [each.prompt_tokens for each in in_rows]
pool = mine("Pool", default=PlainPool)(num_blocks=10, block_size=16)
cache = PagedCache(num_blocks=pool.num_blocks, block_size=pool.block_size)
served = serve(model, prompts, pool, cache, new_tokens=4)
print("prompts of", [len(each) for each in prompts], "tokens, and 4 new ones each")
print(f"{served.steps} steps, at most {served.most_at_once} sequences at once, in at most {served.most_blocks} blocks")
same = [each.tokens == said for each, said in zip(in_rows, served.tokens, strict=True)]
print(f"the same tokens as in rows: {sum(same)} of {len(same)}")


# %% [markdown]
# ## What can be shared
#
# Two requests begin with the same thousand tokens of instructions. Lesson 07 has shown that a token's key and value
# depend on the tokens up to itself and on nothing else, so the two compute the same keys. A block with such keys could
# stand in both tables. There is one condition, and it is stricter than "the same tokens in the block":
#
# > Two blocks hold the same keys and values if their tokens are the same **and all tokens before them are**.
#
# So a block is found by its whole past. To compare all of that each time would be slow. A hash does it in one look-up a
# block, if each block's hash takes in that of the block before:
#
# $$ h_n = H\big(h_{n-1},\ \text{tokens of block } n\big), \qquad h_{-1} = \text{a constant} \tag{3} $$
#
# Which constant, does not matter, as nothing comes before a first block.
#
# Equal hashes may still be an accident. A server that then hands one user's keys to another answers with somebody
# else's conversation, so the tokens are compared as well.
#
# What follows from sharing:
#
# - **References.** A block is free when nobody's table names it any more, so it counts the tables that do.
# - **Copy on write.** A shared block must not be written: the other reader would see it. Only the last block of a table
#   is ever written, and it is shared when a sequence is *forked*, to answer twice, say. Whoever writes first gets a
#   copy, and leaves the original to the others.
# - **Free, but not forgotten.** When a conversation ends, its blocks are free. But its next turn begins with all of it,
#   so what they hold is kept until the block is needed: first blocks that nobody can find again are handed out, then
#   the one that has not been used for the longest time.
# - **The tail goes first.** Block 5 can only be found by way of blocks 0 to 4. Whoever evicts block 0 first keeps five
#   blocks that nobody can ever find.
# - **One token is left.** If the whole prompt is found, there is nothing to compute, and no logits say what comes next.
#   So a hit ends before the last token.
#
# ## Exercise (b): sharing prefixes (45 minutes)
#
# All of that is yours to write, in methods of a few lines. In the words of the code: a block that is full and computed is
# **registered**, it *holds* a `Prefix`, which is its own tokens and the `Prefix` before it. A free block is **cached** if
# it is registered, and otherwise **blank**. `find` looks a `Prefix` up, `match` the longest one of a text.
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
    self.check_table(table, length)     raises ValueError where the table is not in use, or longer than that
    self.free(table)            is there already: it calls your release(table.blocks)
    """

    def find(self, before, tokens):
        """The Prefix of these tokens (a tuple, a whole block) after `before` (a Prefix; None at the beginning).

        The one that is known, if there is one, else a new one: Prefix(before, tokens, hash). Changes nothing. Without a
        block before, the hash before may be any bytes: b"", say.
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

        It leaves at least one token to compute. Where several blocks hold the same, any of them does. Changes nothing.
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

        Called again and again as the sequence grows: what is registered already is not gone through again.
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
        where that, or the rest, is not to be had, ValueError for fewer tokens than it has: then nothing has changed.
        """
        self.check_table(table, length)
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
# In the real model: four questions about one text, one after the other. The text is computed once.

# %% tags=["claim"]
text = (
    "A cache is cut into blocks. A sequence has a table of its blocks, and takes another one when the last is full. "
    "Sequences that begin alike share the blocks of their beginning. When memory is short, blocks that nobody uses are "
    "evicted, the least recently used first."
)
own_pool = mine("SharingPool", default=BlockPool)
questions = ["What is cut?", "Who has a table?", "Who shares?", "What is evicted?"]
in_rows = generate_batch(model, [f"{text}\n{each}" for each in questions], max_new_tokens=3)
prompts = [each.prompt_tokens for each in in_rows]
pool = own_pool(num_blocks=40, block_size=16)
cache = PagedCache(num_blocks=pool.num_blocks, block_size=pool.block_size)
served = serve(model, prompts, pool, cache, new_tokens=3, at_most=1)
print("prompts of", [len(each) for each in prompts], "tokens, of which were found", served.hits)
print(f"{served.computed} tokens computed, without sharing {served.computed + sum(served.hits)}")
same = [each.tokens == said for each, said in zip(in_rows, served.tokens, strict=True)]
print(f"the same tokens as in rows: {sum(same)} of {len(same)}")

# %% [markdown]
# And a fork: two continuations of one prompt, whose last block is shared until one of them writes into it.

# %% tags=["claim"]
pool = own_pool(num_blocks=40, block_size=16)
first = pool.allocate(len(prompts[0]))
second = pool.fork(first)
print(f"{len(first.blocks)} blocks each, {39 - pool.free_blocks} in all")
print("the first one goes on: ", pool.extend(first, first.length + 1))
print("the second one goes on:", pool.extend(second, second.length + 1))


# %% [markdown]
# ## Watch it
#
# Your pool, and a small chat service: A and B begin with the same instructions, A shall answer twice, C goes on with A's
# conversation, D has nothing to do with any of it, and E asks B's question once more, and another one. Words stand for
# tokens. Step through it, and predict each step before you see it: which blocks does C find, when A has been forked and
# has ended? Which block does D take that was somebody's? Then choose blocks of 8 tokens: what does C find now, and why
# not all of A? And then "not shared".

# %% tags=["widget"]
viz.paged_kv_cache.stepper(own_pool)

# %% [markdown]
# <details><summary>Answer</summary>
#
# C finds the five full blocks of A: 20 of A's 20 tokens, though block 4 had been shared with A′ and was copied. Block 7
# is the copy. With blocks of 8 it finds two, 16 tokens, for A's last block was only half full. D finds nothing, takes
# all that is blank, and in its last step one block more: block 6, the end of B's answer. That is the least recently used
# *tail*: B was the first to leave, and its tail goes before its head. So E finds the beginning of B, 12 tokens, and
# not all of it.
# </details>
#
# What does sharing save here? Count it.

# %% tags=["claim"]
for size in (2, 4, 8):
    shared, alone = (play(own_pool(1 + SLOTS // size, size), sharing=sharing)[-1] for sharing in (True, False))
    saved = 1 - shared.computed / alone.computed
    print(f"blocks of {size}: {shared.computed} tokens computed in place of {alone.computed}, {saved:.0%} saved")
for sharing in (True, False):
    moments = play(own_pool(17, 4), sharing=sharing)
    most = max(moment.count("used") for moment in moments if len(moment.tables) == 3)
    print(f"while A answers twice, beside B: {most} blocks in use, {'shared' if sharing else 'not shared'}")

# %% [markdown]
# A toy, so what does it save in earnest? Moonshot's trace says of every 512 tokens of each prompt whether they have
# been seen before. With a cache that forgets nothing, 37.4% of its prompts' tokens are found, and in another of their
# traces, of agents, 65.1%. But nothing forgotten means 94 million tokens, which is 12 TB for Llama-3-8B. In the 532,480
# slots of one H100, least recently used first, 4.6% are found; in ten times as many 21.9%, and in a hundred times as
# many 37.1%. (That was counted from the published trace, once, for this page: its requests in their order, as if each
# were finished before the next.) <!-- source: counted from the hashes in FAST25-release/traces of
# github.com/kvcache-ai/Mooncake: 182,790 blocks of 512 tokens, 131,072 bytes a token --> So a service sends a
# conversation back to the machine that has its beginning, and keeps what falls out of the GPU's memory in the host's.
#
# ## Attention through a block table
#
# The pool has handed out blocks, and the tables say whose they are. Now a step comes that decodes one token of each
# sequence, and its keys lie all over the memory. The plain way is to gather them: copy a sequence's pages into a row,
# and attend as ever. But a decode step is nothing but reading K and V (lesson 01), and whoever copies first reads them,
# writes them, and reads them again: three times the traffic. A kernel can read them where they are.
#
# **What changes in lesson 04's loop?** Where a key is. There, key $j$ was at $j \cdot \text{stride}$. Here, with pages of $P$
# slots,
#
# $$ \text{page} = \text{table}\big[\lfloor j / P \rfloor\big], \qquad \text{slot} = j \bmod P, \qquad \text{address} = \text{page} \cdot \text{stride}_\text{page} + \text{slot} \cdot \text{stride}_\text{slot} + h \cdot \text{stride}_\text{head} \tag{4} $$
#
# for key head $h$: the memory of a layer is (blocks, P, Hkv, D), and a slot has all heads of its token side by side. So
# a tile of keys begins with a load of *page numbers*, one for each key, and what comes back is used as an address. Here
# is (4) in PyTorch, for a sequence of 7 tokens in pages of 4 slots:

# %% tags=["claim"]
P, Hkv, D, length = 4, 2, 8, 7
memory = torch.zeros(6, P, Hkv, D)  # (blocks, P, Hkv, D)
table = torch.tensor([5, 2, -1])  # its pages, in order; what comes behind them may be anything
keys = torch.arange(length)
page, slot = table[keys // P], keys % P
print("page", page.tolist(), "slot", slot.tolist())
print("address, for head 1:", (page * memory.stride(0) + slot * memory.stride(1) + 1 * memory.stride(2)).tolist())

# %% [markdown]
# **Which rows does a tile have?** There is one query token a sequence, so the rows of the tile are the $G$ query heads
# that share a key head, as in lesson 04: a program for each sequence and key head, and every key that it loads serves
# all $G$ of them. `tl.dot` wants 16 rows at least, so with SmolLM2's $G = 3$ most of the tile is padding. It costs
# nothing: the tensor cores would be waiting for memory anyway.
#
# **What may be read?** Only what the length reaches. Entries of the table beyond it are −1, or left from somebody else;
# slots beyond it hold what they held before. That may be NaN, and a weight of 0 does not help: $0 \cdot \text{NaN}$ is
# NaN. So three loads have a mask: of page numbers, of $k$, of $v$. And the score of a key that does not exist is
# $-\infty$, as in lesson 04's second repair. A sequence may have no key at all (a row of a step that nobody uses):
# its $o$ is 0, and its log-sum-exp $-\infty$.
#
# **How large is an address?** Numbers of 32 bits count to 2,147,483,647. A single layer of a cache is mostly smaller: the
# 532,480 slots of Llama-3-8B above, with 8 · 128 elements each, come to 545 million. But a cache may have all of its
# layers in one tensor, block by block, and hand each layer's part to the kernel with the strides of the whole: with
# Llama's 32 layers, a block of 16 tokens is 32 · 16 · 8 · 128 = 524,288 elements, and block 4,096 is beyond. There
# `page * stride` wraps around, and somebody else's memory is read, without an error. `page.to(tl.int64)`, *before* the
# product, makes it and the rest of the sum 64 bits wide. (In the interpreter, the check gives pages such numbers,
# though it has no such memory: the pointers that it hands over lie as much further down.)
#
# ## Exercise (c): the walk (45 minutes)
#
# The skeleton finds the program's rows, loads $q$ and makes the state. You write the walk over the sequence's keys, and
# the two stores. Tiles have `BLOCK_N` keys, pages `PAGE` slots, and neither need divide the other: a tile may span
# pages, and a page tiles.

# %% tags=["exercise"] exercise="08.paged_walk"
from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def paged_walk(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, table_ptr, lengths_ptr,
    k_stride_page, k_stride_slot, k_stride_head, v_stride_page, v_stride_slot, v_stride_head, table_stride, scale_log2,
    G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """o and lse of one token of a sequence, over all of its keys. A program for each sequence and key head: (S, Hkv).

    q_ptr, o_ptr          (S, Hkv · G, D), contiguous; float32 or float16. Query head h · G + g reads key head h
    lse_ptr               (S, Hkv · G) float32, contiguous: the natural logarithm of the sum of e^score
    k_ptr, v_ptr          (blocks, PAGE, Hkv, D), with the strides that follow, in elements; D elements are adjacent
    table_ptr             (S, M) int32: row s begins at s · table_stride, and has the pages of sequence s in order
    lengths_ptr           (S,) int32: the keys of each sequence; 0 gives o = 0 and lse = −∞
    scale_log2            scale · log2(e): for exponents in base two
    BLOCK_G, BLOCK_D      powers of two, not below G and D, at least 16
    BLOCK_N               keys of a tile, whatever pages they lie in

    Each key and value is loaded once. What no length reaches is not read: entries of the table may be −1 or huge, and
    slots NaN. Pages are counted in 64 bits. Both products multiply numbers of the type that v has, and float32 in full:
    input_precision="ieee". The state is kept in float32.
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    g, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    rows = (sequence * tl.num_programs(1) + head) * G + g  # (BLOCK_G,) of q, o and lse, where g < G
    inside = (g < G)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + rows[:, None] * D + d[None, :], mask=inside, other=0.0)  # (BLOCK_G, BLOCK_D)
    m = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_G,), tl.float32)
    o = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    ### BEGIN SOLUTION
    length = tl.load(lengths_ptr + sequence)
    for start in range(0, length, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        written = keys < length
        page = tl.load(table_ptr + sequence * table_stride + keys // PAGE, mask=written, other=0).to(tl.int64)
        slot = keys % PAGE
        there = written[:, None] & (d < D)[None, :]
        k_at = page * k_stride_page + slot * k_stride_slot + head * k_stride_head
        k = tl.load(k_ptr + k_at[:, None] + d[None, :], mask=there, other=0.0)  # (BLOCK_N, BLOCK_D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # (BLOCK_G, BLOCK_N)
        s = tl.where(written[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        p = tl.exp2(s - m_new[:, None])
        shrink = tl.exp2(m - m_new)
        l = l * shrink + tl.sum(p, axis=1)
        v_at = page * v_stride_page + slot * v_stride_slot + head * v_stride_head
        v = tl.load(v_ptr + v_at[:, None] + d[None, :], mask=there, other=0.0)  # (BLOCK_N, BLOCK_D)
        o = o * shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    some = tl.where(l > 0, l, 1.0)
    tl.store(o_ptr + rows[:, None] * D + d[None, :], (o / some[:, None]).to(o_ptr.dtype.element_ty), mask=inside)
    tl.store(lse_ptr + rows, (m + tl.log2(some)) * 0.6931471805599453, mask=g < G)  # ln 2
    ### END SOLUTION


# %% tags=["check"] exercise="08.paged_walk"
check("08.paged_walk", paged_walk)

# %% [markdown]
# `attend_one_token` launches it, on any tensors. Watch what it reads: a sequence of 40 tokens in pages of 16, in a
# memory of 12 pages.

# %% tags=["claim"]
from llmsys.attention.paged.one_token import attend_one_token, for_model
from llmsys.attention.paged.one_token_kernel import one_token_kernel
from llmsys.hardware import sanitizer
from llmsys.hardware.tier import tier, triton_device

walk = partial(attend_one_token, kernel=mine("paged_walk", default=one_token_kernel))
pages = [torch.randn(12, 16, 1, 64, device=triton_device()) for _ in "kv"]  # (blocks, P, Hkv, D)
one = torch.randn(1, 3, 64, device=triton_device())  # q (S, Hq, D)
lengths = torch.tensor([40], dtype=torch.int32, device=triton_device())
table = torch.tensor([[7, 2, 9, -1]], dtype=torch.int32, device=triton_device())
with sanitizer.watch(q=one, keys=pages[0], values=pages[1]) as report:
    o, lse = walk(one, *pages, lengths, table)
if sanitizer.available():
    read = report.bytes_loaded["keys"] + report.bytes_loaded["values"]
    print(f"read of K and V: {read:,} B; the sequence has {40 * 2 * 64 * 4:,} B")

# %% [markdown]
# ### In the real model
#
# `PagedCache` asks a function for its attention; `for_model` makes one of yours. The prompt goes by the form in plain
# PyTorch, as your kernel knows a single token a sequence, and every token after it by your kernel. (In the interpreter a
# token takes a second or two, so there are few.)

# %% tags=["engine", "claim"]
few = 32 if tier() == "gpu" else 2
by_walk = generate(model, question, attention=PagedCache(for_model(walk), capacity=128), max_new_tokens=few)
by_torch = generate(model, question, attention="sdpa", max_new_tokens=few)
print("your kernel chooses the same tokens as torch's fused attention:", by_walk.tokens == by_torch.tokens)


# %% [markdown]
# ## Split KV
#
# Count the programs of your kernel: one for each sequence and key head. A batch of 64 with 8 key heads has 512, and
# fills an H100's 132 SMs. A single conversation of SmolLM2 has 3. They walk over all keys, one tile after the other,
# while 129 SMs have nothing to do.
#
# There is nothing else to divide but the keys. So cut them into **pieces**, let each be attended to by programs of its
# own, and put the results together. Can they be put together? A piece's result is $(o_p, \text{lse}_p)$, its own
# softmax's output, and the logarithm of its own denominator. Then $e^{\text{lse}_p} o_p$ is the piece's numerator, and
# numerators and denominators of pieces add up. This is lesson 02's merge, over all pieces at once, with a maximum taken
# out so that nothing overflows:
#
# $$ m = \max_p \text{lse}_p, \qquad w_p = e^{\text{lse}_p - m}, \qquad o = \frac{\sum_p w_p\, o_p}{\sum_p w_p}, \qquad \text{lse} = m + \ln \sum_p w_p \tag{5} $$
#
# **No new kernel is needed.** A piece of a sequence *is* a sequence: the same query, a part of the table's row, and a
# length of its own. Hand your kernel $S \cdot \text{pieces}$ sequences instead of $S$:
#
# | | its pages | its keys |
# |---|---|---|
# | sequence of 75 keys, pages of 16 | 8, 3, 5, 1, 9 | 75 |
# | piece 0 of 2 | 8, 3, 5 | 48 |
# | piece 1 of 2 | 1, 9 | 27 |
#
# **Whose lengths?** A piece has whole pages, at most $\lceil \text{pages} / \text{pieces} \rceil$ of them, where the
# pages are those that *this sequence* uses. The table's width will not do: a table is as wide as the longest sequence
# that there may ever be, and a short one's keys would all be in the first piece. With few pages, later pieces are
# empty: length 0. Your kernel gives 0 and $-\infty$ for these, and (5) must cope with that, even where *every* piece is
# empty.
#
# **And who computes it?** The lengths are on the GPU. Ask for one on the host (`.item()`, `.tolist()`, an `if` on a
# tensor, a Python loop over lengths), and every layer of every step waits for the GPU. Worse, a **CUDA graph**, a
# recorded sequence of launches that is replayed step by step, would replay the lengths of the step in which it was
# recorded. So all of this is arithmetic on tensors, and every shape, with it the grid of the launch, follows from $S$, the
# table's columns $M$ and `pieces` alone. That is also why the pieces' tables are as wide as they could have to be: $\lceil M /
# \text{pieces} \rceil$.
#
# ## Exercise (d): split and combine (35 minutes)
#
# `attend` launches a kernel like yours, and returns $o$ in `float32`. Call it **once**. Useful: `torch.arange`,
# `x.clamp(…)`, `torch.minimum`, `q.repeat_interleave(pieces, 0)`, `x.gather(dim, index)`, `x.flatten(0, 1)` and
# `x.unflatten(0, (S, pieces))`.

# %% tags=["exercise"] exercise="08.split_kv"
import torch


def split_kv(attend, q, key_pages, value_pages, seq_lens, block_table, pieces):
    """Attention of one token of each sequence, with its keys in `pieces` pieces, which are attended to side by side.

    attend         attend(q, key_pages, value_pages, seq_lens, block_table) -> (o float32, lse float32), for any number
                   of sequences, as the kernel of (c). One without keys gets o = 0 and lse = −∞
    q              (S, Hq, D) float32 or float16
    key_pages      (blocks, P, Hkv, D), and value_pages like it. Handed on as they are: a cache is not copied
    seq_lens       (S,) int32, keys of each sequence, 0 or more
    block_table    (S, M) int32, the pages of each in order; entries that its length does not reach may be anything
    pieces         a Python number. A piece has whole pages, none more than ceil(pages of its sequence / pieces)

    Returns (o, lse): o (S, Hq, D) in q's dtype, rounded once, and lse (S, Hq) float32, as if nothing had been split.

    attend is called once, with rows of the table of at most M columns. Nothing is asked on the host: all shapes follow
    from those of the arguments.
    """
    ### BEGIN SOLUTION
    S, M, P = q.shape[0], block_table.shape[1], key_pages.shape[1]
    pages = (seq_lens + P - 1) // P  # (S,) of each sequence
    each = ((pages + pieces - 1) // pieces)[:, None]  # (S, 1) of each of its pieces
    first = torch.arange(pieces, device=q.device) * each  # (S, pieces) where in the row a piece begins
    lengths = torch.minimum((seq_lens[:, None] - first * P).clamp(min=0), each * P)
    column = first[:, :, None] + torch.arange(-(-M // pieces), device=q.device)  # (S, pieces, ceil(M / pieces))
    table = block_table.gather(1, column.flatten(1).clamp(max=M - 1)).view(column.shape)
    o, lse = attend(q.repeat_interleave(pieces, 0), key_pages, value_pages, lengths.flatten(), table.flatten(0, 1))
    o, lse = o.unflatten(0, (S, pieces)), lse.unflatten(0, (S, pieces))
    m = lse.amax(1)  # (S, Hq)
    weight = torch.exp(lse - torch.where(m == float("-inf"), 0.0, m)[:, None])  # −∞ − (−∞) would be NaN
    l = weight.sum(1)
    o = (weight[..., None] * o).sum(1) / torch.where(l > 0, l, 1.0)[..., None]
    return o.to(q.dtype), m + torch.log(l)
    ### END SOLUTION


# %% tags=["check"] exercise="08.split_kv"
check("08.split_kv", split_kv)

# %% [markdown]
# How many programs are busy now, and for how long? A program's time is the number of tiles that it walks over. One
# conversation of 100,000 keys in pages of 16, tiles of 64, with 3 key heads:

# %% tags=["claim"]
length, P, heads, tile = 100_000, 16, 3, 64
total = -(-length // P)
for pieces in (1, 8, 44, 176):
    longest = -(-total // pieces) * P
    print(f"{pieces:4} pieces: {heads * pieces:4} programs, the longest has {-(-longest // tile):6,} tiles")

# %% [markdown]
# With 44 pieces there is one program for each of the 132 SMs, and the longest walk is a forty-fourth of what it was.
# More pieces than that pay while there is room for several programs on an SM. In the end the combine, which reads a
# result of each piece, costs more than what is saved.
#
# Put together, yours attend like this. At the end of the lesson, a model does.

# %%
from llmsys.attention.paged.pieces import split_kv as library_split

in_pieces = partial(mine("split_kv", default=library_split), partial(walk, dtype=torch.float32), pieces=2)


# %% [markdown]
# ### And mixed lengths?
#
# Sequences of one step have different lengths, and with a fixed number of pieces the longest has the longest pieces.
# The library's kernel goes one step further: it puts *all tiles of all sequences* into one line, and cuts the line into
# as many equal runs as the GPU holds programs. Nobody waits for anybody, and the grid depends on no length
# (`llmsys/attention/paged/split_kernels.py`). Three ways to do the same work, on a GPU of twelve multiprocessors:

# %%
viz.paged_kv_cache.busy()

# %% [markdown]
# A program each: everybody waits for the longest sequence, and four multiprocessors have nothing to do at all. Pieces:
# three times as fast. The line: a little better still, with as many programs as there are multiprocessors, where pieces
# are 32 and their number is a guess, made before the lengths are known.
#
# ## Predict: how close to a copy?
#
# Attention of a decode step reads every key and value once, and does nearly nothing with them. The best that one could
# hope for is the speed at which the GPU copies memory. Now the keys lie in pages of 16 tokens, strewn at random over the
# memory of an H200, which is an H100 with more of it, and faster: 141 GB and 4.8 TB/s, in place of 80 GB and 3.35. Each
# page must be looked up. <!-- source: NVIDIA's data sheets of both --> Llama-3-8B's heads, 64 sequences with 8192
# tokens each: **which share of a copy's speed is reached by the fastest kernel that reads pages?**

# %% tags=["predict"]
predict("08.copy", None, "%")

# %% [markdown]
# ## Measure
#
# A record compares three things, in one process, on the same random inputs, in turn: the library's kernels over pages;
# **dense**, cuDNN's attention over a cache *without* pages, which wants sequences of equal length; and a **copy** of as
# many bytes as K and V have, half read and half written. Two kernels do the same work, the picture's line of tiles.
# `triton` is the one that you have seen: its loads are the compiler's business. `gluon` is written in lesson 06's
# language, and a warp of its own does nothing but fetch pages by TMA, tiles ahead of those that compute. Blocks are dealt
# at random, and it is one layer. "Of copy" is the share of the copy's speed, "of dense" that of cuDNN's. (The record
# says B for the number of sequences, our $S$, and L for their tokens.)

# %% tags=["claim"]
def kernels_of(record):
    """The names of those that read pages."""
    return [name for name in dict.fromkeys(row["name"] for row in record.rows) if name not in ("copy", "dense")]


records = sorted(all_recorded("paged_decode"), key=lambda record: -len(kernels_of(record)))
record, kernels = records[0], kernels_of(records[0])  # the one with most kernels
rows = {(row["shape"], row["page"], row["name"]): row for row in record.rows}
shapes = sorted({(row["bytes"], row["shape"]) for row in record.rows if row["page"] == 16})
print(f"{record.device}, pages of 16     (B sequences of L tokens, query / key heads)")
print(f"{'':40}{'MB':>6} {'copy, µs':>9}", *(f"{name + ', µs':>12} {'of copy':>8} {'of dense':>8}" for name in kernels))
for size, shape in shapes:
    print(f"{shape:40}{size / 1e6:6.0f} {rows[shape, 16, 'copy']['us']:9.0f}", end="")
    for name in kernels:
        if row := rows.get((shape, 16, name)):
            dense = f"{row['of_dense']:8.2f}" if row["of_dense"] else f"{'–':>8}"
            print(f" {row['us']:12.0f} {row['of_copy']:8.2f} {dense}", end="")
        else:
            print(f" {'–':>12} {'–':>8} {'–':>8}", end="")
    print()
asked = "B 64, 32/8 heads of 128, L 8192"
best = max((rows[asked, 16, name] for name in kernels), key=lambda row: row["of_copy"])

# %% tags=["measure"]
measured("08.copy", 100 * best["of_copy"], "%")

# %%
viz.paged_kv_cache.decode_speed(*records)

# %% [markdown]
# Read the table from the bottom, where the large caches are. With gigabytes to read, attention through a table is as
# fast as a copy, and so is cuDNN without any table. (A little faster, some of them: half of a copy's bytes are written,
# and attention writes hardly any.) That the blocks lie strewn over all of the memory costs next to nothing: what lies in
# one piece is one token's key for one head, 128 or 256 bytes, and that is what memory delivers at a time anyway. <!-- source: heads of 64 and 128 in bfloat16; an H100's cache line has 128 bytes -->
#
# With small caches a call takes longer than its bytes do. Take two calls that differ in nothing but their lengths: what
# the longer one takes more is the time of its bytes, and what is left of the shorter one, without its bytes, is what a
# call takes in any case.

# %% tags=["claim"]
for each in records:
    at = {(row["shape"], row["name"]): row for row in each.rows if row["page"] == 16}
    for batch, short, long in ((64, 1024, 8192), (16, 1024, 16_384)):
        print(f"{each.device}: {batch} sequences of {short:,} and of {long:,} tokens")
        for name in ("copy", "dense", *kernels_of(each)):
            few, many = (at[f"B {batch}, 32/8 heads of 128, L {tokens}", name] for tokens in (short, long))
            pace = (many["us"] - few["us"]) / (many["bytes"] - few["bytes"])  # µs a byte
            beside = few["us"] - few["bytes"] * pace
            print(f"    {name:8} {few['us']:6.1f} µs the short one, of which {beside:4.1f} beside its bytes;", end="")
            print(f" more bytes at {1e-3 / pace:,.0f} GB/s")

# %% [markdown]
# More bytes take the same time by each way, within a few percent: that of the memory. Nearly all of the difference is a
# constant: on the H200 two microseconds for the copy, six to nine for `gluon`, one less for cuDNN, and twice as much for
# `triton`. (It is what is left of two long times, and good to a microsecond or two: the H100's copy has less than none.)
# Beside gigabytes nobody sees it. Of the 21 µs that `gluon` takes for 67 MB it is more than a quarter, so it has 0.82 of
# the copy's speed there; which is 0.96 of what cuDNN has without a table. What is in it?
#
# - *The beginning.* A program needs its lengths, then page numbers, and with these it can ask for the first keys. By the
#   GPU's own clock, the first tile is there 2.5 to 3.5 µs after the first program has begun.
# - *The end.* Programs do not stop together, and whoever is last has the memory for itself, and cannot fill it. What was
#   loaded last is still to be computed then. The same kernel, made to load its tiles and to compute nothing, takes
#   66.9 µs for 268 MB; the copy takes 64.4, and the whole kernel 69.9.
# - *Merging.* Where a sequence was cut, its parts must be put together. Where all lengths are equal there is nothing to
#   even out, and `gluon` does not cut: that alone made 21.4 µs of 25.3 for the 67 MB. <!-- source: probes of the
#   kernel on an H200, on the day of the record: B 16 and B 64, 32/8 heads of 128, L 1024, pages of 16 -->
#
# Two things are harder than equal lengths and large heads. *Mixed lengths*: a program's run has more sequences in it,
# shorter ones, and the walk starts anew with each. `triton` falls to 0.87 of the copy there. For the warp that does
# nothing but fetch, the border of two sequences is none: it has the next one's tiles on the way while the last one's are
# computed, and `gluon` keeps 0.98. *Small heads*, SmolLM2's of 64: a key has half the bytes, and as many scores, maxima
# and exponentials. That one does not hide: with mixed lengths, loads alone run as fast as the copy, 101.7 µs and 101.9,
# and computing makes 113.8 of them. Hence 0.88, and 0.74 for `triton`. <!-- source: the same probes, B 256, 9/3 heads
# of 64, L 64–4096 -->
#
# The H100's record is an older one, of `triton` alone, with other tiles. It says the same: a constant, which is nearly
# all of the trouble of short calls, and more trouble with small heads.
#
# ### What small pages cost
#
# A table of pages of 16 is 16 times as long as one of pages of 256. Does that matter?

# %% tags=["claim"]
pages = (16, 32, 64, 128, 256)
for _, shape in shapes:
    lines = {name: [rows.get((shape, page, name)) for page in pages] for name in kernels}
    lines = {name: line for name, line in lines.items() if all(line)}
    if not lines:
        continue
    print(f"{shape}: GB/s with pages of")
    print(f"    {'':8}", *(f"{page:7}" for page in pages), "    16 against 256")
    for name, line in lines.items():
        speeds = [row["gbps"] for row in line]
        print(f"    {name:8}", *(f"{speed:7,.0f}" for speed in speeds), f"{speeds[0] / speeds[-1] - 1:+15.1%}")
    row = next(iter(lines.values()))[0]
    ids = 4 * row["B"] * -(-row["longest"] // 16)
    print(f"    its table with pages of 16: {ids:,} bytes; K and V: {row['bytes']:,}")

# %% [markdown]
# It costs little, as the last column says, and why it does can be counted. A table is thousands of times smaller than
# what it points to, and only the first key head of a sequence reads it from memory: after that it is in the L2 cache.
# Nor do pages change what memory is asked for, because a key of one head is a piece of its own however long the page
# is. What a small page does cost is *requests*: a tile of 64 keys lies in four pages of 16, and so four numbers must be
# there before all of its keys can be asked for, and a copy engine (lesson 06's TMA) that fetches a page at a time is
# started four times. That is time in which the memory may have nothing to do, unless the kernel has further tiles on
# the way.
#
# Against that stands (1): the waste grows with the page, and so does what is computed again after a hit. So 16 is a
# common choice. And why not a single token? Such a page wastes nothing, and shares prefixes to the token. But the tile of
# 64 keys then has 64 numbers and 64 requests in place of four, and the table is 16 times as long again. Some systems do
# take it; see below.
#
# ### Here
#
# On this machine: gather 4,096 tokens' keys and values of SmolLM2's heads through a table, with pages of different
# sizes, and compare with a copy of the same bytes. It should be one copy or two, and more on a machine that is busy. But
# believe no order among the five sizes: in three runs of ours, 256, 1 and 16 came out as the slowest. To tell them apart
# takes many runs, in turn, on a machine with nothing else to do, which is how the records were made. (On a machine with
# a GPU, the benchmark itself runs as well.)

# %% tags=["measure"]
def best_of(run, times=15):
    """Seconds of the fastest of some calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


tokens, heads, size = 4096, 3, 64
whole = [torch.randn(tokens, heads, size) for _ in "kv"]
copying = best_of(lambda: [x.clone() for x in whole])
for page in (1, 4, 16, 64, 256):
    table = torch.randperm(tokens // page)
    pages = [x.view(tokens // page, page, heads, size) for x in whole]
    gathering = best_of(lambda table=table, pages=pages: [gather_pages(x, table, tokens) for x in pages])
    print(f"pages of {page:3}: {gathering * 1e6:6.0f} µs, {gathering / copying:.2f} × a copy")

# %% tags=["measure"]
if torch.cuda.is_available():
    display(viz.paged_kv_cache.decode_speed(measure(quick=True)))

# %% [markdown]
# ## Your pool and your kernels in a real model
#
# Now everything at once. Your pool deals out the blocks, `PagedCache` holds the keys and values, and your kernels
# attend. `serve_step` is one step for any sequences: make room, copy what the pool says must be copied, compute what is
# not computed, let the pool know what can be found from now on.
#
# The story: a question, and its answer, which are given, and computed in one step. (That step chooses a token, too.
# Nobody wants it: a fork takes what has been computed, and goes on with tokens of its own.) Then the conversation
# **forks** into two, which go on with different questions, in the same steps. Both tables name the blocks of the
# beginning, and the half-full last block is copied for the one that writes first. In the interpreter each has room for
# two tokens, the beginning of an answer; what counts is that they are the right ones.

# %% tags=["engine"]
@dataclass
class Sequence:
    text: list[int]
    table: object  # the pool's
    computed: int


def arrive(pool, text):
    """A new sequence, with what the pool finds of it."""
    hit = pool.match(text)
    return Sequence(text, pool.allocate(len(text), hit), hit.tokens)


def fork(pool, sequence, text):
    """The same conversation up to here, going on with other tokens."""
    return Sequence(sequence.text[: sequence.computed] + text, pool.fork(sequence.table), sequence.computed)


@torch.inference_mode()
def serve_step(pool, cache, sequences):
    """Compute what is not computed yet of each, and give each a token. Returns the number of tokens of the step."""
    copies = [copy for each in sequences for copy in pool.extend(each.table, len(each.text))]
    cache.copy_blocks(copies)
    chunks = [Chunk(each.text[each.computed :], each.computed, each.table.blocks) for each in sequences]
    step = batch_of(chunks, block_size=cache.block_size, device=model.device)
    best = model(step.tokens, cache, step)[0].argmax(dim=-1).tolist()  # (sequences,)
    for each, token in zip(sequences, best, strict=True):
        each.computed = len(each.text)
        pool.register(each.table, each.text, each.computed)
        each.text.append(token)
    return step.tokens.shape[1]


# %% tags=["engine"]
so_far = [
    {"role": "user", "content": "Why is the sky blue? Answer in one sentence."},
    {"role": "assistant", "content": "Because air scatters blue light more than red light."},
]
texts = [
    model.tokenizer.chat([*so_far, {"role": "user", "content": each}])
    for each in ("And at dusk?", "Now in three words, please.")
]
common = next(n for n, tokens in enumerate(zip(*texts, strict=False)) if len(set(tokens)) > 1)
new = 16 if tier() == "gpu" else 2  # in the interpreter, a step of a kernel takes a second or two
pool = own_pool(num_blocks=33, block_size=16)
cache = PagedCache(for_model(in_pieces), num_blocks=pool.num_blocks, block_size=pool.block_size)

first = arrive(pool, texts[0][:common])
sizes = [serve_step(pool, cache, [first])]
branches = [fork(pool, first, text[common:]) for text in texts]
pool.free(first.table)
before = branches[0].table.blocks[-1]
sizes += [serve_step(pool, cache, branches) for _ in range(new)]
for each, text in zip(branches, texts, strict=True):
    print("·", repr(model.tokenizer.decode(each.text[len(text) :])))

# %% tags=["engine", "claim"]
print(f"the beginning has {common} tokens, the two branches {len(texts[0])} and {len(texts[1])}")
print(f"tokens of each step: {sizes[:3]} …")
print("tables:", [each.table.blocks for each in branches])
print(f"block {before} was shared, and has been copied for one of them")
alone = [generate(model, text, max_new_tokens=new) for text in texts]
said = [each.text[len(text) :][: len(one.tokens)] for each, text, one in zip(branches, texts, alone, strict=True)]
same = [one.tokens == tokens for one, tokens in zip(alone, said, strict=True)]
print("each as if it were alone, without a pool or pages:", same)
for each in branches:
    pool.free(each.table)
print("when both have ended, all blocks are free again:", pool.free_blocks == pool.num_blocks - 1)

# %% [markdown]
# Blocks that you dealt out, found, shared, copied and gave back, read by kernels of yours; and the tokens are those of a
# model that knows nothing of it. `generate(model, …, attention="paged")` does the same with the library's, and lesson
# 09 puts a scheduler on top.
#
# ## What production does differently
#
# - **vLLM** began with this paper: [PagedAttention](https://arxiv.org/abs/2309.06180), whose sections 4.2 to 4.4 are
#   exercises (a) and (b). In its present engine they are `BlockPool` (`get_new_blocks`, `touch`, `free_blocks`,
#   `cache_full_blocks`) and `KVCacheManager` (`get_computed_blocks`, `allocate_slots`), with blocks of 16 tokens. It
#   compares no tokens: its chained hash is SHA-256, and takes in the adapter, the images and a *salt*, so that one
#   tenant cannot find out by the time to the first token what another has asked
#   ([its documentation](https://docs.vllm.ai/en/latest/design/prefix_caching/)). There, tables only grow: a block
#   that was filled twice is kept twice.
# - **SGLang** keeps prefixes in a *radix tree* in place of hashes, with pages of a single token, so a hit is as long
#   as it can be ([Zheng et al., 2023](https://arxiv.org/abs/2312.07104)). Leaves are evicted first, the least
#   recently used of them: the tail before the head, for the same reason as here.
# - **FlashInfer** takes tables as one list of ids with the beginnings of its rows (`kv_indptr`, `kv_indices`,
#   `kv_last_page_len`), with no padding, and *plans* the pieces of split KV on the host, once for all layers of a step
#   ([Ye et al., 2025](https://arxiv.org/abs/2501.01005)). Its `merge_state` is exercise (d)'s combine.
# - **FlashAttention** has `flash_attn_with_kvcache(…, block_table=…, num_splits=…)`. Splitting keys for decoding is
#   [Flash-Decoding](https://pytorch.org/blog/flash-decoding/).
# - **No tables at all** is possible, too: vAttention lets the GPU's own virtual memory do it, so that a sequence's keys
#   lie in one piece of addresses, and any kernel will do ([Prabhu et al., 2024](https://arxiv.org/abs/2405.04437)). Its
#   pages are those of the hardware, of 64 kB and more.
# - **Known faults**, so that you know where to look: a request that shares blocks with another one, whose blocks are
#   freed twice; a request that was preempted, and hits its own blocks; a prompt that is found entirely, after which
#   there is nothing to compute. All of them have happened, in more than one engine. <!-- source: mini-sglang#142,
#   nano-vllm#144, #211 and #233, vLLM #30320 and #53706 -->
#
# ## Do you have it?
#
# <details><summary><b>1.</b> A colleague hashes each block by its own tokens only: "the tokens decide what is in it". Two users paste the same
# page of a manual, one after a short question, one after a long one, and both at the beginning of a block. What happens?</summary>
#
# The second one is handed the first one's blocks. Their keys were computed for a text in which another question came
# before, and at other positions: from the second layer on they are keys of another context, and the rotation is off
# everywhere. No error, no NaN, a plausible answer to something else. A block is what its tokens are *and* all before.
# </details>
#
# <details><summary><b>2.</b> One conversation of 100,000 tokens is decoded on an H100, with 8 key heads. Nobody else is there. Your kernel of (c)
# has 8 programs. Why does a batch of 64 not help this user, and what does?</summary>
#
# A batch gives other users' tokens; this conversation's keys are still walked over by 8 programs, one tile after the
# other, on 8 of 132 SMs. Only dividing its keys helps, as in (d): with 16 pieces, 128 programs read at the same time,
# each a sixteenth, and the combine adds up 16 results a head. It is exact, for the merge of lesson 02 is. <!-- source:
# an H100 SXM has 132 SMs, NVIDIA's data sheet -->
# </details>
#
# <details><summary><b>3.</b> Two sequences fork with a half-full last block, and both get a token in the same step. How many blocks are copied? And
# if both had ended exactly at a block's end?</summary>
#
# One. The first to write finds two references, takes a copy, and leaves one reference; the second finds that it is
# alone by now, and writes in place. At a block's end none: the next token goes into a new block anyway, and full
# blocks are never written again.
# </details>
#
# **Next:** lesson 09, a scheduler that keeps the batch full.
