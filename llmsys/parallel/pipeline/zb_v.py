"""ZB-V: no bubble, in 1F1B's memory (https://arxiv.org/abs/2401.10241, section 6).

Each rank has two stages, and the pipeline is a V: down the ranks and up again. The last rank has both stages of the
middle, so it turns forwards round at once; and rank 0, which runs the most forwards ahead, has the last stage as well,
where backwards begin. Call a rank's stage on the way down 0, the other one 1. Rank r of P does

    1   2 (P − r) − 1 times     F0              ahead, until the first microbatch comes back up
    2   r times                 F1 F0
    3   P − r times             F1 I1 W1
    4   N − P times             F0 I0 W0 F1 I1 W1   without F0 when they are all done
    5   r times                 I0 I1           their W wait, so that the ranks before can go on
    6   P − r times             I0 W0
    7                           W1, then W0     what is left

For F = I = W nobody waits, from a rank's own start to its own end. A rank keeps 2P stages' activations, and a stage is
half of a rank's share: as much as P of 1F1B's. With fewer than 2P − 1 microbatches the same order is taken, without
those that do not exist, and there are gaps.
"""

from collections.abc import Iterator
from itertools import islice

from llmsys.parallel.pipeline.actions import Action, F, I, W
from llmsys.parallel.pipeline.placement import at_least, v_shaped
from llmsys.parallel.pipeline.schedule import Schedule


def zb_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """No bubble for F = I = W and N ≥ 2P − 1; 2P activations of a stage, which is half of a rank's share."""
    placement = v_shaped(num_ranks)
    at_least("num_microbatches", num_microbatches, 1)
    enough = max(num_microbatches, 2 * num_ranks - 1)
    orders = [
        [action for action in _order(rank, num_ranks, enough) if action.microbatch < num_microbatches]
        for rank in range(num_ranks)
    ]
    return Schedule("zb-v", placement, num_microbatches, orders)


def _order(rank: int, num_ranks: int, num_microbatches: int) -> Iterator[Action]:
    stages = (rank, 2 * num_ranks - 1 - rank)
    f0, f1 = (iter([F(stage, m) for m in range(num_microbatches)]) for stage in stages)
    i0, i1 = (iter([I(stage, m) for m in range(num_microbatches)]) for stage in stages)
    w0, w1 = (iter([W(stage, m) for m in range(num_microbatches)]) for stage in stages)
    for _ in range(2 * (num_ranks - rank) - 1):
        yield next(f0)
    for _ in range(rank):
        yield next(f1)
        yield next(f0)
    for _ in range(num_ranks - rank):
        yield next(f1)
        yield next(i1)
        yield next(w1)
    for _ in range(num_microbatches - num_ranks):
        yield from islice(f0, 1)
        yield next(i0)
        yield next(w0)
        yield next(f1)
        yield next(i1)
        yield next(w1)
    for _ in range(rank):
        yield next(i0)
        yield next(i1)
    for _ in range(num_ranks - rank):
        yield next(i0)
        yield next(w0)
    yield from w1
    yield from w0
