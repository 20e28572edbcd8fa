"""V-Half and V-Min: half, or a third, of 1F1B's activations (https://arxiv.org/abs/2405.15362).

A schedule's steady middle is one microbatch's actions, its *building block*, repeated again and again. An activation
lives from its F to its W; so what a rank keeps of a stage is that time divided by the time between microbatches, and so
for both of its stages. On a V the lifespans of a rank's two stages add up: where one is long the
other is short, and all ranks keep the same. How fast the block runs down the ranks and up again decides how much that
is.

With F = I = W = 1 a rank has six actions a microbatch, and the next block begins six ticks later. When rank r does the
four that others wait for:

                F down              F up                I of the way up       I of the way down
    V-Half      2r                  3P − 2 − r          3P − 1 + 2r + g       6P − 2 − r + g        g = 3 if P is even
    V-Min       r                   2P − 1 − r          2P + r + g            4P − 1 − r + g        g = 2 if 3 divides P

Modulo 6 no two of a rank's are equal, for that is what the gap g is for. W goes where a rank is idle, or where its
memory is full: until then it waits, as in a queue. So the blocks give the order of F and I, and a run through the
ticks, here, gives W's places.

For F = I = W a rank keeps 2 ⌊(P + 2) / 2⌋ and 2 ⌊(P + 4) / 3⌋ stages' activations, where a stage is half of a rank's
share and 1F1B keeps 2P. A rank is idle for 3 (P − 1) ticks in V-Half, one less if P is odd, and for 4 (P − 1) − 1 in
V-Min, two more if 3 divides P; 1F1B has 6 (P − 1). (The paper's authors go on to move actions at both ends of such a
schedule closer together.)
"""

from collections import deque

from llmsys.parallel.pipeline.actions import Action, F, I, Kind, W
from llmsys.parallel.pipeline.dependencies import dependencies
from llmsys.parallel.pipeline.placement import at_least, v_shaped
from llmsys.parallel.pipeline.schedule import Schedule

Block = tuple[int, int, int, int]
"""The ticks of F down, F up, I of the way up and I of the way down, of microbatch 0 on a rank."""


def v_half(num_ranks: int, num_microbatches: int) -> Schedule:
    """2 ⌊(P + 2) / 2⌋ activations of a stage, which is half of a rank's share; half of 1F1B's bubble. For F = I = W."""
    at_least("num_ranks", num_ranks, 1)
    P, gap = num_ranks, 0 if num_ranks % 2 else 3
    blocks = [(2 * r, 3 * P - 2 - r, 3 * P - 1 + 2 * r + gap, 6 * P - 2 - r + gap) for r in range(P)]
    return _schedule("v-half", num_microbatches, blocks, 2 * ((P + 2) // 2))


def v_min(num_ranks: int, num_microbatches: int) -> Schedule:
    """2 ⌊(P + 4) / 3⌋ activations of a stage; two thirds of 1F1B's bubble. For F = I = W."""
    at_least("num_ranks", num_ranks, 1)
    P, gap = num_ranks, 0 if num_ranks % 3 else 2
    blocks = [(r, 2 * P - 1 - r, 2 * P + r + gap, 4 * P - 1 - r + gap) for r in range(P)]
    return _schedule("v-min", num_microbatches, blocks, 2 * ((P + 4) // 3))


def _schedule(name: str, num_microbatches: int, blocks: list[Block], limit: int) -> Schedule:
    at_least("num_microbatches", num_microbatches, 1)
    placement = v_shaped(len(blocks))
    waited_for = [_repeat(rank, len(blocks), block, num_microbatches) for rank, block in enumerate(blocks)]
    return Schedule(name, placement, num_microbatches, _with_w(waited_for, placement.num_stages, limit))


def _repeat(rank: int, num_ranks: int, block: Block, num_microbatches: int) -> deque[Action]:
    """A rank's F and I in the order of the repeated blocks."""
    down, up = rank, 2 * num_ranks - 1 - rank
    ticks = []
    for m in range(num_microbatches):
        actions = (F(down, m), F(up, m), I(up, m), I(down, m))
        ticks += [(6 * m + tick, action) for tick, action in zip(block, actions, strict=True)]
    return deque(action for _, action in sorted(ticks))


def _with_w(todo: list[deque[Action]], num_stages: int, limit: int) -> list[list[Action]]:
    """Run the orders, an action a tick, with a W wherever a rank could do nothing else or would keep too much."""
    orders: list[list[Action]] = [[] for _ in todo]
    later: list[deque[Action]] = [deque() for _ in todo]
    kept = [0] * len(todo)
    done: set[Action] = set()
    while any(todo) or any(later):
        now = []
        for rank, (order, waiting, left) in enumerate(zip(orders, later, todo, strict=True)):
            ready = left and all(before in done for before in dependencies(left[0], num_stages))
            if ready and not (left[0].kind is Kind.F and kept[rank] == limit):
                action = left.popleft()
                now.append(action)
                if action.kind is Kind.I:
                    waiting.append(W(action.stage, action.microbatch))
            elif waiting:
                action = waiting.popleft()
            else:
                continue
            kept[rank] += {Kind.F: 1, Kind.I: 0, Kind.W: -1}[action.kind]
            order.append(action)
        done.update(now)
    return orders
