"""Wrong answers to 20.dependencies: a right one with an edit.

Two answers are right: one that says all that is needed, and one that leaves out what follows from the rest (`shorter`).
So some mistakes are written down twice.
"""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_20_pipeline_schedules.right import dependencies
from llmsys.parallel.pipeline.actions import F, I, Kind, W  # noqa: F401 (W is in an edit)

wrong = Mistakes("20.dependencies", dependencies)



def shorter(action, num_stages):
    """The elementary actions that must be done before this one, but for those that come before another one."""
    needed = []
    for part in action.parts:
        stage, microbatch, replica = part.stage, part.microbatch, part.replica
        if part.kind is Kind.F and stage > 0:
            needed.append(F(stage - 1, microbatch, replica))
        if part.kind is Kind.I and stage == num_stages - 1:
            needed.append(F(stage, microbatch, replica))
        if part.kind is Kind.I and stage < num_stages - 1:
            needed.append(I(stage + 1, microbatch, replica))
        if part.kind is Kind.W:
            needed.append(I(stage, microbatch, replica))
    return [each for each in needed if each not in action.parts]


OWN = "            needed.append(F(stage, microbatch, replica))\n"
GRADIENT = "needed.append(I(stage + 1, microbatch, replica))"
WEIGHTS = "            needed.append(I(stage, microbatch, replica))\n"
LAST = "            if stage < num_stages - 1:\n"
ITS_OWN = "[each for each in needed if each not in action.parts]"

wrong(
    "stage_before_the_first",
    "The forward of stage 0 waits for a stage −1 in your answer.",
    (" and stage > 0", ""),
    why="The first stage reads the batch itself: it waits for nothing.",
)
wrong(
    "stage_after_the_last",
    "I of the last stage waits for a stage that there is not.",
    (LAST, "            if stage < num_stages:\n"),
    why="Stages count from 0, so the last one is num_stages − 1. Its gradient comes from the loss.",
)
wrong(
    "last_gradient_for_nothing",
    "I of the last stage waits for nothing in your answer.",
    (OWN, "            if stage < num_stages - 1:\n    " + OWN),
    why="The loss must have been computed: it needs the forward of its own stage.",
)
wrong(
    "no_gradient_from_the_next",
    "You leave out the gradient that comes from the next stage.",
    (LAST + "                " + GRADIENT + "\n", ""),
    why="The chain rule starts at the loss. A stage alone does not know how its output changes it.",
)
wrong(
    "gradient_from_the_stage_before",
    "You let a gradient come from the stage before.",
    (LAST, "            if stage > 0:\n"),
    (GRADIENT, "needed.append(I(stage - 1, microbatch, replica))"),
    why="Forwards go down the stages; gradients come back up, from the last to the first.",
)
wrong(
    "gradient_needs_the_next_forward",
    "You let I wait for the next stage's forward, where it needs that stage's I.",
    (GRADIENT, "needed.append(F(stage + 1, microbatch, replica))"),
    why="What it multiplies with is the gradient of its own output, and the next stage's I is what computes that.",
)
wrong(
    "weights_need_the_forward_alone",
    "You let W wait for the forward of its stage, and not for its I.",
    (WEIGHTS, WEIGHTS.replace("(I(", "(F(")),
    why="A weight's gradient is made of the layer's input and of the gradient of its output. I brings the second one.",
)
wrong(
    "weights_need_the_next_weights",
    "You let W wait for the next stage's W as well.",
    (WEIGHTS, WEIGHTS + "            if stage < num_stages - 1:\n"
     "                needed.append(W(stage + 1, microbatch, replica))\n"),
    why="Gradients of weights do not depend on each other. That is why W can be done later.",
)  # fmt: skip
wrong(
    "weights_need_what_i_needs",
    "You let W wait for what I waits for, and not for I.",
    (WEIGHTS, OWN + "            if stage < num_stages - 1:\n"
     "                needed.append(I(stage + 1, microbatch, replica))\n"),
    why="The next stage's I gives the gradient of this stage's last layer only. Those of the layers before it are made "
    "by this stage's I, on its way.",
)  # fmt: skip
wrong(
    "gradient_needs_the_next_weights",
    "You let I wait for the next stage's W.",
    (GRADIENT, "needed += [I(stage + 1, microbatch, replica), W(stage + 1, microbatch, replica)]"),
    why="Nobody waits for a W, but the optimiser. If others did, splitting the backward would be of no use.",
)
wrong(
    "whole_backward_of_the_next",
    "You answer with B of the next stage.",
    (GRADIENT, "needed.append(B(stage + 1, microbatch, replica))"),
    why="What is needed is its I. Whether that is done alone, or inside a B, is for the schedule to say: answers are "
    "elementary actions, F, I and W.",
)
wrong(
    "whole_backward_of_the_next_alone",
    "You answer with B of the next stage, and nothing else.",
    (OWN, "            if stage == num_stages - 1:\n    " + OWN),
    (GRADIENT, "needed.append(B(stage + 1, microbatch, replica))"),
    why="What is needed is its I. Whether that is done alone, or inside a B, is for the schedule to say: answers are "
    "elementary actions, F, I and W.",
)
wrong(
    "the_microbatch_before",
    "You let a forward wait for the microbatch before it at the same stage.",
    (
        "        if part.kind is Kind.F and stage > 0:\n",
        "        if part.kind is Kind.F and microbatch > 0:\n"
        "            needed.append(F(stage, microbatch - 1, replica))\n"
        "        if part.kind is Kind.F and stage > 0:\n",
    ),
    why="Microbatches are independent of each other. A rank does one after the other, but in which order the schedule "
    "says, and not the mathematics.",
)
wrong(
    "always_the_first_replica",
    "You forget the replica.",
    (", replica))", "))", 4),
    why="Two copies of the model run through the same ranks. A microbatch stays in its own.",
)
wrong(
    "own_forward_of_the_first_replica",
    "You forget the replica in the forward that an I needs.",
    (OWN, "            needed.append(F(stage, microbatch))\n"),
    why="Two copies of the model run through the same ranks. A microbatch stays in its own.",
)
wrong(
    "waits_for_itself",
    "A backward waits for its own I in your answer.",
    (ITS_OWN, "needed"),
    why="B is I and W, and its W needs that I. Take away what is in the action itself, or it never begins.",
)
wrong(
    "first_part_alone",
    "You look at the first part of an action only.",
    ("for part in action.parts:", "for part in action.parts[:1]:"),
    why="A pair is a forward and a backward, of two microbatches: it needs what both of them need.",
)
wrong(
    "nothing_for_a_pair",
    "You have no answer for a pair: nothing must be done before it.",
    ("for part in action.parts:", "for part in () if action.kind is Kind.FB else action.parts:"),
    why="A pair begins when both of its halves can. action.parts has them, with a stage and a microbatch each.",
)

