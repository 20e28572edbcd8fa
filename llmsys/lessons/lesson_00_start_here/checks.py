"""Lesson 00: the choice of the next token."""

import math

import torch

from llmsys.course.checking.checks import exercise_check


@exercise_check(
    "00.next_token",
    reference="llmsys.models.sampling:greedy",
    forbids=("llmsys.models.sampling:*",),
    hints=(
        "logits has three dimensions, (B, T, V). Which one is time, and which one is the vocabulary?",
        "logits[b, t] scores every token of the vocabulary as the one that comes after token t of sequence b. Only "
        "what comes after the last token is new; the token chosen is the one with the largest score.",
        "1. Take the last position of every sequence: (B, T, V) -> (B, V).\n"
        "2. Take the index of the largest score of every row: (B, V) -> (B,).",
    ),
    equivalent={"-1 → +1 (2)": "(B, V) has two dimensions, and so its last one is also its dimension 1"},
)
def next_token(answer):
    with answer.property("gives whole numbers", why="A token is a number: its place in the vocabulary."):
        run = answer(answer.randn(3, 5, 11))
        answer.that(run, lambda run: getattr(run.value, "dtype", None) == torch.int64, "an int64 tensor")

    with answer.property("gives one of them for each sequence", why="The model appends one token to each."):
        for B, T, V in ((1, 1, 7), (3, 5, 11), (4, 2, 5)):
            run = answer(answer.randn(B, T, V))
            answer.form(run, torch.zeros(B, dtype=torch.int64))

    with answer.property("names tokens of the vocabulary", why="Each number is looked up in the vocabulary's V words."):
        for T, V in ((9, 4), (1, 6)):
            run = answer(answer.randn(2, T, V))
            answer.that(
                run,
                lambda run, V=V: bool(((run.value >= 0) & (run.value < V)).all()),
                f"numbers from 0 to {V - 1}, where V = {V}",
            )

    with answer.property("chooses the token with the largest logit", why="The largest logit is the likeliest token."):
        for B, V in ((1, 2), (1, 13), (1, 50)):  # one sequence of one token: nothing else to choose from
            logits = answer.randn(B, 1, V)
            answer.matches(logits[:, 0].max(dim=-1).indices, logits)

    with answer.property(
        "looks at the last position only",
        why="The logits at position t predict token t + 1, and only what follows the last token is not known yet.",
        hint="Which position's logits say what comes after everything that is known?",
    ):
        for T in (2, 3, 17):
            for _ in range(2):  # the same shape again, and other numbers
                logits = answer.randn(1, T, 12)
                answer.matches(logits[:, T - 1].max(dim=-1).indices, logits)

    with answer.property(
        "chooses for each sequence of the batch on its own",
        why="Sequences do not know each other.",
        hint="One call, B sequences: which dimension is left when positions and vocabulary are gone?",
    ):
        for B, T, V in ((2, 1, 9), (5, 4, 23)):
            logits = answer.randn(B, T, V)
            logits[torch.arange(B), -1, torch.arange(B) * 2] = 10.0  # the winners differ from row to row
            answer.matches(torch.arange(B) * 2, logits)
            answer.matches(torch.arange(B).flip(0) * 2, answer.spread(logits.flip(0)))
        logits = answer.randn(11, 31, 7)  # more sequences and positions than one tries by hand
        answer.matches(logits[:, 30].max(dim=-1).indices, logits)

    with answer.property(
        "works on logits of any size and sign",
        why="Models give logits far from zero, in bf16, too.",
        hint="Compare the logits as they are: which of your lines converts them, or has a number of its own?",
    ):
        low_and_high = ((-1e4, torch.float32), (1e4, torch.float64), (-100.0, torch.bfloat16), (-1e3, torch.float16))
        for offset, dtype in low_and_high:
            logits = (answer.randint(-8, 8, (3, 4, 10)).double() + offset).to(dtype)
            logits[torch.arange(3), -1, torch.tensor([9, 0, 4])] = offset + 16
            answer.matches(torch.tensor([9, 0, 4]), logits)
        logits = -1e30 * (1 + answer.randn(3, 4, 10).abs())  # below any number that one would begin with
        logits[torch.arange(3), -1, torch.tensor([7, 0, 9])] = -1e29
        logits[1, -1, 1:] = -math.inf  # a vocabulary of which some is ruled out
        answer.matches(torch.tensor([7, 0, 9]), logits)
        close = answer.randn(9, 3, 9, dtype=torch.float64).clamp(max=2)
        close[:, -1, 2], close[:, -1, 6] = 3.0, 3.0 + 1e-12  # one number in float32, and two here
        answer.matches(torch.full((9,), 6), close)

    with answer.property("a whole vocabulary", why="SmolLM2 has 49,152 tokens: the last one, too, may be the next."):
        logits = answer.randn(2, 3, 49152)
        logits[torch.arange(2), -1, torch.tensor([49151, 32768])] = 10.0  # more than 15 bits, more than bfloat16 has
        answer.matches(torch.tensor([49151, 32768]), logits)
