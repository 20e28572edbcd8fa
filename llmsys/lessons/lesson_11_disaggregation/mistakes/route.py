"""Wrong answers to 11.route: a right one with an edit, and others."""

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_11_disaggregation.right import route

wrong = Mistakes("11.route", route)

COST = "weight * (tokens - engines.hits[i]) + engines.held[i]"

wrong(
    "ignores_the_load",
    "You look at hits alone: who has most of the prompt gets it, however busy it is.",
    (COST, "weight * (tokens - engines.hits[i])"),
    why="All that begin alike then go to one engine, and wait there while others are idle.",
)
wrong(
    "ignores_hits",
    "You look at the load alone, and at no hits.",
    (COST, "weight * tokens + engines.held[i]"),
    why="Each engine then computes, and keeps, the prefixes that the others have.",
)
wrong(
    "takes_the_highest",
    "You take the highest cost.",
    ("min(costs)", "max(costs)"),
    why="The cost is what is yet to be computed and who is there already: the less the better.",
)
wrong(
    "takes_the_last_of_equal_ones",
    "Of engines with the same cost you take the last.",
    ("return costs.index(min(costs))", "return len(costs) - 1 - costs[::-1].index(min(costs))"),
    why="The first one is asked for.",
)
wrong(
    "prompt_in_blocks",
    "You count what is left of the prompt, or its hit, in blocks, and what is held in tokens.",
    ("(tokens - engines.hits[i])", "-(-(tokens - engines.hits[i]) // engines.block_size)"),
    why="Both terms must have one unit: here, tokens.",
)
wrong(
    "hits_in_tokens_of_a_prompt_in_blocks",
    "You count the prompt and what is held in blocks, and hits in tokens.",
    (COST, "weight * (-(-tokens // engines.block_size) - engines.hits[i]) + -(-engines.held[i] // engines.block_size)"),
    why="Both terms, and what is taken off, must have one unit: here, tokens.",
)
wrong(
    "rounded_to_blocks",
    "You round to whole blocks.",
    (
        COST,
        "weight * -(-(tokens - engines.hits[i]) // engines.block_size) + -(-engines.held[i] // engines.block_size)",
    ),
    why="Dynamo counts in blocks. Here the cost is in tokens, and engines that differ by less than a block differ.",
)
wrong(
    "adds_the_hits",
    "You add hits to what is to be computed.",
    ("tokens - engines", "tokens + engines"),
    why="What is cached need not be computed.",
)
wrong(
    "weight_on_the_load",
    "You multiply what is held by the weight.",
    (COST, "(tokens - engines.hits[i]) + weight * engines.held[i]"),
    why="The weight is the price of a token that is to be computed.",
)
wrong(
    "no_weight",
    "You leave the weight out.",
    (COST, "(tokens - engines.hits[i]) + engines.held[i]"),
    why="It is 1 where nothing is said, and other values are passed.",
)
wrong(
    "counts_the_queue",
    "You count what is queued, and not all that is held.",
    ("engines.held", "engines.queued"),
    why="Who has its first token is queued no more, and is still there.",
)


@misconception(
    "11.route",
    "You take the most hits, and look at the load only where those are equal.",
    why="A prefix of one block more would then outweigh any queue.",
)
def hits_first(request, engines, weight=1.0):
    return min(range(len(engines)), key=lambda i: (-engines.hits[i], engines.held[i]))


@misconception(
    "11.route",
    "You take the fewest tokens held, and look at hits only where those are equal.",
    why="One token less would then outweigh a prefix of thousands.",
)
def load_first(request, engines, weight=1.0):
    return min(range(len(engines)), key=lambda i: (engines.held[i], -engines.hits[i]))


@misconception(
    "11.route",
    "You always take the first engine.",
    why="It gets every request, and the others are idle.",
)
def the_first(request, engines, weight=1.0):
    return 0
