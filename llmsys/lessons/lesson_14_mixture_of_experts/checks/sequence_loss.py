"""14.sequence_loss: the balance loss, of each sequence by itself."""

import torch
from torch import Tensor

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_14_mixture_of_experts.plain import plain_loss


@exercise_check(
    "14.sequence_loss",
    reference="llmsys.moe.losses:balance_loss",
    forbids=("llmsys.lessons.lesson_14_mixture_of_experts.right:*",),
    adapt=plain_loss,
    equivalent={
        "routing.scores.sum(dim=-1, keepdim=True) + 1e-20 → routing.scores.sum(dim=-1, keepdim=True) - 1e-20": (
            "0 by −1e-20 is 0, too"
        ),
        "-1 → +1": "of a matrix, dimension 1 is the last one",
        "-1 → +1 (2)": "of a matrix, dimension 1 is the last one",
    },
    hints=(
        "Write down the shapes of f and P for S sequences, and for each of the two: over what is it a mean?",
        "f and P are (S, E): of each sequence by itself. The sums over e give (S,), and the loss is their mean. f "
        "counts, and has no gradient; P is a mean of scores that add up to 1 for each token.",
        "T = N / sequences\n"
        "count (S, E): how often each expert is among a sequence's T · K chosen ones;  f = E / (K · T) · count\n"
        "scores divided by their sum over the experts (+ 1e-20);  P (S, E) = the mean of them over a sequence's "
        "tokens\n"
        "the mean over sequences of the sum over experts of f · P",
    ),
)
def sequence_loss(answer: Answer) -> None:
    def chosen(N: int, K: int, E: int) -> Tensor:
        return answer.randn(N, E).argsort(dim=-1)[:, :K].contiguous()

    def sigmoids(N: int, E: int) -> Tensor:
        return torch.sigmoid(answer.randn(N, E, scale=1.5))

    def softmaxes(N: int, E: int) -> Tensor:
        return torch.softmax(answer.randn(N, E, scale=1.5), dim=-1)

    with answer.property(
        "1 for one token and one expert",
        why="It has all of the load and all of the score: f is 1 and P is 1.",
        hint="Is it one number, of shape ()?",
    ):
        answer.agrees(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1))

    with answer.property(
        "1 where loads and scores are even",
        why="Then f is 1 and P is 1/E for each expert.",
        hint="Compute f and P for two experts and two tokens, each of which goes to another one.",
    ):
        for E in (2, 5):
            answer.agrees(torch.arange(E).repeat(3)[:, None], torch.full((3 * E, E), 1 / E))

    with answer.property(
        "one sequence, one expert a token, scores that add up to 1",
        why="That is the loss of the Switch Transformer.",
        hint="f: how often an expert was chosen, times E / T. P: the mean of all its scores, chosen or not.",
    ):
        for N, E in ((7, 4), (5, 3)):
            answer.agrees(chosen(N, 1, E), softmaxes(N, E))

    with answer.property(
        "f counts assignments, of which a token makes K",
        why="Where all is even, each expert has K · T / E of them, and f is 1.",
        hint="By what do you divide the counts? With K = 2, how many counts are there altogether?",
    ):
        for N, K, E in ((7, 2, 4), (5, 3, 6)):
            answer.agrees(chosen(N, K, E), softmaxes(N, E))

    with answer.property(
        "P is made of scores that are divided by their sum",
        why="Sigmoids do not add up to 1. Without that, to lower all scores alike would make the loss smaller, and "
        "nothing more even.",
        hint="What do a token's scores add up to, over all experts, before you take the mean?",
    ):
        for N, K, E in ((7, 2, 4), (6, 1, 5)):
            answer.agrees(chosen(N, K, E), sigmoids(N, E))

    with answer.property(
        "each sequence has a loss of its own, and the loss is their mean",
        why="In one sum over the batch, one sequence's specialists would make up for another's.",
        hint="Which of your sums runs over the tokens of all sequences? And how large is the loss of 3 sequences, "
        "each of which has 1?",
    ):
        experts = torch.tensor([[0], [0], [0], [1], [1], [1]])  # two sequences, each with an expert of its own
        answer.agrees(experts, torch.eye(2)[experts[:, 0]] * 0.8 + 0.1, sequences=2)
        answer.agrees(torch.arange(4).repeat(6)[:, None], torch.full((24, 4), 0.25), sequences=3)
        answer.agrees(chosen(12, 2, 5), sigmoids(12, 5), sequences=4)

    with answer.property(
        "the tokens of a sequence lie together: its T, then the next one's",
        why="That is how x.flatten(0, 1) lays a batch (B, T, C) out.",
        hint="Is the first dimension after your view the sequences' or the tokens'?",
    ):
        for N, K, E, S in ((12, 2, 4, 2), (15, 1, 3, 5)):
            answer.agrees(chosen(N, K, E), sigmoids(N, E), sequences=S)

    with answer.property(
        "numbers, where all scores of a token are 0, and exact where they are small",
        why="A sigmoid can be 0 in fp32. 0/0 in one token would be NaN for all.",
        hint="Add 1e-20 to the sum of the scores before you divide. More than that would change small shares.",
    ):
        scores = sigmoids(6, 4)
        scores[2] = 0
        answer.agrees(chosen(6, 2, 4), scores)
        answer.agrees(chosen(6, 2, 4), torch.sigmoid(answer.randn(6, 4) - 18))

    with answer.property(
        "its gradient comes through P: it lowers the scores of experts that were chosen too often",
        why="A count has no gradient. Through P the loss reaches the router.",
        hint="Which line takes the scores out of the graph?",
    ):
        for S in (1, 3):
            answer.agrees(chosen(12, 2, 5), sigmoids(12, 5), sequences=S, told="gradient of scores")

    with answer.property(
        "all of it together: sizes and strides",
        why="Sequences may have one token, batches one sequence, every expert may be chosen, and tensors may be views "
        "with gaps, for which .view(…) fails and .reshape(…) does not.",
        hint="Which line assumes something that need not be so: a size, or how a tensor lies in memory?",
    ):
        for N, K, E, S in ((1, 1, 1, 1), (5, 3, 3, 5), (24, 4, 7, 6), (13, 2, 31, 1), (8, 8, 9, 2)):
            for _ in range(2):
                answer.agrees(answer.spread(chosen(N, K, E)), answer.spread(sigmoids(N, E)), sequences=S)
