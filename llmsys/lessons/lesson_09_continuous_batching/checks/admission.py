"""09.admission: who comes in, who is thrown out when no block is left, and what becomes of it."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_09_continuous_batching.checks.lines_agree import add, agreeing
from llmsys.lessons.lesson_09_continuous_batching.checks.lives import life
from llmsys.lessons.lesson_09_continuous_batching.scripts import played
from llmsys.serving import Scheduler


@exercise_check(
    "09.admission",
    reference=Scheduler,
    forbids=(
        "llmsys.serving.scheduler:*",
        "llmsys.serving.admission:take_blocks",
        "llmsys.serving.admission:entrance",
        "llmsys.lessons.lesson_09_continuous_batching.right_admission:*",
    ),
    adapt=played,
    hints=(
        "Take the three methods one by one. What is different about a request before and after each: the list that it "
        "stands in, its table, its computed tokens, its known ones?",
        "Those that run came before all those that wait, and both lists are in order. So the newest is the last of the "
        "one, and whoever is thrown out becomes the first of the other. It loses its blocks and what was computed, and "
        "keeps its tokens, for they are known. Only the first of those that wait is ever looked at.",
        "make_room:  extend its table to all that is known: True\n"
        "            at OutOfBlocks preempt the last of running; False if that was the request, else try again\n"
        "preempt:    out of running, its table freed, computed = 0, to the front of waiting, noted in preempted\n"
        "admit:      None if this step has preempted, or nobody waits;  match the first one's tokens\n"
        "            allocate all that is known, with reserve beside others;  None at OutOfBlocks\n"
        "            computed = what was hit;  from waiting to the end of running",
    ),
)
def admission(answer: Answer) -> None:
    agrees = agreeing(answer)

    with answer.property("alone, with room for all of it, a request comes in", why="There is nothing to wait for."):
        agrees(add(0, "a", 3, 2), [1, "abort", "a"], budget=50, sequences=1, told="work")

    with answer.property(
        "with room for all, each comes in at once and goes on", why="Nothing is short, so nobody waits."
    ):
        agrees(add(0, "a", 3, 2), budget=50, sequences=8)
        agrees(add(0, "a", 6, 5), add(1, "b", 4, 9), add(2, "c", 9, 3), budget=50, sequences=8)
        agrees(add(0, "a", 30, 3), add(1, "b", 4, 2), budget=8, sequences=4)

    with answer.property(
        "a request has blocks for all its known tokens, and takes another one when its last is full",
        why="All that is known will be computed, in this step or in the next ones.",
        hint="For how many tokens are slots wanted, in admit and in make_room? Look at the blocks that are free.",
    ):
        agrees(add(0, "a", 20, 2), add(1, "b", 7, 6), budget=8, sequences=4, blocks=30)
        agrees(add(0, "a", 4, 9), add(1, "b", 3, 9), budget=8, sequences=4, blocks=30)

    with answer.property(
        "whoever came first comes in first, and nobody passes it",
        why="If small ones passed, a large one might wait for ever. So its wait is bounded by those before it.",
        hint="Which of those that wait does admit look at? What does it do where there is no room for that one?",
    ):
        agrees(add(0, "a", 7, 2), add(0, "b", 14, 3), add(0, "c", 2, 2), budget=40, sequences=8, blocks=6)
        agrees(add(0, "a", 2, 4), add(0, "b", 9, 2), add(0, "c", 1, 2), add(0, "d", 5, 3), budget=40, sequences=2,
               blocks=6)  # fmt: skip

    with answer.property(
        "what is found in the cache is shared, and not computed again",
        why="Two requests that begin alike need the blocks of their beginning once.",
        hint="What does match find for the request's tokens? Who has to know of it: allocate, computed, or both?",
    ):
        start = list(range(50, 62))
        agrees(add(0, "a", [*start, 1], 3), add(1, "b", [*start, 2, 3, 4], 2), add(1, "c", [*start, 4, 5], 2),
               budget=30, sequences=8, blocks=20)  # fmt: skip
        agrees(add(0, "a", start, 2), add(3, "b", start, 2), add(6, "c", [*start, 7], 2), budget=30, sequences=8)
        agrees(add(0, "a", [*start, 1], 3), add(1, "b", [*start, 2], 3), add(1, "c", 9, 2), budget=30, sequences=8,
               blocks=5)  # fmt: skip

    with answer.property(
        "beside others, nobody comes in unless the watermark stays free",
        why="Whoever enters by the last block is thrown out by its neighbour's next token, all for nothing.",
        hint="How many blocks must be free beside those that it takes? Is that asked before anything has changed?",
    ):
        agrees(add(0, "a", 7, 2), add(0, "b", 14, 2), add(0, "c", 9, 2), add(0, "d", 1, 2), budget=40, sequences=8,
               blocks=10, watermark=0.3)  # fmt: skip
        agrees(add(0, "a", 7, 2), add(0, "b", 20, 2), add(0, "c", 3, 2), add(0, "d", 1, 2), budget=40, sequences=8,
               blocks=10, watermark=0.3)  # fmt: skip
        agrees(add(0, "a", 6, 6), add(0, "b", 6, 4), add(0, "c", 2, 2), budget=40, sequences=8, blocks=6,
               watermark=0.3)  # fmt: skip
        agrees(add(0, "a", 7, 2), add(0, "b", 12, 1), budget=40, sequences=8, blocks=6, watermark=0.15)
        seven, ten = list(range(50, 57)), list(range(50, 60))
        agrees(add(0, "a", [*seven, 1], 1), add(0, "b", [*ten[:3], 1], 2), add(0, "c", ten, 2), budget=40, sequences=8,
               blocks=5, watermark=0.2)  # fmt: skip

    with answer.property(
        "alone, a request may have all blocks",
        why="Otherwise one that needs nearly all of them would never come in, and nobody after it.",
        hint="Who needs the blocks that are kept free where nobody is running?",
    ):
        agrees(add(0, "a", 20, 2), budget=40, sequences=8, blocks=6, watermark=0.5)
        agrees(add(0, "a", 24, 1), add(1, "b", 24, 1), budget=40, sequences=8, blocks=6)
        agrees(add(0, "a", 3, 2), add(0, "b", 20, 3), add(0, "c", 3, 2), budget=40, sequences=8, blocks=6,
               watermark=0.5)  # fmt: skip

    with answer.property(
        "when no block is left, the one that was admitted last is thrown out",
        why="So the oldest is never stopped by others, and reaches its end; and then the next one does.",
        hint="Which one of self.running came in last? And where does it stand?",
    ):
        # d needs the block; a is the oldest, of b least is computed, c is the longest, and e the newest
        agrees(add(0, "a", 2, 6), add(0, "b", 1, 6), add(0, "c", 6, 6), add(0, "d", 3, 6), add(0, "e", 2, 6),
               budget=40, sequences=8, blocks=6)  # fmt: skip
        agrees(add(0, "a", 1, 6), add(0, "b", 6, 6), add(0, "c", 3, 7), add(0, "d", 1, 6), budget=40, sequences=8,
               blocks=5)  # fmt: skip
        agrees(add(0, "a", 4, 7), add(0, "b", 4, 7), budget=40, sequences=8, blocks=3)
        agrees(add(0, "a", 3, 9), add(0, "b", 4, 4), add(0, "c", 3, 4), budget=40, sequences=8, blocks=4)

    with answer.property(
        "whoever is thrown out keeps its tokens and computes them again, its answer's too",
        why="Known is known. Only keys and values are gone, and some of them may still be found.",
        hint="What do computed and tokens say of a request that is thrown out in the middle of its answer? How many "
        "tokens has it left to compute when it comes in again?",
    ):
        agrees(add(0, "a", 4, 12), add(0, "b", 3, 12), budget=40, sequences=8, blocks=6, block_size=3)
        agrees(add(0, "a", 7, 9), add(0, "b", 6, 8), budget=5, sequences=4, blocks=10, block_size=2)

    with answer.property(
        "it waits in its old place, before all that came after it",
        why="Otherwise it could be passed, again and again, by those that came later.",
        hint="Where in self.waiting does it go? Two may be thrown out in one step: in which order, and how do they "
        "stand afterwards?",
    ):
        agrees(add(0, "a", 4, 9), add(0, "b", 4, 9), add(1, "c", 4, 2), add(1, "d", 1, 2), budget=40, sequences=8,
               blocks=4)  # fmt: skip
        agrees(add(0, "a", 4, 9), add(0, "b", 4, 6), add(0, "c", 4, 6), add(1, "d", 4, 2), budget=40, sequences=8,
               blocks=4)  # fmt: skip

    with answer.property(
        "several may be thrown out in one step, and the request itself where it is the newest",
        why="Each of those that run may need a block in the same step, and the newest has nobody behind it.",
        hint="What does make_room say where the newest is the request itself? Does it compute in this step?",
    ):
        start = list(range(50, 58))
        agrees(add(0, "a", [*start, 1, 2, 3, 4], 9), add(1, "b", start, 9), add(1, "c", [*start, 3], 9),
               budget=40, sequences=8, blocks=5)  # fmt: skip
        agrees(add(0, "a", 3, 9), add(0, "b", 4, 9), budget=40, sequences=8, blocks=4)
        agrees(add(0, "a", 4, 8), add(0, "b", 4, 8), add(0, "c", 4, 8), add(0, "d", 4, 8), budget=40, sequences=8,
               blocks=4)  # fmt: skip

    with answer.property(
        "whoever comes back leaves the watermark free, too",
        why="For those that run, it is one more neighbour, as any other.",
        hint="Is there a case in which your watermark does not count, though somebody else is running?",
    ):
        agrees(add(0, "a", 3, 3), add(0, "b", 4, 4), add(0, "c", 7, 4), budget=40, sequences=8, blocks=6, watermark=0.2)

    with answer.property(
        "nobody comes in in a step that has thrown somebody out",
        why="Those that run need what is free. Whoever came in now would be the next to go.",
        hint="How does admit know that this step has thrown somebody out? Who tells it?",
    ):
        same = list(range(50, 62))  # both compute it; who is thrown out could share the other's blocks at once
        for blocks in (6, 7):
            agrees(add(0, "a", same, 4), add(0, "b", same, 3), add(0, "c", 2, 3), budget=40, sequences=8, blocks=blocks)
        agrees(add(0, "a", same[:6], 6), add(0, "b", same[:6], 6), add(0, "c", same[:6], 6), add(1, "d", 1, 2),
               budget=40, sequences=8, blocks=9, block_size=2)  # fmt: skip

    with answer.property(
        "whoever comes back finds its own blocks, where nobody has needed them",
        why="They are free, and not forgotten: then nothing but a step is lost.",
        hint="For which tokens does admit ask match: for the prompt, or for all that is known?",
    ):
        agrees(add(0, "a", 9, 5), add(0, "b", 6, 9), budget=40, sequences=8, blocks=6)
        agrees(add(0, "a", 7, 5), add(0, "b", 9, 5), budget=40, sequences=8, blocks=5)
        agrees(add(0, "a", 5, 5), add(0, "b", 5, 9), budget=40, sequences=8, blocks=7, block_size=2)

    with answer.property(
        "a long life: many requests in little memory",
        why="Every block is in one table, or free, and every request reaches its end.",
        hint="Follow the blocks that are free up to the step that is shown: who took them, and who gave them back?",
    ):
        for blocks, block_size, watermark in ((9, 3, 0.0), (13, 2, 0.2), (7, 4, 0.01), (24, 1, 0.1), (16, 2, 0.0)):
            script = life(answer, room=blocks * block_size)
            agrees(*script, budget=30, sequences=6, blocks=blocks, block_size=block_size, watermark=watermark)
            agrees(*script, budget=9, sequences=9, blocks=blocks, block_size=block_size, watermark=watermark)
