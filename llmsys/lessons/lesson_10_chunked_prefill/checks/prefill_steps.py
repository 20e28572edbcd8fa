"""10.prefill_steps: a prompt in pieces beside those that decode, and how long each step takes."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_10_chunked_prefill.plain import plain_steps
from llmsys.lessons.lesson_10_chunked_prefill.right import prefill_steps as right

DECODE = {"fixed": 0.004, "per_token": 2e-5, "per_attended": 2e-8}
FREE = {"fixed": 1.0}
"""Prices of a device on which every step takes a second."""


@exercise_check(
    "10.prefill_steps",
    forbids=(
        "llmsys.serving.simulator.instance:*", "llmsys.serving.simulator.simulate:*", "llmsys.serving.scheduler:*",
        "llmsys.lessons.lesson_10_chunked_prefill.right:*",
    ),
    adapt=plain_steps,
    hints=(
        "Write down the first three steps for a prompt of 10 tokens, two that decode, and a budget of 6: who computes "
        "how many tokens, and how many of each are in the cache before?",
        "Each step has a token for each of contexts, and a piece: what is left of the prompt, or what is left of the "
        "budget. After it, the prompt has the piece more in the cache, and each of contexts one token.",
        "computed = 0\n"
        "while computed < prompt:\n"
        "    piece = min(prompt − computed, budget − how many decode)\n"
        "    load = StepLoad.of([(c, 1) for each context c] + [(computed, piece)])\n"
        "    one more pair: (piece, times.seconds(load))\n"
        "    computed += piece;  every context += 1",
    ),
)  # fmt: skip
def prefill_steps(answer: Answer) -> None:
    def price(low: int, high: int) -> float:
        return int(answer.randint(low, high)) * 1e-6

    def prices() -> dict:
        return {
            "fixed": price(3000, 9000), "per_token": price(10, 40), "per_sequence": price(20, 90),
            "per_attended": price(20, 90) / 1e3, "per_pair": price(10, 90) / 1e4,
        }  # fmt: skip

    def agrees(prompt: int, contexts: list[int], budget: int, mixed: dict) -> None:
        decode = FREE if mixed is FREE else DECODE
        given = dict(prompt=prompt, contexts=contexts, budget=budget, decode=decode, mixed=mixed)
        answer.matches(plain_steps(right)(**given), **given, rtol=1e-9)

    with answer.property(
        "a prompt that just fits into one step is one piece",
        why="There is nothing to cut.",
        hint="How many tokens does the step have for it?",
    ):
        agrees(16, [], 16, FREE)
        agrees(5, [], 5, FREE)

    with answer.property(
        "a longer one is cut into pieces of the budget, of which the last is what is left",
        why="That is how many steps it takes: its tokens by the budget, rounded up.",
        hint="10 tokens by a budget of 4: how long is the last piece? And 8 tokens?",
    ):
        for prompt, budget in ((8, 4), (10, 4), (9, 4), (7, 1), (12, 16)):
            agrees(prompt, [], budget, FREE)

    with answer.property(
        "those that decode have a token each in every step, out of the same budget",
        why="The budget is a step's: what a decode takes of it is not left for the piece.",
        hint="Three decode, and the budget is 8: how many tokens are left for the prompt?",
    ):
        for prompt, count, budget in ((20, 3, 8), (10, 7, 8), (16, 4, 12), (5, 3, 8)):
            agrees(prompt, [100] * count, budget, FREE)

    with answer.property(
        "a step takes what its load takes: tokens, sequences, and what is attended to",
        why="A piece is computed, and beside it each decode reads its whole context.",
        hint="StepLoad.of takes pairs: tokens in the cache, and new ones. Which pairs has the first step?",
    ):
        for _ in range(2):
            agrees(int(answer.randint(5, 60)), [int(answer.randint(50, 900))], 64, prices())
            agrees(int(answer.randint(5, 60)), [int(each) for each in answer.randint(50, 900, (4,))], 64, prices())

    with answer.property(
        "each piece attends to those before it",
        why="They are in the cache: the last of many pieces reads nearly the whole prompt.",
        hint="How many tokens of the prompt are in the cache before its second piece?",
    ):
        agrees(int(answer.randint(300, 500)), [], 64, prices())
        agrees(int(answer.randint(300, 500)), [], 96, prices() | {"per_attended": 0.0})

    with answer.property(
        "those that decode have one token more in the cache after each step",
        why="They go on answering, which is the point.",
        hint="What has a context become when the second step begins?",
    ):
        for _ in range(2):
            contexts = [int(each) for each in answer.randint(10, 90, (int(answer.randint(2, 6)),))]
            agrees(int(answer.randint(100, 300)), contexts, len(contexts) + int(answer.randint(5, 40)), prices())

    with answer.property(
        "what is handed over is left as it is",
        why="The same contexts are asked for with one budget after the other.",
        hint="Do you count up in the caller's list?",
    ):
        given = dict(prompt=50, contexts=[30, 40], budget=12, decode=DECODE, mixed=prices())
        for budget in (12, 32, 12):
            given["budget"] = budget
            answer.matches(plain_steps(right)(**given), **given, rtol=1e-9)
