"""Chimera: two pipelines through the same ranks, in opposite directions (https://arxiv.org/abs/2107.06925).

Rank r has stage r of one replica of the model and stage P − 1 − r of another, and half of the microbatches go down,
half up. In the corner where one direction has not arrived yet, the other one starts.

Count time in slots, one for a forward and one for a backward. In each direction a microbatch enters every two slots:

    F of stage s   at slot 2k + s                   of the k-th microbatch of its direction
    B of stage s   at slot 2k + 2P − 1 − s          down to the last stage and back

If P is even, one of a rank's two stages has an even number and the other an odd one. So one direction's forwards and
the other's backwards fall on even slots, and the rest on odd ones; and of those that share their slots, P / 2 forwards
are all done when the first of the backwards comes. So P / 2 microbatches of each direction fit into one another
without a clash. They take a rank 2P slots, and P − 2 more in which it waits; in GPipe it waits for 2P − 2. The next P
microbatches follow 2P slots later, into the first ones' gaps. The order is that of the slots.

Each rank keeps two stages' weights, and the gradients of both replicas must be added. Where B takes longer than F,
ranks wait in the middle, too, and again in every further P microbatches: with N = uP the bubble is
(P − 2)(B + (u − 1)(B − F)).
"""

from llmsys.parallel.pipeline.actions import Action, B, F
from llmsys.parallel.pipeline.placement import at_least, bidirectional
from llmsys.parallel.pipeline.schedule import Schedule


def chimera(num_ranks: int, num_microbatches: int) -> Schedule:
    """Bubble (P − 2) B for N = P and B ≥ F; P / 2 + 1 (at both ends) to P (in the middle) activations.

    Both arguments must be even.
    """
    placement = bidirectional(num_ranks)
    even("num_ranks", num_ranks)
    at_least("num_microbatches", num_microbatches, 2)
    even("num_microbatches", num_microbatches)
    orders = [_order(rank, num_ranks, num_microbatches // 2) for rank in range(num_ranks)]
    return Schedule("chimera", placement, num_microbatches, orders)


def _order(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    slots = []
    for replica, stage in ((0, rank), (1, num_ranks - 1 - rank)):
        for m in range(num_microbatches):
            unit, k = divmod(m, num_ranks // 2)
            start = 2 * num_ranks * unit + 2 * k
            name = (stage, replica * num_microbatches + m, replica)
            slots += [(start + stage, F(*name)), (start + 2 * num_ranks - 1 - stage, B(*name))]
    return [action for _, action in sorted(slots)]


def even(argument: str, value: int) -> None:
    """ValueError unless `value` is even."""
    if value % 2:
        near = f"{value - 1} or {value + 1}" if value > 1 else "2"
        raise ValueError(
            f"{argument} must be even, as two directions share the ranks and the microbatches; got {value}, try {near}"
        )
