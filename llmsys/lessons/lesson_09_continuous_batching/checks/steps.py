"""09.steps: computed catches up with known under a budget of tokens and a number of places."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_09_continuous_batching.checks.lines_agree import add, agreeing
from llmsys.lessons.lesson_09_continuous_batching.checks.lives import life
from llmsys.lessons.lesson_09_continuous_batching.scripts import played
from llmsys.serving import Scheduler


@exercise_check(
    "09.steps",
    reference=Scheduler,
    forbids=(
        "llmsys.serving.scheduler:*",
        "llmsys.serving.step:*",
        "llmsys.serving.outcome:accept",
        "llmsys.lessons.lesson_09_continuous_batching.right_steps:*",
    ),
    adapt=played,
    hints=(
        "Keep one number as you go through the requests: how many tokens the step has left. What a request has left to "
        "compute is a difference of two numbers, whether it reads its prompt, answers, or begins again.",
        "n = min(known − computed, what the step has left), for each, whoever it is. Its next token can only be said "
        "when nothing known is left to compute; then computed is what known was before that token. Nobody is let in "
        "without a token left for it, or without a place.",
        "left = max_tokens_per_step\n"
        "for each of running, in its order (take a copy of the list):\n"
        "    n = min(known − computed, left);  if make_room says so: a share of n, left −= n\n"
        "while left > 0 and fewer than max_sequences are running:\n"
        "    let one in, or stop;  n = min(known − computed, left): a share of n, left −= n\n"
        "logits:   computed + n == known\n"
        "take_in:  computed += n, and what was said becomes known",
    ),
)
def steps(answer: Answer) -> None:
    agrees = agreeing(answer)

    with answer.property(
        "a prompt that fits into a step is computed by it", why="None of its tokens is computed, and all are known."
    ):
        agrees(add(0, "a", 5, 3), [1, "abort", "a"], budget=8, sequences=1, told="work")

    with answer.property(
        "a prompt of one token is computed, and its answer of one token said",
        why="That is the smallest request that there is.",
    ):
        agrees(add(0, "a", 1, 1), budget=8, sequences=1)

    with answer.property(
        "a prompt is computed, then one token a step, each of which is known before it is computed",
        why="A step's logits say one token more. Its own keys and values are computed by the next step.",
        hint="After a step that said a token: how many tokens are known, and how many of them are computed?",
    ):
        agrees(add(0, "a", 5, 4), budget=8, sequences=2)
        agrees(add(0, "a", 8, 3), budget=8, sequences=1)

    with answer.property(
        "a prompt that is longer than a step goes on in the next one, and says nothing until all of it is computed",
        why="The next token depends on the whole prompt. What is said after a piece continues that piece.",
        hint="Of a prompt of 20 tokens, 8 are computed and 8 are in this step. Is its next token wanted? And in the "
        "step of the last 4?",
    ):
        agrees(add(0, "a", 20, 3), budget=8, sequences=2)
        agrees(add(0, "a", 16, 3), budget=8, sequences=2)
        agrees(add(0, "a", 17, 2), budget=8, sequences=2)
        agrees(add(0, "a", 5, 2), budget=1, sequences=1)

    with answer.property(
        "a step has no more tokens than max_tokens_per_step, and as many as there are to compute",
        why="Beyond the budget, everybody waits longer for the step. Below it, the weights are read for less.",
        hint="Three prompts of 5, 5 and 5 tokens in a step of 12: what do you give to each, and what is left after it?",
    ):
        agrees(*(add(0, f"s{n}", 5, 3) for n in range(4)), budget=12, sequences=4)
        agrees(*(add(0, f"s{n}", 4, 2) for n in range(5)), budget=12, sequences=5)
        agrees(*(add(n, f"s{n}", 7, 4) for n in range(5)), budget=9, sequences=6)

    with answer.property(
        "those that answer compute beside those that read, who get what is left",
        why="A decode that waits for somebody else's prompt is a user who looks at half a sentence.",
        hint="In which order do you go through the requests, and what does each one leave to those behind it?",
    ):
        agrees(add(0, "a", 3, 12), add(0, "b", 2, 12), add(1, "c", 15, 3), add(2, "d", 11, 2), budget=6, sequences=4)
        agrees(add(0, "a", 3, 9), add(1, "b", 20, 3), budget=8, sequences=4)
        agrees(*(add(0, f"s{n}", 1, 12) for n in range(3)), add(1, "x", 6, 2), budget=4, sequences=4)

    with answer.property(
        "no more than max_sequences run, and whoever ends makes room for the next one",
        why="Each place has a row in the step's tables. And an empty place is what a static batch has too many of.",
        hint="How many are running when you let another one in? With < or with <=?",
    ):
        agrees(*(add(0, f"s{n}", 2, 2 + n % 3) for n in range(7)), budget=50, sequences=3)
        agrees(add(0, "a", 2, 6), add(0, "b", 2, 2), add(3, "c", 2, 2), budget=9, sequences=1)
        agrees(*(add(0, f"s{n}", 1, 4) for n in range(4)), add(1, "x", 9, 2), budget=4, sequences=4)

    with answer.property(
        "what was found in the cache is not computed, and takes nothing of the step's tokens",
        why="A request that is let in may have some of its tokens computed already.",
        hint="Where do you look at request.computed of one that was let in just now? Its whole prompt is not what it "
        "has left.",
    ):
        start = list(range(50, 62))
        agrees(add(0, "a", [*start, 1], 3), add(1, "b", [*start, 2, 3, 4], 2), add(1, "c", [*start, 4, 5], 2),
               add(1, "d", 9, 2), budget=13, sequences=6)  # fmt: skip
        agrees(add(0, "a", start, 1), add(2, "b", start, 2), budget=12, sequences=2)
        agrees(add(0, "a", [*start, *range(8)], 1), add(4, "b", [*start, *range(20)], 2), budget=6, sequences=2)

    with answer.property(
        "who has no room computes nothing, and is not forgotten",
        why="With other memory than exercise (b)'s, somebody is thrown out, and begins again with all that it knows.",
        hint="Do you ask make_room for each request that runs, and what do you do where it says False? It may also "
        "take others out of the list that you are going through.",
    ):
        agrees(add(0, "a", 6, 9), add(0, "b", 5, 9), add(0, "c", 3, 6), budget=20, sequences=4, blocks=5)
        agrees(add(0, "a", 4, 12), add(0, "b", 4, 9), add(0, "c", 4, 9), add(1, "d", 4, 3), budget=7, sequences=4,
               blocks=9, block_size=2)  # fmt: skip

    with answer.property(
        "where there is no room for the first of those that wait, the step goes on without",
        why="None says so. Whoever comes later must not pass it.",
        hint="What does your loop do when nobody was let in?",
    ):
        agrees(add(0, "a", 6, 5), add(0, "b", 18, 2), add(0, "c", 2, 2), budget=30, sequences=4, blocks=6)
        agrees(add(0, "a", 6, 5), add(1, "b", 11, 3), add(2, "c", 3, 2), budget=30, sequences=4, blocks=7,
               watermark=0.4)  # fmt: skip

    with answer.property(
        "a long life: requests that come, go, are aborted, and begin again",
        why="One rule for all of them, whatever happens.",
        hint="Follow the first request that differs: how many of its tokens are known, how many computed, and what had "
        "the step left when its turn came?",
    ):
        for sequences, more in ((4, 0), (3, 4), (6, 30), (1, 2)):
            agrees(*life(answer, room=1000), budget=sequences + more, sequences=sequences)
            agrees(*life(answer, room=24), budget=sequences + more, sequences=sequences, blocks=8, block_size=3)
