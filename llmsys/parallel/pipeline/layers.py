"""Which layers go into which stage: a cut of the model into stages that cost about the same.

The slowest stage sets the pace, as every microbatch goes through it. So the cut is the one whose slowest stage is the
fastest, found by dynamic programming over (first layers, stages), in time layers² · stages. Embedding and head are
added to the first and the last stage: with a vocabulary of 128k entries a head costs as much as several layers.
"""

from collections.abc import Sequence
from numbers import Integral

from llmsys.parallel.pipeline.placement import at_least


def split_layers(
    layers: int | Sequence[float], num_stages: int, *, before: float = 0.0, after: float = 0.0
) -> tuple[range, ...]:
    """Each stage's layers, at least one, in order; the cost of the most expensive stage is as small as can be.

    Parameters
    ----------
    layers
        How many layers, which all cost 1, or what each costs.
    before, after
        What the first stage costs besides (the embedding), and the last one (norm, head and loss).

    Raises ValueError if there are more stages than layers.
    """
    at_least("num_stages", num_stages, 1)
    if isinstance(layers, Integral):
        at_least("layers", layers, 1)
        layers = [1.0] * layers
    costs = [float(cost) for cost in layers]
    if any(not 0 <= cost < float("inf") for cost in (*costs, before, after)):
        raise ValueError("layers, before and after must be costs, finite and not negative")
    count = len(costs)
    if num_stages > count:
        raise ValueError(
            f"num_stages must be at most the {count} layers, as each stage has one at least; got {num_stages}. Take "
            "fewer ranks, or fewer chunks a rank"
        )
    upto = [before]
    for cost in costs:
        upto.append(upto[-1] + cost)
    upto[0], upto[-1] = 0.0, upto[-1] + after

    # best[stage][end]: the cost of the slowest of the first `stage` stages if they have the first `end` layers
    best = [[float("inf")] * (count + 1) for _ in range(num_stages + 1)]
    cut = [[0] * (count + 1) for _ in range(num_stages + 1)]
    best[0][0] = 0.0
    for stage in range(1, num_stages + 1):
        for end in range(stage, count - (num_stages - stage) + 1):
            for start in range(stage - 1, end):
                slowest = max(best[stage - 1][start], upto[end] - upto[start])
                if slowest < best[stage][end]:
                    best[stage][end], cut[stage][end] = slowest, start
    ends, end = [], count
    for stage in range(num_stages, 0, -1):
        ends.append(range(cut[stage][end], end))
        end = cut[stage][end]
    return tuple(reversed(ends))
