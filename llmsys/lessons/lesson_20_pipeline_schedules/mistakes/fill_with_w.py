"""Wrong answers to 20.fill_with_w: a right one with an edit."""

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_20_pipeline_schedules.right import fill_with_w
from llmsys.parallel.pipeline.actions import I, Kind, W

wrong = Mistakes("20.fill_with_w", fill_with_w)

START = "    filled, waiting = [], []\n"
MANY = "if len(waiting) > rank:"
END = "return filled + waiting"
FORWARD = "            filled.append(action)\n"
OLDEST = "waiting.pop(0)"
INPUT = "            filled.append(I(action.stage, action.microbatch))\n"
WEIGHTS = "            waiting.append(W(action.stage, action.microbatch))\n"

wrong(
    "never_waits",
    "You do each W right after its I.",
    (MANY, "if waiting:"),
    why="That is B once more. The gradient goes on earlier, but no W is left for when there is nothing else to do.",
)
wrong(
    "all_at_the_end",
    "You leave all W for the end.",
    (MANY, "if False:"),
    why="Then every microbatch's activations are kept at once, as with GPipe, and rank 0 has all its W left when it "
    "could be at its end.",
)
wrong(
    "waits_on_the_wrong_ranks",
    "You let the first ranks wait longest.",
    (START, "    ahead = [each.kind for each in order].index(Kind.B) - 1\n" + START),
    (MANY, "if len(waiting) > ahead:"),
    why="The first ranks keep most in 1F1B already. It is the last ones that have room, and a gap to fill.",
)
wrong(
    "one_more_waits",
    "You let one W more wait than there is room for.",
    (MANY, "if len(waiting) > rank + 1:"),
    why="While a W waits, its activations are kept. Rank r keeps num_ranks − r, and r more make num_ranks.",
)
wrong(
    "twice_as_many_wait",
    "You let twice as many W wait as there is room for.",
    (MANY, "if len(waiting) > 2 * rank:"),
    why="That is ZB-H2's number, with forwards that are further ahead. Here num_ranks are to be kept, and no more.",
)
wrong(
    "one_less_waits",
    "You let one W less wait than there is room for.",
    (MANY, "if len(waiting) > max(rank - 1, 0):"),
    why="The last ranks then have too few left when they would otherwise stand still.",
)
wrong(
    "all_ranks_alike",
    "You let one W wait on every rank.",
    (MANY, "if len(waiting) > 1:"),
    why="Rank 0 has no room for it, and the last rank has room for more.",
)
wrong(
    "forgets_those_that_wait",
    "You forget those W that still wait at the end.",
    (END, "return filled"),
    why="A part of the gradient is missing then, and nothing tells you but the loss.",
)
wrong(
    "newest_first",
    "You do the W that has waited for the shortest time.",
    (OLDEST, "waiting.pop()"),
    why="The oldest activations are then kept till the end.",
)
wrong(
    "weights_before_the_input",
    "You do a W before its I.",
    (INPUT + WEIGHTS, "            filled.append(W(action.stage, action.microbatch))\n"
     "            waiting.append(I(action.stage, action.microbatch))\n"),
    why="I is what others wait for, and W needs the gradient that I brings. It is W that may come later.",
)  # fmt: skip
wrong(
    "weights_twice",
    "You keep B, and do its W a second time.",
    (INPUT, "            filled.append(action)\n"),
    why="B is I and W. It becomes an I here, and its W comes later.",
)
wrong(
    "weights_before_forwards",
    "You do a W before each forward, and so all others later.",
    (FORWARD, "            filled += [*waiting[:1], action]\n            del waiting[:1]\n"),
    (MANY, "if False:"),
    why="When the forwards are at their end, all W that are left come last, and nobody does any between two I.",
)  # fmt: skip
wrong(
    "at_once_without_forwards",
    "When no forwards are left, you do all W that wait.",
    (MANY, "while len(waiting) > (rank if F(rank, action.microbatch + ahead) in order else 0):"),
    (START, "    ahead = [each.kind for each in order].index(Kind.B)\n" + START),
    why="The rank before then gets its last gradients later, by those W. As many as before may wait until the end.",
)


@misconception(
    "20.fill_with_w",
    "You do a W only where the next forward has no room.",
    why="When the forwards are at their end, nothing makes you do one. The rank then waits between its last I, with W "
    "that it could do, and does all of them afterwards. Count those that wait instead: at most `rank`.",
)
def only_for_room(order, rank):
    """As late as can be, and never more kept than there is room for."""
    room = [each.kind for each in order].index(Kind.B) + rank
    filled, waiting, kept = [], [], 0
    for action in order:
        if action.kind is Kind.F:
            if kept == room:
                filled.append(waiting.pop(0))
                kept -= 1
            filled.append(action)
            kept += 1
        else:
            filled.append(I(action.stage, action.microbatch))
            waiting.append(W(action.stage, action.microbatch))
    return filled + waiting
