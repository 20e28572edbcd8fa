"""Wrong answers to 14.sequence_loss: a right one with an edit."""

from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_14_mixture_of_experts.right import sequence_loss

wrong = Mistakes("14.sequence_loss", sequence_loss)

SHARES = "routing.scores / (routing.scores.sum(dim=-1, keepdim=True) + 1e-20)"

wrong(
    "of_the_batch",
    "You have one loss for the whole batch: f and P, or one of the two, run over the tokens of all sequences.",
    ("T = N // sequences", "T, sequences = N, 1"),
    why="Then one sequence's favourite experts make up for another's, and the loss sees nothing.",
)
wrong(
    "counts_by_tokens",
    "You divide the counts by the number of tokens, and each token makes K of them.",
    ("E / (K * T)", "E / T"),
    why="f is 1 where all is even: each expert then has K · T / E assignments.",
)
wrong(
    "counts_by_all_tokens",
    "You divide a sequence's counts by the tokens of the whole batch.",
    ("E / (K * T)", "E / (K * N)"),
    why="Of each sequence, f is 1 where all is even: by its own T tokens.",
)
wrong(
    "normalised_after_the_mean",
    "You take the mean of the scores first, and divide by the sum then.",
    ("shares = " + SHARES, "shares = routing.scores"),
    (
        "P = shares.reshape(sequences, T, E).mean(dim=1)",
        "P = shares.reshape(sequences, T, E).mean(dim=1)\n    P = P / (P.sum(dim=-1, keepdim=True) + 1e-20)",
    ),
    why="Each token counts as much as any other: its scores are divided by their own sum, before the mean.",
)
wrong(
    "scores_as_they_are",
    "You take the mean of the scores as they are.",
    (SHARES, "routing.scores"),
    why="Sigmoids do not add up to 1. The loss would fall by lowering all of them, with loads as uneven as before.",
)
wrong(
    "softmax_of_the_scores",
    "You put the scores through a softmax.",
    (SHARES, "torch.softmax(routing.scores, dim=-1)"),
    why="They are scores already, between 0 and 1: a softmax makes them nearly equal. Divide them by their sum.",
)
wrong(
    "scores_of_the_chosen",
    "You take P from the scores of chosen experts alone.",
    (SHARES, SHARES + " * chosen * (E / K)"),
    why="P is over all tokens, whoever they chose: an expert's score counts also where it was not chosen.",
)
wrong(
    "sum_over_sequences",
    "You add up the losses of the sequences.",
    (".sum(dim=-1).mean()", ".sum()"),
    why="Then the loss grows with the batch. It is their mean: 1 where all is even.",
)
wrong(
    "sequences_interleaved",
    "You take every S-th token for a sequence's.",
    ("reshape(sequences, T, E).sum(dim=1)", "reshape(T, sequences, E).sum(dim=0)"),
    ("reshape(sequences, T, E).mean(dim=1)", "reshape(T, sequences, E).mean(dim=0)"),
    why="A sequence's T tokens lie together: reshape(sequences, T, …).",
)
wrong(
    "scores_interleaved",
    "You count a sequence's own tokens, and take P from every S-th token.",
    ("reshape(sequences, T, E).mean(dim=1)", "reshape(T, sequences, E).mean(dim=0)"),
    why="A sequence's T tokens lie together, for P as for f: reshape(sequences, T, …).",
)
wrong(
    "zero_by_zero",
    "You divide by the sum of a token's scores as it is, and it may be 0.",
    (" + 1e-20", ""),
    why="In fp32 the sigmoid of −200 is 0. Where all are, 0/0 is NaN.",
)
wrong(
    "small_sum_is_cut",
    "What you add to the sum is not small beside small scores.",
    ("1e-20", "1e-6"),
    why="The sigmoid of −15 is 3e-7. Such scores are divided by their sum like any others.",
)
wrong(
    "without_E",
    "Your loss is E times too small: f has no factor E, or you take the mean over experts for their sum.",
    ("E / (K * T)", "1 / (K * T)"),
    why="Where all is even, every f is 1 and every P is 1/E, and their products add up to 1.",
)
wrong(
    "counts_the_weights",
    "You add up the router's weights, and f counts: each choice is 1.",
    ("scatter(1, routing.experts, 1.0)", "scatter(1, routing.experts, routing.weights.detach())"),
    why="An expert that is chosen with a small weight has a row to compute like any other.",
)
wrong(
    "shares_of_the_tokens",
    "You divide by the sum over tokens: that is dimension 0, and a token's scores lie along dimension 1.",
    ("routing.scores.sum(dim=-1, keepdim=True)", "routing.scores.sum(dim=0, keepdim=True)"),
    why="It is the scores of each token that add up to 1 then, and not those of each expert.",
)
wrong(
    "the_worst_sequence",
    "You take the loss of the worst sequence.",
    (".sum(dim=-1).mean()", ".sum(dim=-1).max()"),
    why="Then the others get no gradient. It is the mean of all.",
)
wrong(
    "no_gradient",
    "Your loss has no gradient: P is made of scores that are detached.",
    ("(f * P)", "(f * P.detach())"),
    why="f counts, and a count has no gradient. It must come through P.",
)
wrong(
    "max_for_sum",
    "You look at the busiest expert alone.",
    ("(f * P).sum(dim=-1)", "(E * (f * P).amax(dim=-1))"),
    why="The loss is a sum over experts, so that each of them is pushed or pulled.",
)
