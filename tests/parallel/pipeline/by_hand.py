"""What a schedule must do, written down once more and another way, to compare the library with."""

import graphlib
from functools import cache

from hypothesis import strategies as st

from llmsys.parallel.pipeline import SCHEDULES, Action, Costs, Kind, Schedule, interleaved

VALID_SIZES = {  # which (ranks, microbatches) a generator takes
    "interleaved": lambda p, m: m % max(1, m // p) == 0,
    "chimera": lambda p, m: p % 2 == 0 and m % 2 == 0,
    "dualpipe": lambda p, m: p % 2 == 0 and m % 2 == 0 and m >= 2 * p,
    "dualpipe-v": lambda p, m: m >= 2 * p,
}


def takes(name: str, ranks: int, microbatches: int) -> bool:
    return VALID_SIZES.get(name, lambda p, m: True)(ranks, microbatches)


@st.composite
def schedules(draw, most_ranks: int = 5, most_microbatches: int = 12) -> Schedule:
    """Any generator's schedule, of any size that it takes."""
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    ranks = draw(st.integers(1, most_ranks))
    if name in ("chimera", "dualpipe"):
        ranks += ranks % 2
    microbatches = draw(st.integers(1, most_microbatches))
    if name.startswith("dualpipe"):
        microbatches += 2 * ranks
    if name in ("chimera", "dualpipe"):
        microbatches += microbatches % 2
    if name == "interleaved":
        microbatches = draw(st.sampled_from([m for m in range(1, most_microbatches + 1) if takes(name, ranks, m)]))
        return interleaved(ranks, microbatches, draw(st.integers(1, 3)))
    return SCHEDULES[name](ranks, microbatches)


def needed(kind: str, stage: int, last: int) -> list[tuple[str, int]]:
    """What F, I and W of a stage need, as (kind, stage) of the same microbatch; the last stage is `last`."""
    return {
        "F": [("F", stage - 1)] * (stage > 0),
        "I": [("F", stage)] + [("I", stage + 1)] * (stage < last),
        "W": [("I", stage)],
    }[kind]


def elements(action: Action) -> list[tuple[str, int, int]]:
    """The (kind, stage, microbatch) that an action does."""
    if action.kind is Kind.FB:
        return elements(Action(Kind.F, action.stage, action.microbatch)) + elements(action.backward)
    kinds = "IW" if action.kind is Kind.B else str(action.kind)
    return [(kind, action.stage, action.microbatch) for kind in kinds]


def before(schedule: Schedule) -> dict[tuple[int, int], set[tuple[int, int]]]:
    """For each (rank, place) of a schedule, those that must be done before it: its dependencies and its predecessor.

    KeyError where one that is needed is nowhere.
    """
    place = {
        element: (rank, n)
        for rank, order in enumerate(schedule.orders)
        for n, action in enumerate(order)
        for element in elements(action)
    }
    graph = {}
    for rank, order in enumerate(schedule.orders):
        for n, action in enumerate(order):
            graph[rank, n] = {(rank, n - 1)} if n else set()
            for half in action.halves:
                inside = elements(half)
                for kind, stage, microbatch in inside:
                    for other, at in needed(kind, stage, schedule.num_stages - 1):
                        if (other, at, microbatch) not in inside:
                            graph[rank, n].add(place[other, at, microbatch])
    return graph


def runs(schedule: Schedule) -> bool:
    """Whether the graph has no circle."""
    try:
        graphlib.TopologicalSorter(before(schedule)).prepare()
    except graphlib.CycleError:
        return False
    return True


def ends(schedule: Schedule, costs: Costs) -> dict[tuple[int, int], float]:
    """When each (rank, place) ends: the longest path to it."""
    graph = before(schedule)

    @cache
    def end(node: tuple[int, int]) -> float:
        rank, n = node
        transfers = costs.transfer if isinstance(costs.transfer, tuple) else None
        arrivals = [0.0]
        for other in graph[node]:
            wire = 0.0
            if other[0] != rank:
                wire = transfers[other[0]][rank] if transfers else costs.transfer
            arrivals.append(end(other) + wire)
        return max(arrivals) + length(schedule.orders[rank][n], costs)

    for node in graphlib.TopologicalSorter(graph).static_order():
        end(node)  # in this order no recursion goes deep
    return {node: end(node) for node in graph}


def length(action: Action, costs: Costs) -> float:
    def at(value, stage):
        return value[stage] if isinstance(value, tuple) else value

    if action.kind is Kind.FB:
        if costs.FB is not None:
            return at(costs.FB, action.stage)
        return at(costs.F, action.stage) + length(action.backward, costs)
    if action.kind is Kind.B:
        if costs.B is not None:
            return at(costs.B, action.stage)
        return at(costs.I, action.stage) + at(costs.W, action.stage)
    return at(getattr(costs, str(action.kind)), action.stage)
