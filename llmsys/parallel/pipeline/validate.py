"""Validate: is a schedule one that can be run?

Every F is done exactly once, and every backward, whole or as I and W; each on the rank that has its stage; the orders of
the ranks and the dependencies together have no circle; and no rank hangs in a send, even if sends block until they are
received (`communication` says what that means, and where transfers stand).

    problems(schedule)      what is wrong, a `Problem` each, in words and with the actions that it is about
    validate(schedule)      raises `InvalidSchedule` where there are any
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.communication import Transfers, circle, programs
from llmsys.parallel.pipeline.order import InvalidSchedule, blocked
from llmsys.parallel.pipeline.schedule import Schedule


@dataclass(frozen=True)
class Problem:
    """What is wrong. `kind` is one of "unknown", "rank", "twice", "missing", "circle", "deadlock"."""

    kind: str
    text: str
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        return self.text


def validate(schedule: Schedule, *, transfers: Transfers = "early") -> None:
    """Raises `InvalidSchedule` with all `problems`, if there are any."""
    found = problems(schedule, transfers=transfers)
    if found:
        raise InvalidSchedule(schedule, found)


def problems(schedule: Schedule, *, transfers: Transfers = "early") -> tuple[Problem, ...]:
    """What is wrong with a schedule; empty if nothing is.

    Circles are looked for where every action is there once, deadlocks where there is no circle. `transfers` says where the
    transfers stand in the ranks' programs.
    """
    found = (*_strange(schedule), *_counted(schedule))
    if found:
        return found
    stuck = blocked(schedule)
    if stuck:
        text = "the ranks wait in a circle: " if len(stuck) > 1 else ""
        return (Problem("circle", text + "; ".join(map(str, stuck)), tuple(each.action for each in stuck)),)
    waits = circle(programs(schedule, transfers))
    if waits:
        text = "blocking sends wait in a circle: " + "; ".join(map(str, waits))
        return (Problem("deadlock", text, tuple(each.transfer.of for each in waits)),)
    return ()


def _strange(schedule: Schedule) -> Iterator[Problem]:
    """Actions that the schedule has no stage or microbatch for, and those on another rank than their stage."""
    stages, microbatches = schedule.num_stages, schedule.num_microbatches
    for rank, _, action in schedule.actions():
        for half in action.halves:
            if not (0 <= half.stage < stages and 0 <= half.microbatch < microbatches):
                text = f"{half} on rank {rank}: there are stages 0 to {stages - 1} and microbatches 0 to {microbatches - 1}"
                yield Problem("unknown", text, (half,))
            elif half.replica != schedule.replica(half.microbatch):
                text = f"{half} on rank {rank}: microbatch {half.microbatch} is of replica {schedule.replica(half.microbatch)}"
                yield Problem("unknown", text, (half,))
            elif schedule.rank(half) != rank:
                text = f"{half} is on rank {rank}, but its stage is on rank {schedule.rank(half)}"
                yield Problem("rank", text, (half,))


def _counted(schedule: Schedule) -> Iterator[Problem]:
    """Elementary actions that are done twice or never."""
    times = Counter(part for _, _, action in schedule.actions() for part in action.parts)
    for part, count in times.items():
        if count > 1:
            yield Problem("twice", f"{part} is done {count} times", (part,))
    for microbatch in range(schedule.num_microbatches):
        for stage in range(schedule.num_stages):
            for kind in (Kind.F, Kind.I, Kind.W):
                part = Action(kind, stage, microbatch, schedule.replica(microbatch))
                if part not in times:
                    text = f"{part} is missing on rank {schedule.rank(part)}"
                    yield Problem("missing", text + ("" if kind is Kind.F else ", alone or in a B"), (part,))
