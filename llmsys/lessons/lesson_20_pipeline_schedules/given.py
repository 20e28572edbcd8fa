"""What takes the place of exercises (b) and (d) where they have not been done: orders of one rank, as the exercises
want them. (For (c) it is `llmsys.viz.pipeline_schedules.stepped.given_step`.)
"""

import itertools
from collections.abc import Sequence

from llmsys.parallel.pipeline.actions import Action, Kind


def given_order(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    """What a rank does in 1F1B."""
    ahead = min(num_ranks - 1 - rank, num_microbatches)
    kinds = [Kind.F] * ahead + [Kind.F, Kind.B] * (num_microbatches - ahead) + [Kind.B] * ahead
    counts = {Kind.F: itertools.count(), Kind.B: itertools.count()}
    return [Action(kind, rank, next(counts[kind])) for kind in kinds]


def given_fill(order: Sequence[Action], rank: int) -> list[Action]:
    """1F1B's order as ZB-H1's: W of a microbatch comes after I of the one that is `rank` later."""
    places = [n for n, action in enumerate(order) if action.kind is Kind.B]
    filled = [[action.forward if action.kind is Kind.F else action.parts[0]] for action in order]
    for place, later in zip(places, [*places[rank:], *[len(order) - 1] * rank], strict=False):
        filled[later].append(order[place].parts[1])
    return [action for some in filled for action in some]