IS_LAST = " and stage == num_stages - 1"
IS_NOT_LAST = " and stage < num_stages - 1"

wrong(
    "stage_after_the_last_shorter",
    "Your last stage's I waits for a stage that there is not.",
    (IS_LAST, " and stage == num_stages"),
    (IS_NOT_LAST, " and stage < num_stages"),
    of=shorter,
    why="Stages count from 0, so the last one is num_stages − 1. Its gradient comes from the loss.",
)
wrong(
    "last_gradient_for_nothing_shorter",
    "Your last stage's I waits for nothing.",
    (IS_LAST, " and stage < 0"),
    of=shorter,
    why="The loss must have been computed: it needs the forward of its own stage.",
)
wrong(
    "gradient_from_the_stage_before_shorter",
    "Gradients come from the stage before in your answer.",
    (IS_LAST, " and stage == 0"),
    (IS_NOT_LAST, " and stage > 0"),
    (GRADIENT, "needed.append(I(stage - 1, microbatch, replica))"),
    of=shorter,
    why="Forwards go down the stages; gradients come back up, from the last to the first.",
)
wrong(
    "weights_need_what_i_needs_shorter",
    "Your W waits for what I waits for, and not for I.",
    ("part.kind is Kind.I", "part.kind in (Kind.I, Kind.W)", 2),
    (WEIGHTS, "            pass\n"),
    of=shorter,
    why="The next stage's I gives the gradient of this stage's last layer only. Those of the layers before it are made "
    "by this stage's I, on its way.",
)
wrong(
    "gradient_needs_the_next_weights_shorter",
    "Your I waits for the next stage's W.",
    (GRADIENT, "needed += [I(stage + 1, microbatch, replica), W(stage + 1, microbatch, replica)]"),
    of=shorter,
    why="Nobody waits for a W, but the optimiser. If others did, splitting the backward would be of no use.",
)
wrong(
    "always_the_first_replica_shorter",
    "You leave the replica out.",
    (", replica))", "))", 4),
    of=shorter,
    why="Two copies of the model run through the same ranks. A microbatch stays in its own.",
)
wrong(
    "waits_for_itself_shorter",
    "Your backward waits for its own I.",
    (ITS_OWN, "needed"),
    of=shorter,
    why="B is I and W, and its W needs that I. Take away what is in the action itself, or it never begins.",
)
