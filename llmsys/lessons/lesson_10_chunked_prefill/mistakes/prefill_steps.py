"""Wrong answers to 10.prefill_steps: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_10_chunked_prefill.right import prefill_steps

wrong = Mistakes("10.prefill_steps", prefill_steps)

PIECE = "piece = min(prompt - computed, budget - len(cached))"
LOAD = "StepLoad.of([(tokens, 1) for tokens in cached] + [(computed, piece)])"
GROWS = "        cached = [tokens + 1 for tokens in cached]\n"

wrong(
    "whole",
    "You compute the whole prompt in one step.",
    (PIECE, "piece = prompt"),
    why="That is the stall: everybody who decodes waits for all of it.",
)
wrong(
    "decodes_are_free",
    "You give the piece the whole budget.",
    ("budget - len(cached)", "budget"),
    why="Each of those that decode takes one token of the step's budget.",
)
wrong(
    "last_piece_is_full",
    "Your last piece is as long as the others.",
    (PIECE, "piece = budget - len(cached)"),
    why="It is what is left of the prompt.",
)
wrong(
    "equal_pieces",
    "You cut the prompt into pieces of one size.",
    (PIECE, "piece = min(prompt - computed, -(-prompt // -(-prompt // (budget - len(cached)))))"),
    why="Each step takes as much as fits: all are full but the last.",
)
wrong(
    "decodes_sit_out",
    "You leave those that decode out of the step.",
    (LOAD, "StepLoad.of([(computed, piece)])"),
    why="Then they stand still while the prompt is read, piece after piece.",
)
wrong(
    "nothing_before",
    "You compute each piece as if nothing of the prompt were in the cache.",
    ("(computed, piece)]", "(0, piece)]"),
    why="A piece attends to all that come before it.",
)
wrong(
    "counts_too_early",
    "You count a piece as computed before you ask how long it takes.",
    ("[(computed, piece)]", "[(computed + piece, piece)]"),
    why="StepLoad.of wants what is in the cache before the step.",
)
wrong(
    "pairs_swapped",
    "Your pairs are the wrong way round.",
    (LOAD, "StepLoad.of([(1, tokens) for tokens in cached] + [(piece, computed)])"),
    why="StepLoad.of wants (tokens in the cache, new tokens).",
)
wrong(
    "one_too_many",
    "You count the token that a decode computes as one that is in the cache.",
    ("[(tokens, 1) for", "[(tokens + 1, 1) for"),
    why="StepLoad.of wants what is in the cache before the step, and adds what is new.",
)
wrong(
    "decodes_merged",
    "You make one sequence of all that decode.",
    (LOAD, "StepLoad.of([(sum(cached), len(cached))] * bool(cached) + [(computed, piece)])"),
    why="Each is a sequence of its own: none attends to another's tokens.",
)
wrong(
    "two_steps",
    "You add the time of a step of the decodes to that of a step of the piece.",
    (
        "times.seconds(load)",
        "times.seconds(load) + (times.seconds(StepLoad.of([(n, 1) for n in cached])) if cached else 0)",
    ),
    (LOAD, "StepLoad.of([(computed, piece)])"),
    why="They are in one step, which has its fixed cost once.",
)
wrong(
    "contexts_stand_still",
    "Those that decode have the same context in every step.",
    (GROWS, ""),
    why="Each step adds a token to each of them.",
)
wrong(
    "whole_contexts_are_new",
    "You let those that decode compute all of their context again.",
    ("[(tokens, 1) for", "[(0, tokens) for"),
    why="It is in the cache. They compute one token, and attend to the rest.",
)
wrong(
    "changes_the_contexts",
    "You count up in the list that you were given.",
    ("list(contexts)", "contexts"),
    (GROWS, "        for n in range(len(cached)):\n            cached[n] += 1\n"),
    why="The caller's list is not yours to change.",
)
wrong(
    "seconds_add_up",
    "You return when each step ends, and not how long it takes.",
    ("(piece, times.seconds(load))", "(piece, times.seconds(load) + (steps[-1][1] if steps else 0))"),
    why="The stall of a decode is one step's time.",
)
