"""11.goodput: the highest rate at which enough requests meet the limits, by bisection, for each GPU."""

import math

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_11_disaggregation.plain import plain_goodput

ALWAYS = 1e300


@exercise_check(
    "11.goodput",
    forbids=(
        "llmsys.serving.goodput:*",
        "llmsys.serving.simulator.simulate:capacity",
        "llmsys.serving.simulator.placement:*",
        "llmsys.lessons.lesson_11_disaggregation.right:*",
    ),
    adapt=plain_goodput,
    hints=(
        "Keep two rates: one that was tried and is good enough, and one that was tried and is too high. What do you "
        "try next, and which of the two does it replace?",
        "low is always good enough, high never is. The rate between them, √(low · high), becomes the one or the other, "
        "until high / low is at most 1 + within. The answer is low: it was tried. And it is for all GPUs together.",
        "if attained(high) >= share: return high / gpus\n"
        "if attained(low) < share: return 0\n"
        "while high / low > 1 + within:\n"
        "    middle = √(low · high);  low = middle if attained(middle) >= share, else high = middle\n"
        "return low / gpus",
    ),
)
def goodput(answer: Answer) -> None:
    def told(points: list[list[float]], **given) -> Run:
        return answer(points, **given)

    def reaches(points: list[list[float]], rate: float, **given) -> None:
        """The answer is this rate for all GPUs together."""
        run = told(points, **given)
        wanted = rate / given["gpus"]
        answer.that(
            run, lambda r: math.isclose(r.value["goodput"], wanted, rel_tol=1e-9), f"{wanted:g} a second and GPU",
            got=lambda r: f"{r.value['goodput']:g}", by=lambda r: r.value["goodput"],
        )  # fmt: skip

    def finds(knee: float, *, share: float = 0.9, within: float = 0.02, low: float = 0.5, high: float = 64.0, gpus=1):
        """A rate that was tried and is good enough, and near the highest that is."""
        points = [[knee / 3, 1.0], [knee, share], [knee * 1.5, share - 0.01], [ALWAYS, 0.1]]
        given = dict(gpus=gpus, low=low, high=high, share=share, within=within)
        most = 4 + math.ceil(math.log2((high - low) / (within * low)))
        run = told(points, most=most, **given)

        def rate(r: Run) -> float:
            return r.value["goodput"] * gpus

        def shown(r: Run) -> str:
            return f"{r.value['goodput']:g}" + (f" for each, {rate(r):g} for all {gpus}" if gpus > 1 else "")

        same = dict(got=shown, by=lambda r: r.value["goodput"])
        answer.that(run, lambda r: rate(r) <= knee * (1 + 1e-9),
                    f"at most {knee:g} for all {gpus} GPUs: above, it is less than {share:.0%}", **same)  # fmt: skip
        answer.that(run, lambda r: rate(r) * (1 + within) >= knee * (1 - 1e-9),
                    f"{knee:g} for all {gpus} GPUs, or at most {within:.1%} less", **same)  # fmt: skip
        answer.that(run, lambda r: r.value["was tried"], "a rate that was tried", **same)
        answer.that(run, lambda r: not r.value["too many"], f"at most {most} runs of the service",
                    got=lambda r: f"{most + r.value['too many']} runs", by=lambda r: r.value["too many"])  # fmt: skip

    with answer.property("a rate between the two that are given", why="It is looked for there."):
        for knee in (5.0, 30.0):
            run = told([[knee, 1.0], [ALWAYS, 0.0]], gpus=1, low=2.0, high=50.0)
            answer.that(run, lambda r: 2.0 <= r.value["goodput"] <= 50.0, "a rate from 2 to 50",
                        got=lambda r: f"{r.value['goodput']:g}", by=lambda r: r.value["goodput"])  # fmt: skip

    with answer.property(
        "one GPU: a rate that was tried, is good enough, and near the highest",
        why="It is what the service is promised to take. A rate that nobody tried promises nothing.",
        hint="When your loop ends, which of your two rates has been tried and was good enough?",
    ):
        finds(7.3)
        finds(0.6)
        finds(50.0)
        for _ in range(3):
            finds(0.5 + 60 * float(answer.randint(1, 1000)) / 1000)

    with answer.property(
        "where the highest rate is good enough, it is the answer",
        why="It was tried, and there is no higher one to try.",
    ):
        reaches([[ALWAYS, 1.0]], 8.0, gpus=1, low=1.0, high=8.0)
        reaches([[ALWAYS, 0.95]], 20.0, gpus=1, low=0.1, high=20.0)

    with answer.property(
        "the rate is divided by the GPUs, once",
        why="Two GPUs that serve one and a half times as much as one are worse than one.",
        hint="Which rates does attained take: those of one GPU, or of all together?",
    ):
        reaches([[ALWAYS, 1.0]], 8.0, gpus=4, low=1.0, high=8.0)
        finds(7.3, gpus=3)
        finds(31.0, gpus=8, within=0.05)

    with answer.property(
        "a share that is just attained is enough", why="90% of the requests is at least 90%.",
        hint="At the rate in question exactly `share` is attained. Which comparison says that this is good enough?",
    ):  # fmt: skip
        reaches([[8.0, 0.9], [ALWAYS, 0.0]], 8.0, gpus=2, low=1.0, high=8.0)
        reaches([[1.0, 0.75], [ALWAYS, 0.0]], 1.0, gpus=1, low=1.0, high=1.005, share=0.75)

    with answer.property(
        "where even the lowest rate is too high, goodput is 0",
        why="A service that never keeps its promise has no goodput, however many requests it takes.",
        hint="Is low good enough? Nobody has said so.",
    ):
        reaches([[ALWAYS, 0.5]], 0.0, gpus=1, low=1.0, high=8.0)
        reaches([[0.9, 1.0], [ALWAYS, 0.89]], 0.0, gpus=2, low=1.0, high=8.0)

    with answer.property(
        "any share, as near as is asked, between any bounds",
        why="The next service promises something else.",
        hint="Are share and within used wherever a number of your own could stand?",
    ):
        for share, within, low, high, gpus in ((0.5, 0.1, 0.1, 100.0, 2), (0.99, 0.005, 2.0, 9.0, 1),
                                               (0.75, 0.3, 1.0, 1000.0, 5), (0.95, 0.05, 10.0, 30.0, 4),
                                               (0.9, 0.0005, 0.1, 1000.0, 3)):  # fmt: skip
            for _ in range(3):
                knee = low * (high / low) ** (float(answer.randint(20, 980)) / 1000)
                finds(knee, share=share, within=within, low=low, high=high, gpus=gpus)
