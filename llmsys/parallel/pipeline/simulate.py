"""Simulate: when each action of a schedule begins and ends, if actions and transfers take as long as `Costs` says.

A rank does its actions in order. One starts as soon as the rank is free and all that it depends on is there: done, and,
if another rank did it, transferred. So every action starts at the latest of a few ends,

    start(a) = max(end of the rank's previous action, end(d) + transfer(d → a) over the dependencies d of a)

and the schedule's own graph is all there is to it (with whole numbers or fractions as costs, exactly). Each action is
looked at once, and once more for each result that its rank had to wait for: the time is in proportion to the number of
actions.
"""

from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import Rule, dependencies
from llmsys.parallel.pipeline.order import InvalidSchedule, blocked
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.timeline import Event, Timeline


def simulate(schedule: Schedule, costs: Costs | None = None, *, dependencies: Rule = dependencies) -> Timeline:
    """Every action's start and end, counted from 0.

    Raises `InvalidSchedule`, a ValueError that says who waits for whom, where the order never comes to its end.
    """
    costs = costs or Costs()
    costs.check(schedule)
    done: dict[Action, tuple[float, int]] = {}  # an elementary action: when, and by which rank
    waiting: dict[Action, list[int]] = {}  # ranks that wait for an elementary action
    free: list[float] = [0] * schedule.num_ranks
    events: list[list[Event]] = [[] for _ in range(schedule.num_ranks)]
    runnable = list(range(schedule.num_ranks))
    while runnable:
        rank = runnable.pop()
        order = schedule.orders[rank]
        while len(events[rank]) < len(order):
            action = order[len(events[rank])]
            start, missing = free[rank], None
            for before in dependencies(action, schedule.num_stages):
                if before not in done:
                    missing = before
                    break
                end, by = done[before]
                start = max(start, end + costs.transfer_time(by, rank))
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            free[rank] = end = start + costs.time(action)
            events[rank].append(Event(rank, action, start, end))
            for part in action.parts:
                done[part] = (end, rank)
                runnable += waiting.pop(part, ())
    if any(len(row) < len(order) for row, order in zip(events, schedule.orders, strict=True)):
        raise InvalidSchedule(schedule.name, blocked(schedule, dependencies=dependencies))
    return Timeline(schedule.name, tuple(map(tuple, events)), costs)
