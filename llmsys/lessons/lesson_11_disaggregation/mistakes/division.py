"""Wrong answers to 11.divide: a right one with an edit, and others."""

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_11_disaggregation.right import divide

wrong = Mistakes("11.divide", divide)

NEIGHBOUR = (
    "    rate = min(prefill_rate(first), decode_rate(gpus - first))\n"
    "    if first > 1 and prefill_rate(first - 1) > rate:\n"
    "        first -= 1\n"
)

wrong(
    "one_side_of_the_crossing",
    "You take the first division at which prompts are not what bounds, and do not look at the one before.",
    (NEIGHBOUR, ""),
    why="There decoding bounds, perhaps by more than prompts do in the division before.",
)
wrong(
    "always_the_one_before",
    "You always take the last division at which prompts bound the rate.",
    (NEIGHBOUR, "    if first > 1:\n        first -= 1\n"),
    why="The one after it may take more.",
)
wrong(
    "swapped",
    "You give the decoders what the prefillers should have.",
    ("return first, gpus - first", "return gpus - first, first"),
    why="The first number is that of the prefillers.",
)
wrong(
    "as_many_decoders_as_prefillers",
    "You compare p prefillers with p decoders.",
    ("prefill_rate(middle) >= decode_rate(gpus - middle)", "prefill_rate(middle) >= decode_rate(middle)"),
    why="p prefillers leave gpus − p decoders.",
)
wrong(
    "half_and_half",
    "You divide the GPUs in half.",
    ("    first, last = 1, gpus - 1\n", "    first = last = max(gpus // 2, 1)\n"),
    (NEIGHBOUR, ""),
    why="Which phase needs more depends on the lengths of prompts and answers, and on the limits.",
)

@misconception(
    "11.divide",
    "You add the two rates up.",
    why="A request is not served by one side or the other, but by both: the slower one counts.",
)
def sum_of_rates(gpus, prefill_rate, decode_rate):
    best = max(range(1, gpus), key=lambda p: prefill_rate(p) + decode_rate(gpus - p))
    return best, gpus - best


@misconception(
    "11.divide",
    "You divide by the rates of one engine each.",
    why="Several engines need not reach so many times the rate of one: ask for the rate of as many as there would be.",
)
def in_proportion(gpus, prefill_rate, decode_rate):
    one, other = prefill_rate(1), decode_rate(1)
    best = max(range(1, gpus), key=lambda p: min(p * one, (gpus - p) * other))
    return best, gpus - best


@misconception(
    "11.divide",
    "You try every division.",
    why="Each rate costs a dozen simulations, and the crossing can be found by halving.",
)
def every_division(gpus, prefill_rate, decode_rate):
    best = max(range(1, gpus), key=lambda p: min(prefill_rate(p), decode_rate(gpus - p)))
    return best, gpus - best
