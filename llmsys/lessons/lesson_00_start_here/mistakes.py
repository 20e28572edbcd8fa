"""Lesson 00's plausible wrong answers."""

import torch

from llmsys.course.checking.diagnosis import misconception


@misconception(
    "00.next_token",
    "You took the argmax over positions (dim=1), not over the vocabulary.",
    why="That says for each word of the vocabulary at which position it is scored highest. No word is chosen.",
)
def positions_of_every_word(logits):
    return logits.argmax(dim=1)


@misconception(
    "00.next_token",
    "You took the argmax over positions (dim=1), not over the vocabulary, and one of the results.",
    why="That says at which position a token is scored highest, and a position is not a word: the model babbles.",
)
def over_positions(logits):
    return logits.argmax(dim=1)[:, -1]


@misconception(
    "00.next_token",
    "You chose a token for every position.",
    why="Each position predicts the one after it, and only what follows the last one is not known yet: [:, -1].",
)
def every_position(logits):
    return logits.argmax(dim=-1)


@misconception(
    "00.next_token",
    "You chose from the first position instead of the last.",
    why="The first position predicts the second token, which the prompt holds already; the answer never moves on.",
)
def first_position(logits):
    return logits[:, 0].argmax(dim=-1)


@misconception(
    "00.next_token",
    "You chose the smallest logit, not the largest.",
    why="That is the token that the model finds least likely of all.",
)
def least_likely(logits):
    return logits[:, -1].argmin(dim=-1)


@misconception(
    "00.next_token",
    "You chose one token for the whole batch: the first sequence's.",
    why="Every sequence of the batch goes its own way.",
)
def first_row_for_all(logits):
    return logits[0, -1].argmax().expand(len(logits))


@misconception(
    "00.next_token",
    "You took the argmax over everything at once: argmax() without a dim flattens the tensor.",
    why="Its index counts through batch, positions and vocabulary alike.",
)
def flattened(logits):
    return logits[:, -1].argmax().expand(len(logits))


@misconception(
    "00.next_token",
    "You averaged over the positions before choosing.",
    why="The earlier positions predict tokens that are known already; only the last one looks ahead.",
)
def averaged(logits):
    return logits.mean(dim=1).argmax(dim=-1)


@misconception(
    "00.next_token",
    "You returned the largest logit, not where it is.",
    why="A logit is a score. The token is its index: max gives the one, argmax the other.",
)
def score_not_index(logits):
    return logits[:, -1].max(dim=-1).values.to(torch.int64)
