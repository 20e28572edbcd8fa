"""11.divide: how many GPUs for prompts and how many for decoding, of the rates that so many of each reach."""

import math

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_11_disaggregation.plain import plain_division


@exercise_check(
    "11.divide",
    forbids=("llmsys.serving.simulator.placement:*", "llmsys.lessons.lesson_11_disaggregation.right:*"),
    adapt=plain_division,
    hints=(
        "Every request needs both. If the prefillers can take 6 a second and the decoders 9, how many does the service "
        "take?",
        "The rate is min(prefill_rate(p), decode_rate(gpus − p)). With p the one rises and the other falls, so the "
        "best division is where they cross: the first p at which prefill is not what bounds, or the one before it.",
        "first, last = 1, gpus − 1\n"
        "while first < last:\n"
        "    p in the middle;  last = p if prefill_rate(p) >= decode_rate(gpus − p), else first = p + 1\n"
        "compare the two minima at first and at first − 1, if there is one",
    ),
)
def divide(answer: Answer) -> None:
    def best(prefill: list[float], decode: list[float]) -> float:
        """Of all divisions, each tried."""
        gpus = len(prefill) + 1
        return max(min(prefill[p - 1], decode[gpus - p - 1]) for p in range(1, gpus))

    def divided(prefill: list[float], decode: list[float], **given) -> Run:
        run = answer(prefill, decode, **given)
        gpus = len(prefill) + 1
        counts = dict(got=lambda r: f"({r.value['prefill']}, {r.value['decode']})",
                      by=lambda r: (r.value["prefill"], r.value["decode"]))  # fmt: skip

        def divides(r: Run) -> bool:
            return min(r.value["prefill"], r.value["decode"]) >= 1 and r.value["prefill"] + r.value["decode"] == gpus

        def rate(r: Run) -> float:
            return min(prefill[r.value["prefill"] - 1], decode[r.value["decode"] - 1])

        answer.that(run, divides, f"two counts of at least 1 that are {gpus} together", **counts)
        most = best(prefill, decode)
        answer.that(run, lambda r: divides(r) and rate(r) == most, f"a division that takes {most:g} a second", **counts)
        return run

    def rising(count: int, slope: float) -> list[float]:
        """What 1, 2, … engines reach: more each time, by different steps."""
        found, rate = [], 0.0
        for _ in range(count):
            rate += slope * float(answer.randint(1, 20))
            found.append(rate)
        return found

    with answer.property("two GPUs: one each", why="Neither can do without the other."):
        divided([5.0], [9.0])
        divided([9.0], [5.0])

    with answer.property(
        "the slower side counts, and the division is the best there is",
        why="Each request passes both. What the faster side could take more is idle.",
        hint="Try all divisions of 4 GPUs by hand: what does each of them take?",
    ):
        divided([2.0, 4.0, 6.0, 8.0, 10.0], [11.0, 12.0, 13.0, 14.0, 15.0])
        divided([2.0, 4.0, 6.0], [9.0, 18.0, 27.0])
        divided([9.0, 18.0, 27.0], [2.0, 4.0, 6.0])
        divided([3.0, 6.0, 9.0], [3.5, 7.0, 10.5])
        divided([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [2.5 * n for n in range(1, 8)])

    with answer.property(
        "several engines need not reach as many times the rate of one",
        why="A burst finds one of two that is free: they may reach more than twice the rate of one, within the limits.",
        hint="Which rates do you ask for? Those of one engine do not say what several reach.",
    ):
        divided([1.0, 5.0, 6.0, 6.5], [4.0, 4.5, 5.0, 9.0])
        divided([2.0, 2.1, 8.0, 9.0, 10.0], [1.0, 6.0, 6.1, 6.2, 6.3])
        for slope in (0.2, 1.0, 5.0):
            divided(rising(8, 1.0), rising(8, slope))

    with answer.property(
        "either side of where the two rates cross",
        why="The best may be the last division at which prompts bound the rate, or the first at which they do not.",
        hint="Your search ends at two neighbours. Which of them takes more?",
    ):
        divided([1.0, 4.9, 50.0], [5.0, 6.0, 7.0])
        divided([1.0, 4.9, 50.0], [4.5, 6.0, 7.0])
        for slope in (0.1, 0.5, 2.0, 10.0):
            for count in (2, 5, 11, 12):
                divided(rising(count, 1.0), rising(count, slope))

    with answer.property(
        "one side is faster, however few it has",
        why="Short answers to long prompts want nearly all GPUs for prefill, and the other way round.",
        hint="How many does your search give to the side that needs the most? Does it reach gpus − 1, and 1?",
    ):
        for count in (3, 6, 17):
            divided([0.01 * n for n in range(1, count + 1)], [100.0 + n for n in range(count)])
            divided([100.0 + n for n in range(count)], [0.01 * n for n in range(1, count + 1)])

    with answer.property(
        "with few questions",
        why="A rate is a search of its own, with a dozen simulations. Of 64 GPUs there are 63 divisions.",
        hint="The one rate rises with p and the other falls. How does one find where they cross without looking "
        "everywhere?",
    ):
        for count in (63, 200):
            for slope in (0.3, 1.0, 3.0):
                most = 4 * math.ceil(math.log2(count)) + 8
                run = divided(rising(count, 1.0), rising(count, slope), most=most)
                answer.that(run, lambda r: not r.value["too many"], f"at most {most} questions",
                            got=lambda r, most=most: f"{most + r.value['too many']} questions",
                            by=lambda r: r.value["too many"])  # fmt: skip
