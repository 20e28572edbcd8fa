"""08.block_pool: blocks handed out and taken back, in an order, at a constant cost, all or nothing."""

from llmsys.cache import BlockPool
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_08_paged_kv_cache.checks.scripts_agree import agreeing, constant
from llmsys.lessons.lesson_08_paged_kv_cache.scripts import played


@exercise_check(
    "08.block_pool",
    reference=BlockPool,
    forbids=("llmsys.cache.block_pool:*", "llmsys.lessons.lesson_08_paged_kv_cache.plain_pool:*"),
    adapt=played,
    hints=(
        "What must the pool remember? Which blocks are free, and in which order they are taken; and which tables are "
        "in use. Which of Python's containers gives and takes at one end in constant time, and which says at once "
        "whether something is in it?",
        "The free blocks are a stack, with block 1 on top at first: what was given back last is taken first, and "
        "nothing else is ever looked at. A table of n tokens has ⌈n / block_size⌉ blocks, before and after each call. "
        "Look whether there are enough free ones before you take the first.",
        "free ids = [num_blocks − 1, …, 2, 1];  tables in use = set()\n"
        "extend(table, length):\n"
        "    refuse a table that is not in use, a length below the table's\n"
        "    needed = ⌈length / block_size⌉ − len(table.blocks);  OutOfBlocks if needed > how many are free\n"
        "    pop `needed` ids from the end, and add them to table.blocks;  set table.length\n"
        "free(table):\n"
        "    refuse a table that is not in use;  it is no more\n"
        "    add its blocks to the end of the free ids, in their order;  empty the table",
    ),
)
def block_pool(answer: Answer) -> None:
    agrees = agreeing(answer)

    with answer.property("a table says for how many tokens it has slots", why="Whoever writes them goes by it."):
        agrees(9, 4, ["allocate", "a", 3], ["allocate", "b", 0], ["allocate", "c", 4], told="tokens")

    with answer.property(
        "a new pool has all its blocks but block 0, and hands out 1, 2, 3, …",
        why="Block 0 is there for padding, which may be written to it and read from it. It is nobody's.",
    ):
        agrees(2, 4, ["allocate", "a", 1])
        agrees(6, 4, ["allocate", "a", 4], ["allocate", "b", 4], ["allocate", "c", 4], ["free_blocks"])

    with answer.property(
        "a table has as many blocks as its tokens need",
        why="n tokens fill ⌈n / block_size⌉ blocks: 16 tokens one block of 16, and 17 two.",
        hint="How many blocks do 15, 16 and 17 tokens need, with 16 in a block?",
    ):
        for size in (4, 1, 16, 7):
            lengths = (1, size - 1, size, size + 1, 3 * size, 3 * size + 1)
            agrees(30, size, *(["allocate", f"s{n}", n] for n in dict.fromkeys(lengths) if n))
        agrees(5, 4, ["allocate", "a", 0], ["allocate", "b", 3])

    with answer.property(
        "a table that grows takes a block when its last one is full, and not before",
        why="A decode step adds one token, and block_size − 1 of block_size times there is room for it.",
        hint="How many blocks does the table have, and how many does it need with `length` tokens? Count in the whole "
        "table's tokens, not in those that are added.",
    ):
        agrees(20, 4, ["allocate", "a", 5], ["extend", "a", 23], ["extend", "a", 23], ["allocate", "b", 0],
               ["extend", "b", 4], ["extend", "a", 25], ["extend", "b", 5])  # fmt: skip
        agrees(8, 3, ["allocate", "a", 2], *(["extend", "a", n] for n in range(3, 11)))

    with answer.property(
        "what is freed can be handed out again", why="A pool that loses a block a request has none left after a while."
    ):
        agrees(4, 2, ["allocate", "a", 5], ["free", "a"], ["allocate", "b", 1], told="lengths")
        calls = []
        for n in range(12):
            calls += [["allocate", f"s{n}", 3], ["extend", f"s{n}", 7], ["free", f"s{n}"]]
        agrees(6, 2, *calls, told="lengths")

    with answer.property(
        "the last freed is the first reused, and of one table the tail goes before the head",
        why="One end of a list is all that it takes. And where prefixes are shared, a tail is of use to the fewest.",
        hint="Which end of the free blocks do you take from, and at which one do you add? In which order do the blocks "
        "of one table arrive there?",
    ):
        agrees(9, 4, ["allocate", "a", 4], ["allocate", "b", 4], ["free", "a"], ["free", "b"], ["allocate", "c", 12])
        agrees(9, 4, ["allocate", "a", 12], ["free", "a"], ["allocate", "b", 20])
        agrees(9, 4, ["allocate", "a", 8], ["allocate", "b", 12], ["extend", "a", 9], ["free", "b"], ["free", "a"],
               ["allocate", "c", 32])  # fmt: skip

    with answer.property(
        "exactly as many blocks as are free can be had, and one more cannot: OutOfBlocks",
        why="Whoever runs the pool answers it by freeing somebody, and must be able to tell it from a mistake.",
        hint="Is it asked before the first block is taken? With < or with <=?",
    ):
        agrees(4, 4, ["allocate", "a", 12], ["free", "a"], ["allocate", "b", 13])
        agrees(4, 4, ["allocate", "a", 5], ["extend", "a", 12], ["allocate", "b", 0], ["extend", "a", 13],
               ["allocate", "c", 1])  # fmt: skip

    with answer.property(
        "a call that fails changes nothing",
        why="It is asked again when somebody was freed. Half a table that nobody knows of is lost for good.",
        hint="What has been changed by the time that you find out? Order your lines: look, refuse, and only then take.",
    ):
        agrees(5, 4, ["allocate", "a", 6], ["allocate", "b", 12], ["allocate", "c", 8], ["extend", "a", 25],
               ["extend", "a", 16], ["extend", "c", 9], ["extend", "a", 17], ["free", "a"],
               ["extend", "c", 16])  # fmt: skip
        agrees(4, 2, ["allocate", "a", 2], ["extend", "a", 9], ["extend", "a", 3], ["extend", "a", 4], ["free", "a"],
               ["allocate", "b", 7], ["allocate", "b", 6])  # fmt: skip

    with answer.property(
        "a call that fails leaves nothing behind",
        why="Where memory is short, a server is told OutOfBlocks all day. What is noted for each time is never let go.",
        hint="When do you note that a table is in use: before or after you know that there is room for it?",
    ):
        agrees(4, 2, ["allocate", "a", 3], ["often", "allocate", 9], ["free", "a"], told="lengths")

    with answer.property(
        "a table that was freed is refused: ValueError",
        why="Freed twice, a block would be handed out twice: two sequences would write over each other.",
        hint="How do you know that a table is in use? Its blocks do not say: they may be somebody else's by now.",
    ):
        agrees(6, 4, ["allocate", "a", 7], ["free", "a"], ["free", "a"], ["allocate", "b", 20])
        agrees(6, 4, ["allocate", "a", 7], ["free", "a"], ["allocate", "b", 7], ["free", "a"], ["extend", "a", 9],
               ["extend", "b", 20])  # fmt: skip
        agrees(6, 4, ["allocate", "a", 0], ["free", "a"], ["free", "a"], ["extend", "a", 0])

    with answer.property(
        "tables do not get shorter, and none is of another pool",
        why="A length below the table's is a mistake of the caller's. Whoever is told can find it.",
        hint="What do you do with a length below that of the table? And what if a second pool is asked to free a table "
        "of the first?",
    ):
        agrees(6, 4, ["allocate", "a", 7], ["extend", "a", 6], ["extend", "a", 3], ["extend", "a", 8])
        agrees(6, 4, ["allocate", "a", 7], ["free-in-another", "a"], ["free", "a"])

    with answer.property(
        "a table is known by itself, and not by where it lies",
        why="Python gives the id of an object that is gone to the next one.",
        hint="What do you keep of a table that is in use: the table, or its id?",
    ):
        agrees(6, 4, ["free-a-stranger"], told="lengths")

    with answer.property(
        "a long life: many sequences that come, grow and go",
        why="Each block is in one table, or free, at any time, whatever happens.",
        hint="Follow the blocks by hand up to the call that is shown: which are free, and in which order?",
    ):
        for num_blocks, block_size in ((9, 4), (30, 1), (17, 16), (40, 3)):
            agrees(num_blocks, block_size, *_long_life(answer, num_blocks, block_size))

    with answer.property(
        "a block costs the same in a pool of any size",
        why="A server has a hundred thousand blocks, and asks in every step of a few milliseconds for every sequence. "
        "What goes through all that are free, or all tables, grows with the memory.",
        hint="Which of your lines looks through the free blocks, or moves them all, or looks through the tables? x in "
        "a list does, and so do remove, insert, pop(0), min, and a + b of two lists.",
    ):
        constant(answer, "plain", [60, 2000])


def _long_life(answer: Answer, num_blocks: int, block_size: int, calls: int = 60) -> list[list]:
    """Calls as a server makes them, some of which have no room, and a few that are wrong."""
    script, lengths, made = [], {}, 0
    for _ in range(calls):
        kind, pick = int(answer.randint(0, 10)), int(answer.randint(0, max(len(lengths), 1)))
        name = list(lengths)[pick] if lengths else ""
        if kind < 3 or not name:
            made += 1
            lengths[f"s{made}"] = int(answer.randint(0, 4 * block_size))
            script.append(["allocate", f"s{made}", lengths[f"s{made}"]])
        elif kind < 8:
            lengths[name] += int(answer.randint(1, 2 * block_size + 1))
            script.append(["extend", name, lengths[name]])
        else:
            script.append(["free", name])
            if kind == 8:
                del lengths[name]
    return script
