"""ZB-H1 and ZB-H2: the backward in two halves, and the later one in the gaps (https://arxiv.org/abs/2401.10241).

The stage before waits for I alone. W can be done at any time until the optimiser's step, and so it goes where the rank
would be idle. Both schedules are 1F1B with I in B's place and W some microbatches behind I:

                 forwards ahead        W behind I by         so many activations
    ZB-H1        P − 1 − r             r microbatches        P on every rank
    ZB-H2        2 (P − 1 − r)         2r                    2P − 1

In 1F1B rank r keeps P − r microbatches. So the later ranks have room to spare, and they are the ones that are idle at
the end, while the last backwards go back to rank 0. With W kept for that time each rank has P, and the bubble is (P −
1)(F + I − W). ZB-H2 fills the beginning as well, with more forwards ahead, which need memory: (P − 1)(F + I − 2W),
nothing for F = I = W. Both hold for W ≤ F. A longer W fills no more than an F would have: then F stands in W's place.

Bubbles are counted from a rank's own start to its own end (`Timeline.own_bubble`): if ranks leave a step as they came,
one after the other, they can begin the next one like that.
"""

from llmsys.parallel.pipeline.actions import Action, F, I, W
from llmsys.parallel.pipeline.placement import at_least, linear
from llmsys.parallel.pipeline.schedule import Schedule


def zb_h1(num_ranks: int, num_microbatches: int) -> Schedule:
    """Bubble (P − 1)(F + I − W), P activations a rank."""
    return _zero_bubble("zb-h1", num_ranks, num_microbatches, 1)


def zb_h2(num_ranks: int, num_microbatches: int) -> Schedule:
    """Bubble (P − 1)(F + I − 2W), 2P − 1 activations a rank."""
    return _zero_bubble("zb-h2", num_ranks, num_microbatches, 2)


def _zero_bubble(name: str, num_ranks: int, num_microbatches: int, factor: int) -> Schedule:
    placement = linear(num_ranks)
    at_least("num_microbatches", num_microbatches, 1)
    orders = [
        _order(rank, num_microbatches, factor * (num_ranks - 1 - rank), factor * rank) for rank in range(num_ranks)
    ]
    return Schedule(name, placement, num_microbatches, orders)


def _order(rank: int, num_microbatches: int, ahead: int, behind: int) -> list[Action]:
    """Forwards `ahead`; then F, I and W in turn, W `behind`; then what is left."""
    ahead = min(ahead, num_microbatches)
    order = [F(rank, m) for m in range(ahead)]
    for m in range(num_microbatches):
        if ahead + m < num_microbatches:
            order.append(F(rank, ahead + m))
        order.append(I(rank, m))
        if m >= behind:
            order.append(W(rank, m - behind))
    return order + [W(rank, m) for m in range(max(num_microbatches - behind, 0), num_microbatches)]
