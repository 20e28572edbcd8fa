"""08.prefix_sharing: what is a hit, who shares a block, when it is copied, and who is evicted first."""

from llmsys.cache import BlockPool
from llmsys.cache.block_hashes import PrefixIndex
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_08_paged_kv_cache.checks.scripts_agree import agreeing, constant
from llmsys.lessons.lesson_08_paged_kv_cache.scripts import played


@exercise_check(
    "08.prefix_sharing",
    reference=BlockPool,
    forbids=(
        "llmsys.cache.block_pool:*", PrefixIndex, "llmsys.lessons.lesson_08_paged_kv_cache.sharing_pool:*",
    ),
    adapt=played,
    hints=(
        "Take it in the order of a sequence's life: find and match say what is there, allocate shares that and takes "
        "the rest, register makes it known, release lets go. Which of them may change references, and which may not?",
        "At any time, a block's references are the tables that it stands in, and a block without one is either blank "
        "or cached: blank where it is not in held. A hit that nobody uses leaves the cached ones before anything is "
        "taken. A Prefix is the same only if the one before it is the same object, and the tokens are equal.",
        "match:     for each whole block short of the last token: find it after the one before, stop at the first that "
        "no block holds\n"
        "allocate:  new = blocks_for(length) − those of the hit;  room for new + those of the hit that nobody uses;\n"
        "           share the hit's blocks, then take the new ones\n"
        "take:      from blank's end, else cached.popitem(last=False) and forget it;  one reference\n"
        "release:   one reference less;  at 0, into blank in their order, or into cached from the last to the first\n"
        "extend:    if the next token goes into a block that others use: take another one, release that, and copy",
    ),
)
def prefix_sharing(answer: Answer) -> None:
    agrees = agreeing(answer)

    def text(n: int, start: int = 1) -> list[int]:
        return list(range(start, start + n))

    with answer.property("nothing is registered, so nothing is hit", why="What is not there must be computed."):
        agrees(6, 4, ["match", text(9)], ["admit", "a", text(9)], ["match", text(9)], told="lengths")

    with answer.property(
        "blocks come and go as in exercise (a)", why="Sharing changes nothing for those who have nothing in common."
    ):
        agrees(9, 2, ["admit", "a", text(5)], ["append", "a", [7]], ["append", "a", [8]], ["free", "a"],
               ["admit", "b", text(3, 20)], ["admit", "c", text(8, 30)], ["free", "b"], ["append", "c", [9, 9]],
               ["free", "b"])  # fmt: skip
        agrees(9, 2, ["admit", "a", text(5)], ["extend", "a", 4], ["append", "a", [7]])

    with answer.property(
        "what was registered is hit, in whole blocks, up to the first that differs",
        why="The keys and values of those tokens are there: only the rest has to be computed.",
        hint="For how many blocks does the loop of match run, and where does it stop?",
    ):
        agrees(9, 2, ["begin", "a", text(7)], ["match", [*text(7), 50, 51]], ["match", [1, 2, 3, 4, 50, 51, 52]],
               ["match", [1, 2, 3, 50, 51]], ["match", [1, 50, 51]], ["match", [50, 2, 3]])  # fmt: skip
        agrees(9, 1, ["begin", "a", text(3)], ["match", [1, 2, 9, 9]])

    with answer.property(
        "match changes nothing, however often nothing is found",
        why="Most prompts begin with something new. What is noted for each of them is never let go.",
        hint="Who puts a new Prefix into by_hash? A block must hold it: that is hold's affair.",
    ):
        agrees(9, 2, ["begin", "a", text(5)], ["often", "match", text(7)], ["match", text(5)], told="lengths")

    with answer.property(
        "a hit leaves at least one token to compute",
        why="The next token's logits come out of a step of the model: a step of no tokens has none.",
        hint="A prompt of exactly two blocks has been registered. How many tokens of the same prompt may be hit?",
    ):
        agrees(9, 4, ["begin", "a", text(8)], *(["match", text(n)] for n in (1, 3, 4, 5, 8, 9)),
               ["begin", "b", text(8)])  # fmt: skip
        agrees(9, 1, ["begin", "a", text(2)], ["match", text(2)], ["match", text(1)], ["match", []])

    with answer.property(
        "a block is the same only after the same tokens",
        why="Its keys and values depend on all tokens before them.",
        hint="What goes into the hash besides the block's own tokens? Which Prefix do you look behind, in each turn of "
        "match, and in each of register?",
    ):
        agrees(9, 2, ["begin", "a", text(6)], ["match", [3, 4, 5, 6, 7]], ["match", [9, 9, 3, 4, 5]],
               ["match", [1, 2, 5, 6, 7]], ["begin", "b", [9, 9, 3, 4, 5]], ["match", [9, 9, 3, 4, 9]])  # fmt: skip

    with answer.property(
        "only full blocks that are computed can be hit, and they can as the sequence grows",
        why="A block that is not full will still change, and one that is not computed holds nothing yet.",
        hint="Which blocks are registered when 3 of 6 tokens are computed, with 2 in a block? And which when it is "
        "asked again, with 4?",
    ):
        calls = [[["register", "a", n], ["match", text(9)]] for n in (0, 1, 3, 2, 4, 7, 7)]
        agrees(9, 2, ["admit", "a", text(7)], *(call for pair in calls for call in pair))
        agrees(12, 2, ["begin", "a", text(3)], ["append", "a", [7]], ["register", "a", 4], ["append", "a", [8, 9]],
               ["register", "a", 6], ["match", [1, 2, 3, 7, 8, 9, 9]], ["begin", "b", [1, 2, 3, 7, 8, 0]],
               ["append", "b", [5, 5]], ["register", "b", 8], ["match", [1, 2, 3, 7, 8, 0, 5, 5]])  # fmt: skip

    with answer.property(
        "a block that stands in several tables is free when the last one is",
        why="Freed with the first one, it is handed out while the second still reads it.",
        hint="How many references does a block have after each call that is shown? Count the tables that it stands in.",
    ):
        agrees(6, 2, ["begin", "a", text(5)], ["begin", "b", [*text(4), 9]], ["free", "a"], ["admit", "c", text(4, 20)],
               ["admit", "d", text(1, 30)], ["free", "b"], ["admit", "d", text(5, 30)],
               told="lengths")  # fmt: skip
        agrees(9, 2, ["begin", "a", text(5)], ["begin", "b", text(5)], ["begin", "c", text(3)], ["free", "b"],
               ["free", "b"], ["free", "a"], ["admit", "d", text(12, 20)], ["free", "c"], ["admit", "e", text(4, 40)],
               told="lengths")  # fmt: skip

    with answer.property(
        "what was freed is cached, and can be hit until its block is needed",
        why="The next question of the same conversation comes a minute later.",
        hint="What happens to a registered block that nobody uses any more? Where must it be missing once it is hit?",
    ):
        agrees(9, 2, ["begin", "a", text(5)], ["free", "a"], ["match", text(5)], ["begin", "b", text(5)],
               ["admit", "c", text(10, 20)], ["free", "b"], ["begin", "d", text(5)])  # fmt: skip
        agrees(4, 2, ["begin", "a", text(6)], ["free", "a"], ["begin", "b", text(3, 20)], ["match", text(6)],
               ["free", "b"], ["match", text(6)], ["begin", "c", text(6, 30)], ["match", text(6)],
               ["match", text(4, 20)], ["free", "c"], ["match", text(7, 30)])  # fmt: skip

    with answer.property(
        "blank blocks go first, then the least recently used, and of one table the tail first",
        why="A blank block is of no use to anybody. And without the blocks before it, a cached one cannot be hit.",
        hint="In which order do the blocks of one table go into cached, and from which end are they taken? A block "
        "that was hit and freed again: where does it stand?",
    ):
        common = text(53)
        agrees(11, 16, ["begin", "a", [*common, 100, 101]], ["begin", "b", [*common, 200, 201]], ["free", "a"],
               ["free", "b"], ["admit", "c", text(160, 1000)])  # fmt: skip
        agrees(6, 2, ["begin", "a", text(4)], ["admit", "b", text(4, 20)], ["free", "a"], ["free", "b"],
               ["admit", "c", text(10, 30)])  # fmt: skip
        agrees(7, 2, ["begin", "a", text(4)], ["begin", "b", text(4, 20)], ["begin", "c", text(4, 30)], ["free", "b"],
               ["free", "a"], ["free", "c"], ["begin", "d", [*text(2, 20), 9]], ["match", text(5)], ["free", "d"],
               *(["admit", f"e{n}", [40 + n]] for n in range(6)))  # fmt: skip

    with answer.property(
        "what is hit is not evicted for the rest, and counts as taken",
        why="A sequence that was stopped comes back to its own blocks, where hardly anything else is free.",
        hint="How many free blocks does allocate use up, those of the hit that nobody uses among them? Are they out of "
        "cached before the first new one is taken?",
    ):
        agrees(5, 2, ["begin", "a", text(8)], ["free", "a"], ["begin", "a2", text(8)])
        agrees(5, 2, ["begin", "a", text(4)], ["free", "a"], ["begin", "b", text(4, 20)], ["free", "b"],
               ["begin", "c", [*text(4), 9, 9, 9, 9]])  # fmt: skip
        agrees(5, 2, ["begin", "a", text(4)], ["free", "a"], ["admit", "b", [9]], ["begin", "c", text(8)],
               ["begin", "c", text(6)], ["free", "b"], ["append", "c", [7, 7]])  # fmt: skip

    with answer.property(
        "a call that fails changes nothing",
        why="It is asked again when somebody was freed.",
        hint="What have share and take changed by the time that you find out that there is no room?",
    ):
        agrees(6, 2, ["begin", "a", text(5)], ["begin", "b", [*text(4), 9]], ["begin", "c", [*text(4), 8, 8, 8, 8, 8]],
               ["append", "b", [1, 2, 3, 4]], ["free", "a"], ["begin", "c", [*text(4), 8, 8, 8]], ["append", "b", [1]],
               ["free", "b"], ["free", "c"], ["admit", "d", text(10, 20)])  # fmt: skip

    with answer.property(
        "a fork shares every block, and copies the one that it writes into",
        why="Two continuations of one prompt: what is before them is there once.",
        hint="Whose is the block that the next token goes into? Does it go into one at all, or is the last one full? "
        "And who still uses it, when the other one has a copy?",
    ):
        agrees(9, 4, ["begin", "a", text(6)], ["fork", "a", "b"], ["append", "b", [7]], ["append", "a", [8]],
               ["append", "b", [9, 9, 9, 9]], ["free", "a"], ["append", "b", [1]], ["free", "b"])  # fmt: skip
        agrees(9, 4, ["begin", "a", text(4)], ["fork", "a", "b"], ["append", "b", [7]], ["append", "a", [8]])
        agrees(9, 4, ["admit", "a", text(2)], ["fork", "a", "b"], ["append", "b", []], ["fork", "b", "c"],
               ["append", "a", [1]], ["append", "b", [2]], ["append", "c", [3]], ["free", "a"], ["free", "a"],
               ["fork", "a", "d"], ["append", "c", [4]])  # fmt: skip
        agrees(9, 4, ["admit", "a", text(3)], ["fork", "a", "b"], ["append", "a", [1, 2, 3, 4, 5, 6]],
               ["append", "b", [7, 8]], ["free", "b"], ["append", "a", [9]])  # fmt: skip

    with answer.property(
        "a copy needs a block, too: without one, nothing is changed",
        why="One block more than the tokens need.",
        hint="How many blocks does extend take where the last one is copied, and where is that asked?",
    ):
        agrees(3, 4, ["admit", "a", text(6)], ["fork", "a", "b"], ["append", "b", [7]], ["append", "a", [8]],
               ["free", "b"], ["append", "a", [8]])  # fmt: skip
        agrees(5, 4, ["admit", "a", text(6)], ["fork", "a", "b"], ["append", "b", text(7, 20)],
               ["append", "b", text(3, 20)], ["append", "a", [9]])  # fmt: skip

    with answer.property(
        "a fork goes on as registered as it was",
        why="What is in its blocks is known, and goes on from there.",
        hint="What does a new table know of its blocks' prefixes, after fork, and after allocate with a hit?",
    ):
        agrees(12, 2, ["begin", "a", text(3)], ["fork", "a", "b"], ["append", "b", [7]], ["register", "b", 4],
               ["match", [1, 2, 3, 7, 9]], ["append", "a", [8, 8]], ["register", "a", 5], ["match", [1, 2, 3, 8, 9]],
               ["free", "a"], ["free", "b"], ["match", [1, 2, 3, 8, 9]], ["begin", "c", [1, 2, 3, 7, 9]])  # fmt: skip

    with answer.property(
        "equal hashes with unequal tokens never match",
        why="A hash may be equal by chance, or by somebody's intent. Here all of them are.",
        hint="Which two things must be equal besides the hash? Two sequences may end in the same block, and begin "
        "differently.",
    ):
        starts = [[1, 2], [2, 1], [3, 2], [7, 8], [5, 5]]
        agrees(22, 2, *(["begin", f"s{n}", [*start, 7, 8]] for n, start in enumerate(starts)),
               *(["match", [*start, 7, 8, 0]] for start in starts), ["match", [9, 2, 7, 8, 0]],
               ["match", [1, 2, 8, 7, 0]], ["free", "s0"], ["free", "s2"], ["match", [1, 2, 7, 8, 0]],
               ["admit", "x", text(25, 100)], ["match", [1, 2, 7, 8, 0]], ["match", [3, 2, 7, 8, 0]],
               colliding=True)  # fmt: skip
        same = 2**61  # to Python's own hash: hash(1) == hash(2**61)
        agrees(12, 2, ["begin", "a", [1, 2, 7, 8]], ["match", [same, 2, 7, 8, 0]], ["match", [1, 2, 7, 6 + same, 0]],
               ["begin", "b", [same, 2, 7, 8]], ["match", [same, 2, 7, 8, 0]], ["match", [1, 2, 7, 8, 0]])  # fmt: skip

    with answer.property(
        "two blocks may hold the same: of equal prompts side by side, and of a last block that is computed again",
        why="Neither prompt had been computed when the other came. Both blocks hold the same, and either serves.",
        hint="What does register do where the Prefix is known already, and what does an eviction of one of the two "
        "blocks do to the other?",
    ):
        for gone, stays in ("ab", "ba"):
            both = [["admit", "a", text(5)], ["admit", "b", text(5)], ["register", "a", 5], ["register", "b", 5]]
            agrees(9, 2, *both, ["match", text(5)], ["free", gone], ["match", text(5)], told="lengths")
            # Once the block of one is evicted, the other's may be hit, or not: either is right.
            agrees(9, 2, *both, ["free", gone], ["admit", "c", text(9, 20)], ["begin", "d", text(5)],
                   ["append", stays, [6]], ["free", "c"], ["begin", "d", text(5)], ["append", stays, [7]],
                   ["free", "d"], ["free", stays], ["admit", "e", text(16, 30)], ["free", "e"],
                   ["begin", "d", text(5)], told="tokens")  # fmt: skip
        agrees(9, 4, ["begin", "a", text(8)], ["free", "a"], ["begin", "b", text(8)], ["match", text(9)], ["free", "b"],
               ["match", text(9)], ["admit", "c", text(32, 20)], ["match", text(9)], ["free", "c"],
               ["begin", "d", text(8)], told="lengths")  # fmt: skip

    with answer.property(
        "a long life: conversations that come, grow, branch and go",
        why="References are the tables that a block stands in, at any time.",
        hint="Follow the blocks by hand up to the call that is shown: how many tables does each stand in, and which "
        "are blank, which cached, in which order?",
    ):
        for num_blocks, block_size in ((14, 2), (20, 3), (60, 1)):
            agrees(num_blocks, block_size, *_long_life(answer, block_size))

    with answer.property(
        "a block is registered once, however long its sequence is",
        why="register is called for every sequence in every step: from the first block on each time, an answer of n "
        "tokens costs n² of them.",
        hint="How many of the table's blocks are registered already? Begin with the next one.",
    ):
        constant(answer, "long", [60, 1000])

    with answer.property(
        "a block costs the same in a pool of any size",
        why="Of a hundred thousand blocks, the least recently used one is found without a look at the others.",
        hint="Which of your lines looks through all that are cached, held or in use?",
    ):
        constant(answer, "sharing", [60, 1000])


