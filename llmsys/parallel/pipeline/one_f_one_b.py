"""1F1B: a backward as soon as there can be one (PipeDream-Flush, https://arxiv.org/abs/2006.09503; as in Megatron-LM).

    rank 0   F0 F1 F2 F3 .  .  .  .  .  .  B0    F4 B1    F5 B2    .  B3    .  B4    .  B5
    rank 1   .  F0 F1 F2 .  .  .  .  B0    F3 B1    F4 B2    F5 B3    .  B4    .  B5
    rank 2   .  .  F0 F1 .  .  B0    F2 B1    F3 B2    F4 B3    F5 B4    .  B5
    rank 3   .  .  .  F0 B0    F1 B1    F2 B2    F3 B3    F4 B4    F5 B5

Rank r runs P − 1 − r forwards ahead, as many as stages follow it. Then each forward is followed by a backward, and at
last come the backwards that are left. The bubble is GPipe's, (P − 1)(F + B), but rank r keeps at most P − r
microbatches' activations, not all N.
"""

from llmsys.parallel.pipeline.actions import Action, B, F
from llmsys.parallel.pipeline.placement import at_least, linear
from llmsys.parallel.pipeline.schedule import Schedule


def one_f_one_b(num_ranks: int, num_microbatches: int) -> Schedule:
    """Bubble (P − 1)(F + B), min(P − r, N) activations on rank r."""
    placement = linear(num_ranks)
    at_least("num_microbatches", num_microbatches, 1)
    orders = [_order(rank, num_ranks, num_microbatches) for rank in range(num_ranks)]
    return Schedule("1f1b", placement, num_microbatches, orders)


def _order(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    ahead = min(num_ranks - 1 - rank, num_microbatches)
    order = [F(rank, m) for m in range(ahead)]
    for m in range(ahead, num_microbatches):
        order += [F(rank, m), B(rank, m - ahead)]
    return order + [B(rank, m) for m in range(num_microbatches - ahead, num_microbatches)]
