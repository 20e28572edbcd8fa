"""Wrong answers to 20.fold: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_20_pipeline_schedules.right import fold

wrong = Mistakes("20.fold", fold)

PAIR = "return pair(one_replica(action.forward), one_replica(action.backward))"
ALONE = "return Action(action.kind, action.stage, action.microbatch - action.replica * share)"
ORDERS = "[[one_replica(action) for action in order] for order in schedule.orders[:half]]"

wrong(
    "numbers_stay",
    "You leave replica 1's microbatches the numbers that they had in the whole batch.",
    (" - action.replica * share", ""),
    why="Replica 1 began where replica 0's share ended. Of one replica's microbatches, the first is 0.",
)
wrong(
    "both_directions_are_other_microbatches",
    "You take the microbatches of replica 1 for others than those of replica 0.",
    (" - action.replica * share", ""),
    ('"folded", v_shaped(half), share,', '"folded", v_shaped(half), schedule.num_microbatches,'),
    why="Each of them would go through one arm of the V only. What comes up on stages P/2 and further is what went "
    "down before: the k-th of the one direction is the k-th of the other.",
)
wrong(
    "stages_in_a_mirror",
    "You mirror the stages of replica 1.",
    (ALONE, "stage = schedule.num_stages - 1 - action.stage if action.replica else action.stage\n"
     "        return Action(action.kind, stage, action.microbatch - action.replica * share)"),
    why="Rank r has stage P − 1 − r of replica 1, and it has that very stage of the V. A second time mirrored it is r.",
)  # fmt: skip
wrong(
    "backward_of_a_pair_stays",
    "You change the forward of a pair, and leave its backward as it was.",
    (PAIR, "return pair(one_replica(action.forward), action.backward)"),
    why="The two halves of a pair are of different replicas: each has to become one of replica 0.",
)
wrong(
    "pairs_apart",
    "You take pairs apart.",
    (ORDERS, "[[one_replica(half_of_it) for action in order for half_of_it in action.halves] "
     "for order in schedule.orders[:half]]"),
    why="A forward and a backward one after the other hide nothing. The action has to be a pair again.",
)  # fmt: skip
wrong(
    "replica_stays",
    "You leave actions of replica 1 the replica that they had.",
    (ALONE, "return Action(action.kind, action.stage, action.microbatch - action.replica * share, action.replica)"),
    why="There is one copy of the model on a V. All actions are of replica 0.",
)
wrong(
    "round_and_round",
    "You place the stages in a loop, where they lie on a V.",
    ("v_shaped(half)", 'type(v_shaped(half))("looped", (tuple(range(half)) * 2,))'),
    why="In a loop rank r has stages r and P/2 + r. Here it has r and P − 1 − r: down the ranks, and up again.",
)
wrong(
    "microbatches_of_both",
    "You keep the number of all microbatches.",
    ('"folded", v_shaped(half), share,', '"folded", v_shaped(half), schedule.num_microbatches,'),
    why="Only half of them go through these ranks: a direction's share.",
)
