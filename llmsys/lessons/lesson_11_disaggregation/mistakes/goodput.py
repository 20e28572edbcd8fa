"""Wrong answers to 11.goodput: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_11_disaggregation.right import goodput_per_gpu

wrong = Mistakes("11.goodput", goodput_per_gpu)

TRIED_HIGH = "    if attained(high) >= share:\n        return high / gpus\n"
TRIED_LOW = "    if attained(low) < share:\n        return 0.0\n"

wrong(
    "not_per_gpu",
    "You return the rate of all GPUs together.",
    ("return high / gpus", "return high"),
    ("return low / gpus", "return low"),
    why="attained takes the rate of the whole service. What is compared is what each of its GPUs contributes.",
)
wrong(
    "bounds_per_gpu",
    "You take low and high for rates of one GPU.",
    (TRIED_HIGH, "    low, high = low * gpus, high * gpus\n" + TRIED_HIGH),
    why="They are rates that attained takes, and these are of all GPUs together.",
)
wrong(
    "tries_rates_of_one_gpu",
    "You give attained the rate of one GPU.",
    ("attained(high)", "attained(high / gpus)"),
    ("attained(low)", "attained(low / gpus)"),
    ("attained(middle)", "attained(middle / gpus)"),
    why="It takes the rate of the whole service, and low and high are such rates: only what you return is divided.",
)
wrong(
    "the_rate_that_failed",
    "You return the upper rate, at which too few requests met the limits.",
    ("return low / gpus", "return high / gpus"),
    why="The lower one was tried and is good enough. The upper one was tried and is not.",
)
wrong(
    "never_tried",
    "You return a rate between the last two, which nobody has tried.",
    ("return low / gpus", "return math.sqrt(low * high) / gpus"),
    why="It may be good enough or not. The lower one is known to be.",
)
wrong(
    "more_than_enough",
    "You ask for more than the share.",
    (">= share", "> share", 2),
    ("< share", "<= share"),
    why="At least so many requests must meet the limits: exactly as many are enough.",
)
wrong(
    "low_is_believed",
    "You take for granted that the lowest rate is good enough.",
    (TRIED_LOW, ""),
    why="Limits may be too tight for any rate, as where one prompt alone takes longer. Then goodput is 0.",
)
wrong(
    "high_is_not_tried",
    "You never try the highest rate.",
    (TRIED_HIGH, ""),
    why="Where it is good enough, the search ends just below it.",
)
wrong(
    "the_wrong_half",
    "You go on in the wrong half.",
    ("            low = middle\n        else:\n            high = middle",
     "            high = middle\n        else:\n            low = middle"),
    why="Where the middle is good enough, what is looked for lies above it.",
)
wrong(
    "near_by_a_number",
    "You stop where the rates are nearer than `within` requests a second.",
    ("high / low > 1 + within", "high - low > within"),
    why="It is a share of the rate: 0.02 of 50 a second is one, and of 0.1 next to nothing.",
)
wrong(
    "ninety_percent_always",
    "You compare with 0.9, whatever the share is.",
    (">= share", ">= 0.9", 2),
    ("< share", "< 0.9"),
    why="share is an argument: 0.9 is only what it is where nobody says.",
)
wrong(
    "step_by_step",
    "You raise the rate step by step.",
    ("    while high / low > 1 + within:\n        middle = math.sqrt(low * high)\n",
     "    while high / low > 1 + within:\n        middle = min(low * (1 + within), high / (1 + within / 2))\n"),
    why="Each step is a run of the whole service. Halving what is left needs a few of them, and not hundreds.",
)
