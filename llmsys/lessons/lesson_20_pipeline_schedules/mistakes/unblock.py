"""Wrong answers to 20.unblock: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_20_pipeline_schedules.right import unblock

wrong = Mistakes("20.unblock", unblock)

WHO = "if moves and rank % 2:"
SORT = "steps.sort(key=lambda step: step.transfers[0].source == rank)"

wrong(
    "as_it_was",
    "You change nothing that matters: all ranks still send first.",
    (WHO, "if False:"),
    why="Two neighbours that both send wait for each other to receive.",
)
wrong(
    "all_receive_first",
    "You let all ranks receive first.",
    (WHO, "if moves:"),
    why="Then two neighbours both wait to receive, and nobody sends. One of the two has to send first, and "
    "the other one to receive.",
)
wrong(
    "only_rank_1",
    "You let rank 1 receive first, and no other one.",
    (WHO, "if moves and rank == 1:"),
    why="That helps ranks 0, 1 and 2. Further down two neighbours still send to each other.",
)
wrong(
    "only_the_last",
    "You let the last rank receive first, and no other one.",
    (WHO, "if moves and rank == len(programs) - 1:"),
    why="That helps the last two ranks. Two neighbours before them still send to each other.",
)
wrong(
    "all_but_the_first",
    "You let all ranks but rank 0 receive first.",
    (WHO, "if moves and rank:"),
    why="With two ranks that is right. With more of them, two neighbours that are not the first both wait to receive.",
)
wrong(
    "the_second_half",
    "You let the second half of the ranks receive first.",
    (WHO, "if moves and 2 * rank >= len(programs):"),
    why="Only where the halves meet does one neighbour send and the other one receive.",
)
wrong(
    "receives_after_the_action",
    "You move receives behind the action that needs them.",
    ("            mended += steps\n",
     "            if moves and rank % 2:\n"
     "                held = [step for step in steps if step.transfers[0].destination == rank]\n"
     "                steps = [step for step in steps if step.transfers[0].source == rank]\n"
     "            elif rank % 2:\n"
     "                steps, held = [*steps, *held], []\n"
     "            mended += steps\n"),
    ("        mended = []\n", "        mended, held = [], []\n"),
    why="What it computes with would not be there yet. Transfers change places with transfers, not with actions.",
)  # fmt: skip
wrong(
    "they_begin_together",
    "You make one exchange of those that stand between two actions.",
    (f"{WHO}\n                {SORT}",
     "if moves:\n"
     "                steps = [Exchange(tuple(each.transfers[0] for each in steps))]"),
    why="That is a way out where the wire can do it. Here each transfer is to stand alone, and only their order "
    "to change.",
)  # fmt: skip
wrong(
    "no_sends_at_the_end",
    "You lose the exchanges after a rank's last action.",
    ("        repaired.append(mended)",
     "        while isinstance(mended[-1], Exchange):\n            mended.pop()\n        repaired.append(mended)"),
    why="After its last backward a rank still has a gradient to send, and another one waits for it.",
)  # fmt: skip
