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
    def costs(tokens: int, held: list[int], hits: list[int], weight: float) -> list[float]:
        return [weight * (tokens - hit) + other for hit, other in zip(hits, held, strict=True)]

    def goes(tokens: int, held: list[int], hits: list[int], *, queued: list[int] | None = None, weight=None) -> None:
        each = costs(tokens, held, hits, 1.0 if weight is None else weight)
        best = each.index(min(each))
        given = dict(queued=queued or [other // 2 for other in held]) | ({} if weight is None else {"weight": weight})
        run = answer(tokens, held, hits, **given)
        shown = ", ".join(f"{cost:g}" for cost in each)
        answer.that(
            run, lambda r: r.value["engine"] == best, f"engine {best}, for their costs are {shown}",
            got=lambda r: f"engine {r.value['engine']}", by=lambda r: r.value["engine"],
        )  # fmt: skip
        answer.that(run, lambda r: not r.value["changed"], "the engines' columns as they were",
                    got="other numbers in held, hits or queued")  # fmt: skip

    def drawn(most: int, n: int) -> list[int]:
        return [int(answer.randint(0, most)) for _ in range(n)]

    with answer.property(
        "some of both: Dynamo's example, 8 + 10, 5 + 5 and 2 + 9 blocks",
        why="The first has too little of the prompt, and the last, which has most of it, too many others.",
    ):
        goes(160, [160, 80, 144], [32, 80, 128])
        goes(160, [144, 160, 80], [128, 32, 80])

    with answer.property(
        "where nobody has any of the prompt, to who holds the fewest tokens",
        why="All would compute the whole prompt. What makes the difference is who is there already.",
        hint="hits are all 0 here. What is left of the cost?",
    ):
        goes(100, [700, 300, 500], [0, 0, 0])
        goes(40, [900, 800, 700, 50, 60], [0] * 5, queued=[0, 0, 0, 50, 60])

    with answer.property(
        "where all hold as much, to who has most of the prompt",
        why="What is cached is not computed again.",
        hint="held are all equal here. What is left of the cost?",
    ):
        goes(100, [300, 300, 300], [16, 64, 32])
        goes(4000, [0, 0], [0, 3984])

    with answer.property(
        "a token to compute costs as much as a token that is held",
        why="hits and held are counted in tokens, and so is the cost: blocks are what caches are made of, not a price.",
        hint=f"A hit of 64 tokens saves 64 tokens, and {64 // BLOCK_SIZE} blocks. In which unit is held?",
    ):
        goes(100, [117, 100], [32, 16])
        goes(100, [100, 117], [16, 32])
        goes(100, [50, 0], [64, 0])
        goes(300, [200, 0], [160, 0])
        goes(1000, [30, 0], [64, 0])
        for n in (2, 5, 9):
            tokens = 16 * int(answer.randint(30, 60)) + int(answer.randint(1, 16))
            hits = [16 * each for each in drawn(30, n)]
            goes(tokens, [hit + other for hit, other in zip(hits, drawn(40, n), strict=True)], hits)
            goes(tokens, drawn(500, n), hits)

    with answer.property(
        "the weight says what a token to compute costs",
        why="With a larger one requests go to whom they have been to; with 0 hits count for nothing.",
        hint="Which of the two terms is multiplied by weight?",
    ):
        for weight in (0.0, 0.5, 2.0, 4.0):
            goes(100, [10, 60, 100], [0, 32, 64], weight=weight)
            for n in (3, 6):
                goes(700, drawn(600, n), [16 * each for each in drawn(40, n)], weight=weight)

    with answer.property(
        "of equal ones the first",
        why="One state of things, one choice: what a router does can be found out afterwards.",
        hint="Two engines have the lowest cost. Which of them do you keep?",
    ):
        goes(50, [7, 7, 7], [0, 0, 0])
        goes(100, [90, 40, 56, 40, 24], [0, 16, 32, 16, 0])
        goes(100, [80, 48, 64], [0, 16, 32])

    with answer.property("one engine, and many", why="A cluster begins with one, and has hundreds."):
        goes(10, [5], [0])
        for n in (2, 64, 257):
            goes(2000, drawn(3000, n), [16 * each for each in drawn(120, n)])
