"""The check of the largest batch."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.models import decode_cost


@exercise_check(
    "07.largest_batch",
    reference=decode_cost.largest_batch,
    forbids=("llmsys.models.decode_cost:*",),
    hints=(
        "Take away what is there once, however many sequences there are. What does each sequence need of the rest?",
        "A sequence reserves context · bytes_per_token. As many whole ones as fit into memory − weight_bytes: a floor, "
        "in whole numbers from beginning to end, and 0 where not even the weights fit.",
        "free = memory - weight_bytes\nreturn max(free, 0) // (context * bytes_per_token)",
    ),
)
def largest_batch(answer: Answer) -> None:
    def matches(memory: int, weights: int, per_token: int, context: int) -> None:
        each = per_token * context
        batch = 0
        if memory - weights >= each:
            batch = (memory - weights) // each
        answer.matches(batch, memory, weight_bytes=weights, bytes_per_token=per_token, context=context)

    with answer.property("a batch is an int", why="Three quarters of a sequence are none."):
        run = answer(1000, weight_bytes=100, bytes_per_token=2, context=100)
        answer.that(run, lambda r: type(r.value) is int, expected="an int")

    with answer.property("no weights, one token each", why="As many as fit."):
        matches(1000, 0, 10, 1)

    with answer.property(
        "each sequence has room for its whole context",
        why="It will get there, token by token.",
        hint="How many bytes is one whole sequence?",
    ):
        matches(100_000, 0, 10, 100)
        matches(4096, 0, 2, 64)

    with answer.property("the weights are there once", why="All sequences of a step share them."):
        matches(80 * 2**30, 16_060_522_496, 131_072, 8192)
        matches(2**30, 538_060_032, 46_080, 256)

    with answer.property("what does not fit whole does not fit", why="0.99 of a sequence is a sequence too many."):
        matches(1099, 0, 10, 10)
        matches(1199, 100, 10, 10)
        matches(99, 0, 10, 10)

    with answer.property("to the byte: exactly full is full", why="Memory that is just enough is enough."):
        for batch in (1, 3, 7):
            matches(batch * 4800 + 333, 333, 48, 100)
            matches(batch * 4800 + 332, 333, 48, 100)

    with answer.property("where the weights do not fit, nothing does", why="A batch of −1 is no answer."):
        matches(1000, 1001, 1, 1)
        matches(2**30, 16 * 2**30, 131_072, 1024)
        matches(1000, 1000, 1, 1)

    with answer.property(
        "exact for any size",
        why="Python's whole numbers are; its floats have 53 bits, and round the last sequence up.",
    ):
        per_token, context = 2**30 + 1, 2**27
        for batch in (1, 3):
            matches(batch * per_token * context - 1, 0, per_token, context)
            matches(batch * per_token * context + 5, 5, per_token, context)
        for _ in range(3):
            per_token, context, weights = (int(answer.randint(1, 10**6)) for _ in range(3))
            batch = int(answer.randint(1, 1000))
            matches(weights + batch * per_token * context, weights, per_token, context)
            matches(weights + batch * per_token * context - 1, weights, per_token, context)
