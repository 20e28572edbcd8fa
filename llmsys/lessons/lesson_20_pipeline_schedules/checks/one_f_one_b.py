"""20.one_f_one_b: as few forwards ahead as keep everybody busy, then one forward and one backward in turn."""

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_20_pipeline_schedules.checks.whole import as_expected, everything_once, kept, makespan
from llmsys.lessons.lesson_20_pipeline_schedules.given import given_order
from llmsys.lessons.lesson_20_pipeline_schedules.plain import plain_orders


@exercise_check(
    "20.one_f_one_b",
    forbids=(
        "llmsys.parallel.pipeline.one_f_one_b:*",
        "llmsys.parallel.pipeline.zero_bubble:*",
        "llmsys.lessons.lesson_20_pipeline_schedules.given:*",
        "llmsys.lessons.lesson_20_pipeline_schedules.right:*",
    ),
    adapt=plain_orders,
    hints=(
        "When can the last rank do its first backward? And how many microbatches has rank 0 sent on by the time at "
        "which that gradient comes back to it? Count how many each rank must have under way, and let none have more.",
        "Rank r has at most num_ranks − r microbatches under way: forwards that are done, and backwards that are not. "
        "It does so many forwards first, then a backward and a forward in turn, and the backwards that are left at "
        "the end. (Written as below, it is a forward less, and then a forward and a backward in turn.) With few "
        "microbatches there are not that many.",
        "ahead = min(num_ranks − 1 − rank, num_microbatches)\n"
        "F of 0, …, ahead − 1\n"
        "for n in 0, …, num_microbatches − 1:\n"
        "    F of ahead + n, if there is such a microbatch\n"
        "    B of n",
    ),
)
def one_f_one_b(answer: Answer) -> None:
    def orders(num_ranks: int, num_microbatches: int) -> Run:
        return answer(num_ranks=num_ranks, num_microbatches=num_microbatches)

    def agrees(num_ranks: int, num_microbatches: int) -> None:
        """The order is 1F1B's, action by action."""
        as_expected(answer, orders(num_ranks, num_microbatches), plain_orders(given_order)(num_ranks, num_microbatches))

    ranks = int(answer.randint(3, 6))
    many = ranks + int(answer.randint(3, 9))

    with answer.property(
        "one rank and one microbatch: a forward and a backward", why="That is the smallest pipeline that there is."
    ):
        everything_once(answer, orders(1, 1), 1, 1)

    with answer.property(
        "each rank does a forward and a backward of every microbatch at its own stage, once",
        why="What is left out is missing in the gradient, and what is done twice counts twice.",
        hint="How many forwards does your order have at the beginning, and how many in the alternating part? Together "
        "they are num_microbatches, and so are the backwards.",
    ):
        for p, m in ((ranks, many), (2, 5), (4, 4)):
            everything_once(answer, orders(p, m), p, m)

    with answer.property(
        "nobody waits for ever, and all are done in (m + p − 1) (F + B)",
        why="That is the time of all forwards and backwards, and of one microbatch on its way down and back.",
        hint="Draw it for three ranks: at what time does each of them do its first backward, and what has it done "
        "until then? If one rank has too few forwards ahead, the others stand still with it.",
    ):
        for p, m in ((ranks, many), (2, 5), (4, 4), (6, 7)):
            makespan(answer, orders(p, m), p, m, (m + p - 1) * 3)

    with answer.property(
        "rank r never keeps more than num_ranks − r activations",
        why="That is what this order is for: GPipe keeps all the batch, with the same bubble.",
        hint="Which ranks keep too much? Rank 0 has the longest way back to it, and the last rank none.",
    ):
        for p, m in ((ranks, many), (2, 5), (6, 9)):
            kept(answer, orders(p, m), p, m, [p - rank for rank in range(p)])

    with answer.property(
        "with fewer microbatches than ranks, the first ranks do all forwards first",
        why="The last batch of an epoch may be short. There is no microbatch −1, and none beyond the last.",
        hint="How many forwards can rank 0 be ahead, of 2 microbatches in 5 ranks?",
    ):
        agrees(5, 2)
        agrees(4, 1)
        agrees(ranks, ranks - 1)

    with answer.property(
        "the order is one forward, one backward, in microbatches' order",
        why="First in, first out: the microbatch that has waited longest gives its activations back.",
        hint="In the alternating part, which of the two comes first, and of which microbatch is the backward?",
    ):
        agrees(1, 1)
        agrees(1, many)
        agrees(ranks, many)
        agrees(2, 2)
        agrees(8, 13)
