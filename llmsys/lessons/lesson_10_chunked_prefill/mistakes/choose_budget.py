"""Wrong answers to 10.choose_budget: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_10_chunked_prefill.right import choose_budget

wrong = Mistakes("10.choose_budget", choose_budget)

LOW = "        if attained(budget, low) < share:\n            continue\n"
HIGH = "        if attained(budget, high) >= share:\n            good = high\n"
TRY = (
    "            if attained(budget, middle) >= share:\n                good = middle\n"
    "            else:\n                bad = middle\n"
)
RAISES = (
    '        raise ValueError(f"budgets must have one at which {share:.0%} are in time at {low:g} requests a second")\n'
)
BETTER = "        if best is None or good > best[1]:\n            best = budget, good\n"

wrong(
    "the_bad_end",
    "You return the rate that is too fast.",
    ("best = budget, good\n", "best = budget, min(bad, high)\n"),
    why="Of the two, good is the one at which enough requests were in time.",
)
wrong(
    "the_middle",
    "You return a rate between the last two, which nobody has tried.",
    (BETTER, BETTER.replace("budget, good", "budget, good if good == high else math.sqrt(good * bad)")),
    why="It may be too fast. Return the one that was good.",
)
wrong(
    "the_wrong_half",
    "You go on in the wrong half.",
    ("                good = middle\n            else:\n                bad = middle\n",
     "                bad = middle\n            else:\n                good = middle\n"),
    why="A rate that is good is the new lower end: look above it.",
)  # fmt: skip
wrong(
    "high_is_not_asked",
    "You do not ask whether `high` is good.",
    (HIGH, ""),
    why="Then the search comes near to it, and never there.",
)
wrong(
    "low_is_not_asked",
    "You do not ask whether `low` is good.",
    (LOW, ""),
    why="A budget that is too slow for everybody looks as if it allowed the lowest rate.",
)
wrong(
    "stops_at_the_first_bad_budget",
    "You stop at the first budget that is too slow.",
    (LOW, LOW.replace("continue", "break")),
    why="The next one may be good.",
)
wrong(
    "first_budget",
    "You return the first budget that is good.",
    ("if best is None or good > best[1]", "if best is None"),
    why="A later one may allow a higher rate.",
)
wrong(
    "last_budget",
    "You return the last budget that is good.",
    ("        if best is None or good > best[1]:\n            best = budget, good\n", "        best = budget, good\n"),
    why="An earlier one may allow a higher rate.",
)
wrong(
    "lowest_rate",
    "You return the budget with the lowest rate.",
    ("good > best[1]", "good < best[1]"),
    why="The highest is wanted.",
)
wrong(
    "a_share_of_its_own",
    "You compare with 90%, whatever `share` is.",
    ("< share:", "< 0.9:"),
    ("if attained(budget, high) >= share", "if attained(budget, high) >= 0.9"),
    ("if attained(budget, middle) >= share", "if attained(budget, middle) >= 0.9"),
    why="share is an argument: others promise more, or less.",
)
wrong(
    "within_of_its_own",
    "You stop at 2%, whatever `within` is.",
    ("1 + within", "1 + 0.02"),
    why="within is an argument.",
)
wrong(
    "a_difference",
    "You stop when the difference of the two rates is at most `within`.",
    ("while bad / good > 1 + within", "while bad - good > within"),
    why="within is a ratio: 2% of 50 requests a second is one, and 2% of a third is next to nothing.",
)
wrong(
    "more_than_the_share",
    "You ask for more than the share.",
    ("< share:", "<= share:"),
    (">= share:", "> share:", 2),
    why="To attain the share is enough.",
)
wrong(
    "more_than_the_share_between",
    "You ask for more than the share between the two ends.",
    ("if attained(budget, middle) >= share", "if attained(budget, middle) > share"),
    why="To attain the share is enough.",
)
wrong(
    "the_last_tried",
    "You return the last rate that was tried, good or not.",
    (LOW, "        middle = high\n" + LOW),
    (BETTER, BETTER.replace("good", "middle")),
    why="The last one may have been too fast. Return the one that was good.",
)
wrong(
    "nothing_is_none",
    "You return `low` where no budget is good.",
    (RAISES, "        return budgets[0], low\n"),
    why="Nobody meets the limits at that rate: say so.",
)
wrong(
    "arithmetic_mean",
    "You try the rate half-way between the two.",
    ("math.sqrt(good * bad)", "(good + bad) / 2"),
    why="Rates are compared by their ratio: halving the difference takes more runs where the highest rate is low. "
        "Take √(good · bad).",
)  # fmt: skip
wrong(
    "high_before_low",
    "You try `high` before `low`.",
    (LOW, "        fast = attained(budget, high) >= share\n" + LOW),
    ("if attained(budget, high) >= share", "if fast"),
    why="Where `low` is not good, `high` is not either: a run for nothing.",
)
wrong(
    "step_by_step",
    "You try one rate after the other.",
    ("            middle = math.sqrt(good * bad)\n" + TRY,
     "            middle = min(good * (1 + within), high)\n"
     "            if attained(budget, middle) >= share:\n                good = middle\n            else:\n"
     "                break\n"),
    why="Each run should halve what is left.",
)  # fmt: skip
