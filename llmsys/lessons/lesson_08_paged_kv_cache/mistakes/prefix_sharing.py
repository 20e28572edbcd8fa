"""Wrong answers to 08.prefix_sharing: a right pool with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_08_paged_kv_cache.sharing_pool import SharingPool

wrong_sharing = Mistakes("08.prefix_sharing", SharingPool)

SAME = "prefix.before is before and prefix.tokens == tokens"
WHOLE = "range((len(tokens) - 1) // self.block_size)"
FOUND = "return PrefixHit(blocks, len(blocks) * self.block_size, prefixes=tuple(prefixes))"
FULL = "range(len(table.prefixes), computed // self.block_size)"
TAKE = """        if self.blank:
            block = self.blank.pop()
        else:
            block, _ = self.cached.popitem(last=False)
            self.forget(block)
"""
UNUSED = "[block for block in blocks if self.references[block] == 0]"
NO_LONGER_CACHED = "            if self.references[block] == 0:\n                del self.cached[block]\n"
CACHED = """        for block in reversed(unused):
            if block in self.held:
                self.cached[block] = None
"""
ROOM = "self.check_room(new + sum(self.references[block] == 0 for block in hit.blocks))"
SHARED_FIRST = """        self.share(hit.blocks)
        return self.new_table([*hit.blocks, *(self.take() for _ in range(new))], length, hit.prefixes)
