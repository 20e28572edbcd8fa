"""Wrong answers to 15.keep: a right one with an edit, and one by another way."""

import torch

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.mistakes import Mistakes
from llmsys.lessons.lesson_15_multi_head_latent_attention.right import keep

wrong = Mistakes("15.keep", keep)

FREQUENCY = "frequency = base ** (-torch.arange(0, R, 2) / R)"
SPLIT = "even, odd = r[..., 0::2], r[..., 1::2]"
JOINED = "torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)"
NORM = "c = weight * c * torch.rsqrt(c.square().mean(dim=-1, keepdim=True) + eps)"
BOTH = "torch.cat((c, r), dim=-1)[:, None]"


@misconception(
    "15.keep",
    "You turn the latent, too: all L + R columns have the position.",
    why="Keys and values are made of c. Values have no position, and U_h makes keys of a turned c whose products with "
    "queries that are turned as ever do not depend on the distance alone. So the position has columns of its own.",
)
def turns_everything(x, down, weight, positions, *, base=10_000.0, eps=1e-6):
    L, both = len(weight), x @ down.mT
    c = both[..., :L]
    both = torch.cat((weight * c * torch.rsqrt(c.square().mean(dim=-1, keepdim=True) + eps), both[..., L:]), dim=-1)
    angle = positions[:, None] * base ** (-torch.arange(0, len(down), 2) / len(down))
    even, odd = both[..., 0::2], both[..., 1::2]
    turned = even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()
    return torch.stack(turned, dim=-1).flatten(-2)[:, None]


