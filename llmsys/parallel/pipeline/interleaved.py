"""Interleaved 1F1B: several small stages a rank (Megatron-LM, https://arxiv.org/abs/2104.04473, section 2.2).

The layers are cut into v · P stages, and rank r has stages r, r + P, r + 2P, …, its chunks. What a rank waits for at
both ends is P − 1 stages as before, but each of them takes 1/v of the time: the bubble is (P − 1)(F + B) / v, where F
and B are those of a rank's whole share. The price: v times as many transfers, and more activations.

A rank takes microbatches in rounds of P. In a round it runs P forwards of its first chunk, then P of its second, and so
on; backwards go through the chunks in the opposite order:

    P = 2, v = 2, rank 0:   forwards   0F0 0F1 2F0 2F1 0F2 0F3 2F2 2F3
                            backwards  2B0 2B1 0B0 0B1 2B2 2B3 0B2 0B3

The two lists are woven as in 1F1B: first some forwards ahead, then one of each in turn. Rank r must be ahead until the
first microbatch's forward has gone through all chunks, (v − 1) · P, and its backward can be back, 2 (P − 1 − r) more.
"""

from llmsys.parallel.pipeline.actions import Action, B, F
from llmsys.parallel.pipeline.placement import at_least, looped
from llmsys.parallel.pipeline.schedule import Schedule


def interleaved(num_ranks: int, num_microbatches: int, chunks: int = 2) -> Schedule:
    """Bubble (P − 1)(F + B) of a chunk; v · P + P − 1 chunks' activations on rank 0.

    Parameters
    ----------
    num_microbatches
        Best a multiple of num_ranks. Otherwise rounds are longer, max(1, N // P) equal ones, and waits, too.
    chunks
        Stages a rank, v.
    """
    placement = looped(num_ranks, chunks)
    at_least("num_microbatches", num_microbatches, 1)
    num_rounds = max(1, num_microbatches // num_ranks)
    if num_microbatches % num_rounds:
        below = num_microbatches // num_ranks * num_ranks
        raise ValueError(
            f"num_microbatches must come out even in {num_rounds} rounds of at least {num_ranks}, one a rank; got "
            f"{num_microbatches}, try {below} or {below + num_ranks}"
        )
    per_round = num_microbatches // num_rounds
    rounds = [range(first, first + per_round) for first in range(0, num_microbatches, per_round)]
    orders = [_order(rank, num_ranks, rounds, chunks) for rank in range(num_ranks)]
    return Schedule("interleaved", placement, num_microbatches, orders)


def _order(rank: int, num_ranks: int, rounds: list[range], chunks: int) -> list[Action]:
    stages = [chunk * num_ranks + rank for chunk in range(chunks)]
    forwards = [F(stage, m) for round_ in rounds for stage in stages for m in round_]
    backwards = [B(stage, m) for round_ in rounds for stage in reversed(stages) for m in round_]
    ahead = min((chunks - 1) * len(rounds[0]) + 2 * (num_ranks - 1 - rank), len(forwards))
    order = forwards[:ahead]
    for forward, backward in zip(forwards[ahead:], backwards, strict=False):
        order += [forward, backward]
    return order + backwards[len(forwards) - ahead :]