"""
INTO_LAST = "into_last = length > table.length and table.length % self.block_size > 0"
REPLACE = "replace = into_last and self.references[table.blocks[-1]] > 1"

# find and match

wrong_sharing(
    "hash_believed",
    "You take equal hashes for equal contents.",
    (SAME, "True"),
    why="Two contents may have one hash, by chance or by somebody's intent. Then one sequence would read another's "
    "keys. Compare the tokens, and what came before.",
)
wrong_sharing(
    "own_tokens_alone",
    "You compare a block's own tokens, and not what came before them.",
    (SAME, "prefix.tokens == tokens"),
    why="Two chains A X and B X end in the same block, and their hashes may be equal as well. The Prefix before must "
    "be the same object.",
)
wrong_sharing(
    "not_chained",
    "You find a block by its own tokens, whatever came before them.",
    ('before.hash if before else b""', 'b""'),
    (SAME, "prefix.tokens == tokens"),
    why="Its keys and values depend on all tokens before it. The hash is chained, and the Prefix before is compared.",
)
wrong_sharing(
    "hash_not_chained",
    "You leave what came before out of the hash.",
    ('before.hash if before else b""', 'b""'),
    why="The tokens are compared, so nothing wrong is hit. But all blocks with these tokens have one hash then, "
    "whatever came before them, and are gone through one by one.",
)
wrong_sharing(
    "never_found",
    "Your find makes a new Prefix each time: nothing that is known is found.",
    (SAME, "prefix is before"),
    why="It is known if its tokens are equal, and the Prefix before it is the same object.",
)
wrong_sharing(
    "unheld_is_noted",
    "Your find notes each new Prefix in by_hash, though no block holds it.",
    ("        return Prefix(before, tokens, hashed)", "        prefix = Prefix(before, tokens, hashed)\n"
     "        self.by_hash.setdefault(hashed, []).append(prefix)\n        return prefix"),
    why="A look-up that finds nothing leaves something behind each time. What a block holds, hold notes.",
)  # fmt: skip
wrong_sharing(
    "full_hit",
    "You hit a whole prompt, to its last token.",
    (WHOLE, "range(len(tokens) // self.block_size)"),
    why="Then there is nothing to compute, and no logits: the model must run for at least one token.",
)
wrong_sharing(
    "match_takes",
    "Your match takes the blocks that it finds.",
    (FOUND, f"self.share(blocks)\n        {FOUND}"),
    why="It only looks: whether there is room for the sequence, allocate decides.",
)
wrong_sharing(
    "match_reorders",
    "A look at cached blocks makes them the most recently used.",
    (
        FOUND,
        "for block in blocks:\n            if block in self.cached:\n                self.cached.move_to_end(block)\n"
        f"        {FOUND}",
    ),
    why="match changes nothing. Whoever asks, and finds no room, has used nothing.",
)

# register

wrong_sharing(
    "unfinished_registered",
    "You register the last block, which is not full.",
    (FULL, "range(len(table.prefixes), -(-computed // self.block_size))"),
    why="More tokens will come into it, and then it holds something else.",
)
wrong_sharing(
    "uncomputed_registered",
    "You register all blocks of the tokens, whether they are computed or not.",
    (FULL, "range(len(table.prefixes), len(tokens) // self.block_size)"),
    why="Whoever hits them reads what is not there yet.",
)
wrong_sharing(
    "registered_again",
    "You register a table's blocks from the first one on each time, behind those that it has.",
    (FULL, "range(computed // self.block_size)"),
    why="table.prefixes goes on growing, and what comes before a block is another Prefix each time. Begin where it "
    "ends.",
)
wrong_sharing(
    "registered_from_the_start",
    "You register a table from its first block on each time.",
    (FULL, "range(computed // self.block_size)"),
    ("self.find(table.prefixes[-1] if table.prefixes else None,", "self.find(table.prefixes[n - 1] if n else None,"),
    ("table.prefixes.append(prefix)", "table.prefixes[n:] = [prefix, *table.prefixes[n + 1 :]]"),
    why="Nothing becomes wrong by it, but each step costs as much as the sequence is long. Begin where prefixes ends.",
)
wrong_sharing(
    "prefixes_not_noted",
    "You do not note in table.prefixes what you have registered.",
    ("            table.prefixes.append(prefix)\n", ""),
    why="The next block's Prefix begins with the last one's. Without it, every block is a first one.",
)

# take, share and release

wrong_sharing(
    "cached_first",
    "You evict cached blocks while there are blank ones.",
    (
        TAKE,
        "        if self.cached:\n            block, _ = self.cached.popitem(last=False)\n"
        "            self.forget(block)\n        else:\n            block = self.blank.pop()\n",
    ),
    why="A blank block is of no use to anybody. A cached one may be hit in the next second.",
)
wrong_sharing(
    "newest_evicted",
    "You evict the most recently used block.",
    ("popitem(last=False)", "popitem()"),
    why="popitem takes the last one, unless it is told otherwise. The least recently used stands first.",
)
wrong_sharing(
    "not_forgotten",
    "A block that was evicted can still be hit.",
    ("            self.forget(block)\n", ""),
    why="It will be overwritten. Whoever hits it reads another sequence's keys.",
)
wrong_sharing(
    "blank_queue",
    "You take the blank block that was freed first.",
    ("self.blank.pop()", "self.blank.pop(0)"),
    why="A stack: the last freed first.",
)
wrong_sharing(
    "taken_without_reference",
    "You do not count the table that takes a block.",
    ("        self.references[block] = 1\n", ""),
    why="A block has as many references as tables that it stands in. Without it, release never comes to 0.",
)
wrong_sharing(
    "shared_without_reference",
    "You free a block with the first table that is freed, though another one has it.",
    ("            self.references[block] += 1\n", "            self.references[block] = 1\n"),
    why="One reference for each table: share adds one, release takes one away, and a block is free when it has none.",
)
wrong_sharing(
    "hit_and_cached",
    "A cached block that is hit is still among the cached ones.",
    (NO_LONGER_CACHED, ""),
    why="It counts as free, and will be evicted while a sequence reads it.",
)
wrong_sharing(
    "freed_is_forgotten",
    "You forget what a block holds as soon as nobody uses it.",
    (
        CACHED,
        "        for block in [block for block in unused if block in self.held]:\n"
        "            self.forget(block)\n            self.blank.append(block)\n",
    ),
    why="The next question of the same conversation comes a minute later, and the keys would still be there.",
)
wrong_sharing(
    "head_evicted_first",
    "You evict the head of a freed table before its tail.",
    ("reversed(unused)", "unused"),
    why="Without its head, the rest cannot be hit: it stays in memory, and is of no use.",
)
wrong_sharing(
    "blank_head_first",
    "You reuse the head of a table's blank blocks before their tail.",
    ("in unused if block not in self.held", "in reversed(unused) if block not in self.held"),
    why="What is popped first was added last.",
)

# allocate

wrong_sharing(
    "hit_takes_no_room",
    "You do not count the blocks of the hit that nobody uses: they are free, and will not be.",
    (ROOM, "self.check_room(new)"),
    why="free_blocks has them in it. When they are shared, there are as many fewer for the rest.",
)
wrong_sharing(
    "own_hit_evicted",
    "You take the new blocks before those of the hit are shared: one of them may be evicted for the rest.",
    (
        SHARED_FIRST,
        "        new_blocks = [self.take() for _ in range(new)]\n        self.share(hit.blocks)\n"
        "        return self.new_table([*hit.blocks, *new_blocks], length, hit.prefixes)\n",
    ),
    why="Hardly anything else is free when a sequence that was stopped comes back. Share first.",
)
wrong_sharing(
    "shares_before_room",
    "You share the blocks of the hit before you know that there is room for the rest.",
    (ROOM, "self.share(hit.blocks)\n        self.check_room(new)"),
    ("        self.share(hit.blocks)\n        return", "        return"),
    why="Where there is none, they stay shared with a table that does not exist, and are never free again.",
)
wrong_sharing(
    "hit_beside_new",
    "You take new blocks for all tokens, beside those of the hit.",
    ("new = self.blocks_for(length) - len(hit.blocks)", "new = self.blocks_for(length)"),
    why="The hit's blocks are the first ones of the table.",
)

# fork and extend

wrong_sharing(
    "one_list_for_both",
    "Both tables of a fork have one list of blocks.",
    ("list(table.blocks), table.length", "table.blocks, table.length"),
    why="When one of them grows, the other one grows with it. Each needs a list of its own.",
)
wrong_sharing(
    "fork_not_counted",
    "A fork does not count as another table.",
    ("        self.share(table.blocks)\n", ""),
    why="The first of the two that is freed takes the blocks away from the other.",
)
wrong_sharing(
    "no_copy",
    "You write into a block that others use.",
    (REPLACE, "replace = False"),
    why="The next token of one sequence stands where the other one's should be: copy on write.",
)
wrong_sharing(
    "always_copied",
    "You copy the last block though nobody else uses it.",
    (REPLACE, "replace = into_last"),
    why="The last owner writes in place: a copy would be made for each token.",
)
wrong_sharing(
    "full_block_copied",
    "You copy a shared block that is full.",
    (INTO_LAST, "into_last = length > table.length > 0"),
    why="The next token goes into a new block, and the full one stays shared.",
)
wrong_sharing(
    "copied_for_nothing",
    "You copy a shared block though no token is added.",
    (INTO_LAST, "into_last = table.length % self.block_size > 0"),
    why="Nothing is written into it.",
)
wrong_sharing(
    "copy_needs_no_room",
    "You do not count the block that a copy needs.",
    ("self.check_room(new + replace)", "self.check_room(new)"),
    why="Where it is missing, take finds nothing, or the rest of the tokens has no room.",
)
wrong_sharing(
    "copied_block_kept",
    "The block that was copied keeps this table's reference.",
    ("            self.release([table.blocks[-1]])\n", ""),
    why="The table has another one in its place. The old one is never free again, and its last owner copies it, too.",
)
wrong_sharing(
    "none_for_no_copies",
    "Your extend returns None where nothing is to be copied.",
    ("        return copies\n", "        return copies or None\n"),
    why="A list, and an empty one is a list: whoever makes the copies goes through it.",
)
wrong_sharing(
    "gets_shorter",
    "You let a table get shorter.",
    ("self.check_table(table, length)", "self.check_table(table)"),
    why="A length below the table's is a mistake of the caller's: check_table says so, if it is told the length.",
)
wrong_sharing(
    "copied_backwards",
    "You copy from the new block to the old one.",
    ("Copy(table.blocks[-1], self.take())", "Copy(self.take(), table.blocks[-1])"),
    ("copies[0].target", "copies[0].source"),
    why="Copy(source, target): the new block gets what the shared one holds.",
)

# What it costs

wrong_sharing(
    "looks_at_all_cached",
    "You look at all cached blocks to find the least recently used one.",
    (
        "block, _ = self.cached.popitem(last=False)",
        "block = list(self.cached)[0]\n            del self.cached[block]",
    ),
    why="The first of an OrderedDict is found at once: popitem(last=False).",
)
