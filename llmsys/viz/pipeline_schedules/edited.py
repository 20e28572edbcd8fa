"""A schedule as a reader has edited it: texts become orders, orders a timeline as far as it goes, and that moments.

One stage a rank, so that a row reads "F0 F1 B0 F2 …": stage and rank are the row's.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import Rule
from llmsys.parallel.pipeline.dependencies import dependencies as needed_before
from llmsys.parallel.pipeline.placement import linear
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.timeline import Event
from llmsys.viz.kit.numbers import number
from llmsys.viz.pipeline_schedules.stepped import Run, run

WORD = re.compile(r"([FBIW])(\d+)")


@dataclass(frozen=True)
class Moment:
    """A schedule at a time: what has begun by then. `missing` says what is done twice or never, in words."""

    ran: Run
    time: float
    missing: tuple[str, ...]

    @property
    def events(self) -> tuple[tuple[Event, ...], ...]:
        """What has ended by now, and what is being done as far as it has come."""
        return tuple(
            tuple(Event(e.rank, e.action, e.start, min(e.end, self.time)) for e in row if e.start < self.time)
            for row in self.ran.events
        )

    @property
    def last(self) -> bool:
        """Whether nobody can go on."""
        return self.time >= self.ran.timeline.end

    def idle(self, rank: int) -> float:
        """Time in which the rank has done nothing so far."""
        return self.time - sum(event.duration for event in self.events[rank])

    def keeps(self, rank: int) -> float:
        """Activations that the rank keeps now: of all that has begun, without what has been given back."""
        halves = [(event, half) for event in self.ran.events[rank] for half in event.action.halves]
        return sum(
            self.ran.costs.kept(half)
            for event, half in halves
            if (event.start < self.time if half.kind is Kind.F else event.end <= self.time)
        )

    def most(self, rank: int) -> float:
        """The most that it has kept so far."""
        return max((kept for when, kept in self.ran.timeline.memory(rank) if when < self.time), default=0.0)

    @property
    def head(self) -> str:
        """What is to be seen, in a line."""
        ranks = range(self.ran.schedule.num_ranks)
        if self.last and self.ran.waits:
            return f"Stuck at {number(self.time)}: nobody can go on."
        if self.last and self.missing:
            return f"It runs, and it is not a whole step: {self.missing[0]}."
        share = sum(map(self.idle, ranks)) / (len(ranks) * self.time)
        said = f"idle {share:.1%} of the time, at most {number(max(map(self.most, ranks)))} activations kept"
        return f"{'Done after' if self.last else 'Time'} {number(self.time)}: {said}."

    @property
    def tail(self) -> tuple[str, ...]:
        """Who waits for whom, or what is being done: lines."""
        if self.last and self.ran.waits:
            return tuple(f"{str(wait)[0].upper()}{str(wait)[1:]}." for wait in self.ran.waits)
        if self.last:
            return tuple(f"{each[0].upper()}{each[1:]}." for each in self.missing[1:]) or ("Every dependency holds.",)
        doing = [
            f"rank {rank} does {row[-1].action}"
            for rank, row in enumerate(self.events)
            if row and row[-1].end == self.time and self.time > 0
        ]
        return (f"{', '.join(doing)}.".capitalize() if doing else "Everybody waits.",)


def order_of(rank: int, text: str) -> tuple[Action, ...]:
    """A row's actions. ValueError, which names the word, where one is no action."""
    words = text.replace(",", " ").split()
    for word in words:
        if not WORD.fullmatch(word.upper()):
            raise ValueError(f"rank {rank}: {word!r} is no action; write F, B, I or W and a microbatch, as in F0 F1 B0")
    return tuple(
        Action(Kind(kind), rank, int(microbatch))
        for kind, microbatch in (WORD.fullmatch(word.upper()).groups() for word in words)
    )


def text_of(order: Sequence[Action]) -> str:
    """The row of an order."""
    return " ".join(f"{action.kind}{action.microbatch}" for action in order)


def play(
    rows: Sequence[str],
    num_microbatches: int,
    costs: Costs,
    step: Callable | None = None,
    dependencies: Rule = needed_before,
) -> list[Moment]:
    """The moments of an edited schedule, one at each end of an action. The last one is where nobody can go on."""
    schedule = Schedule(
        "edited", linear(len(rows)), num_microbatches, tuple(order_of(rank, text) for rank, text in enumerate(rows))
    )
    ran = run(step, schedule, costs, dependencies=dependencies)
    times = sorted({event.end for row in ran.events for event in row}) or [0.0]
    missing = tuple(_missing(schedule))
    return [Moment(ran, time, missing) for time in times]


def _missing(schedule: Schedule) -> list[str]:
    """What is done twice, never, or of a microbatch that there is not."""
    found = []
    for rank, order in enumerate(schedule.orders):
        parts = [part for action in order for part in action.parts]
        for part in dict.fromkeys(parts):
            if part.microbatch >= schedule.num_microbatches:
                found.append(f"rank {rank} has no microbatch {part.microbatch}, there are {schedule.num_microbatches}")
            elif parts.count(part) > 1:
                found.append(f"rank {rank} does {part} {parts.count(part)} times")
        for kind in (Kind.F, Kind.I, Kind.W):
            for microbatch in range(schedule.num_microbatches):
                part = Action(kind, rank, microbatch)
                if part not in parts:
                    found.append(f"rank {rank} never does {part}" + ("" if kind is Kind.F else ", alone or in a B"))
    return found
