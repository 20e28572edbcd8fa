"""The search for a plan: how many engines compute prompts and how many decode, of how many GPUs each.

    plan(workload, Limits(ttft=0.5, tpot=0.01), gpus=8, engines={1: one, 2: two}, transfer=Transfer(…))
    [Planned(…), …]          the first one has most goodput per GPU: str(it) says "7 prefill, 1 decode: …"

Of G GPUs, g compute prompts and G − g decode, in engines of some number of GPUs each; or all do both, in steps of some
number of tokens. For 8 GPUs and engines of 1, 2 and 4 that is 30 candidates, each of which has a highest rate within
the limits: a search of its own (`capacity`), with a simulation at each rate that is tried. Not all of them are needed.

**A bound first.** No candidate takes more than its prefillers do if nobody has to decode, nor more than its decoders do
if prompts, and their caches, are there at once. These two rates are those of one kind alone, so there are few: they are
DistServe's search (https://arxiv.org/abs/2401.09670, algorithm 1), which takes the best of each kind and as many of
both as are wanted. Engines that do both are bounded by both, too.

**Then the service as a whole**, transfers with it, the highest bound first, until no bound is above the best rate that
was found. (A bound is not quite one: prompts leave prefillers more evenly than they came, which decoders like. So a
candidate is left out only where its bound is below that rate by more than `SLACK`.)

One bandwidth is that of a GPU's link, so an engine of p GPUs has p of them; a cache goes from p to d GPUs over the
fewer of both.
"""

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmsys.models.sampling import whole_number
from llmsys.serving.goodput import Limits
from llmsys.serving.planning.engines import EngineOf
from llmsys.serving.simulator.cluster import Placement
from llmsys.serving.simulator.load import StepLoad
from llmsys.serving.simulator.simulate import Result, simulate
from llmsys.serving.simulator.step_times import Prices, StepTimes
from llmsys.serving.simulator.transfer import Transfer
from llmsys.serving.workload.arrivals import Arrival

SLACK = 0.05
HIGH = 200.0
"""Requests a second and GPU, above which no rate is tried if nobody says."""
BUDGETS = (256, 512, 2048)
"""Tokens of a step that are tried where engines do both."""
FREE = StepTimes(Prices(fixed=1e-9))
Workload = Callable[[float], Sequence[Arrival]]


@dataclass(frozen=True)
class Candidate:
    """Engines of each kind, and how many GPUs each of them has."""

    placement: Placement
    prefill_gpus: int = 1  #  of each engine that computes prompts, those that also decode among them
    decode_gpus: int = 1
    budget: int | None = None  #  tokens of a step, of engines that do both

    @property
    def gpus(self) -> int:
        first = self.placement.colocated or self.placement.prefill
        return first * self.prefill_gpus + self.placement.decode * self.decode_gpus

    @property
    def divided(self) -> bool:
        return self.placement.decode > 0

    def __str__(self) -> str:
        at = self.placement
        if self.divided:
            return f"{_engines(at.prefill, self.prefill_gpus)} prefill, {_engines(at.decode, self.decode_gpus)} decode"
        return f"{_engines(at.colocated, self.prefill_gpus)} colocated, steps of {self.budget:,}"


def _engines(count: int, gpus: int) -> str:
    return str(count) if gpus == 1 else f"{count} × {gpus} GPUs"


@dataclass(frozen=True)
class Planned:
    """What became of a candidate."""

    candidate: Candidate
    bound: float
    """Requests a second that neither of its two kinds takes more of."""
    rate: float | None = None
    """Requests a second within the limits, of all GPUs together. None: its highest rate was not looked for, for it
    does not take the best one's. 0 where even the lowest that was tried is too high."""
    modelled: bool = False
    """Whether some engine of it was not measured."""
    ttft: float | None = None
    tpot: float | None = None
    """At that rate (the lowest, where it is 0) the seconds that so large a share of the requests as must meet the
    limits do not exceed; None where it was not simulated, or all answers have one token."""

    @property
    def goodput(self) -> float | None:
        """Requests a second and GPU."""
        return None if self.rate is None else self.rate / self.candidate.gpus

    def __str__(self) -> str:
        if self.rate is None:
            return f"{self.candidate}: at most {self.bound / self.candidate.gpus:.3g} a second and GPU"
        return f"{self.candidate}: {self.goodput:.3g} a second and GPU"


