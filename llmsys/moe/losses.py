"""What keeps the loads of experts even: a loss term, or a bias that is moved without one.

Let f be how often an expert was chosen and P how much it was scored, both over T tokens, and both 1/E of the whole
where all is even:

    f_e = (E / K·T) · number of tokens that chose e        P_e = (1 / T) · Σ score_e / Σ_e' score_e'
    loss = Σ_e f_e · P_e                                   1 where the loads are even, up to E/K where they are not

The gradient flows through P alone, for f is counted: it lowers the scores of those that are chosen too often. The T
tokens can be those of a batch, or of each sequence by itself, which is a stricter wish: in a batch, one sequence's
specialists balance another's.

A loss term pulls at the weights, and a little against the loss that is meant. DeepSeek-V3 keeps the loads even by a
bias of the choice instead, moved by a fixed step after each step of the optimiser, and has the loss by sequence only
with a weight of 10⁻⁴, against extremes within one sequence.

Sources: https://arxiv.org/abs/2101.03961, equations (4)–(6); https://arxiv.org/abs/2412.19437, equations (17)–(20);
https://arxiv.org/abs/2408.15664 (the bias).
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from llmsys.moe.router import TINY, Routing


def balance_loss(routing: Routing, *, sequences: int = 1) -> Float[Tensor, ""]:
    """Σ f · P, the mean over sequences: 1 where loads or scores are even, without a weight α.

    Parameters
    ----------
    sequences
        The N tokens are so many sequences of the same length, one after another, each with a loss of its own
        (DeepSeek-V3's, equation (17)). 1: all are one batch (Switch's; transformers' `load_balancing_loss_func` is K
        times this).

    Raises
    ------
    ValueError
        The tokens are not so many sequences of the same length.
    """
    N, E = routing.scores.shape
    K = routing.experts.shape[1]
    if sequences < 1 or N % sequences:
        raise ValueError(f"sequences must divide the {N} tokens into equal parts, got {sequences}")
    if N == 0:
        return routing.scores.sum()  # 0, with a gradient
    T = N // sequences
    chosen = routing.experts.reshape(sequences, T * K)
    count = torch.zeros(sequences, E, device=chosen.device)
    count.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=count.dtype))
    scores = routing.scores / (routing.scores.sum(dim=-1, keepdim=True) + TINY)
    f = count * (E / (K * T))  # (S, E)
    P = scores.reshape(sequences, T, E).mean(dim=1)  # (S, E)
    return (f * P).sum(dim=-1).mean()


@torch.no_grad()
def move_bias(bias: Float[Tensor, " E"], loads: Shaped[Tensor, "..."], rate: float) -> None:
    """bias ← bias + rate · sign(mean load − load), **in place**: up where an expert had too few tokens.

    Parameters
    ----------
    loads
        (E,), tokens of each expert in one step, summed over batches and ranks: then all ranks make the same change.
    rate
        γ: 0.001 for most of DeepSeek-V3's training, and 0 at its end.

    Raises
    ------
    ValueError
        The loads are not one for each expert, or the rate is below 0.
    """
    if loads.shape != bias.shape:
        raise ValueError(f"loads must be {tuple(bias.shape)}, one for each expert, got {tuple(loads.shape)}")
    if not rate >= 0:
        raise ValueError(f"rate must be at least 0, got {rate}")
    loads = loads.double() if loads.is_floating_point() else loads.long()
    bias.add_((loads.sum() - len(loads) * loads).sign().to(bias.dtype), alpha=rate)  # whole numbers: equal is equal
