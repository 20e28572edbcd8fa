"""20.fill_with_w: the backward in two, and the half that nobody waits for where a rank would wait.

No order is asked for, but what it is for: the same memory as 1F1B's rank 0, and the bubble of ZB-H1.
"""

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_20_pipeline_schedules.checks.whole import (
    are_orders,
    everything_once,
    kept,
    makespan,
    simulated,
)
from llmsys.lessons.lesson_20_pipeline_schedules.given import given_fill, given_order
from llmsys.lessons.lesson_20_pipeline_schedules.plain import actions_of, plain_fill, plain_orders, texts_of
from llmsys.parallel.pipeline.costs import Costs


@exercise_check(
    "20.fill_with_w",
    forbids=(
        "llmsys.parallel.pipeline.zero_bubble:*",
        "llmsys.lessons.lesson_20_pipeline_schedules.given:given_fill",
        "llmsys.lessons.lesson_20_pipeline_schedules.right:*",
    ),
    adapt=plain_fill,
    hints=(
        "In 1F1B, which rank waits longest at the end, and for what? It could do a W there, if one were left. And "
        "which rank has room to keep more?",
        "Rank r keeps at most num_ranks − r activations in 1F1B. A W that waits keeps one more, so r of them may wait "
        "at a time, and everybody keeps as much as rank 0. Rank 0 does each W right after its I.",
        "waiting = an empty list\n"
        "for each action of the order:\n"
        "    an F stays as it is\n"
        "    a B becomes its I, and its W is added to those that wait;\n"
        "        if more than `rank` wait, the one that has waited longest is done\n"
        "at the end all that still wait, in their order",
    ),
)
def fill_with_w(answer: Answer) -> None:
    def filled(num_ranks: int, num_microbatches: int) -> Run:
        run = answer(num_ranks=num_ranks, num_microbatches=num_microbatches)
        answer.that(run, lambda r: are_orders(r.value, num_ranks), "a list of actions for each rank")
        return run

    ranks = int(answer.randint(3, 6))
    many = ranks + int(answer.randint(4, 9))
    sizes = ((ranks, many), (2, 6), (4, 8), (8, 17))

    def same(kinds: str) -> None:
        """Actions of these kinds are in the order that was given, B as I."""
        for p, m in ((1, 3), *sizes):
            given = plain_orders(given_order)(p, m)
            wanted = [_only([text.replace("B", "I") for text in order], kinds) for order in given]
            for rank in range(p):
                answer.that(
                    filled(p, m) if rank == 0 else answer.calls[-1].run,
                    lambda r, rank=rank, wanted=wanted: _only(r.value[rank], kinds) == wanted[rank],
                    f"that of {kinds[0]}{' and I' * (len(kinds) > 1)} rank {rank} does {' '.join(wanted[rank])}",
                    got=lambda r, rank=rank: " ".join(r.value[rank]),
                )

    with answer.property(
        "the forwards are those that were given, in their order", why="The next rank waits for them, as it did before."
    ):
        same("F")

    with answer.property(
        "each B is an I now, at the same place among the forwards",
        why="The rank before waits for it, and should not wait longer than before.",
        hint="Each B becomes its I, at the same place. What is new is only where the W are.",
    ):
        same("FIB")

    with answer.property(
        "every W is there once, after its I, also with few microbatches",
        why="What is left out is missing in the gradient. Before its I there is nothing to compute it from.",
        hint="How many W still wait when the order that was given is at its end?",
    ):
        for p, m in ((1, 3), *sizes, (4, 2), (5, 1)):
            run = filled(p, m)
            everything_once(answer, run, p, m, "FIW")
            answer.that(run, lambda r: all(map(_after_its_i, r.value)), "each W somewhere after its I",
                        got=lambda r: _first(order for order in r.value if not _after_its_i(order)))  # fmt: skip

    with answer.property(
        "no rank keeps more activations than rank 0 of 1F1B does",
        why="What a forward has kept is only given back when its W is done. Else one could leave all W for the end.",
        hint="How many W wait at a time on each rank, and what does it keep beside those?",
    ):
        for p, m in (*sizes, (4, 2)):
            kept(answer, filled(p, m), p, m, [p] * p)

    with answer.property(
        "the bubble is (p − 1) (F + I − W), where W is no longer than F and I",
        why="A third of 1F1B's, if all three take as long. The ramp up costs F, and the ramp down what W does not fill."
        "",
        hint="Is a W left on the last rank when its forwards are at their end? On rank 0, what is done between two I "
        "of the end? Compare the bubbles of the ranks.",
    ):
        for p, m in sizes:
            for f, i, w in ((1, 1, 1), (2, 3, 1), (3, 2, 2), (4, 4, 3)):
                longest = m * (f + i + w) + (p - 1) * (f + i - w)
                makespan(answer, filled(p, m), p, m, longest, Costs(F=f, I=i, W=w))

    with answer.property(
        "with fewer microbatches than ranks, W fill what there is to fill, too",
        why="The last ranks then have room for all W that there are.",
        hint="Follow the last rank with 3 microbatches: how many of them may wait?",
    ):
        for p, m in ((8, 3), (4, 3), (5, 2)):
            orders = plain_orders(given_order)(p, m)
            right = [texts_of(given_fill(actions_of(order), rank)) for rank, order in enumerate(orders)]
            makespan(answer, filled(p, m), p, m, simulated(right, p, m)[0].makespan)

    with answer.property(
        "the W that has waited longest is done first",
        why="So the activations that were kept longest are given back first, and the gradients are added in the order "
        "in which 1F1B adds them.",
        hint="At which end of those that wait do you take one?",
    ):
        for p, m in (*sizes, (5, 1)):
            answer.that(filled(p, m), lambda r: all(map(_in_order, r.value)), "W in the order of the microbatches",
                        got=lambda r: _first(order for order in r.value if not _in_order(order)))  # fmt: skip


def _only(order: list[str], kinds: str) -> list[str]:
    return [text for text in order if any(kind in text for kind in kinds)]


def _after_its_i(order: list[str]) -> bool:
    return all(order.index(text.replace("W", "I")) < place for place, text in enumerate(order) if "W" in text)


def _in_order(order: list[str]) -> bool:
    numbers = [int(text.partition("W")[2]) for text in order if "W" in text]
    return numbers == sorted(numbers)


def _first(orders) -> str:
    return " ".join(next(iter(orders)))