def _long_life(answer: Answer, block_size: int, calls: int = 45) -> list[list]:
    """Conversations with one of three beginnings. No two blocks hold the same: which of them is hit would be anybody's
    choice. So what follows a beginning is new, and no prompt ends with a block."""
    starts = [list(range(100 * n, 100 * n + n * block_size + 1)) for n in (1, 2, 4)]
    script, lengths, made, new = [], {}, 0, 1000
    for _ in range(calls):
        kind = int(answer.randint(0, 12))
        name = list(lengths)[int(answer.randint(0, len(lengths)))] if lengths else ""
        if kind < 4 or not name:
            made += 1
            start = starts[int(answer.randint(0, len(starts)))]
            count = int(answer.randint(1, 2 * block_size + 1))
            count += (len(start) + count) % block_size == 0 and block_size > 1
            script.append(["begin", f"s{made}", [*start, *range(new, new + count)]])
            lengths[f"s{made}"], new = len(start) + count, new + count
        elif kind < 8:
            count = int(answer.randint(1, block_size + 2))
            script.append(["append", name, list(range(new, new + count))])
            lengths[name], new = lengths[name] + count, new + count
            if kind > 5:
                script.append(["register", name, lengths[name] - int(answer.randint(0, 2))])
        elif kind == 8:
            made += 1
            script.append(["fork", name, f"s{made}"])
            lengths[f"s{made}"] = lengths[name]
        else:
            script.append(["free", name])
            del lengths[name]
    return script
