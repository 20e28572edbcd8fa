"""Wrong answers to 20.one_f_one_b: a right one with an edit."""

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_20_pipeline_schedules.right import one_f_one_b
from llmsys.parallel.pipeline.actions import B, F

wrong = Mistakes("20.one_f_one_b", one_f_one_b)

AHEAD = "min(num_ranks - 1 - rank, num_microbatches)"
FORWARD = "        if ahead + n < num_microbatches:\n            order.append(F(rank, ahead + n))\n"
BACKWARD = "        order.append(B(rank, n))\n"

wrong(
    "all_forwards_first",
    "You do all forwards before the first backward.",
    (AHEAD, "num_microbatches"),
    why="That is GPipe: the same bubble, and every microbatch's activations are kept at once.",
)
wrong(
    "one_too_many_ahead",
    "You are one forward more ahead than you need.",
    (AHEAD, "min(num_ranks - rank, num_microbatches)"),
    why="The alternating part begins with a forward, so num_ranks − 1 − rank are enough before it. One more keeps one "
    "activation more, and nobody is faster for it.",
)
wrong(
    "one_too_few_ahead",
    "You are one forward less ahead than you must be.",
    (AHEAD, "max(min(num_ranks - 2 - rank, num_microbatches), 0)"),
    why="A rank then waits for a gradient with nothing to do, and the bubble grows in each round.",
)
wrong(
    "every_rank_alike",
    "Every rank is as many forwards ahead as rank 0.",
    (AHEAD, "min(num_ranks - 1, num_microbatches)"),
    why="The way to the end and back is shorter from rank r: num_ranks − 1 − rank will do. The last rank needs none.",
)
wrong(
    "as_many_as_ranks",
    "Every rank is as many forwards ahead as there are ranks.",
    (AHEAD, "min(num_ranks, num_microbatches)"),
    why="The way to the end and back is shorter from rank r: num_ranks − 1 − rank will do. The last rank needs none.",
)
wrong(
    "twice_as_far_ahead",
    "You are twice as many forwards ahead as you must be.",
    (AHEAD, "min(2 * (num_ranks - 1 - rank), num_microbatches)"),
    why="That is for forwards that others wait for, as where a rank has two stages, or to fill the first bubble with "
    "more memory. Here nobody is faster for it, and rank 0 keeps nearly twice as much.",
)
wrong(
    "counted_from_the_wrong_end",
    "You count the forwards ahead from the wrong end.",
    (AHEAD, "min(rank, num_microbatches)"),
    why="Rank 0 has the longest way to the last rank and back, so it must be furthest ahead.",
)
wrong(
    "nothing_ahead",
    "Every rank does a forward and its backward, and waits for it.",
    (AHEAD, "0"),
    why="Only one microbatch is under way at a time: while one rank computes, all others are idle.",
)
wrong(
    "microbatches_that_there_are_not",
    "You do forwards of microbatches that there are not.",
    (AHEAD, "num_ranks - 1 - rank"),
    why="With fewer microbatches than ranks, the first ranks are ahead by all of them, and no more.",
)
wrong(
    "runs_over_the_end",
    "You go on with forwards when all of them are done.",
    (FORWARD, "        order.append(F(rank, ahead + n))\n"),
    why="At the end there are backwards left and no forwards: as many as the rank was ahead.",
)
wrong(
    "no_end",
    "You leave out the backwards at the end.",
    ("for n in range(num_microbatches):", "for n in range(num_microbatches - ahead):"),
    why="Whoever was ahead by some forwards has as many backwards left when the forwards are at their end.",
)
wrong(
    "backward_first",
    "In the alternating part you put the backward before the forward.",
    (FORWARD + BACKWARD, BACKWARD + FORWARD),
    why="The backward of a rank that is num_ranks − 1 − rank ahead needs that forward: the last rank has none at all "
    "yet.",
)
wrong(
    "last_in_first_out",
    "You do the backward of the newest microbatch first.",
    (BACKWARD, BACKWARD.replace(" n)", " ahead + n if ahead + n < num_microbatches else num_microbatches - 1 - n)")),
    why="A gradient comes back first for the microbatch that was sent first. The newest one has only just left.",
)
wrong(
    "stage_zero",
    "All your actions are at stage 0.",
    ("F(rank, ", "F(0, ", 2),
    ("B(rank, ", "B(0, "),
    why="Rank r has stage r, and nothing else.",
)


@misconception(
    "20.one_f_one_b",
    "With few microbatches you count below 0, or beyond the last.",
    why="num_ranks − rank forwards can only be ahead where there are as many. Else it is all of them.",
)
def more_ahead_than_there_are(rank, num_ranks, num_microbatches):
    """Backward and forward in turn, after num_ranks − rank forwards."""
    ahead = num_ranks - rank
    order = [F(rank, n) for n in range(ahead)]
    for n in range(num_microbatches - ahead):
        order += [B(rank, n), F(rank, n + ahead)]
    return order + [B(rank, n) for n in range(num_microbatches - ahead, num_microbatches)]
