"""Goodput: not how many tokens a service makes, but how many of its requests it serves as they want to be.

    limits = Limits(ttft=1.0, tpot=0.05)              seconds
    requests = request_metrics(engine.events)          of a log, by the requests' ids
    attainment(requests.values(), limits)              0.93: so many of them met both limits
    goodput(requests.values(), limits)                 7.4: requests a second that did

A request **meets** the limits if it was answered whole, its first token came in time (TTFT), and the others after it in
time on average (TPOT; `RequestMetrics` says what is counted). An answer of one token has no second limit. Three figures
are made of that, and papers call more than one of them goodput:

    attainment      the share of requests that met the limits
    goodput         how many did in a second, of a run at one rate: what `vllm bench serve --goodput` prints; what is
                    wrong with it (who is late may as well be dropped): https://arxiv.org/abs/2410.14257
    highest_rate    the highest rate at which attainment is at least a `share`, say 90%: DistServe's goodput, there by
                    GPU, https://arxiv.org/abs/2401.09670. With other limits it is Sarathi-Serve's capacity: the P99 of
                    the time between two tokens, and the median wait for the first step, https://arxiv.org/abs/2403.02310

The mean hides a stall: 200 tokens at 20 ms and one pause of a second are 25 ms each. A limit to the longest `gap` does
not: it is Sarathi-Serve's time between tokens, of each request the worst.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmsys.serving.telemetry.events import Event
from llmsys.serving.telemetry.metrics import Metrics, RequestMetrics


@dataclass(frozen=True)
class Limits:
    """What a request wants, in seconds; infinity where it does not care. ValueError where one is not above 0."""

    ttft: float = math.inf
    """To the first token, from when the request came."""
    tpot: float = math.inf
    """From a token to the next one, on average."""
    gap: float = math.inf
    """From a token to the next one, the longest."""

    def __post_init__(self):
        for name in ("ttft", "tpot", "gap"):
            if not (isinstance(value := getattr(self, name), int | float) and value > 0):
                raise ValueError(f"{name} must be seconds above 0, or infinity for no limit, got {value!r}")

    def met(self, request: RequestMetrics) -> bool:
        """Whether a request got what it wants. One that failed, was aborted or goes on did not."""
        if not request.finished or request.first_token is None:
            return False
        per_token, gap = request.time_per_output_token, request.longest_gap
        if request.time_to_first_token > self.ttft or (per_token is not None and per_token > self.tpot):
            return False
        if gap is None and per_token is not None and self.gap < math.inf:
            raise ValueError("limits.gap cannot be told: nobody wrote down the longest gap of this request")
        return gap is None or gap <= self.gap


def attainment(requests: Iterable[RequestMetrics], limits: Limits) -> float:
    """The share of requests that met the limits, from 0 to 1. ValueError where there are none."""
    met = [limits.met(each) for each in requests]
    if not met:
        raise ValueError("requests must be at least one, for there is no share of none")
    return sum(met) / len(met)


def goodput(requests: Iterable[RequestMetrics], limits: Limits, *, seconds: float | None = None) -> float:
    """Requests a second that met the limits.

    seconds      how long the service ran; None: from the first arrival to the last end

    ValueError where there are no requests, or no time passed.
    """
    requests = list(requests)
    if not requests:
        raise ValueError("requests must be at least one, for there is no rate of none")
    if seconds is None:
        ends = [each.ended for each in requests if each.ended is not None]
        seconds = max(ends, default=-math.inf) - min(each.arrival for each in requests)
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, got {seconds}: some request must have ended after the first came")
    return sum(limits.met(each) for each in requests) / seconds


def request_metrics(events: Iterable[Event]) -> dict[str, RequestMetrics]:
    """Every request of a log, by its id: when it came, when its tokens did, when it ended."""
    metrics = Metrics(keep=0)
    for event in events:
        metrics.on(event)
    return metrics.requests


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` percent do not exceed: the smallest of them for which that is so.

    ValueError for no values, or a share that is not from 0 to 100.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("values must be at least one")
    if not 0 <= share <= 100:
        raise ValueError(f"share must be from 0 to 100 percent, got {share}")
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def highest_rate(
    attained: Callable[[float], float], *, low: float, high: float, share: float = 0.9, within: float = 0.02
) -> float:
    """The highest rate at which at least `share` is attained, by bisection.

    Parameters
    ----------
    attained
        Rate → attainment. It is taken to fall as the rate rises; one run at each rate that is tried.
    low, high
        Rates between which it is looked for. If `high` is good enough, that is the answer.
    within
        How near two rates are, relative to each other, when the search ends: the lower one has been tried, and is good.

    ValueError where these are out of their ranges, or `low` is too high already.
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"low and high must be rates with 0 < low < high, got {low} and {high}")
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    if not 0 < within < 1:
        raise ValueError(f"within must be above 0 and below 1, got {within}")
    if attained(high) >= share:
        return high
    if (reached := attained(low)) < share:
        raise ValueError(f"low must be a rate at which {share:.0%} is attained: at {low:g}, {reached:.0%} is. Lower it")
    while high / low > 1 + within:
        middle = math.sqrt(low * high)
        if attained(middle) >= share:
            low = middle
        else:
            high = middle
    return low
