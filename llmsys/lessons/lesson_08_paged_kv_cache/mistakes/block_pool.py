"""Wrong answers to 08.block_pool: a right pool with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_08_paged_kv_cache.plain_pool import PlainPool

wrong_pool = Mistakes("08.block_pool", PlainPool)

FRESH = "list(range(num_blocks - 1, 0, -1))"
NEEDED = "-(-length // self.block_size) - len(table.blocks)"
NO_ROOM = (
    "        if needed > self.free_blocks:\n"
    '            raise OutOfBlocks(f"{needed} blocks are needed, and {self.free_blocks} are free", needed, '
    "self.free_blocks)\n"
)
TAKE = "table.blocks += [self.stack.pop() for _ in range(needed)]"
GIVE_BACK = "self.stack += table.blocks"
EMPTY = "        table.blocks, table.length = [], 0\n"
NOT_IN_USE = (
    "        if table not in self.tables:\n"
    '            raise ValueError("table is not in use in this pool: it was freed already, or another pool made it")\n'
)
SHORTER = (
    "        if length < table.length:\n"
    '            raise ValueError(f"length must be at least the table\'s {table.length}, got {length}")\n'
)

wrong_pool(
    "block_0",
    "You hand out block 0.",
    (FRESH, "list(range(num_blocks - 1, -1, -1))"),
    why="It is nobody's: padding may be written to it, and whoever had it would find that among its keys. The pool has "
    "num_blocks − 1 blocks to give.",
)
wrong_pool(
    "block_0_last",
    "You hand out block 0, as the last one.",
    (FRESH, "[0, *range(num_blocks - 1, 0, -1)]"),
    why="It is nobody's: padding may be written to it. A pool hides it until it is full.",
)
wrong_pool(
    "one_short",
    "You leave out the last block.",
    (FRESH, "list(range(num_blocks - 2, 0, -1))"),
    why="Of num_blocks, block 0 alone is nobody's: 1 … num_blocks − 1 can be handed out.",
)
wrong_pool(
    "high_ids_first",
    "Your new pool hands out its blocks from the last one down.",
    (FRESH, "list(range(1, num_blocks))"),
    why="A new pool hands out 1, 2, 3, …: what is popped from the end of a list must stand there in reverse.",
)
wrong_pool(
    "rounded_down",
    "You round down: the last block, which is not full, is missing.",
    (NEEDED, "length // self.block_size - len(table.blocks)"),
    why="Seventeen tokens do not fit into one block of sixteen.",
)
wrong_pool(
    "one_more",
    "You take a block too many where the last one is exactly full.",
    (NEEDED, "length // self.block_size + 1 - len(table.blocks)"),
    why="n // block_size + 1 is right for all n but the multiples of block_size. ⌈n / block_size⌉ is right for all.",
)
wrong_pool(
    "counts_what_is_added",
    "You count blocks for the tokens that are added, and not for the whole table.",
    (NEEDED, "-(-(length - table.length) // self.block_size)"),
    why="The last block may have room for them. A table that grows by one token at a time would take a block for each.",
)
wrong_pool(
    "always_one_more",
    "Your table takes a block each time that it grows.",
    (NEEDED, "-(-length // self.block_size) - len(table.blocks) if not table.blocks else int(length > table.length)"),
    why="It takes one when the last is full, and as many as are missing.",
)
wrong_pool(
    "length_forgotten",
    "You do not note the table's new length.",
    ("        table.length = length\n", "        table.length = table.length or length\n"),
    why="table.length says how many tokens have a slot: the next call goes by it, and so does whoever writes them.",
)
wrong_pool(
    "never_given_back",
    "What is freed never comes back.",
    (f"        {GIVE_BACK}\n", ""),
    why="After a while, no block is left, and no sequence is there.",
)
wrong_pool(
    "a_queue",
    "You reuse the first freed first: a queue.",
    (FRESH, "list(range(1, num_blocks))"),
    ("self.stack.pop()", "self.stack.pop(0)"),
    why="The last freed comes first: a stack.",
)
wrong_pool(
    "head_first",
    "You reuse the head of a freed table before its tail.",
    (GIVE_BACK, "self.stack += reversed(table.blocks)"),
    why="What is popped first was added last: the table's blocks must arrive in their own order, the tail on top.",
)
wrong_pool(
    "lowest_first",
    "You take the free block with the lowest id.",
    ("self.stack.pop()", "self.stack.pop(self.stack.index(min(self.stack)))"),
    why="The last freed comes first. And to find the lowest one, all of them are looked at.",
)
wrong_pool(
    "one_stays_free",
    "You refuse the last free block.",
    ("needed > self.free_blocks", "needed >= self.free_blocks"),
    why="As many blocks as are free can be had.",
)
wrong_pool(
    "no_room_unnoticed",
    "You do not ask whether there is room.",
    (NO_ROOM, ""),
    why="An empty list says IndexError, after it has given away all that was in it. The pool says OutOfBlocks, and "
    "before it has given away any.",
)
wrong_pool(
    "takes_before_it_asks",
    "You take blocks until there are none, and then say that there are none.",
    (NO_ROOM, ""),
    (
        TAKE,
        "for _ in range(needed):\n"
        "            if not self.stack:\n"
        '                raise OutOfBlocks("no block is left")\n'
        "            table.blocks.append(self.stack.pop())",
    ),
    why="Those that were taken are lost, or stand in a table whose length does not know of them. Look first.",
)
wrong_pool(
    "puts_back_in_another_order",
    "You take blocks until there are none, and put them back in another order.",
    (NO_ROOM, ""),
    (
        TAKE,
        "taken = []\n"
        "        for _ in range(needed):\n"
        "            if not self.stack:\n"
        "                self.stack += taken\n"
        '                raise OutOfBlocks("no block is left")\n'
        "            taken.append(self.stack.pop())\n"
        "        table.blocks += taken",
    ),
    why="The one that was taken first is at the bottom then. Look whether there are enough, and there is nothing to "
    "undo.",
)
wrong_pool(
    "length_before_room",
    "You note the new length before you know that there is room.",
    (NO_ROOM, "        before, table.length = table.length, length\n" + NO_ROOM),
    ("        table.length = length\n", ""),
    why="A call that fails changes nothing: the table would have tokens without a slot.",
)
wrong_pool(
    "freed_twice_unnoticed",
    "A table that was freed is freed again, and nobody is told.",
    (NOT_IN_USE + "        self.tables.remove(table)\n", "        self.tables.discard(table)\n"),
    why="It does no harm here, since the table is empty by then. But whoever frees a table twice has lost track of it, "
    "and does harm elsewhere.",
)
wrong_pool(
    "keeps_its_blocks",
    "You leave the freed table its blocks.",
    (EMPTY, ""),
    why="They may be somebody else's in the next call. Freed once more, they would be handed out twice.",
)
wrong_pool(
    "freed_table_grows",
    "A table that was freed can still grow.",
    (NOT_IN_USE + "        if length", "        if length"),
    why="Its blocks are in no table that is in use: who would give them back?",
)
wrong_pool(
    "known_by_its_blocks",
    "You take a table without blocks for one that was freed.",
    (
        NOT_IN_USE + "        self.tables.remove(table)",
        '        if not table.blocks:\n            raise ValueError("freed")\n        self.tables.discard(table)',
    ),
    why="A table of 0 tokens has none, and is in use: a request that has been taken on, and not begun.",
)
wrong_pool(
    "gets_shorter",
    "You let a table get shorter, and keep its blocks.",
    (SHORTER, ""),
    why="A length below the table's is a mistake of the caller's: say so.",
)
wrong_pool(
    "another_pools_table",
    "You take back the blocks of another pool's table.",
    ("class another_pools_table:\n", "class another_pools_table:\n    tables = set()\n\n"),
    ("        self.tables = set()  # that are in use\n", ""),
    why="The ids mean other memory there. A pool knows its own tables.",
)
wrong_pool(
    "noted_before_room",
    "You note a table as in use before you know that there is room for it.",
    (
        "        try:\n            self.extend(table, length)\n        except (OutOfBlocks, ValueError):\n"
        "            self.tables.remove(table)\n            raise\n",
        "        self.extend(table, length)\n",
    ),
    why="Nobody has that table when the call fails, and nobody will free it: one more is kept for each OutOfBlocks.",
)
wrong_pool(
    "known_by_id",
    "You keep the ids of the tables, and not the tables.",
    ("self.tables.add(table)", "self.tables.add(id(table))"),
    ("if table not in self.tables", "if id(table) not in self.tables", 2),
    ("self.tables.remove(table)", "self.tables.remove(id(table))", 2),
    why="An id is where an object lies. When it is gone, the next one may lie there, and be taken for it.",
)
wrong_pool(
    "top_at_the_front",
    "You give and take at the front of a list: each time, all others move.",
    (FRESH, "list(range(1, num_blocks))"),
    ("self.stack.pop()", "self.stack.pop(0)"),
    (GIVE_BACK, "self.stack[:0] = reversed(table.blocks)"),
    why="The end of a list is its cheap end, and so are both of a collections.deque.",
)
wrong_pool(
    "tables_in_a_list",
    "You look through all tables for one of them.",
    ("self.tables = set()", "self.tables = []"),
    ("self.tables.add(table)", "self.tables.append(table)"),
    why="`in` and `remove` of a list compare with one after the other. A set finds it at once.",
)
wrong_pool(
    "counts_the_free_ones",
    "You count the free blocks each time that you are asked.",
    ("return len(self.stack)", "return sum(1 for _ in self.stack)"),
    why="len knows it.",
)
