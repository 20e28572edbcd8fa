"""The loop around exercise (c): step after step, until nobody can go on.

    timeline = in_steps(simulate_step, schedule, costs)
"""

from collections.abc import Callable, Sequence

from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import dependencies as needed_before
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.timeline import Event, Timeline

Rule = Callable[[Action, int], Sequence[Action]]


def in_steps(
    step: Callable | None, schedule: Schedule, costs: Costs | None = None, *, dependencies: Rule = needed_before
) -> Timeline:
    """The timeline of a schedule, by steps of `step`, with the contract of exercise 20.simulate; None: the given one.

    Raises ValueError where nobody can go on and something is left to do; the message says who waits for what.
    """
    step = step or given_step
    costs = costs or Costs()
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
    if any(todo):
        raise ValueError(stuck(todo, done, needs))
    return Timeline(schedule.name, tuple(map(tuple, events)), costs)


def given_step(todo, free, done, needs, costs):
    """Exercise (c) for those who come without it."""
    ran = []
    for rank, order in enumerate(todo):
        if order and all(each in done for each in needs(order[0])):
            arrivals = [done[each][0] + costs.transfer_time(done[each][1], rank) for each in needs(order[0])]
            start = max([free[rank], *arrivals])
            ran.append((rank, order[0], start, start + costs.time(order[0])))
    return ran


def stuck(todo: Sequence[Sequence[Action]], done: dict, needs: Callable) -> str:
    """Who waits for what, in words."""
    waits = []
    for rank, order in enumerate(todo):
        if order:
            missing = next((each for each in needs(order[0]) if each not in done), None)
            waits.append(f"rank {rank} with {order[0]}" + (f", which needs {missing}" if missing else ""))
    return f"nobody can go on: {'; '.join(waits)}"