def candidates(gpus: int, degrees: Sequence[int] = (1,), *, budgets: Sequence[int] = BUDGETS) -> list[Candidate]:
    """Every way to have so many GPUs in engines of these numbers of GPUs. ValueError where there is none."""
    whole_number("gpus", gpus, at_least=1)
    for each in degrees:
        whole_number("degrees", each, at_least=1)
    found = [
        Candidate(Placement(colocated=gpus // each), each, budget=budget)
        for each in degrees if gpus % each == 0 for budget in budgets
    ]  # fmt: skip
    for first in range(1, gpus):
        second = gpus - first
        found += [
            Candidate(Placement(prefill=first // p, decode=second // d), p, d)
            for p in degrees if first % p == 0 for d in degrees if second % d == 0
        ]  # fmt: skip
    if not found:
        raise ValueError(f"gpus must be a number that engines of {', '.join(map(str, degrees))} GPUs add up to: {gpus}")
    return found


def plan(
    workload: Workload,
    limits: Limits,
    *,
    gpus: int,
    engines: Mapping[int, EngineOf],
    transfer: Transfer | None = None,
    budgets: Sequence[int] = BUDGETS,
    prompt_budget: int = 2048,
    low: float = 0.05,
    high: float = HIGH,
    share: float = 0.9,
    within: float = 0.03,
    progress: Callable[[str, int, int], object] = lambda what, done, of: None,
    **settings,
) -> list[Planned]:
    """Every candidate, those that were simulated by their goodput first, and then the others by their bounds.

    Parameters
    ----------
    workload
        Rate, of all requests together → what is asked at that rate.
    gpus
        How many there are.
    engines
        By how many GPUs they have: what may be built. Of one GPU of theirs, `transfer.bandwidth` is the link.
    budgets, prompt_budget
        Tokens of a step: which to try where engines do both, and of a prefiller.
    low, high
        Between which rates the highest is looked for, requests a second and GPU.
    share, within, settings
        See `capacity` and `simulate`.
    progress
        progress(what is tried now, how many are done, of how many at most)

    ValueError where engines are none, have another number of GPUs than is said, or cannot add up to so many; or for
    rates that are none.
    """
    if not engines:
        raise ValueError("engines must be at least one, by how many GPUs it has")
    if wrong := [size for size, each in engines.items() if each.gpus != size]:
        raise ValueError(f"engines must be by how many GPUs they have: that of {wrong[0]} has {engines[wrong[0]].gpus}")
    if not 0 < low <= high < math.inf:
        raise ValueError(f"low and high must be rates above 0, the lower one first, got {low} and {high}")
    tried = candidates(gpus, sorted(engines), budgets=budgets)
    link = Transfer() if transfer is None else transfer
    search = _Search(workload, limits, engines, link, prompt_budget, low, high, share, within, settings)
    prefilling = {each: _prefillers(each) for each in tried}
    kinds = sorted(set(prefilling.values()))
    steps = len(kinds) + len(tried)
    for done, (count, size) in enumerate(kinds):
        progress(f"{_engines(count, size)} prefill, by themselves", done, steps)
        search.prefillers(count, size)

    def planned(each: Candidate, bound: float, rate: float | None = None, there: Result | None = None) -> Planned:
        sizes = [each.prefill_gpus, each.decode_gpus][: 1 + each.divided]
        several = there is not None and any(request.output_tokens > 1 for request in there.requests)
        return Planned(
            each, bound, rate, any(engines[size].modelled for size in sizes),
            None if there is None else there.ttft(100 * share), there.tpot(100 * share) if several else None,
        )  # fmt: skip

    found: list[Planned] = []
    best = 0.0
    # What everybody would begin with, engines of one GPU that do both, is simulated first, and in any case: the others
    # are compared with it.
    waiting = [(not (each.prefill_gpus == 1 and not each.divided), -search.prefillers(*prefilling[each]), number, False)
               for number, each in enumerate(tried)]  # fmt: skip
    heapq.heapify(waiting)
    while waiting:
        other, bound, number, tight = heapq.heappop(waiting)
        each, bound = tried[number], -bound
        progress(str(each), len(kinds) + len(found), steps)
        if other and (not bound or bound * (1 + SLACK) < best):
            found.append(planned(each, bound))
        elif not tight:  # ask for its decoders, and then whether it is still the one with the highest bound
            bound = search.decoders(*_decoders(each), least=best / (1 + SLACK), most=bound)
            heapq.heappush(waiting, (other, -bound, number, True))
        elif other and best and not search.takes(each, best):
            found.append(planned(each, min(bound, best)))
        else:
            rate, there = search.together(each, bound)
            best = max(best, rate)
            found.append(planned(each, bound, rate, there))
    progress("", steps, steps)
    return sorted(found, key=lambda each: (each.rate is None, -(each.rate or 0.0), -each.bound))


def _prefillers(candidate: Candidate) -> tuple[int, int]:
    """How many of its engines compute prompts, and of how many GPUs each."""
    return candidate.placement.colocated or candidate.placement.prefill, candidate.prefill_gpus


def _decoders(candidate: Candidate) -> tuple[int, int]:
    return (candidate.placement.decode, candidate.decode_gpus) if candidate.divided else _prefillers(candidate)


@dataclass
class _Search:
    """Rates, each found once."""

    workload: Workload
    limits: Limits
    engines: Mapping[int, EngineOf]
    transfer: Transfer
    prompt_budget: int
    low: float
    high: float
    share: float
    within: float
    settings: dict
    _prefill: dict[tuple[int, int], float] = field(default_factory=dict)
    _decode: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)

    def prefillers(self, count: int, size: int) -> float:
        """Requests a second that so many engines of so many GPUs take, if nobody has to decode."""
        if (count, size) not in self._prefill:
            engine = self.engines[size]
            own = dict(times=engine.times, num_blocks=engine.num_blocks, max_tokens_per_step=self.prompt_budget)

            def simulated(rate: float) -> Result:
                asked = [each._replace(output=1) for each in self.workload(rate)]
                return self._simulated(asked, Placement(colocated=count), **own)

            fewer = self._prefill.get((count - 1, size))
            guess = fewer * count / (count - 1) if fewer else self._guess(engine, count)
            gpus = count * size
            self._prefill[count, size] = self._highest(simulated, guess, self.low * gpus, self.high * gpus)[0]
        return self._prefill[count, size]

    def decoders(self, count: int, size: int, *, least: float, most: float) -> float:
        """Requests a second that so many engines of so many GPUs take, if prompts and caches are there at once; `most`
        where they take as much as that, and no more than `least` where not even that."""
        takes, less_than = self._decode.get((count, size), (0.0, math.inf))
        if takes < most and least < less_than:
            engine = self.engines[size]
            free = dict(prefill_settings={"times": FREE, "max_tokens_per_step": 1 << 20, "num_blocks": 1 << 22})
            free |= dict(times=engine.times, num_blocks=engine.num_blocks, transfer=Transfer())

            def simulated(rate: float) -> Result:
                asked = [each._replace(blocks=()) for each in self.workload(rate)]
                return self._simulated(asked, Placement(prefill=1, decode=count), **free)

            lowest = min(max(least, self.low * count * size), most)
            takes, _ = self._highest(simulated, lowest if least else most, lowest, most, step=2.0)
            less_than = math.inf if takes == most else max(takes, lowest) * (1 + self.within)
            self._decode[count, size] = takes, less_than
        return min(max(takes, least), most)

    def takes(self, candidate: Candidate, rate: float) -> bool:
        """Whether a whole service meets the limits at a rate."""
        return self._whole(candidate, rate).attainment(self.limits) >= self.share

    def together(self, candidate: Candidate, bound: float) -> tuple[float, Result]:
        """The highest rate of a whole service (0: the lowest is too high), and what came of it."""
        gpus = candidate.gpus
        return self._highest(lambda rate: self._whole(candidate, rate), bound, self.low * gpus, self.high * gpus)

    def _whole(self, candidate: Candidate, rate: float) -> Result:
        first, second = self.engines[candidate.prefill_gpus], self.engines[candidate.decode_gpus]
        own = dict(times=first.times, num_blocks=first.num_blocks)
        if candidate.divided:
            links = min(candidate.prefill_gpus, candidate.decode_gpus)
            own |= dict(
                prefill_settings={"max_tokens_per_step": self.prompt_budget},
                decode_settings={"times": second.times, "num_blocks": second.num_blocks},
                transfer=replace(self.transfer, bandwidth=links * self.transfer.bandwidth),
            )
        else:
            own |= dict(max_tokens_per_step=candidate.budget)
        return self._simulated(self.workload(rate), candidate.placement, **own)

    def _simulated(self, asked: Sequence[Arrival], placement: Placement, **own) -> Result:
        gaps = self.limits.gap < math.inf
        return simulate(asked, placement=placement, gaps=gaps, **(self.settings | own))

    def _guess(self, engine: EngineOf, count: int) -> float:
        """A rate at which so many engines are busy with prompts for three quarters of the time."""
        seconds, some = 0.0, self.workload(1.0)
        for each in some:
            piece = min(each.prompt, self.prompt_budget)
            seconds += engine.times.seconds(StepLoad.of([(0, piece)])) * each.prompt / piece
        return 0.75 * count * len(some) / seconds

    def _highest(
        self, simulated: Callable[[float], Result], guess: float, low: float, high: float, *, step: float = 1.15
    ) -> tuple[float, Result]:
        """The highest rate within the limits, from a guess on: by larger and larger steps until it lies between two
        rates, and then by halves; and what came of it. (0, what came of the lowest) where that is too high."""
        rate = min(max(guess, low), high)
        good: tuple[float, Result | None] = (0.0, None)
        bad = math.inf
        while True:
            result = simulated(rate)
            if result.attainment(self.limits) >= self.share:
                good = rate, result
                if rate == high:
                    return good
            elif rate == low:
                return 0.0, result
            else:
                bad = rate
            if good[0] and bad < math.inf:
                if bad / good[0] <= 1 + self.within:
                    return good
                rate = math.sqrt(good[0] * bad)
            else:
                rate = min(rate * step, high) if good[0] else max(rate / step, low)
                step **= 1.6
