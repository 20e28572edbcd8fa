"""GPipe: all forwards, then all backwards (https://arxiv.org/abs/1811.06965, section 2.3).

    rank 0   F0 F1 F2 F3 .  .  .  .  .  .  B0 B1 B2 B3
    rank 1   .  F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3
    rank 2   .  .  F0 F1 F2 F3 .  .  B0 B1 B2 B3
    rank 3   .  .  .  F0 F1 F2 F3 B0 B1 B2 B3

A rank waits P − 1 forwards and P − 1 backwards, however many microbatches there are: a bubble of (P − 1)(F + B). More
microbatches make it a smaller share, and each of them keeps its activations until all forwards are done.
"""

from llmsys.parallel.pipeline.actions import B, F
from llmsys.parallel.pipeline.placement import at_least, linear
from llmsys.parallel.pipeline.schedule import Schedule


def gpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Bubble (P − 1)(F + B), N activations a rank. Backwards go in the order of the forwards."""
    placement = linear(num_ranks)
    at_least("num_microbatches", num_microbatches, 1)
    orders = [
        [F(rank, m) for m in range(num_microbatches)] + [B(rank, m) for m in range(num_microbatches)]
        for rank in range(num_ranks)
    ]
    return Schedule("gpipe", placement, num_microbatches, orders)
