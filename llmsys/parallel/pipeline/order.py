"""Does a schedule come to its end, or do ranks wait for each other in a circle?

Each rank stands before one of its actions. It can do it when all dependencies are done. If at last no rank can go on,
each one stands before an action that needs another, and that one is either done nowhere or further down some rank's
order. Following from rank to rank who waits for whom, one comes back to a rank that one has met: the circle.
"""

from dataclasses import dataclass

from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.dependencies import Rule, dependencies, where_done
from llmsys.parallel.pipeline.schedule import Schedule


class InvalidSchedule(ValueError):
    """A schedule that cannot be run; the message says why, `problems` one by one (`validate`)."""

    def __init__(self, name: str, problems: tuple):
        self.problems = problems
        super().__init__(f"{name} cannot be run:" + "".join(f"\n  - {problem}" for problem in problems))


@dataclass(frozen=True)
class Blocked:
    """A rank stands before `action`, which needs `needs` (an elementary action).

    `other` is the rank that does `needs`, as part of `inside`, and stands before something else; None if no rank does.
    """

    rank: int
    action: Action
    needs: Action
    other: int | None
    inside: Action | None

    def __str__(self) -> str:
        inside = "" if self.inside in (self.needs, None) else f" (in {self.inside})"
        start = f"rank {self.rank} stands before {self.action}, which needs {self.needs}{inside}"
        if self.other is None:
            return f"{start}, which no rank does"
        if self.other == self.rank:
            return f"{start}, which it does {'in the same action' if self.inside == self.action else 'only after that'}"
        return f"{start} of rank {self.other}"


def blocked(schedule: Schedule, *, dependencies: Rule = dependencies) -> tuple[Blocked, ...]:
    """Who waits for whom in a circle, or at last for what no rank does; empty if the schedule comes to its end."""
    place = [0] * schedule.num_ranks
    done: set[Action] = set()
    waiting: dict[Action, list[int]] = {}
    runnable = list(range(schedule.num_ranks))
    needs: dict[int, Action] = {}
    while runnable:
        rank = runnable.pop()
        order = schedule.orders[rank]
        needs.pop(rank, None)
        while place[rank] < len(order):
            action = order[place[rank]]
            missing = next((each for each in dependencies(action, schedule.num_stages) if each not in done), None)
            if missing is not None:
                needs[rank] = missing
                waiting.setdefault(missing, []).append(rank)
                break
            place[rank] += 1
            for part in action.parts:
                done.add(part)
                runnable += waiting.pop(part, ())
    if not needs:
        return ()
    return _follow(schedule, place, needs)


def _follow(schedule: Schedule, place: list[int], needs: dict[int, Action]) -> tuple[Blocked, ...]:
    where = where_done(schedule)
    path: dict[int, Blocked] = {}
    rank = min(needs)
    while rank not in path:
        other, position = where.get(needs[rank], (None, None))
        inside = None if other is None else schedule.orders[other][position]
        path[rank] = Blocked(rank, schedule.orders[rank][place[rank]], needs[rank], other, inside)
        if other is None:
            return (path[rank],)
        rank = other
    ranks = list(path)
    return tuple(path[each] for each in ranks[ranks.index(rank) :])
