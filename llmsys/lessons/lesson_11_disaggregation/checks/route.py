"""11.route: of several engines the one with the lowest cost, of what is to be computed and of who is there already."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_11_disaggregation.plain import BLOCK_SIZE, plain_route


@exercise_check(
    "11.route",
    forbids=("llmsys.serving.routing.policies:*", "llmsys.lessons.lesson_11_disaggregation.right:*"),
    adapt=plain_route,
    hints=(
        "Two things cost time on an engine: what it has yet to compute of your prompt, and the requests that it has "
        "already. Which of the engine's columns says what of these?",
        "The cost of engine i is weight · (tokens of the prompt − hits[i]) + held[i], all in tokens. The lowest one is "
        "taken, the first of equal ones, and its number is returned.",
        "tokens = how many the request has\n"
        "for each engine: cost = weight · (tokens − its hit) + its held\n"
        "return the number of the first engine with the lowest cost",
    ),
)
def route(answer: Answer) -> None:
    def costs(tokens: int, held: list[int], hits: list[int], weight: float | None) -> list[float]:
        weight = 1.0 if weight is None else weight
        return [weight * (tokens - hit) + other for hit, other in zip(hits, held, strict=True)]

    def go(*cases: tuple[int, list[int], list[int]], queued: list[int] | None = None, weight: float | None = None):
        """Each case (tokens of the prompt, held, hits) goes where its cost is lowest. All are asked about before the
        first is judged: one answer alone fits many mistakes."""
        runs = []
        for tokens, held, hits in cases:
            given = dict(queued=queued or [(3 * other) % 101 for other in held])
            given |= {} if weight is None else {"weight": weight}
            runs.append((answer(tokens, held, hits, **given), costs(tokens, held, hits, weight)))
        for run, each in runs:
            best = each.index(min(each))
            shown = ", ".join(f"{cost:g}" for cost in each[:8]) + (", …" if len(each) > 8 else "")
            answer.that(
                run, lambda r, best=best: r.value["engine"] == best, f"engine {best}, for the costs are {shown}",
                got=lambda r: f"engine {r.value['engine']}", by=lambda r: r.value["engine"],
            )  # fmt: skip
            answer.that(run, lambda r: not r.value["changed"], "the engines' columns as they were",
                        got="other numbers in held, hits or queued")  # fmt: skip

    def drawn(most: int, n: int) -> list[int]:
        return [int(answer.randint(0, most + 1)) for _ in range(n)]

    def blocks(most: int, n: int) -> list[int]:
        return [BLOCK_SIZE * each for each in drawn(most, n)]

    with answer.property("one engine", why="A cluster begins with one, and there is no choice."):
        go((10, [5], [0]), (40, [0], [32]))

    with answer.property(
        "to who has most of the prompt and holds the fewest tokens, if that is one engine",
        why="It has least to compute, and least else to do.",
        hint="Does your answer depend on what engines says?",
    ):
        go((100, [300, 20, 500], [16, 64, 0]), (400, [90, 80, 10, 70], [160, 0, 320, 16]))

    with answer.property(
        "where nobody has any of the prompt, to who holds the fewest tokens",
        why="All would compute the whole prompt. What makes the difference is who is there already.",
        hint="hits are all 0 here. What is left of the cost?",
    ):
        go((100, [700, 300, 500, 900], [0] * 4), (40, [900, 800, 700, 50, 160], [0] * 5),
           (300, [40 * n + 7 for n in (5, 3, 9, 2, 8, 4)], [0] * 6))  # fmt: skip

    with answer.property(
        "where all hold as much, to who has most of the prompt",
        why="What is cached is not computed again.",
        hint="held are all equal here. What is left of the cost?",
    ):
        go((100, [300] * 4, [16, 48, 64, 32]), (4000, [0, 0, 0], [1600, 3984, 0]),
           (900, [50] * 6, [320, 16, 640, 800, 480, 0]))  # fmt: skip

    with answer.property(
        "some of both: Dynamo's example, 8 + 10, 5 + 5 and 2 + 9 blocks",
        why="The first has too little of the prompt, and the last, which has most of it, too many others.",
        hint="Write down the three costs. Do yours agree with 18, 10 and 11 blocks?",
    ):
        go((160, [160, 80, 144], [32, 80, 128]), (160, [144, 160, 80], [128, 32, 80]),
           (160, [80, 144, 160], [80, 128, 32]), (1000, [800, 100, 900], [16, 0, 32]))  # fmt: skip

    with answer.property(
        "a token to compute costs as much as a token that is held",
        why="hits and held are counted in tokens, and so is the cost: blocks are what caches are made of, not a price.",
        hint=f"A hit of 64 tokens saves 64 tokens, and {64 // BLOCK_SIZE} blocks. In which unit is held?",
    ):
        cases = [(100, [117, 100], [32, 16]), (100, [100, 117], [16, 32]), (100, [50, 0], [64, 0]),
                 (300, [200, 0], [160, 0]), (1000, [30, 0], [64, 0])]  # fmt: skip
        for n in (5, 9, 12, 12, 12):
            tokens, hits = BLOCK_SIZE * int(answer.randint(30, 60)) + int(answer.randint(1, 16)), blocks(29, n)
            cases.append((tokens, [a + b for a, b in zip(hits, drawn(40, n), strict=True)], hits))
            cases += [(tokens, drawn(500, n), hits), (tokens, drawn(12, n), hits)]
        go(*cases)

    with answer.property(
        "the weight says what a token to compute costs",
        why="With a larger one requests go to whom they have been to; with 0 hits count for nothing.",
        hint="Which of the two terms is multiplied by weight?",
    ):
        for weight in (0.0, 0.5, 2.0, 4.0):
            go((100, [10, 60, 100], [0, 32, 64]), *((700, drawn(600, n), blocks(40, n)) for n in (3, 6, 9)),
               weight=weight)  # fmt: skip

    with answer.property(
        "of equal ones the first",
        why="One state of things, one choice: what a router does can be found out afterwards.",
        hint="Two engines have the lowest cost. Which of them do you keep?",
    ):
        go((50, [7] * 3, [0] * 3), (100, [90, 40, 56, 40, 24], [0, 16, 32, 16, 0]), (100, [80, 48, 64], [0, 16, 32]))

    with answer.property("many engines", why="A cluster has hundreds."):
        go(*((2000, drawn(3000, n), blocks(120, n)) for n in (64, 257)))
