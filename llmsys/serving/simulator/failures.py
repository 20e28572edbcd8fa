"""Engines that die, and others that come in their place.

    simulate(workload, placement=Placement(colocated=8), failures=[Failure("both 3", at=60.0, until=90.0)], …)
    simulate(workload, placement=Placement(prefill=2, decode=2), failures=Failures(every=3600, repair=120, seed=0), …)

An engine dies with all that is in its cache, and with the step that it computes. What was said is known by then: so its
requests begin anew elsewhere, with their prompts and the tokens said so far, and none is lost
(`llmsys.serving.disaggregate.router` does the same with real engines). After a repair an engine is there again with
nothing in its cache.

**Drawn** from a seed, each engine for itself: the time from a repair to the next failure, and that of a repair, are
distributed exponentially, so an engine is there for a share of every / (every + repair) of the time.
"""

import heapq
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

from llmsys.serving.simulator.step_times import TICKS


@dataclass(frozen=True)
class Failure:
    """An engine is not there, from one time to another, in seconds. ValueError where that is not after this, or what is
    given is no name and no numbers."""

    engine: str
    """Its name: "both 0", "prefill 3", "decode 1"."""
    at: float
    until: float = math.inf

    def __post_init__(self):
        if not isinstance(self.engine, str):
            raise ValueError(f'engine must be the name of one, as "both 0" or "prefill 3", got {self.engine!r}')
        for name in ("at", "until"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} must be seconds, a number, got {getattr(self, name)!r}")
        if not 0 <= self.at < self.until:
            raise ValueError(
                f"a failure must be from a time of at least 0 until a later one, got at={self.at}, until={self.until}"
            )


@dataclass(frozen=True)
class Failures:
    """Failures that are drawn. ValueError for a time that is not above 0."""

    every: float
    """Seconds that an engine works, on average, until it dies."""
    repair: float
    """Seconds until it is there again, on average."""
    seed: int = 0

    def __post_init__(self):
        for name in ("every", "repair"):
            if not (_is_number(value := getattr(self, name)) and 0 < value < math.inf):
                raise ValueError(f"{name} must be seconds above 0, on average, got {value!r}")

    def of(self, engine: str) -> Iterator[Failure]:
        """Those of one engine, without an end, in the order of time."""
        draw, now = random.Random(f"failures {self.seed} {engine}"), 0.0
        while True:
            at = now + draw.expovariate(1 / self.every)
            now = max(at + draw.expovariate(1 / self.repair), math.nextafter(at, math.inf))
            yield Failure(engine, at, now)


class Outage(NamedTuple):
    """What happens at a time, in ticks: an engine dies, or is back."""

    tick: int
    engine: str
    dies: bool


class Outages:
    """What happens to engines of these names, one after the other, in the order of time. Who dies is dead for a tick at
    least, however short its repair.

    ValueError for an engine that is not there, one that is to die while it is dead, or what is no failure.
    """

    def __init__(self, failures: Sequence[Failure] | Failures | None, names: Sequence[str]):
        if isinstance(failures, Failures):
            sources = [failures.of(name) for name in names]
        else:
            listed = _in_a_list(failures)
            sources = [iter(_checked(listed, name)) for name in names]
            if unknown := [each.engine for each in listed if each.engine not in names]:
                raise ValueError(f"failures must be of engines among {_listed(names)}, got {unknown[0]!r}")
        self._heap: list[tuple[int, int, Outage]] = []
        self._sources = dict(zip(names, sources, strict=True))
        self._places = {name: place for place, name in enumerate(names)}
        for name in names:
            self._next_of(name, after=0)

    @property
    def tick(self) -> float:
        """When the next thing happens; infinity if nothing does."""
        return self._heap[0][0] if self._heap else math.inf

    def pop(self) -> Outage:
        """The next thing that happens."""
        outage = heapq.heappop(self._heap)[2]
        if not outage.dies:
            self._next_of(outage.engine, after=outage.tick)
        return outage

    def _next_of(self, name: str, *, after: int) -> None:
        failure = next(self._sources[name], None)
        if failure is None:
            return
        at = max(round(failure.at * TICKS), after)
        self._put(at, name, dies=True)
        if failure.until < math.inf:
            self._put(max(round(failure.until * TICKS), at + 1), name, dies=False)

    def _put(self, tick: int, name: str, *, dies: bool) -> None:
        heapq.heappush(self._heap, (tick, self._places[name], Outage(tick, name, dies)))


def _in_a_list(failures: Sequence[Failure] | None) -> list[Failure]:
    if failures is None:
        return []
    wrong = [failures]  # unless it can be gone through
    if isinstance(failures, Iterable):
        failures = list(failures)
        wrong = [each for each in failures if not isinstance(each, Failure)]
    if wrong:
        raise ValueError(
            f'failures must be a list of Failure("both 0", at=…, until=…), or Failures(every=…, repair=…), got '
            f"{wrong[0]!r}"
        )
    return failures


def _checked(failures: Sequence[Failure], name: str) -> list[Failure]:
    mine = sorted((each for each in failures if each.engine == name), key=lambda each: each.at)
    for one, other in zip(mine, mine[1:], strict=False):
        if other.at <= one.until:
            raise ValueError(f"failures of {name!r}: it dies at {other.at:g} s, and is dead until {one.until:g} s")
    return mine


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _listed(names: Sequence[str]) -> str:
    return f"{names[0]!r} to {names[-1]!r}" if len(names) > 1 else repr(names[0])
