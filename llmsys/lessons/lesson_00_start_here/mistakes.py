"""Wrong answers to lesson 00, as people write them: a right one with an edit (`llmsys.course.checking.mistakes`)."""

import torch

from llmsys.course.checking.mistakes import Mistakes


def next_token(logits: torch.Tensor) -> torch.Tensor:
    """A right answer."""
    return logits[:, -1].argmax(dim=-1)


wrong = Mistakes("00.next_token", next_token)

wrong(
    "positions_of_every_word",
    "You took the argmax over positions (dim=1), not over the vocabulary.",
    ("[:, -1].argmax(dim=-1)", ".argmax(dim=1)"),
    why="That says for each word of the vocabulary at which position it is scored highest. No word is chosen.",
)
wrong(
    "over_positions",
    "You took the argmax over positions (dim=1), not over the vocabulary, and one of the results.",
    ("[:, -1].argmax(dim=-1)", ".argmax(dim=1)[:, -1]"),
    why="That says at which position a token is scored highest, and a position is not a word: the model babbles.",
)
wrong(
    "every_position",
    "You chose a token for every position.",
    ("[:, -1]", ""),
    why="Each position predicts the one after it, and only what follows the last one is not known yet: [:, -1].",
)
wrong(
    "first_position",
    "You chose from the first position instead of the last.",
    ("[:, -1]", "[:, 0]"),
    why="The first position predicts the second token, which the prompt holds already; the answer never moves on.",
)
wrong(
    "least_likely",
    "You chose the smallest logit, not the largest.",
    ("argmax", "argmin"),
    why="That is the token that the model finds least likely of all.",
)
wrong(
    "first_row_for_all",
    "You chose one token for the whole batch: the first sequence's.",
    ("[:, -1].argmax(dim=-1)", "[0, -1].argmax().expand(len(logits))"),
    why="Every sequence of the batch goes its own way.",
)
wrong(
    "flattened",
    "You took the argmax over everything at once: argmax() without a dim flattens the tensor.",
    ("argmax(dim=-1)", "argmax().expand(len(logits))"),
    why="Its index counts through batch, positions and vocabulary alike.",
)
wrong(
    "averaged",
    "You averaged over the positions before choosing.",
    ("[:, -1]", ".mean(dim=1)"),
    why="The earlier positions predict tokens that are known already; only the last one looks ahead.",
)
wrong(
    "score_not_index",
    "You returned the largest logit, not where it is.",
    ("argmax(dim=-1)", "max(dim=-1).values.to(torch.int64)"),
    why="A logit is a score. The token is its index: max gives the one, argmax the other.",
)
wrong(
    "keeps_the_best_from_a_number",
    "You look for what is above a number of your own, and begin with one that is too large.",
    (
        "return logits[:, -1].argmax(dim=-1)",
        "last, best = logits[:, -1].double(), logits.new_full(logits[:, 0, 0].shape, -1e4).double()\n"
        "    token = torch.zeros(len(logits), dtype=torch.int64)\n"
        "    for word in range(logits.shape[-1]):\n"
        "        token[last[:, word] > best] = word\n"
        "        best = torch.maximum(best, last[:, word])\n"
        "    return token",
    ),
    why="Logits may be anything. Begin with the first of them, or with −∞.",
)
wrong(
    "rounded_to_float32",
    "You round the logits before you compare them.",
    ("argmax(dim=-1)", "float().argmax(dim=-1)"),
    why="Two logits that differ in float64 may be one number in float32. argmax takes every precision as it is.",
)
wrong(
    "counts_in_memory",
    "You count where the logits lie in memory, and not where they are in the tensor.",
    (
        "logits[:, -1].argmax(dim=-1)",
        "torch.as_strided(logits, logits[:, -1].shape, (logits.shape[1] * logits.shape[2], 1), "
        "logits.storage_offset() + (logits.shape[1] - 1) * logits.shape[2]).argmax(dim=-1)",
    ),
    why="A tensor may be a transposed or a sliced one. logits[:, -1] is right for each of them.",
)
