"""10.choose_budget: the budget that allows the highest rate, and that rate, by bisection, in few runs."""

import math

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.course.checking.runner import Run
from llmsys.lessons.lesson_10_chunked_prefill.plain import plain_choice


def halvings(low: float, high: float, within: float) -> int:
    """How often the range from low to high is halved until its ends are within a factor of 1 + within."""
    return math.ceil(math.log2(math.log(high / low) / math.log1p(within)))


@exercise_check(
    "10.choose_budget",
    forbids=(
        "llmsys.serving.goodput:highest_rate", "llmsys.serving.simulator.simulate:capacity",
        "llmsys.serving.simulator.leaderboard:*", "llmsys.lessons.lesson_10_chunked_prefill.right:*",
    ),
    adapt=plain_choice,
    hints=(
        "Take one budget alone. You know a rate that is good, and one that is not. Which one rate do you try next, and "
        "what do you know then?",
        "Keep two rates: `good` has been tried and attains the share, `bad` has been tried and does not. Each run "
        "brings them together. It is over when bad / good is at most 1 + within, and good is the answer. Both ends may "
        "settle it beforehand: low may be too fast already, high may be good.",
        "for each budget:\n"
        "    if attained(budget, low) < share: next budget\n"
        "    if attained(budget, high) >= share: its rate is high\n"
        "    else: good, bad = low, high\n"
        "          while bad / good > 1 + within:\n"
        "              middle = √(good · bad);  it becomes good, or bad\n"
        "          its rate is good\n"
        "the best of them, or a ValueError where there is none",
    ),
)  # fmt: skip
def choose_budget(answer: Answer) -> None:
    def chooses(
        curves: list, low: float = 0.25, high: float = 64.0, share: float = 0.9, within: float = 0.02, *,
        few: bool = False, at_the_end: bool = False,
    ) -> None:  # fmt: skip
        run = answer(curves, low, high, share, within)
        reached = [(min(knee, high), budget) for budget, knee, *_ in curves if knee >= low]
        best, budget = max(reached)
        answer.that(run, lambda r: r.value["budget"] == budget,
                    f"the budget {budget}, which allows {best:.4g} a second",
                    got=lambda r: f"the budget {r.value['budget']}, at {r.value['rate']:.4g} a second")  # fmt: skip
        answer.that(run, lambda r: r.value["rate"] <= best * (1 + 1e-12),
                    f"a rate at which {share:.0%} are in time: at most {best:.6g} with the budget {budget}",
                    got=lambda r: f"{r.value['rate']:.6g}", by=lambda r: r.value["rate"])  # fmt: skip
        answer.that(run, lambda r: r.value["rate"] * (1 + within) * (1 + 1e-12) >= best,
                    f"a rate within {100 * within:g}% of the highest, which is {best:.6g}",
                    got=lambda r: f"{r.value['rate']:.6g}", by=lambda r: r.value["rate"])  # fmt: skip
        answer.that(run, lambda r: [r.value["budget"], r.value["rate"]] in r.value["tried"],
                    "a rate that was tried with this budget",
                    got=lambda r: f"{r.value['rate']:.6g}, which was not", by=lambda r: r.value["rate"])  # fmt: skip
        if at_the_end:
            answer.that(run, lambda r: r.value["rate"] == high, f"the rate {high:g}, which is good",
                        got=lambda r: f"{r.value['rate']:.6g}", by=lambda r: r.value["rate"])  # fmt: skip
        for budget, knee, *_ in curves if few else ():
            between = halvings(low, high, within)
            most, words = (1, "`low`, which is not good") if knee < low else (2, "`low`, and `high`, which is good")
            if low <= knee < high:
                most, words = 2 + between, f"`low`, `high`, and {between} that halve what is between them"

            def runs(r: Run, budget: int = budget) -> int:
                return sum(of == budget for of, _ in r.value["tried"])

            answer.that(run, lambda r, most=most, runs=runs: runs(r) <= most,
                        f"at most {most} run{'s' * (most > 1)} with the budget {budget}: {words}",
                        got=lambda r, runs=runs: f"{runs(r)}", by=runs)  # fmt: skip

    def rate(low: int, high: int) -> float:
        return int(answer.randint(low, high)) / 16

    with answer.property(
        "one budget that is good at every rate: a rate near the highest that was asked about",
        why="A budget that keeps its promise at any rate is as good as it can be.",
        hint="What becomes of your two rates, if every rate that is tried is good?",
    ):
        chooses([[512, 100.0, 0.0]])

    with answer.property(
        "one budget: the highest rate at which the share is in time, to within `within`, and a rate that was tried",
        why="A rate between the last two may be too fast. What is promised has been tried.",
        hint="Which of your two rates do you return? And when do you stop?",
    ):
        for _ in range(3):
            chooses([[512, rate(8, 900), 0.0]])
        chooses([[512, 0.251, 0.0]])

    with answer.property(
        "where `high` is good, it is the rate",
        why="There is nothing to search where the end is good.",
        hint="What do you know if `high` attains the share?",
    ):
        chooses([[512, 100.0, 0.0]], at_the_end=True)
        chooses([[512, 64.5, 0.0]], at_the_end=True)

    with answer.property(
        "with other ends, another share, and another `within`",
        why="A batch service is content with 50%, and a search that is only rough takes fewer runs.",
        hint="Is there a number in your code that should be an argument?",
    ):
        chooses([[512, rate(80, 200), 0.45]], 2.0, 40.0, 0.5, 0.1)
        chooses([[512, rate(80, 200), 0.9]], 1.0, 16.0, 0.99, 0.005)
        chooses([[512, rate(80, 200), 0.85]], 1.0, 16.0, 0.9, 0.3)

    with answer.property(
        "`within` is a ratio: rates below 1 are told apart as well as large ones",
        why="A model of 400 billion parameters may serve one request in three seconds.",
        hint="What do you compare with `within`: a difference of rates, or their ratio?",
    ):
        for _ in range(3):
            chooses([[512, int(answer.randint(12, 40)) / 128, 0.2]], 0.03, 1.0)

    with answer.property(
        "a rate at which just the share is attained is good",
        why="90% was promised, and 90% is kept.",
        hint="Do you compare with > or with >=, and in each place?",
    ):
        chooses([[512, 64.0, 0.0]], at_the_end=True)
        for _ in range(2):
            chooses([[512, rate(16, 900), 0.3, "just"]])

    with answer.property(
        "of several budgets, the one with the highest rate",
        why="Too small a budget reads the weights too often, too large a one stalls whoever decodes.",
        hint="What do you keep from one budget to the next?",
    ):
        for knees in ((9, 6, 14, 11), (15, 9, 5, 3), (3, 6, 10, 17)):
            budgets = [256, 512, 1024, 2048]
            chooses([[b, knee + rate(0, 16), 0.3] for b, knee in zip(budgets, knees, strict=True)])

    with answer.property(
        "a budget that is too slow even at `low` is none",
        why="With it the limits cannot be met by anybody: a budget of 8,192 under a limit of 100 ms a token, say.",
        hint="Do you look at `low` at all?",
    ):
        chooses([[512, rate(16, 64), 0.2], [256, 0.1, 0.2], [1024, rate(128, 256), 0.2], [8192, 0.2, 0.0]])
        chooses([[256, rate(16, 64), 0.2], [512, 0.2, 0.8]])

    with answer.property(
        "where none is good, a ValueError says so",
        why="A budget that breaks its promises is worse than none.",
        hint="What do you return if no budget has a rate?",
    ):
        answer.raises(ValueError, [[256, 0.1, 0.2], [512, 0.2, 0.0]], 0.25, 64.0, 0.9, 0.02)

    with answer.property(
        "no run more than needed: `low`, `high` if that is good, and then each halves the ratio of the two rates",
        why="A run is a simulation of seconds, or an hour on a GPU.",
        hint="Which runs do you make with a budget that is too slow at `low`? And what does a run between two rates "
        "halve: their difference, or their ratio?",
    ):
        chooses([[256, rate(16, 900), 0.3]], few=True)
        chooses([[256, 0.3, 0.3]], few=True)
        chooses([[256, 3.0, 0.2], [512, 12.0 + rate(0, 16), 0.3], [1024, 7.5, 0.4]], 0.5, 32.0, 0.8, 0.01, few=True)
        chooses([[256, 0.1, 0.2], [512, rate(16, 64), 0.3], [1024, 99.0, 0.0], [2048, 0.2, 0.2]], few=True)
