"""Wrong answers to 14.bias: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_14_mixture_of_experts.right import move_bias

wrong = Mistakes("14.bias", move_bias)

MISSING = "missing = loads.sum() - len(loads) * loads"
STEP = "bias += rate * missing.sign()"

wrong(
    "the_other_way",
    "You move the biases the other way: who has many tokens gets more.",
    (MISSING, "missing = len(loads) * loads - loads.sum()"),
    why="The bias is added to an expert's score. Who has too many must become less attractive.",
)
wrong(
    "by_how_much",
    "You move each bias by how far its load is from the mean.",
    (STEP, "bias += rate * (missing / loads.sum())"),
    why="The step is the rate for all. Its sign is what the loads say, and that is all that is taken from them.",
)
wrong(
    "by_how_many",
    "You move each bias by the number of tokens that it has too few or too many.",
    (STEP, "bias += rate * (missing / len(loads))"),
    why="Loads are thousands of tokens, and scores lie between 0 and 1. The step is the rate for all.",
)
wrong(
    "not_in_place",
    "You make a new tensor: the bias that was given stays as it is.",
    (STEP, "bias = bias + rate * missing.sign()"),
    why="The router keeps that tensor. Write into it: bias += …, or bias.add_(…).",
)
wrong(
    "never_stays",
    "An expert with exactly the mean is moved, too.",
    ("missing.sign()", "((missing > 0).float() * 2 - 1)"),
    why="There is nothing to correct, and the sign of 0 is 0.",
)
wrong(
    "the_mean_goes_up",
    "An expert with exactly the mean is moved up.",
    ("missing.sign()", "((missing >= 0).float() * 2 - 1)"),
    why="There is nothing to correct, and the sign of 0 is 0.",
)
wrong(
    "loads_as_shares",
    "You compare with 1/E, as if loads were shares: they are counts.",
    (MISSING, "missing = 1 / len(loads) - loads"),
    why="Every expert that has a token would be moved down. The mean load is loads.sum() / E.",
)
wrong(
    "median",
    "You compare with the median load.",
    (MISSING, "missing = loads.median() - loads"),
    why="Where a few experts have most of the tokens, the median is far below the mean.",
)
wrong(
    "midrange",
    "You compare with the middle between the smallest and the largest load.",
    (MISSING, "missing = loads.max() + loads.min() - 2 * loads"),
    why="One expert that has most of the tokens moves that middle, and says nothing of what the others have.",
)
wrong(
    "the_largest",
    "You compare with the largest load, so that all others go up.",
    (MISSING, "missing = loads.max() - loads"),
    why="Where all biases go up alike, nothing changes. The mean says who has too few, and who has too many.",
)
wrong(
    "softmax_of_loads",
    "You put the loads through a softmax.",
    (MISSING, "missing = 1 / len(loads) - torch.softmax(loads.double(), 0)"),
    why="Of counts, a softmax leaves the largest alone. A share of the load is load / loads.sum().",
)
wrong(
    "mean_of_the_biases",
    "You compare the biases with their mean. It is the loads that say who has too much.",
    (MISSING, "missing = bias.mean() - bias"),
    why="That draws the biases together, whatever the loads are.",
)
wrong(
    "recentred",
    "You move all biases back to a mean of 0.",
    (STEP, STEP + "\n    bias -= bias.mean()"),
    why="Each bias moves by one step or not at all (7). Where all are moved alike, the choice stays the same.",
)
wrong(
    "mean_of_the_busy",
    "You leave experts without a token out of the mean.",
    (MISSING, "missing = loads.sum() - (loads > 0).sum() * loads"),
    why="They count, and most of all: they are the ones that should be chosen.",
)
wrong(
    "rounded_mean",
    "You round the mean down to a whole number.",
    (MISSING, "missing = loads.sum() // len(loads) - loads"),
    why="With a mean of 2.5, a load of 2 is below it.",
)
wrong(
    "mean_in_float32",
    "You take the mean in float32, which has not all whole numbers of that size.",
    (MISSING, "missing = loads.float().mean() - loads.float()"),
    why="Above 16,777,216, float32 rounds whole numbers, and sums of loads are as large as that.",
)
