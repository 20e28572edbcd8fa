"""Requests through an engine, and how long that took: all of them together, and each one on its own.

Python's garbage collector looks through everything now and then. With all that torch has made that took 0.2 s, twice
in a run of 6 s. So what is there before a run is taken out of its sight (`gc.freeze`), as vLLM does once it has begun.
"""

import gc
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median_low

from llmsys.bench.serving.workloads import Asked
from llmsys.serving import Engine, Response, SamplingParams
from llmsys.serving.telemetry.events import Event, Token
from llmsys.serving.telemetry.metrics import RequestMetrics

TEMPERATURE = 0.6


@dataclass(frozen=True)
class Served:
    """A workload that is done. Times are in seconds."""

    seconds: float
    output_tokens: int
    steps: int
    first: list[float]
    """Of each request, from when it came to its first token."""
    per_token: list[float]
    """Of each request, from a token to the next one: the mean."""
    waits: list[float]
    """From a token to the next one of the same request, of all requests, in order of size. [] where nobody listened."""
    requests: list[RequestMetrics]
    """As the engine counts; there a request comes when the step that ran has ended."""

    @property
    def speed(self) -> float:
        """Tokens of answers a second."""
        return self.output_tokens / self.seconds


class Waits:
    """Listens to an engine, and remembers when which request got a token."""

    def __init__(self, engine: Engine):
        self._times: dict[str, list[float]] = {}
        engine.events.listen(self._on)

    def of(self, ids: Sequence[str]) -> list[float]:
        times = [self._times[id] for id in ids]
        return sorted(later - now for each in times for now, later in zip(each, each[1:], strict=False))

    def _on(self, event: Event) -> None:
        if isinstance(event, Token):
            self._times.setdefault(event.request, []).append(event.time)


def serve(engine: Engine, asked: Sequence[Asked], name: str, *, waits: Waits | None = None) -> Served:
    """Hand each request over when its time has come, and step until all have their answers.

    `name` keeps them from finding blocks of a run before, whose prompts were the same.

    Raises RuntimeError where an answer is not as long as was asked for.
    """
    coming, responses = deque(enumerate(asked)), []
    steps = engine.metrics.totals.steps
    with old_objects_left_alone():
        start = engine.clock()
        while coming or engine.has_unfinished:
            while coming and coming[0][1].at <= engine.clock() - start:
                responses.append(hand_over(engine, *coming.popleft(), name))
            if engine.has_unfinished:
                engine.step()
            elif coming:
                time.sleep(max(0.0, coming[0][1].at - (engine.clock() - start)))
        seconds = engine.clock() - start
    for response, each in zip(responses, asked, strict=True):
        if len(response.tokens) != each.output:
            error = response.answers[0].error or response.answers[0].reason
            raise RuntimeError(f"{response.id} has {len(response.tokens)} tokens of {each.output}: {error}")
    known = [response.answers[0].metrics for response in responses]
    return Served(
        seconds, sum(each.output for each in asked), engine.metrics.totals.steps - steps,
        first=[one.first_token - start - each.at for one, each in zip(known, asked, strict=True)],
        per_token=[one.time_per_output_token for one in known if one.output_tokens > 1],
        waits=waits.of([response.id for response in responses]) if waits else [], requests=known,
    )  # fmt: skip


@contextmanager
def old_objects_left_alone() -> Iterator[None]:
    """The garbage collector does not look at what is there now. Afterwards it does, or no engine were ever freed."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def hand_over(engine: Engine, n: int, each: Asked, name: str) -> Response:
    """Put a request into the engine's queue."""
    params = SamplingParams(temperature=TEMPERATURE, max_tokens=each.output, ignore_eos=True, seed=n)
    return engine.add(each.prompt, params, id=f"{name}-{n}", salt=name)


def repeated(engine: Engine, asked: Sequence[Asked], name: str, *, repeats: int, patience: float) -> list[Served]:
    """The workload so many times, or until they took `patience` seconds together; the one of median time first."""
    found: list[Served] = []
    while not found or (len(found) < repeats and sum(each.seconds for each in found) < patience):
        found.append(serve(engine, asked, f"{name} {len(found)}"))
    middle = median_low(each.seconds for each in found)
    return sorted(found, key=lambda each: abs(each.seconds - middle))
