"""Validate: is a schedule one that can be run?

Every F is done exactly once, and every backward, whole or as I and W; each on the rank that has its stage; the orders
of the ranks and the dependencies together have no circle; and no rank hangs in a send that blocks until it is received,
with the transfers where `transfers` says (`communication` says where that is, and that elsewhere the same may hang).

    report = validate(schedule)
    report.valid            # False
    print(report)           # 1f1b cannot be run:
                            #   - the ranks wait in a circle: rank 0 stands before …
    report.check()          # raises InvalidSchedule, with the same words
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.communication import Transfers, circle, programs
from llmsys.parallel.pipeline.dependencies import Rule, dependencies
from llmsys.parallel.pipeline.order import InvalidSchedule, blocked
from llmsys.parallel.pipeline.schedule import Schedule


@dataclass(frozen=True)
class Problem:
    """What is wrong, in words and with the actions that it is about.

    `kind` is one of "unknown" (no such stage, microbatch or replica), "rank", "twice", "missing", "circle", "deadlock".
    """

    kind: str
    text: str
    actions: tuple[Action, ...]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Report:
    """What `validate` finds. It prints as a sentence, or as a list of problems.

    `transfers` is where the transfers stood when sends were looked at.
    """

    schedule: Schedule
    problems: tuple[Problem, ...]
    transfers: Transfers = "early"

    @property
    def valid(self) -> bool:
        return not self.problems

    def check(self) -> None:
        """Raises `InvalidSchedule`, a ValueError, where there are problems."""
        if self.problems:
            raise InvalidSchedule(self.schedule.name, self.problems)

    def __str__(self) -> str:
        if self.problems:
            return str(InvalidSchedule(self.schedule.name, self.problems))
        count = sum(map(len, self.schedule.orders))
        where = {
            "early": "if receives are posted early",
            "late": "even if receives are posted late",
            "together": "if the transfers of a pause begin together",
            "apart": "even if transfers are done one by one",
        }[self.transfers]
        return (
            f"{self.schedule.name} is valid: {count} actions on {self.schedule.num_ranks} ranks, each once and on its "
            f"rank, without a circle, and no send hangs {where}"
        )


def validate(
    schedule: Schedule,
    *,
    transfers: Transfers = "early",
    dependencies: Rule = dependencies,
    gradients: bool = True,
) -> Report:
    """All that is wrong with a schedule.

    Circles are looked for where every action is there once, deadlocks where there is no circle. `transfers` says where
    the transfers stand in the ranks' programs (`communication.programs`). Without `gradients` it must be one of
    forwards alone.
    """
    kinds = (Kind.F, Kind.I, Kind.W) if gradients else (Kind.F,)
    found = (*_strange(schedule, kinds), *_counted(schedule, kinds))
    if not found:
        stuck = blocked(schedule, dependencies=dependencies)
        if stuck:
            text = ("the ranks wait in a circle: " if len(stuck) > 1 else "") + "; ".join(map(str, stuck))
            found = (Problem("circle", text, tuple(each.action for each in stuck)),)
    if not found:
        waits = circle(programs(schedule, transfers, dependencies=dependencies))
        if waits:
            text = "blocking sends wait in a circle: " + "; ".join(map(str, waits))
            found = (Problem("deadlock", text, tuple(each.transfer.of for each in waits)),)
    return Report(schedule, found, transfers)


def _strange(schedule: Schedule, kinds: tuple[Kind, ...]) -> Iterator[Problem]:
    """Actions that the schedule has no stage or microbatch for, those on another rank than their stage, and those of
    kinds that are not asked for."""
    stages, microbatches = schedule.num_stages, schedule.num_microbatches
    for rank, _, action in schedule.actions():
        for half in action.halves:
            where = f"{half} on rank {rank}"
            if not (0 <= half.stage < stages and 0 <= half.microbatch < microbatches):
                text = f"{where}: there are stages 0 to {stages - 1}, and microbatches 0 to {microbatches - 1}"
                yield Problem("unknown", text, (half,))
            elif half.replica != schedule.replica(half.microbatch):
                replica = schedule.replica(half.microbatch)
                yield Problem("unknown", f"{where}: microbatch {half.microbatch} is of replica {replica}", (half,))
            elif schedule.rank(half) != rank:
                yield Problem("rank", f"{where}: its stage is on rank {schedule.rank(half)}", (half,))
            elif not set(kinds).issuperset(part.kind for part in half.parts):
                yield Problem("unknown", f"{where}: without gradients there are forwards alone", (half,))


def _counted(schedule: Schedule, kinds: tuple[Kind, ...]) -> Iterator[Problem]:
    """Elementary actions that are done twice or never."""
    times = Counter(part for _, _, action in schedule.actions() for part in action.parts)
    for part, count in times.items():
        if count > 1:
            yield Problem("twice", f"{part} is done {count} times", (part,))
    for microbatch in range(schedule.num_microbatches):
        replica = schedule.replica(microbatch)
        for stage in range(schedule.num_stages):
            for kind in kinds:
                part = Action(kind, stage, microbatch, replica)
                if part not in times:
                    text = f"{part} is missing on rank {schedule.rank(part)}"
                    yield Problem("missing", text + ("" if kind is Kind.F else ", alone or in a B"), (part,))
