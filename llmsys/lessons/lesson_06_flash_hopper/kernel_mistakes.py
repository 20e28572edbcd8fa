"""Wrong steps of the hopper kernel's consumer, for 06.consumer: the right one, in which a line reads otherwise."""

from llmsys.attention.hopper import consumer
from llmsys.course.checking.mistakes import Mistakes

SHRUNK = "    return p, m, l, o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]\n"
START_S = "    s = start_scores(q, k, S)\n"
START_O = "    o = warpgroup_mma(p, values.take(i), o, is_async=True)\n"
SWAPPED = ((START_S + START_O, START_O + START_S),)

wrong = Mistakes("06.consumer", consumer.step)

wrong(
    "not_rescaled",
    "You do not multiply o with shrink.",
    (SHRUNK, "    return p, m, l, o\n"),
    why="o is in units of the maximum that held before. The softmax returns the factor that brings it to the new one.",
)
wrong(
    "rescaled_too_early",
    "You multiply o with shrink before P V is added.",
    ("    s = start_scores(q, k, S)\n", "    s = warpgroup_mma_wait(0, [start_scores(q, k, S)])\n"),
    ("    o = warpgroup_mma(p, values.take(i), o, is_async=True)\n", "    before = p\n"),
    ("    s = warpgroup_mma_wait(1, [s])  # of the two, one may still run: P V\n", ""),
    (
        "    o = warpgroup_mma_wait(0, [o])\n",
        "    o = o * gl.convert_layout(shrink, gl.SliceLayout(1, o.type.layout))[:, None]\n"
        "    o = warpgroup_mma_wait(0, [warpgroup_mma(before, values.take(i), o, is_async=True)])\n",
    ),
    (SHRUNK, "    return p, m, l, o\n"),
    why="p of tile i was computed with the maximum before this softmax, as o was: both together are rescaled after it.",
)
wrong(
    "keys_of_this_tile",
    "You take tile i of K, whose scores have been computed already.",
    ("    k = keys.take(i + 1)\n", "    k = keys.take(i)\n"),
    why="The step is shifted: P V is of tile i, and the scores are of tile i + 1.",
)
wrong(
    "values_of_the_next_tile",
    "You take tile i + 1 of V.",
    ("values.take(i), o, is_async", "values.take(i + 1), o, is_async"),
    ("    values.give_back(i)\n", "    values.give_back(i + 1)\n"),
    why="p is of tile i, so it is multiplied with the values of tile i.",
)
wrong(
    "keys_not_given_back",
    "You do not give K's slot back.",
    ("    keys.give_back(i + 1)\n", ""),
    why="The producer waits for it before it fills the slot again: the ring is stuck when all its slots are used.",
)
wrong(
    "values_not_given_back",
    "You do not give V's slot back.",
    ("    values.give_back(i)\n", ""),
    why="The producer waits for it before it fills the slot again: the ring is stuck when all its slots are used.",
)
wrong(
    "values_given_back_too_early",
    "You give V's slot back while P V is running.",
    ("    values.give_back(i)\n", ""),
    ("    keys.give_back(i + 1)\n", "    keys.give_back(i + 1)\n    values.give_back(i)\n"),
    why="wgmma reads V from shared memory until it is done. Wait for o first.",
)
wrong(
    "keys_given_back_too_early",
    "You give K's slot back while its product is running.",
    ("    keys.give_back(i + 1)\n", ""),
    (START_S, START_S + "    keys.give_back(i + 1)\n"),
    why="wgmma reads K from shared memory until it is done. Wait for s first.",
)
wrong(
    "keys_of_this_tile_given_back",
    "You give back tile i of K, and have taken tile i + 1.",
    ("keys.give_back(i + 1)", "keys.give_back(i)"),
    why="give_back(i) is for the tile that take(i) gave: the step's scores read tile i + 1.",
)
wrong(
    "turn_not_passed_on",
    "You do not pass the turn on to the next consumer.",
    ("    turns.pass_on(J)\n", ""),
    why="The next consumer waits for it, and you for yours.",
)
wrong(
    "waits_for_everything",
    "You wait for P V before the softmax.",
    ("warpgroup_mma_wait(1, [s])", "warpgroup_mma_wait(0, [s])"),
    why="The number is how many may still run: 1 leaves the one that was started last, P V, to the tensor cores.",
)
wrong(
    "output_before_scores",
    "You start P V before the scores.",
    *SWAPPED,
    ("warpgroup_mma_wait(1, [s])", "warpgroup_mma_wait(0, [s])"),
    why="A warpgroup's products are done in the order in which they were started: the softmax, which needs the scores "
    "alone, then waits for P V as well. What is needed first is started first.",
)
wrong(
    "scores_not_waited_for",
    "You compute the softmax of scores that nobody has waited for.",
    ("    s = warpgroup_mma_wait(1, [s])  # of the two, one may still run: P V\n", ""),
    why="A product is only started by its line. warpgroup_mma_wait returns it when it is done.",
)
wrong(
    "scores_still_running",
    "You start P V before the scores, and leave the scores running.",
    *SWAPPED,
    why="warpgroup_mma_wait(1, …) leaves the product running that was started last: start the scores first, and that "
    "one is P V.",
)
wrong(
    "softmax_of_nothing_masked",
    "You do not pass MASKED on to the softmax.",
    ("scale_log2, MASKED)\n    o = ", "scale_log2, False)\n    o = "),
    why="On the diagonal and at the ragged end, scores of keys that are not seen must become −∞.",
)
wrong(
    "float16_whatever_it_is",
    "You make p float16, whatever the inputs are.",
    ("p.to(o_desc.dtype)", "p.to(gl.float16)"),
    why="A product multiplies two operands of one type, and v may be bfloat16: o_desc.dtype says what they are.",
)
wrong(
    "state_in_half_precision",
    "You keep o in the inputs' type from step to step.",
    ("    values.give_back(i)\n", "    values.give_back(i)\n    o = o.to(o_desc.dtype).to(gl.float32)\n"),
    why="In half precision, a sum of 64 takes in nothing that is less than 1/32. o is rounded once, at the end.",
)
wrong(
    "turn_number_i",
    "You wait for turn number i.",
    ("turns.wait(J, turn)", "turns.wait(J, i)"),
    why="Tiles of keys are counted by i, and the first of each tile of queries has no turn. From the second tile of "
    "queries on, the two differ.",
)
wrong(
    "masks_everywhere",
    "You mask every tile.",
    ("scale_log2, MASKED)\n    o = ", "scale_log2, True)\n    o = "),
    why="Most tiles are seen as a whole. MASKED says which are not.",
)
