"""A workload on a simulated engine, and what came of it.

    result = simulate(synthetic("azure-conversation", 1000, rate=8.0, seed=0), times=times, num_blocks=40_000)
    result.ttft(90), result.tpot(90)                      seconds that 90% of the requests do not exceed
    result.goodput(Limits(ttft=1.0, tpot=0.05))           requests a second that met both

    capacity(lambda rate: synthetic("azure-conversation", 1000, rate=rate, seed=0), limits, times=…, num_blocks=…)

One workload, one result: nothing is drawn here.
"""

import functools
import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmsys.serving.goodput import Limits, attainment, goodput, highest_rate, percentile
from llmsys.serving.request import Request
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.simulator.instance import Instance
from llmsys.serving.simulator.runs import SkippedSteps
from llmsys.serving.simulator.step_times import TICKS, StepTimes
from llmsys.serving.telemetry.events import Admitted, Arrived, Event, EventLog, Finished, Preempted, Progress
from llmsys.serving.telemetry.metrics import RequestMetrics
from llmsys.serving.workload.arrivals import Arrival, prompt_tokens


@dataclass(frozen=True)
class Result:
    """What came of a workload."""

    requests: list[RequestMetrics] = field(repr=False)
    """In the order in which they came. All have ended."""
    seconds: float
    """From 0 to the end of the last step."""
    steps: int
    planned: int
    """Of the steps: those that were not skipped."""
    computed_tokens: int
    output_tokens: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens of answers a second."""
        return self.output_tokens / self.seconds

    @property
    def hit_share(self) -> float:
        """The share of prompt tokens that were in the cache when their request was first admitted."""
        return sum([each.hit_tokens for each in self.requests]) / sum([each.prompt_tokens for each in self.requests])

    def ttft(self, share: float) -> float:
        """Seconds to the first token that `share` percent of the requests do not exceed."""
        return percentile((each.time_to_first_token for each in self.requests), share)

    def tpot(self, share: float) -> float:
        """The same of the time per output token, of the requests that have more than one. ValueError if none has."""
        each = (request.time_per_output_token for request in self.requests)
        return percentile((seconds for seconds in each if seconds is not None), share)

    def attainment(self, limits: Limits) -> float:
        """The share of requests that met the limits."""
        return attainment(self.requests, limits)

    def goodput(self, limits: Limits) -> float:
        """Requests a second that met the limits."""
        return goodput(self.requests, limits)


def simulate(
    workload: Sequence[Arrival],
    *,
    times: StepTimes,
    num_blocks: int,
    prefixes: bool | None = None,
    gaps: bool = False,
    events: EventLog | None = None,
    **settings,
) -> Result:
    """Serve a workload.

    Parameters
    ----------
    times
        How long steps take.
    num_blocks, settings
        The engine's: see `Instance`.
    prefixes
        Whether cached prefixes are found. None: if some request says what its prompt begins with. (Without, a preempted
        request computes all its tokens again, too.)
    gaps
        Whether the longest gap of each request is found, for limits to it, which takes some more time.
    events
        Where to write down what happens; nothing is kept where it is left out.

    ValueError for a workload without requests, or not in the order of time, or with one that can never fit.
    """
    if not workload:
        raise ValueError("workload must have at least one request")
    if prefixes is None:
        prefixes = any(each.blocks for each in workload)
    events = EventLog(keep=0) if events is None else events
    tally = Tally()
    if gaps:
        events.listen(tally.on, progress=tally.on_progress_with_gaps, several=tally.on_skipped)
    else:
        events.listen(tally.on, progress=tally.on_progress, several=False)
    instance = Instance(times, num_blocks=num_blocks, prefixes=prefixes, events=events, **settings)
    with _collector_off():
        before = -math.inf
        for number, each in enumerate(workload):
            if not (before <= each.at < math.inf and each.at >= 0):
                raise ValueError(f"workload must be in the order of time, from 0 on: request {number} is at {each.at}")
            before = each.at
            instance.add(Request(str(number), prompt_tokens(each, number), _params(each.output)), each.at)
        instance.advance()
    requests = list(tally.requests.values())
    said = sum([each.output_tokens for each in requests])
    return Result(requests, instance.now / TICKS, instance.steps, instance.planned, instance.computed, said)


def capacity(
    workload: Callable[[float], Sequence[Arrival]],
    limits: Limits,
    *,
    low: float = 0.1,
    high: float = 100.0,
    share: float = 0.9,
    within: float = 0.02,
    policy: object = "stall-free",
    **settings,
) -> float:
    """The highest rate at which at least `share` of the requests meet the limits (`highest_rate`), by bisection.

    Parameters
    ----------
    workload
        Rate → what is asked at that rate.
    policy
        A name, or what makes a policy of your own (its class): each run has a new one.
    settings
        As for `simulate`.
    """
    gaps = limits.gap < math.inf

    def attained(rate: float) -> float:
        return simulate(workload(rate), policy=new_policy(policy), gaps=gaps, **settings).attainment(limits)

    return highest_rate(attained, low=low, high=high, share=share, within=within)


def new_policy(policy: object) -> object:
    """What `policy` names or makes. ValueError for a policy itself, which may remember another run."""
    if isinstance(policy, str):
        return policy
    if not isinstance(policy, type) and hasattr(policy, "turns"):
        raise ValueError("policy must be a name, or what makes a policy (its class), for each run needs a new one")
    if not callable(policy):
        raise ValueError(f"policy must be a name, or what makes a policy (its class), got {policy!r}")
    return policy()


class Tally:
    """Listens to a simulated engine, and remembers when what happened to each request.

    It is `llmsys.serving.Metrics` for who need not be told of every token: of an answer it takes the first one and the
    end, with which the last one comes. For the longest gap it wants to know of the others, too; of skipped steps that
    is the first one, which may have begun long after a request's last token, or the last one, which takes longest.
    """

    def __init__(self):
        self.requests: dict[str, RequestMetrics] = {}
        self._unsaid: set[str] = set()  # requests without a token

    def on(self, event: Event) -> None:
        kind = type(event)
        if kind is Arrived:
            self.requests[event.request] = RequestMetrics(event.prompt_tokens, event.time)
            self._unsaid.add(event.request)
        elif kind is Finished:
            one = self.requests[event.request]
            one.last_token = one.ended = event.time
            one.finished, one.output_tokens = True, event.generated
        elif kind is Admitted:
            one = self.requests[event.request]
            if one.admitted is None:
                one.admitted, one.hit_tokens = event.time, event.hit_tokens
        elif kind is Preempted:
            one = self.requests[event.request]
            one.preemptions += 1
            one.lost_tokens += event.lost

    def on_progress(self, progress: Progress) -> None:
        unsaid = self._unsaid
        if unsaid:
            for name, _, _, _, said in progress.rows:
                if said and name in unsaid:
                    self.requests[name].first_token = progress.time
                    unsaid.remove(name)

    def on_progress_with_gaps(self, progress: Progress) -> None:
        time = progress.time
        for name, _, _, _, said in progress.rows:
            if said:
                one = self.requests[name]
                if one.last_token is None:
                    one.first_token = time
                else:
                    _note_gap(one, time - one.last_token)
                one.last_token = time

    def on_skipped(self, steps: SkippedSteps) -> None:
        first, end = (steps.now + steps.first) / TICKS, steps.end / TICKS
        last = (steps.first + (steps.n - 1) * steps.growth) / TICKS if steps.n > 1 else 0.0
        for name, _, _ in steps.rows:
            one = self.requests[name]
            _note_gap(one, max(first - one.last_token, last))
            one.last_token = end


def _note_gap(request: RequestMetrics, gap: float) -> None:
    if request.longest_gap is None or gap > request.longest_gap:
        request.longest_gap = gap


@functools.lru_cache(maxsize=4096)
def _params(output: int) -> SamplingParams:
    return SamplingParams(max_tokens=output)


@contextmanager
def _collector_off() -> Iterator[None]:
    """A million requests make no circles, and Python's garbage collector would look through all of them again and
    again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
