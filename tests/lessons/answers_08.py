"""Answers to exercises (a) and (b) of lesson 08 that have no name among its mistakes: right pools by other ways
(`RIGHT_POOLS`, `RIGHT_SHARING`), and wrong ones (`WRONG_POOLS`, `WRONG_SHARING`).
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from llmsys.cache import BlockPool, BlockTable, Copy, OutOfBlocks, PrefixHit
from llmsys.course.checking.mistakes import edited
from llmsys.lessons.lesson_08_paged_kv_cache.plain_pool import PlainPool
from llmsys.lessons.lesson_08_paged_kv_cache.sharing_parts import SharingParts
from llmsys.lessons.lesson_08_paged_kv_cache.sharing_pool import SharingPool
from tests.support.verdicts import fresh

# Right answers to (a), by other ways


class InADeque:
    """The newest at the left end; tables know whose they are."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.ids = deque(range(1, num_blocks))

    free_blocks = property(lambda self: len(self.ids))

    def allocate(self, length):
        if -(-length // self.block_size) > len(self.ids):
            raise OutOfBlocks("full")
        table = BlockTable([], 0)
        table.pool = self
        self.extend(table, length)
        return table

    def extend(self, table, length):
        if getattr(table, "pool", None) is not self or length < table.length:
            raise ValueError("not in use, or shorter")
        short = (length + self.block_size - 1) // self.block_size - len(table.blocks)
        if short > len(self.ids):
            raise OutOfBlocks("full")
        table.blocks = table.blocks + [self.ids.popleft() for _ in range(short)]
        table.length = length

    def free(self, table):
        if getattr(table, "pool", None) is not self:
            raise ValueError("not in use")
        self.ids.extendleft(table.blocks)
        table.pool, table.blocks, table.length = None, [], 0


class ByANumberAndAStack(InADeque):
    """Blocks that nobody had yet are a number; those that were given back are a list."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.next, self.back = 1, []

    free_blocks = property(lambda self: len(self.back) + self.num_blocks - self.next)

    def allocate(self, length):
        table = BlockTable([], 0)
        table.pool = self
        self.extend(table, length)
        return table

    def extend(self, table, length):
        if getattr(table, "pool", None) is not self or length < table.length:
            raise ValueError("not in use, or shorter")
        if -(-length // self.block_size) - len(table.blocks) > self.free_blocks:
            raise OutOfBlocks("full")
        while len(table.blocks) * self.block_size < length:
            if self.back:
                table.blocks.append(self.back.pop())
            else:
                table.blocks.append(self.next)
                self.next += 1
        table.length = length

    def free(self, table):
        if getattr(table, "pool", None) is not self:
            raise ValueError("not in use")
        self.back.extend(table.blocks)
        table.pool, table.length = None, 0
        table.blocks.clear()


@dataclass
class Chained:
    """Each free block names the next one, in one list; the tables in use are a dict."""

    num_blocks: int
    block_size: int
    after: list = field(init=False)
    top: int = 1
    tables: dict = field(default_factory=dict)

    def __post_init__(self):
        self.after = [n + 1 for n in range(self.num_blocks)]
        self.left = self.num_blocks - 1

    @property
    def free_blocks(self):
        return self.left

    def allocate(self, length):
        self._room(length, 0)
        table = BlockTable([], 0)
        self.tables[id(table)] = table
        self.extend(table, length)
        return table

    def _room(self, length, there):
        if -(-length // self.block_size) - there > self.left:
            raise OutOfBlocks("full")

    def extend(self, table, length):
        if self.tables.get(id(table)) is not table:
            raise ValueError("unknown")
        if length < table.length:
            raise ValueError("shorter")
        self._room(length, len(table.blocks))
        while len(table.blocks) * self.block_size < length:
            table.blocks.append(self.top)
            self.top, self.left = self.after[self.top], self.left - 1
        table.length = length

    def free(self, table):
        if self.tables.pop(id(table), None) is None:
            raise ValueError("unknown")
        for block in table.blocks:
            self.after[block], self.top, self.left = self.top, block, self.left + 1
        table.blocks, table.length = [], 0


class InAnArray(InADeque):
    """A stack in an array of NumPy's, and how many it holds."""

    def __init__(self, num_blocks, block_size):
        self.num_blocks, self.block_size = num_blocks, block_size
        self.stack, self.count = np.arange(num_blocks - 1, 0, -1), num_blocks - 1

    free_blocks = property(lambda self: self.count)

    def allocate(self, length):
        if -(-length // self.block_size) > self.count:
            raise OutOfBlocks("full")
        table = BlockTable([], 0)
        table.pool = self
        self.extend(table, length)
        return table

    def extend(self, table, length):
        if getattr(table, "pool", None) is not self or length < table.length:
            raise ValueError("not in use, or shorter")
        short = -(-length // self.block_size) - len(table.blocks)
        if short > self.count:
            raise OutOfBlocks("full")
        for _ in range(short):
            self.count -= 1
            table.blocks.append(int(self.stack[self.count]))
        table.length = length

    def free(self, table):
        if getattr(table, "pool", None) is not self:
            raise ValueError("not in use")
        for block in table.blocks:
            self.stack[self.count] = block
            self.count += 1
        table.pool, table.blocks, table.length = None, [], 0


def pool_but(name, *changes, of=PlainPool):
    return edited(of, name, *changes)


STACK = "list(range(num_blocks - 1, 0, -1))"


RIGHT_POOLS = [
    InADeque, ByANumberAndAStack, Chained, InAnArray,
    pool_but("in_a_dict", (STACK, "dict.fromkeys(range(num_blocks - 1, 0, -1))"),
             ("self.stack.pop()", "self.stack.popitem()[0]"),
             ("self.stack += table.blocks", "self.stack.update(dict.fromkeys(table.blocks))")),
    pool_but("asks_whether_it_is_empty", ("        table.blocks +=",
             "        if self.stack == []:\n            table.length = length\n            return\n"
             "        table.blocks +=")),
    pool_but("with_sets_beside", ("self.tables = set()", "self.tables, self.used = set(), set()"),
             ("        table.length = length", "        self.used |= set(table.blocks)\n        table.length = length"),
             ("        self.stack +=", "        if not set(table.blocks) <= self.used:\n"
              "            raise ValueError('whose?')\n        self.used -= set(table.blocks)\n        self.stack +=")),
]  # fmt: skip

# Wrong ones to (a)


class Newest(InADeque):
    """The right order, found by a look at when each block was freed."""

    def __init__(self, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.freed, self.now = {block: -block for block in range(1, num_blocks)}, 0

    free_blocks = property(lambda self: len(self.freed))

    def allocate(self, length):
        if -(-length // self.block_size) > self.free_blocks:
            raise OutOfBlocks("full")
        table = BlockTable([], 0)
        table.pool = self
        self.extend(table, length)
        return table

    def extend(self, table, length):
        if getattr(table, "pool", None) is not self or length < table.length:
            raise ValueError("not in use, or shorter")
        if -(-length // self.block_size) - len(table.blocks) > self.free_blocks:
            raise OutOfBlocks("full")
        while len(table.blocks) * self.block_size < length:
            table.blocks.append(self.take())
        table.length = length

    def take(self):
        newest = max(self.freed, key=self.freed.get)
        del self.freed[newest]
        return newest

    def free(self, table):
        if getattr(table, "pool", None) is not self:
            raise ValueError("not in use")
        for block in table.blocks:
            self.now += 1
            self.freed[block] = self.now
        table.pool, table.blocks, table.length = None, [], 0


class NewestInAnArray(Newest):
    """The same in an array of NumPy's, which goes through all of it in one call."""

    def __init__(self, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.when, self.left = np.array([-(2**40), *range(-1, -num_blocks, -1)]), num_blocks - 1

    free_blocks = property(lambda self: self.left)

    def take(self):
        newest = int(np.argmax(self.when))
        self.when[newest], self.left = -(2**40), self.left - 1
        return newest

    def free(self, table):
        blocks = list(table.blocks)
        super().free(table)
        for block in blocks:
            self.when[block], self.left = self.freed[block], self.left + 1


@fresh
def one_stack_for_all():
    """What stands in the class body belongs to all pools."""

    class Shared(InADeque):
        ids = deque()

        def __init__(self, num_blocks, block_size):
            self.num_blocks, self.block_size = num_blocks, block_size
            if not self.ids:
                self.ids.extend(range(1, num_blocks))

    return Shared


class OfTheLibrary(BlockPool):
    pass


class OfTheLesson(PlainPool):
    pass


class ByTheirIds(InADeque):
    """Which tables are in use is known by where they lie."""

    def __init__(self, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.mine = set()

    def allocate(self, length):
        table = super().allocate(length)
        self.mine.add(id(table))
        table.pool = None
        return table

    def extend(self, table, length):
        table.pool = self if id(table) in self.mine or getattr(table, "pool", None) is self else None
        super().extend(table, length)

    def free(self, table):
        table.pool = self if id(table) in self.mine else None
        super().free(table)
        self.mine.discard(id(table))


WRONG_POOLS = [
    Newest, NewestInAnArray, one_stack_for_all, OfTheLibrary, OfTheLesson,
    pool_but("always_16", ("self.num_blocks, self.block_size = num_blocks, block_size",
             "self.num_blocks, self.block_size = num_blocks, 16")),
    pool_but("sorted", ("self.stack += table.blocks", "self.stack = sorted([*self.stack, *table.blocks])[::-1]")),
    pool_but("loses_one_when_full", (STACK, "__import__('collections').deque(range(num_blocks - 1, 0, -1), "
             "max(num_blocks - 2, 1))")),
    pool_but("forgets_to_forget", ("        self.tables.remove(table)\n        self.stack", "        self.stack")),
    pool_but("frees_what_has_no_room", ("            raise OutOfBlocks(", "            self.free(table)\n"
             "            raise OutOfBlocks(")),
    pool_but("no_room_is_a_value_error", ("raise OutOfBlocks(", "raise ValueError("),
             (", needed, self.free_blocks)", ")")),
    pool_but("everything_is_no_room", ("raise ValueError(", "raise OutOfBlocks(", 3)),
    pool_but("backwards_in_one_call", ("[self.stack.pop() for _ in range(needed)]",
             "[self.stack.pop() for _ in range(needed)][::-1]")),
    pool_but("remembers_who_had_no_room", ("            raise OutOfBlocks(",
             "            self.__dict__.setdefault('waiting', []).append(length)\n"
             "            raise OutOfBlocks(")),
    ByTheirIds,
    pool_but("a_tuple_for_a_table", ("        return table\n", "        return table.blocks\n")),
    pool_but("copies_before_it_tries", ("        table.blocks +=", "        before = list(self.stack)\n"
             "        table.blocks +=")),
    pool_but("adds_in_front", ("self.stack += table.blocks", "self.stack = self.stack + table.blocks")),
    pool_but("counts_the_tables_blocks", ("return len(self.stack)",
             "return self.num_blocks - 1 - sum(len(table.blocks) for table in self.tables)")),
    pool_but("sees_whether_it_is_free", ("        self.stack += table.blocks", "        if any(block in self.stack "
             "for block in table.blocks):\n            raise ValueError('free')\n        self.stack += table.blocks")),
    pool_but("another_pools_table_by_its_blocks", ("self.tables = set()", "self.tables = set(range(1000))"),
             ("if table not in self.tables:", "if table.blocks == [] and table.length or table.length == 0 and "
              "not hasattr(table, 'new'):", 2), ("table = BlockTable([], 0)",
              "table = BlockTable([], 0)\n        table.new = True"),
             ("        self.tables.remove(table)\n        self.stack", "        del table.new\n        self.stack")),
    pool_but("a_table_that_grows_moves", ("        table.blocks += [self.stack.pop() for _ in range(needed)]",
             "        if needed and len(self.stack) > len(table.blocks) + needed:\n"
             "            self.stack += table.blocks\n"
             "            table.blocks = [self.stack.pop() for _ in range(needed + len(table.blocks))]\n"
             "        else:\n            table.blocks += [self.stack.pop() for _ in range(needed)]")),
    pool_but("waits_for_a_second_free", ("        self.stack += table.blocks\n",
             "        self.stack += self.__dict__.get('before', [])\n        self.before = table.blocks\n")),
    pool_but("a_zero_table_takes_one", ("        table.blocks +=", "        needed += length == 0 and not "
             "table.blocks\n        table.blocks +=")),
    pool_but("shorter_by_a_few_is_fine", ("if length < table.length:",
             "if -(-length // self.block_size) < len(table.blocks):")),
    pool_but("never_extends_what_is_full", ("        table.blocks +=", "        if table.length and table.length % "
             "self.block_size == 0 and needed > 1:\n            needed -= 1\n        table.blocks +=")),
    pool_but("the_first_free_is_for_ever", ("        self.stack += table.blocks\n",
             "        self.stack += table.blocks\n        self.done = True\n"),
             ("        needed =", "        if 'done' in vars(self) and len(table.blocks) > 5:\n"
              "            raise OutOfBlocks('enough')\n        needed =")),
]  # fmt: skip

# Right answers to (b)


class InOneDict(SharingParts):
    """No hash of its own: a dict whose keys are (number of the prefix before, tokens), which compares them. A block
    whose content is known already is not registered."""

    def __init__(self, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.numbers, self.block_of, self.number_of = {}, {}, {}

    def match(self, tokens):
        blocks, before = [], 0
        for n in range((len(tokens) - 1) // self.block_size):
            before = self.numbers.get((before, self.tokens_of(tokens, n)))
            if before is None or before not in self.block_of:
                break
            blocks.append(self.block_of[before])
        return PrefixHit(tuple(blocks), len(blocks) * self.block_size)

    def register(self, table, tokens, computed):
        self.check_table(table)
        first, before = getattr(table, "known", (0, 0))
        for n in range(first, computed // self.block_size):
            key = before, self.tokens_of(tokens, n)
            before = self.numbers.setdefault(key, len(self.numbers) + 1)
            if before not in self.block_of and table.blocks[n] not in self.number_of:
                self.block_of[before], self.number_of[table.blocks[n]] = table.blocks[n], before
            table.known = n + 1, before

    def allocate(self, length, hit=None):
        shared = hit.blocks if hit else ()
        new = -(-length // self.block_size) - len(shared)
        if new + sum(block in self.cached for block in shared) > self.free_blocks:
            raise OutOfBlocks("full")
        for block in shared:
            self.cached.pop(block, None)
            self.references[block] += 1
        return self.new_table([*shared, *map(self.one, range(new))], length)

    def one(self, _):
        block = self.blank.pop() if self.blank else self.cached.popitem(last=False)[0]
        self.block_of.pop(self.number_of.pop(block, None), None)
        self.references[block] += 1
        return block

    def release(self, blocks):
        cached = []
        for block in blocks:
            self.references[block] -= 1
            if not self.references[block]:
                (cached if block in self.number_of else self.blank).append(block)
        self.cached.update(dict.fromkeys(cached[::-1]))

    def fork(self, table):
        self.check_table(table)
        return self.allocate(table.length, PrefixHit(tuple(table.blocks)))

    def extend(self, table, length):
        self.check_table(table, length)
        last = table.blocks[-1] if length > table.length and table.length % self.block_size else 0
        copied = bool(last) and self.references[last] != 1
        self.check_room(self.blocks_for(length) - len(table.blocks) + copied)
        copies = []
        if copied:
            table.blocks[-1] = self.one(0)
            self.references[last] -= 1
            copies = [Copy(last, table.blocks[-1])]
        while len(table.blocks) < self.blocks_for(length):
            table.blocks.append(self.one(0))
        table.length = length
        return copies


def sharing_but(name, *changes):
    return edited(SharingPool, name, *changes)


FIND = "for prefix in self.by_hash.get(hashed, []):"
SAME = "prefix.before is before and prefix.tokens == tokens"
REPLACE = "self.references[table.blocks[-1]] > 1"
CACHED = "self.cached[block] = None"
OLDEST = "block, _ = self.cached.popitem(last=False)"


RIGHT_SHARING = [
    InOneDict,
    sharing_but("what_is_registered_is_copied_too", (REPLACE, f"({REPLACE} or table.blocks[-1] in self.held)")),
    sharing_but("any_block_of_a_prefix", ("next(iter(prefix.blocks))", "next(reversed(prefix.blocks))")),
    sharing_but("the_oldest_by_hand", (OLDEST, "block = next(iter(self.cached))\n            del self.cached[block]")),
    sharing_but("a_table_forgets_its_hit", ("length, hit.prefixes)", "length)"),
                ("table.length, table.prefixes)", "table.length)")),
]  # fmt: skip

# Wrong ones to (b)


class BelievesPythonsHash(InOneDict):
    """Keys are hashes of Python's own, and the tokens are not looked at."""

    def match(self, tokens):
        blocks, before = [], 0
        for n in range((len(tokens) - 1) // self.block_size):
            before = self.numbers.get(hash((before, self.tokens_of(tokens, n))))
            if before is None or before not in self.block_of:
                break
            blocks.append(self.block_of[before])
        return PrefixHit(tuple(blocks), len(blocks) * self.block_size)

    def register(self, table, tokens, computed):
        self.check_table(table)
        before = 0
        for n in range(computed // self.block_size):
            key = hash((before, self.tokens_of(tokens, n)))
            before = self.numbers.setdefault(key, len(self.numbers) + 1)
            if before not in self.block_of and table.blocks[n] not in self.number_of:
                self.block_of[before], self.number_of[table.blocks[n]] = table.blocks[n], before


class ByTheBlockBefore(InOneDict):
    """Keys are (block before, tokens). A block that is reused is another one, and its number is the same."""

    def match(self, tokens):
        blocks = []
        for n in range((len(tokens) - 1) // self.block_size):
            block = self.numbers.get((blocks[-1] if blocks else 0, self.tokens_of(tokens, n)))
            if block is None:
                break
            blocks.append(block)
        return PrefixHit(tuple(blocks), len(blocks) * self.block_size)

    def register(self, table, tokens, computed):
        self.check_table(table)
        for n in range(computed // self.block_size):
            key = table.blocks[n - 1] if n else 0, self.tokens_of(tokens, n)
            self.numbers.setdefault(key, table.blocks[n])
            self.number_of[table.blocks[n]] = key


class OfTheLibrarysIndex(SharingPool):
    def __init__(self, num_blocks, block_size):
        from llmsys.cache.block_hashes import PrefixIndex

        super().__init__(num_blocks, block_size)
        self.index = PrefixIndex()


class CachedInAList(SharingPool):
    """The right order, in a list: a hit in the middle looks for its block, and all after it move."""

    def __init__(self, num_blocks, block_size):
        super().__init__(num_blocks, block_size)
        self.cached = []

    def take(self):
        if self.blank:
            block = self.blank.pop()
        else:
            block = self.cached.pop(0)
            self.forget(block)
        self.references[block] = 1
        return block

    def share(self, blocks):
        for block in blocks:
            if self.references[block] == 0:
                self.cached.remove(block)
            self.references[block] += 1

    def release(self, blocks):
        for block in blocks:
            self.references[block] -= 1
        unused = [block for block in blocks if self.references[block] == 0]
        self.blank += [block for block in unused if block not in self.held]
        self.cached += [block for block in reversed(unused) if block in self.held]


# A hit that was found once is found for ever.
remembers_hits = edited(
    SharingPool, "remembers_hits",
    ("        prefixes, before = [], None\n        for n in range((len(tokens)",
     "        known = self.__dict__.setdefault('known', {})\n        if tuple(tokens) in known:\n"
     "            return known[tuple(tokens)]\n        prefixes, before = [], None\n"
     "        for n in range((len(tokens)"),
    ("        return PrefixHit(", "        known[tuple(tokens)] = PrefixHit("),
    ("prefixes=tuple(prefixes))\n", "prefixes=tuple(prefixes))\n        return known[tuple(tokens)]\n"),
)  # fmt: skip


WRONG_SHARING = [
    BelievesPythonsHash, ByTheBlockBefore, OfTheLibrary, OfTheLibrarysIndex, CachedInAList, remembers_hits,
    sharing_but("all_are_compared", (FIND, "for prefix in self.held.values():")),
    sharing_but("tokens_by_their_sum", ("prefix.tokens == tokens", "sum(prefix.tokens) == sum(tokens)")),
    sharing_but("by_the_hash_before", (SAME, "prefix.tokens == tokens and (prefix.before is None) == (before is None) "
                "and (before is None or prefix.before.hash == before.hash)")),
    sharing_but("freed_for_all", ("for block in blocks if self.references[block] == 0]", "for block in blocks]")),
    sharing_but("a_block_less_than_there_is", ("range((len(tokens) - 1) // self.block_size)",
                "range(len(tokens) // self.block_size - 1)")),
    sharing_but("only_what_is_in_use", ("if not before.blocks:",
                "if not any(self.references[block] for block in before.blocks):")),
    sharing_but("only_what_is_cached", ("if not before.blocks:",
                "if any(self.references[block] for block in before.blocks):")),
    sharing_but("skips_what_is_missing", ("                break\n", "                continue\n"),
                (SAME, "prefix.tokens == tokens")),
    sharing_but("oldest_registered_first", (OLDEST, "block = min(self.cached, key=list(self.held).index)\n"
                "            del self.cached[block]")),
    sharing_but("a_hit_is_not_a_use", (CACHED, "self.cached[block] = None\n                seen = "
                "self.__dict__.setdefault('seen', set())\n                if block in seen:\n"
                "                    self.cached.move_to_end(block, last=False)\n                seen.add(block)")),
    sharing_but("evicts_all_that_follows", ("            self.forget(block)\n", "            gone = self.held[block]\n"
                "            self.forget(block)\n            for other in [b for b in self.cached if "
                "self.held[b].before is gone]:\n                del self.cached[other]\n"
                "                self.forget(other)\n                self.blank.append(other)\n")),
    sharing_but("copies_every_shared_block", ("            copies.append(Copy(table.blocks[-1], self.take()))",
                "            for n, block in enumerate(table.blocks[:-1]):\n"
                "                if self.references[block] > 1 and self.free_blocks > new + 1:\n"
                "                    other = self.take()\n"
                "                    copies.insert(0, Copy(block, other))\n                    self.release([block])\n"
                "                    table.blocks[n] = other\n"
                "            copies.insert(0, Copy(table.blocks[-1], self.take()))")),
    sharing_but("copies_after_the_rest", ("        if replace:", "        if replace and new == 0:")),
    sharing_but("fork_of_full_blocks", ("list(table.blocks), table.length, table.prefixes)",
                "list(table.blocks), table.length // self.block_size * self.block_size, table.prefixes)")),
    sharing_but("fork_copies_at_once", ("        self.share(table.blocks)\n        return",
                "        self.share(table.blocks[:-1])\n        return"), ("list(table.blocks), table.length",
                "[*table.blocks[:-1], *([self.take()] if table.blocks else [])], table.length")),
    sharing_but("registers_the_newest_only", ("range(len(table.prefixes), computed // self.block_size)",
                "range(max(len(table.prefixes), computed // self.block_size - 1), computed // self.block_size)")),
    sharing_but("registers_with_the_next_token", ("computed // self.block_size)",
                "(computed - 1) // self.block_size)")),
    sharing_but("evicts_while_blank_ones_are_few", ("if self.blank:", "if len(self.blank) > 1 or not self.cached:")),
    sharing_but("shared_prefixes_list", ("length, hit.prefixes)", "length, hit.prefixes[:1])"),
                ("range(len(table.prefixes), computed", "range(min(len(table.prefixes), 1), computed")),
    sharing_but("a_known_prefix_moves", ("            self.hold(table.blocks[n], prefix)",
                "            for other in list(prefix.blocks):\n                self.forget(other)\n"
                "                if self.references[other] == 0:\n                    self.blank.append(other)\n"
                "            self.hold(table.blocks[n], prefix)")),
    sharing_but("room_for_everything_twice", ("self.check_room(new + sum(", "self.check_room(new + len(hit.blocks) + "
                "0 * sum(")),
    sharing_but("no_room_is_no_error", ("        self.check_room(new + replace)\n",
                "        if new + replace > self.free_blocks:\n            return []\n")),
    sharing_but("uses_up_the_reference", ("            self.release([table.blocks[-1]])\n",
                "            self.references[table.blocks[-1]] -= 1\n            self.references[table.blocks[-1]] -= "
                "self.references[table.blocks[-1]] > 1\n")),
    sharing_but("remembers_what_was_asked", ("        prefixes, before = [], None\n",
                "        prefixes, before = [], None\n"
                "        self.__dict__.setdefault('asked', set()).add(tuple(tokens))\n")),
    sharing_but("looks_at_each_block_again", ("range(len(table.prefixes), computed // self.block_size):\n",
                "range(computed // self.block_size):\n            if n < len(table.prefixes):\n"
                "                continue\n")),
    sharing_but("hands_back_an_iterator", ("        return copies\n", "        return iter(copies)\n")),
    sharing_but("hits_are_lists_of_all", ("len(blocks) * self.block_size, prefixes", "len(tokens), prefixes")),
]  # fmt: skip
