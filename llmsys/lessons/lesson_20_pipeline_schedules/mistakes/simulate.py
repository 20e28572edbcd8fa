"""Wrong answers to 20.simulate: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_20_pipeline_schedules.right import simulate_step

wrong = Mistakes("20.simulate", simulate_step)

WAITS = "        if any(each not in done for each in needed):\n            continue\n"
EACH = "        for each in needed:\n            end, by = done[each]\n"
IF_DONE = EACH.replace("end, by", "if each not in done:\n                continue\n            end, by")
LATEST = "            start = max(start, end + costs.transfer_time(by, rank))\n"
NEXT = "        action = order[0]\n        needed = needs(action)\n"
RAN = "ran.append((rank, action, start, start + costs.time(action)))\n"

wrong(
    "no_transfer",
    "You leave out the transfer.",
    ("end + costs.transfer_time(by, rank)", "end"),
    why="What another rank has computed must get here before it can be used.",
)
wrong(
    "transfer_the_other_way",
    "You ask for the transfer the other way: from this rank to the one that did it.",
    ("transfer_time(by, rank)", "transfer_time(rank, by)"),
    why="Whoever did it sends. A link need not be as fast in both directions.",
)
wrong(
    "stage_for_a_rank",
    "You take the stage for the rank.",
    ("transfer_time(by, rank)", "transfer_time(each.stage, action.stage)"),
    why="With two stages a rank, neighbouring stages may be on the same rank, and stage 3 on rank 0.",
)
wrong(
    "transfer_after_all",
    "You add the transfer to the start, also where the rank was busy meanwhile.",
    (LATEST, "            start = max(start, end) + costs.transfer_time(by, rank)\n"),
    why="A result travels while its receiver computes. Only the moment of its arrival is compared.",
)
wrong(
    "stage_of_the_sender",
    "You take the stage for the rank that did it.",
    ("transfer_time(by, rank)", "transfer_time(each.stage, rank)"),
    why="With two stages a rank, what a stage has done may be on this rank. done says who did it.",
)
wrong(
    "sender_is_busy",
    "You let a result leave only when its sender is free again.",
    (
        "end + costs.transfer_time(by, rank)",
        "(end if by == rank else max(end, free[by])) + costs.transfer_time(by, rank)",
    ),
    why="A rank that sends goes on computing. The transfer begins when the action has ended.",
)
wrong(
    "latest_end_and_longest_transfer",
    "You add the longest transfer to the latest end, and they may be of two different results.",
    (
        EACH + LATEST,
        "        if needed:\n"
        "            latest = max(done[each][0] for each in needed)\n"
        "            start = max(start, latest + max(costs.transfer_time(done[each][1], rank) for each in needed))\n",
    ),
    why="Each result has an end and a transfer of its own: the latest of the sums decides.",
)
wrong(
    "transfer_of_the_latest_alone",
    "You look for the result that ends last, and add the transfer of that one.",
    (
        EACH + LATEST,
        "        if needed:\n"
        "            end, by = max(done[each] for each in needed)\n"
        "            start = max(start, end + costs.transfer_time(by, rank))\n",
    ),
    why="One that ends earlier may be further away. Add first, and compare then.",
)
wrong(
    "rank_is_free_at_once",
    "You forget that the rank may still be busy.",
    ("start = free[rank]", "start = 0.0"),
    why="One action at a time: free[rank] is when its last one ended.",
)
wrong(
    "needs_are_there_at_once",
    "You start when the rank is free, whatever it needs.",
    (LATEST, "            start = max(start, 0.0)\n"),
    why="What is in done may end later than this rank is free: its end is what counts.",
)
wrong(
    "the_earliest",
    "You start at the earliest of all moments, where the latest decides.",
    ("start = max(start, end", "start = min(start, end"),
    why="All of them must have come: the rank free, and every result there.",
)
wrong(
    "the_rank_is_not_looked_at",
    "You start when all that it needs is there, although the rank is still busy.",
    (EACH, "        start = 0.0 if needed else start\n" + EACH),
    why="One action at a time: free[rank] is one of the moments of which the latest counts.",
)
wrong(
    "the_first_one_counts",
    "You look at the first of the things that it needs only.",
    ("for each in needed:\n            end, by", "for each in needed[:1]:\n            end, by"),
    why="An I needs the forward of its own stage and the gradient of the next one, and either may be later.",
)
wrong(
    "the_last_one_counts",
    "You look at the last of the things that it needs only.",
    ("for each in needed:\n            end, by", "for each in needed[-1:]:\n            end, by"),
    why="An I needs the forward of its own stage and the gradient of the next one, and either may be later.",
)
wrong(
    "missing_ones_are_ignored",
    "You start an action although something that it needs is not done.",
    (WAITS, ""),
    (EACH, IF_DONE),
    why="Its input does not exist yet. The rank has to wait.",
)
wrong(
    "one_is_enough",
    "You start as soon as one of the things that it needs is done.",
    (WAITS, "        if needed and all(each not in done for each in needed):\n            continue\n"),
    (EACH, IF_DONE),
    why="All of them must be done.",
)
wrong(
    "stops_at_the_first_that_waits",
    "You stop at the first rank that cannot go on.",
    ("            continue\n", "            break\n", 2),
    why="The ranks after it may be able to go on.",
)
wrong(
    "nothing_is_left",
    "You look for the next action of a rank that has nothing left to do.",
    ("        if not order:\n            continue\n", ""),
    why="The first ranks to be done are done before the others. () has no first element.",
)
wrong(
    "picks_what_can_run",
    "A rank whose next action has to wait takes a later one.",
    (
        NEXT + WAITS,
        "        ready = [each for each in order if all(before in done for before in needs(each))]\n"
        "        if not ready:\n"
        "            continue\n"
        "        action = ready[0]\n"
        "        needed = needs(action)\n",
    ),
    why="The order is the schedule. 1F1B is nothing but that order, and would be lost.",
)
wrong(
    "one_rank_a_step",
    "You run one rank, and not all that can run.",
    (RAN, RAN + "            break\n".removeprefix("    ")),
    why="They compute side by side. The step is one for all of them.",
)
wrong(
    "no_time_passes",
    "Your action ends when it starts.",
    ("start + costs.time(action)", "start"),
    why="costs.time(action) is how long it takes.",
)
wrong(
    "sees_this_step",
    "You use results of the same step.",
    ("    ran = []\n", "    ran, done = [], dict(done)\n"),
    (RAN, RAN + "        done.update({part: (ran[-1][3], rank) for part in action.parts})\n"),
    why="A step goes by what was done before it, or its outcome would depend on the order in which you look at ranks.",
)
