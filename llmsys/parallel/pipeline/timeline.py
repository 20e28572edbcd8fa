"""A timeline: when each rank began and ended each of its actions. Simulated and measured runs both are one.

From it follow, for each rank and in all, how long it was busy and how long idle, and how much of what forwards keep for
the backward (activations) there was at which time. Two counts of a rank's idle time are in use:

    bubble(rank)        makespan − busy: what GPipe's and 1F1B's formula (P − 1)(F + B) means
    own_bubble(rank)    its own end − its own start − busy: the zero-bubble papers' count, as ranks can enter their
                        optimiser step as soon as they are through, and begin their next step earlier, too
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.costs import Costs


@dataclass(frozen=True, slots=True)
class Event:
    """A rank did an action from `start` to `end`."""

    rank: int
    action: Action
    start: float
    end: float

    @property
    def duration(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """What happened when.

    Attributes
    ----------
    name
        The schedule's.
    events
        `events[rank]` are its actions in order.
    costs
        Whose `activation` the memory is counted in; that of a measured run is in units of a stage unless it says more.
    """

    name: str
    events: tuple[tuple[Event, ...], ...]
    costs: Costs = field(default_factory=Costs)

    def __post_init__(self):
        object.__setattr__(self, "events", tuple(tuple(row) for row in self.events))

    @classmethod
    def of(cls, name: str, events: Iterable[Event], num_ranks: int, costs: Costs | None = None) -> "Timeline":
        """A timeline of events in any order, as a measured run collects them: each rank's are sorted by their start."""
        rows: list[list[Event]] = [[] for _ in range(num_ranks)]
        for event in sorted(events, key=lambda event: (event.start, event.end)):
            rows[event.rank].append(event)
        return cls(name, tuple(map(tuple, rows)), costs or Costs())

    @property
    def num_ranks(self) -> int:
        return len(self.events)

    # Time

    @cached_property
    def start(self) -> float:
        """When the first action of any rank began."""
        return min((row[0].start for row in self.events if row), default=0.0)

    @cached_property
    def end(self) -> float:
        """When the last action of any rank ended."""
        return max((row[-1].end for row in self.events if row), default=0.0)

    @property
    def makespan(self) -> float:
        """From the first start to the last end."""
        return self.end - self.start

    def busy(self, rank: int) -> float:
        """How long a rank computes."""
        return sum(event.duration for event in self.events[rank])

    def bubble(self, rank: int | None = None) -> float:
        """How long a rank is idle within the makespan; without a rank, the largest of all ranks."""
        if rank is None:
            return max(self.bubbles)
        return self.makespan - self.busy(rank)

    @property
    def bubbles(self) -> tuple[float, ...]:
        """Each rank's idle time within the makespan."""
        return tuple(self.makespan - self.busy(rank) for rank in range(self.num_ranks))

    def own_bubble(self, rank: int) -> float:
        """How long a rank is idle between its own first start and its own last end."""
        row = self.events[rank]
        return row[-1].end - row[0].start - self.busy(rank) if row else 0.0

    @property
    def own_bubbles(self) -> tuple[float, ...]:
        """Each rank's idle time between its own first start and its own last end."""
        return tuple(self.own_bubble(rank) for rank in range(self.num_ranks))

    @property
    def bubble_share(self) -> float:
        """Idle time of all ranks by ranks × makespan, from 0 to 1."""
        return sum(self.bubbles) / (self.num_ranks * self.makespan) if self.makespan else 0.0

    # Memory

    def memory(self, rank: int) -> tuple[tuple[float, float], ...]:
        """What a rank keeps over time, as (time, activations from then on), beginning with (start, 0).

        A forward's activations count from its start, and are given back at the end of the action that needs them last.
        """
        steps, kept = [(self.start, 0)], 0
        for event in self.events[rank]:
            for half in event.action.halves:
                change = self.costs.kept(half)
                if change:
                    kept += change
                    steps.append((event.start if half.kind is Kind.F else event.end, kept))
        return tuple(steps)

    def peak(self, rank: int | None = None) -> float:
        """The most that a rank keeps at a time; without a rank, the largest of all ranks."""
        if rank is None:
            return max(self.peaks)
        return max(kept for _, kept in self.memory(rank))

    @property
    def peaks(self) -> tuple[float, ...]:
        """The most that each rank keeps at a time."""
        return tuple(self.peak(rank) for rank in range(self.num_ranks))


def costs_of(timeline: Timeline, num_stages: int) -> Costs:
    """What the actions of a run took: of each kind the mean at each stage. A B that stands alone counts as its own
    kind, and transfers as nothing. Simulated with these, a measured run shows what the simulator leaves out."""
    found: dict[Kind, list[list[float]]] = {kind: [[] for _ in range(num_stages)] for kind in Kind}
    for event in (event for row in timeline.events for event in row):
        found[event.action.kind][event.action.stage].append(event.duration)
    means = {kind: [fmean(each) if each else 0.0 for each in stages] for kind, stages in found.items()}
    return Costs(F=means[Kind.F], I=means[Kind.I], W=means[Kind.W], B=means[Kind.B], FB=means[Kind.FB])
