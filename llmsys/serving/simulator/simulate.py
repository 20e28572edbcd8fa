"""A workload on a simulated engine, or on several, and what came of it.

    result = simulate(synthetic("azure-conversation", 1000, rate=8.0, seed=0), times=times, num_blocks=40_000)
    result.ttft(90), result.tpot(90)                      seconds that 90% of the requests do not exceed
    result.goodput(Limits(ttft=1.0, tpot=0.05))           requests a second that met both

    capacity(lambda rate: synthetic("azure-conversation", 1000, rate=rate, seed=0), limits, times=…, num_blocks=…)

    simulate(workload, placement=Placement(prefill=2, decode=1), transfer=Transfer(…), times=…, num_blocks=…)

One workload, one result: nothing is drawn here, but for failures, and these from a seed.

**How long it takes** grows with the requests, and hardly with what decodes side by side, or with the engines: a million
of azure-conversation's took a core 80 s for one engine above its capacity, and 155 s for 256 engines below theirs. With
prefixes it grows with the blocks of the prompts, too: for Mooncake's, of 12,000 tokens, that is 260 s a million in
blocks of 512, in which the trace is, and an hour in blocks of 16. With a log (`events`), gaps, or a policy of your own,
each step with a prompt in it is planned, and that grows with what decodes.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from llmsys.serving.goodput import Limits, attainment, goodput, highest_rate, percentile
from llmsys.serving.simulator.cluster import Cluster
from llmsys.serving.simulator.engines import Placement, new_policy
from llmsys.serving.simulator.step_times import StepTimes
from llmsys.serving.telemetry.events import EventLog
from llmsys.serving.telemetry.metrics import RequestMetrics
from llmsys.serving.workload.arrivals import Arrival

ALONE = Placement(colocated=1)


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
    transfers: list[float] = field(default_factory=list, repr=False)
    """Of each request whose cache was moved, in their order: the seconds from its first token until it had arrived."""
    moved_tokens: int = 0
    """Whose keys and values were moved."""

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
    placement: Placement = ALONE,
    prefixes: bool | None = None,
    gaps: bool = False,
    events: EventLog | Sequence[EventLog] | None = None,
    **settings,
) -> Result:
    """Serve a workload.

    Parameters
    ----------
    times
        How long steps take.
    num_blocks, settings
        Each engine's: see `Instance`; and how they work together: see `Cluster`.
    placement
        How many engines there are, and whether some only compute prompts.
    prefixes
        Whether cached prefixes are found. None: if some request says what its prompt begins with. (Without, a preempted
        request computes all its tokens again, too.)
    gaps
        Whether the longest gap of each request is found, for limits to it, which takes some more time.
    events
        Where to write down what happens, for each engine; nothing is kept where it is left out.

    ValueError for a workload without requests, or not in the order of time, or with one that can never fit.
    """
    if not workload:
        raise ValueError("workload must have at least one request")
    if prefixes is None:
        prefixes = any(each.blocks for each in workload)
    logs = [events] if isinstance(events, EventLog) else events
    cluster = Cluster(
        placement, times=times, num_blocks=num_blocks, prefixes=prefixes, gaps=gaps, events=logs, **settings
    )
    with _collector_off():
        before = -math.inf
        for number, each in enumerate(workload):
            if not (before <= each.at < math.inf and each.at >= 0):
                raise ValueError(f"workload must be in the order of time, from 0 on: request {number} is at {each.at}")
            before = each.at
            cluster.add(each)
        cluster.advance()
    requests, engines = cluster.requests(), cluster.ever
    return Result(
        requests,
        cluster.seconds,
        sum(each.steps for each in engines),
        sum(each.planned for each in engines),
        sum(each.computed for each in engines),
        sum([each.output_tokens for each in requests]),
        [cluster.transfers[name] for name in sorted(cluster.transfers, key=int)],
        cluster.moved_tokens,
    )


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
    new_policy(policy)  # refused now, if it is

    def attained(rate: float) -> float:
        return simulate(workload(rate), policy=policy, gaps=gaps, **settings).attainment(limits)

    return highest_rate(attained, low=low, high=high, share=share, within=within)


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
