"""The loop around a step of the simulator (exercise 20.simulate): step after step, until nobody can go on.

    timeline = in_steps(simulate_step, schedule, costs)

The library's `simulate` gives the same timeline. Here the step is anybody's, and where it ends early one can look at
how far it came, and at who waits for whom (`run`, `Wait`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import Rule
from llmsys.parallel.pipeline.dependencies import dependencies as needed_before
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.timeline import Event, Timeline


@dataclass(frozen=True)
class Wait:
    """A rank that cannot go on: its next `action` needs `needs`, which is done in `inside` by rank `other`, or by
    nobody (None), or was done by nobody although the rule says nothing (`needs` is None)."""

    rank: int
    action: Action
    needs: Action | None
    inside: Action | None = None
    other: int | None = None

    def __str__(self) -> str:
        if self.needs is None:
            return f"rank {self.rank} does not do {self.action}, although nothing is missing for it"
        start = f"rank {self.rank} waits with {self.action} for {self.needs}"
        if self.other is None:
            return f"{start}, which nobody does"
        inside = "" if self.inside == self.needs else f", in its {self.inside}"
        return f"{start}, which rank {self.other} does later{inside}"


@dataclass(frozen=True)
class Run:
    """How far a schedule came: its events by rank, and in `waits` who waits for whom; empty where all is done."""

    schedule: Schedule
    costs: Costs
    events: tuple[tuple[Event, ...], ...]
    waits: tuple[Wait, ...]

    @property
    def timeline(self) -> Timeline:
        """Of what was done."""
        return Timeline(self.schedule.name, self.events, self.costs)


def in_steps(
    step: Callable | None, schedule: Schedule, costs: Costs | None = None, *, dependencies: Rule = needed_before
) -> Timeline:
    """The timeline of a schedule, by steps of `step`, with the contract of exercise 20.simulate; None: the given one.

    Raises ValueError where nobody can go on and something is left to do; the message says who waits for what.
    """
    ran = run(step, schedule, costs, dependencies=dependencies)
    if ran.waits:
        raise ValueError(f"nobody can go on: {'; '.join(map(str, ran.waits))}")
    return ran.timeline


def run(
    step: Callable | None, schedule: Schedule, costs: Costs | None = None, *, dependencies: Rule = needed_before
) -> Run:
    """As `in_steps`, and where nobody can go on, as far as it came."""
    step, costs = step or given_step, costs or Costs()
    costs.check(schedule)

    def needs(action: Action) -> list[Action]:
        return list(dependencies(action, schedule.num_stages))

    todo, free = [tuple(order) for order in schedule.orders], [0.0] * schedule.num_ranks
    done: dict[Action, tuple[float, int]] = {}
    events: list[list[Event]] = [[] for _ in todo]
    while ran := step(list(todo), list(free), dict(done), needs, costs):
        for rank, action, start, end in ran:
            if todo[rank][:1] != (action,):
                raise ValueError(f"the step runs {action} on rank {rank}, whose next action is another one")
            events[rank].append(Event(rank, action, start, end))
            todo[rank], free[rank] = todo[rank][1:], end
            done |= {part: (end, rank) for part in action.parts}
    return Run(schedule, costs, tuple(map(tuple, events)), _circle(_waits(todo, done, needs)))


def given_step(todo, free, done, needs, costs):
    """The step of those who come without one of their own."""
    ran = []
    for rank, order in enumerate(todo):
        if order and all(each in done for each in needs(order[0])):
            arrivals = [done[each][0] + costs.transfer_time(done[each][1], rank) for each in needs(order[0])]
            start = max([free[rank], *arrivals])
            ran.append((rank, order[0], start, start + costs.time(order[0])))
    return ran


def _waits(todo: Sequence[Sequence[Action]], done: dict, needs: Callable) -> dict[int, Wait]:
    """For each rank with something left, what its next action waits for."""
    where = {part: (action, rank) for rank, order in enumerate(todo) for action in order for part in action.parts}
    waits = {}
    for rank, order in enumerate(todo):
        if order:
            missing = next((each for each in needs(order[0]) if each not in done), None)
            waits[rank] = Wait(rank, order[0], missing, *where.get(missing, (None, None)))
    return waits


def _circle(waits: dict[int, Wait]) -> tuple[Wait, ...]:
    """From the first rank that waits to the one that it waits for, and on, until one comes up again: those in the
    circle, or all on the way to somebody who waits for nobody's action."""
    path: list[int] = []
    rank = min(waits, default=None)
    while rank is not None and rank not in path:
        path.append(rank)
        rank = waits[rank].other if rank in waits else None
    first = path.index(rank) if rank in path else 0
    return tuple(waits[each] for each in path[first:] if each in waits)