wrong(
    "turns_the_latent_by_itself",
    "You turn the latent, too: c by the frequencies of L columns, and r by those of R.",
    (
        BOTH,
        "torch.cat((torch.stack((c[..., 0::2] * (a := positions[:, None] * base ** (-torch.arange(0, L, 2) / L)).cos()"
        " - c[..., 1::2] * a.sin(), c[..., 0::2] * a.sin() + c[..., 1::2] * a.cos()), dim=-1).flatten(-2), r), "
        "dim=-1)[:, None]",
    ),
    why="Every head's matrix comes after that, and a rotation before it cannot be undone behind it.",
)
wrong(
    "eps_outside_of_the_root",
    "You add eps to the root, and not under it.",
    (NORM, "c = weight * c / (c.square().mean(dim=-1, keepdim=True).sqrt() + eps)"),
    why="It is √(mean(c²) + eps). Where c is small, that is far from √mean(c²) + eps.",
)
wrong(
    "r_comes_first",
    "You keep r in front of c.",
    (BOTH, "torch.cat((r, c), dim=-1)[:, None]"),
    why="It is [c ; r], c in the first L columns. The matrices of the heads take those.",
)
wrong(
    "turns_half_and_half",
    "You pair column i with column i + R/2, as Llama's checkpoints do.",
    (SPLIT, "even, odd = r.chunk(2, dim=-1)"),
    (JOINED, "torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1)"),
    why="DeepSeek's pairs are neighbours, 2i and 2i + 1. The weights were trained for one of the two.",
)
wrong(
    "turns_half_and_half_in_place",
    "You turn neighbours, and put all first ones before all second ones.",
    (JOINED, "torch.cat((even * cos - odd * sin, even * sin + odd * cos), dim=-1)"),
    why="Queries are turned in place by the model. A key in another order meets the wrong columns of theirs.",
)
wrong(
    "counts_positions_itself",
    "You take the tokens' positions to be 0, 1, 2, ….",
    ("positions[:, None]", "torch.arange(x.shape[1])[:, None]"),
    why="With a cache, the step's tokens come after all those that are kept already.",
)
wrong(
    "normalises_r",
    "You normalise r along with c.",
    (
        NORM,
        "both = torch.cat((c, r), dim=-1)\n    both = both * torch.rsqrt(both.square().mean(dim=-1, keepdim=True) + "
        "eps)\n    c, r = weight * both[..., :L], both[..., L:]",
    ),
    why="Only the latent has a norm. What r says depends on how large it is.",
)
wrong(
    "no_norm",
    "You do not normalise the latent.",
    (NORM, "c = weight * c"),
    why="key_up and value_up were trained on c / √(mean(c²) + eps) · weight.",
)
wrong(
    "no_weight",
    "You normalise, and leave out the norm's weight.",
    ("c = weight * c", "c = c"),
    why="RMSNorm has a trained number for each of the L columns.",
)
wrong(
    "layer_norm",
    "You subtract the mean first: that is LayerNorm.",
    (NORM, "c = c - c.mean(dim=-1, keepdim=True)\n    " + NORM),
    why="RMSNorm divides by the root of the mean square, and subtracts nothing.",
)
wrong(
    "turns_backwards",
    "You turn in the other direction.",
    (JOINED, "torch.stack((even * cos + odd * sin, odd * cos - even * sin), dim=-1).flatten(-2)"),
    why="Queries are turned by +θ. A key that is turned by −θ meets them at the sum of positions, not at the distance.",
)
wrong(
    "frequencies_of_the_whole",
    "You take the frequencies of a vector of L + R numbers.",
    ("torch.arange(0, R, 2) / R", "torch.arange(0, R, 2) / (L + R)"),
    why="The exponent is −2i / R: r is a vector of its own, with all frequencies from 1 to about 1 / base.",
)
wrong(
    "frequencies_half_as_steep",
    "Your frequencies are base^(−i / R), for i = 0, 1, 2, …: they do not fall fast enough.",
    ("torch.arange(0, R, 2) / R", "torch.arange(0, R // 2) / R"),
    why="Pair i turns by base^(−2i / R) a token, so the last one turns about base times as slowly as the first.",
)
wrong(
    "angles_half_and_half",
    "You turn neighbours with each other, but by angles that are laid out for halves.",
    (
        JOINED,
        "r * torch.cat((cos, cos), dim=-1) + torch.stack((-odd, even), dim=-1).flatten(-2) * "
        "torch.cat((sin, sin), dim=-1)",
    ),
    why="Both columns of a pair turn by the same angle. For neighbours that is angle 0, 0, 1, 1, …: repeat_interleave.",
)
wrong(
    "no_position",
    "You turn nothing.",
    ("angle = positions[:, None] * frequency", "angle = 0 * positions[:, None] * frequency"),
    why="r is there for the position, and for nothing else.",
)
wrong(
    "base_is_fixed",
    "You take 10,000 for the base, whatever was given.",
    ("base ** (", "10_000.0 ** ("),
    why="The base is the model's. Longer contexts have larger ones.",
)
wrong(
    "splits_the_other_way",
    "You take the first R rows of down for r, and the others for the latent.",
    ("c, r = (x @ down.mT).split((L, R), dim=-1)", "r, c = (x @ down.mT).split((R, L), dim=-1)"),
    why="down is W_c above W_r: its first L rows make the latent, and its last R make r.",
)
wrong(
    "normalises_r_by_itself",
    "You normalise r, too.",
    (NORM, NORM + "\n    r = r * torch.rsqrt(r.square().mean(dim=-1, keepdim=True) + eps)"),
    why="Only the latent has a norm. What r says depends on how large it is.",
)
wrong(
    "normalises_x",
    "You normalise x, before the product.",
    ("(x @ down.mT)", "((x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)) @ down.mT)"),
    (NORM, "c = weight * c"),
    why="The norm is of the latent, L numbers, after the product, and r has none.",
)
wrong(
    "sum_of_squares",
    "You divide by the root of the sum of squares, and not of their mean.",
    ("c.square().mean(", "c.square().sum("),
    why="It is √(mean(c²) + eps): with the sum, the latent is √L times too small.",
)
wrong(
    "weight_and_one",
    "You multiply by 1 + weight.",
    ("c = weight * c", "c = (1 + weight) * c"),
    why="Gemma's norms are kept like that. Here the weight itself is the factor.",
)
wrong(
    "overwrites_a",
    "You make the second column of a pair of the first one as it is after the turn.",
    (JOINED, JOINED.replace("even * sin", "(even * cos - odd * sin) * sin")),
    why="Both are made of the old a and b. Keep them, or write into a new tensor.",
)
wrong(
    "columns_exchanged",
    "You have the columns of a turned pair the wrong way round.",
    (JOINED, "torch.stack((even * sin + odd * cos, even * cos - odd * sin), dim=-1).flatten(-2)"),
    why="(a, b) becomes (a cos θ − b sin θ, a sin θ + b cos θ), in this order.",
)
wrong(
    "mean_over_everything",
    "You divide the latent by the root of the mean over all L + R numbers.",
    (NORM, NORM.replace("c.square()", "torch.cat((c, r), dim=-1).square()")),
    why="The norm is of c alone: split off r first.",
)
wrong(
    "positions_from_one",
    "You turn by the position and one more.",
    ("positions[:, None]", "(positions[:, None] + 1)"),
    why="Positions are counted from 0, and queries are turned by theirs as they are: the first token is not turned.",
)
wrong(
    "positions_from_the_first",
    "You count positions from the first of these tokens.",
    ("positions[:, None]", "(positions - positions[0])[:, None]"),
    why="With a cache, the first of the step's tokens comes after all those that are kept already.",
)
