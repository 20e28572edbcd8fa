"""What each step of a simulated run computed, kept short: a log of every event of a run would be ten times as long.

witness = Witness()
simulate(workload, times=times, events=witness.events, …)
witness.longest_gap()            Gap(request="57", start=4.81, end=5.26)
witness.between(4.7, 5.4)        the steps of that time, each with who computed what
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llmsys.serving.simulator.runs import SkippedSteps
from llmsys.serving.simulator.step_times import TICKS
from llmsys.serving.telemetry.events import Arrived, Event, EventLog, Progress, StepDone


@dataclass(frozen=True)
class Moment:
    """A step: from when to when, in seconds, who got a token, and of whose prompt how much was computed."""

    start: float
    end: float
    decodes: frozenset[str]
    pieces: dict[str, int]

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def tokens(self) -> int:
        return len(self.decodes) + sum(self.pieces.values())


@dataclass(frozen=True)
class Gap:
    """From one token of a request to its next one."""

    request: str
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


class Witness:
    """Listens to one run of the simulator.

    Attributes
    ----------
    events : EventLog
        For `simulate`; it keeps nothing itself.
    arrivals, prompts : dict
        When each request came, and its tokens.
    """

    def __init__(self):
        self.events = EventLog(keep=0)
        self.events.listen(self._on, progress=self._on_progress, several=self._on_several)
        self.arrivals: dict[str, float] = {}
        self.prompts: dict[str, int] = {}
        self._steps: list[tuple[float, float, list] | SkippedSteps] = []  # (start, end, rows), or several
        self._rows: list[tuple[str, int, int, bool]] = []  # of the step that is not done yet

    def _on(self, event: Event) -> None:
        if isinstance(event, Arrived):
            self.arrivals[event.request] = event.time
            self.prompts[event.request] = event.prompt_tokens
        elif isinstance(event, StepDone):
            self._steps.append((event.time - event.seconds, event.time, self._rows))
            self._rows = []

    def _on_progress(self, progress: Progress) -> None:
        self._rows = [*self._rows, *((name, start, n, bool(said)) for name, start, n, _, said in progress.rows)]

    def _on_several(self, steps: SkippedSteps) -> None:
        self._steps.append(steps)

    def between(self, start: float, end: float) -> list[Moment]:
        """The steps that begin before `end` and end after `start`."""
        found = []
        for each in self._steps:
            if isinstance(each, SkippedSteps):
                if each.end / TICKS > start and each.now / TICKS < end:
                    names = frozenset(name for name, _, _ in each.rows)
                    found += [Moment(a, b, names, {}) for a, b in _times(each) if b > start and a < end]
            elif each[1] > start and each[0] < end:
                prompts = self.prompts
                decodes = frozenset(name for name, at, _, _ in each[2] if at >= prompts[name])
                found.append(
                    Moment(each[0], each[1], decodes, {name: n for name, at, n, _ in each[2] if at < prompts[name]})
                )
        return found

    def longest_gap(self) -> Gap | None:
        """The longest time from a token of anybody to the next one, the first of these; None if nobody has two."""
        last: dict[str, float] = {}
        best: Gap | None = None

        def token(name: str, time: float) -> None:
            nonlocal best
            before = last.get(name)
            if before is not None and (best is None or time - before > best.seconds + 1e-12):
                best = Gap(name, before, time)
            last[name] = time

        for each in self._steps:
            if isinstance(each, SkippedSteps):
                ends = [b for _, b in _times(each)]
                for name, _, _ in each.rows:
                    token(name, ends[0])
                    if each.n > 1:  # of the others the last one takes longest
                        last[name] = ends[-2]
                        token(name, ends[-1])
            else:
                for name, _, _, said in each[2]:
                    if said:
                        token(name, each[1])
        return best


def _times(steps: SkippedSteps) -> Iterator[tuple[float, float]]:
    """From when to when each of them goes, in seconds."""
    now = steps.now
    for i in range(steps.n):
        end = now + steps.first + i * steps.growth
        yield now / TICKS, end / TICKS
        now = end
