"""What is measured, for Prometheus and for the page: names begin with llmsys_, and say their unit.

    llmsys_requests_running                        requests that compute in the present steps
    llmsys_requests_waiting                        requests that wait for room
    llmsys_cache_blocks, llmsys_cache_blocks_used  the cache's blocks, and those that requests hold
    llmsys_steps_total, llmsys_step_seconds_total  by phase: plan, prepare, launch, wait, update
    llmsys_prompt_tokens_total, llmsys_output_tokens_total, llmsys_computed_tokens_total
    llmsys_prefix_hit_tokens_total                 prompt tokens that were in the cache already
    llmsys_preemptions_total, llmsys_lost_tokens_total
    llmsys_host_stored_blocks_total                evicted blocks that went to main memory
    llmsys_host_returned_blocks_total, llmsys_host_returned_tokens_total
    llmsys_answers_total                           by reason: stop, length, abort, error
    llmsys_time_to_first_token_seconds             from a request's arrival at the server: tokenizing and queue included
    llmsys_time_per_output_token_seconds           the mean of an answer, from its first token to its last
    llmsys_answer_seconds                          from arrival to the end
    llmsys_http_requests_total                     by path and status

What the engine counts (`llmsys.serving.telemetry.metrics`) is read when somebody asks, so a step pays nothing for it.
The times are the server's own, of answers as they are handed on: what a client sees, but for the network.
"""

import statistics
from collections import deque
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from llmsys.serving.engine import Engine
from llmsys.serving.telemetry.metrics import PHASES

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
KEPT = 100
"""Of these last answers the page shows quantiles."""


class Measured:
    """One server's. `registry` is its own: two servers in a process do not meet."""

    def __init__(self, engine: Engine, model: str):
        self._engine, self._model = engine, model
        self.registry = CollectorRegistry()
        self.registry.register(self)
        labels = {"labelnames": ["model"], "registry": self.registry}
        self._first = Histogram(
            "llmsys_time_to_first_token_seconds", "From arrival to the first token.", buckets=LONG, **labels
        ).labels(model)
        self._each = Histogram(
            "llmsys_time_per_output_token_seconds", "Mean of an answer after its first token.", buckets=SHORT, **labels
        ).labels(model)
        self._whole = Histogram(
            "llmsys_answer_seconds", "From arrival to an answer's end.", buckets=LONG, **labels
        ).labels(model)
        self._answers = Counter(
            "llmsys_answers_total", "Answers, by why they ended.", ["model", "reason"], registry=self.registry
        )
        self._http = Counter(
            "llmsys_http_requests_total", "Requests, by path and status.", ["path", "status"], registry=self.registry
        )
        self._last_first: deque[float] = deque(maxlen=KEPT)
        self._last_each: deque[float] = deque(maxlen=KEPT)

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)
        self._last_first.append(seconds)

    def ended(self, reason: str, seconds: float, after_first: float, tokens: int) -> None:
        """An answer of so many tokens, so long after its request came, and after its first token."""
        self._answers.labels(self._model, reason).inc()
        self._whole.observe(seconds)
        if tokens > 1:
            self._each.observe(after_first / (tokens - 1))
            self._last_each.append(after_first / (tokens - 1))

    def http(self, path: str, status: int) -> None:
        self._http.labels(path, str(status)).inc()

    def exposition(self) -> bytes:
        """For Prometheus, in its text format."""
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """What the engine knows at this moment, for the registry."""
        scheduler, totals = self._engine.scheduler, self._engine.metrics.totals
        used, blocks = self._blocks()
        for name, what, value in (
            ("requests_running", "Requests that compute in the present steps.", len(scheduler.running)),
            ("requests_waiting", "Requests that wait for room.", len(scheduler.waiting)),
            ("cache_blocks", "Blocks of the cache.", blocks),
            ("cache_blocks_used", "Blocks that requests hold.", used),
        ):
            yield self._with(GaugeMetricFamily(f"llmsys_{name}", what, labels=["model"]), [((), value)])
        for name, what, value in (
            ("steps", "Steps of the engine.", totals.steps),
            ("prompt_tokens", "Tokens of the prompts that came.", totals.prompt_tokens),
            ("output_tokens", "Tokens of answers.", totals.output_tokens),
            ("computed_tokens", "Tokens that the model computed.", totals.computed_tokens),
            ("prefix_hit_tokens", "Tokens whose keys and values were in the cache.", totals.hit_tokens),
            ("preemptions", "Requests that lost their blocks to others.", totals.preemptions),
            ("lost_tokens", "Tokens that were computed, and lost by preemption.", totals.lost_tokens),
            ("host_stored_blocks", "Evicted blocks that went to main memory.", totals.stored_blocks),
            ("host_returned_blocks", "Blocks that came back from main memory.", totals.returned_blocks),
            ("host_returned_tokens", "Tokens in these, which were not computed again.", totals.returned_tokens),
        ):
            yield self._with(CounterMetricFamily(f"llmsys_{name}", what, labels=["model"]), [((), value)])
        seconds = CounterMetricFamily("llmsys_step_seconds", "Host's seconds in steps.", labels=["model", "phase"])
        yield self._with(seconds, [((phase,), totals.seconds[phase]) for phase in PHASES])

    def snapshot(self) -> dict[str, object]:
        """What the page shows, as JSON."""
        scheduler, totals = self._engine.scheduler, self._engine.metrics.totals
        used, blocks = self._blocks()
        return {
            "model": self._model,
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "steps": totals.steps,
            "blocks_used": used,
            "blocks": blocks,
            "output_tokens": totals.output_tokens,
            "prefix_hit_tokens": totals.hit_tokens,
            "ttft_seconds": _quantiles(self._last_first),
            "tpot_seconds": _quantiles(self._last_each),
        }

    def _blocks(self) -> tuple[int, int]:
        pool = self._engine.pool
        return pool.stats.used, pool.num_blocks - 1  # block 0 is nobody's

    def _with(self, family: Metric, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        for labels, value in samples:
            family.add_metric([self._model, *labels], value)
        return family


def _quantiles(values: Iterable[float]) -> dict[str, float] | None:
    """The median and the 90th percentile; None where there is no answer yet."""
    found = list(values)
    if not found:
        return None
    cuts = statistics.quantiles(found, n=10, method="inclusive") if len(found) > 1 else found * 9
    return {"p50": cuts[4], "p90": cuts[8]}
