"""DualPipe: two directions, overlapped pairs, and W in the gaps (DeepSeek-V3, https://arxiv.org/abs/2412.19437, 3.2.1).

As in Chimera rank r has stage r of one replica and stage P − 1 − r of the other, and half of the microbatches go each
way. In the middle of a step a rank always has a forward of one direction and a backward of the other at hand. These
two run overlapped, as one action FB: while one computes, the other communicates. An expert layer's all-to-alls take
about as long as its arithmetic, and that is what the schedule is made for.

Ranks r and P − 1 − r do the same, with the directions exchanged. Let 0 be the direction that reaches the rank first
and 1 the other, e the rank's distance from the nearer end, and c = P / 2 − 1 − e its distance from the centre. Eight
steps:

    1   2c times              F0               ahead, until direction 1 arrives
    2   e + 1 times           F0 F1
    3   c times               I1 W1 F1         the first backwards, split: the next rank waits for I
    4   N/2 − P + e + 1 times F0&B1 F1&B0      the long middle
    5   c times               B1 F1&B0         direction 0 has no forwards left
    6   e + 1 times           B1 B0            the second half of them as I alone: their W waits
    7   c times               W I0
    8   e + 1 times           W                the oldest first, here and in step 7

On the two ranks in the centre step 4 begins with F0 and B1 one after the other, so that F0 need not wait for B1's
gradient, which comes later where I takes longer than F.

The bubble is (P/2 − 1)(FB + B − 3W) where F = I ≥ W and FB = F + B. For (F, I, W) = (2, 3, 1) on 8 ranks that would be
21, and is 19, thanks to those two; for (2, 2, 3) it would be 9, and is 12, as W is longer than what it stands in for.
The price is two stages' weights a rank, and P + 1 microbatches' activations.
"""

from collections import deque
from collections.abc import Iterator

from llmsys.parallel.pipeline.actions import Action, B, F, pair
from llmsys.parallel.pipeline.chimera import even
from llmsys.parallel.pipeline.placement import at_least, bidirectional
from llmsys.parallel.pipeline.schedule import Schedule


def dualpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Bubble (P/2 − 1)(FB + B − 3W) where F = I ≥ W; P + 1 activations a rank.

    Both arguments must be even, and num_microbatches at least 2 · num_ranks.
    """
    placement = bidirectional(num_ranks)
    even("num_ranks", num_ranks)
    at_least("num_microbatches", num_microbatches, 1)
    if num_microbatches < 2 * num_ranks:
        raise ValueError(
            f"num_microbatches must be at least twice the {num_ranks} ranks, so that both directions fill all of them; "
            f"got {num_microbatches}, try {2 * num_ranks}"
        )
    even("num_microbatches", num_microbatches)
    orders = [list(_eight_steps(rank, num_ranks, num_microbatches // 2)) for rank in range(num_ranks)]
    return Schedule("dualpipe", placement, num_microbatches, orders)


def _eight_steps(rank: int, num_ranks: int, each_way: int) -> Iterator[Action]:
    """A rank's actions, with `each_way` microbatches in each direction."""
    from_end = min(rank, num_ranks - 1 - rank)
    from_centre = num_ranks // 2 - 1 - from_end
    replicas = (0, 1) if rank < num_ranks // 2 else (1, 0)  # directions 0 and 1
    names = [
        [((num_ranks - 1 - rank) if replica else rank, replica * each_way + m, replica) for m in range(each_way)]
        for replica in replicas
    ]
    f0, f1 = (iter([F(*name) for name in direction]) for direction in names)
    b0, b1 = (iter([B(*name) for name in direction]) for direction in names)
    later: deque[Action] = deque()  # the W that wait

    def input_half(backward: Action) -> Action:
        first, second = backward.parts
        later.append(second)
        return first

    for _ in range(2 * from_centre):
        yield next(f0)
    for _ in range(from_end + 1):
        yield next(f0)
        yield next(f1)
    for _ in range(from_centre):
        yield input_half(next(b1))
        yield later.popleft()
        yield next(f1)
    for k in range(each_way - num_ranks + from_end + 1):
        if k == 0 and from_centre == 0:
            yield next(f0)
            yield next(b1)
        else:
            yield pair(next(f0), next(b1))
        yield pair(next(f1), next(b0))
    for _ in range(from_centre):
        yield next(b1)
        yield pair(next(f1), next(b0))
    for k in range(2 * (from_end + 1)):
        backward = next(b0 if k % 2 else b1)
        yield backward if k <= from_end else input_half(backward)
    for _ in range(from_centre):
        yield later.popleft()
        yield input_half(next(b0))
    yield from later
