"""A workload against something that serves: each request is sent when its time has come, whatever became of the others.

    async with AsyncEngine(engine) as served:
        replayed = await replay(workload, EngineClient(served), vocab=32_000, speed=2.0)
    goodput(replayed.requests, Limits(ttft=1.0, tpot=0.05))

Who serves is a `Client`: an engine in this process, or a server somewhere, which is asked over the network
(`ServerClient`, in `server_client`), and says when each token came. Times are the client's: from when a request was
**due**, so a client that is late in sending does not make the service look faster, to when a token was there to be
read.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmsys.serving.async_engine import AsyncEngine
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.telemetry.metrics import RequestMetrics
from llmsys.serving.workload.arrivals import Arrival, prompt_tokens


class Client(Protocol):
    """Asks a service."""

    async def submit(self, prompt: Sequence[int], *, max_tokens: int) -> list[float]:
        """Asks for an answer of just so many tokens (end tokens are not heeded). When each token came, in order:
        seconds on the event loop's clock, `asyncio.get_running_loop().time()`. Raises whatever went wrong."""
        ...


class EngineClient:
    """Asks an engine in this event loop."""

    def __init__(self, engine: AsyncEngine, *, temperature: float = 0.0):
        self.engine, self.temperature = engine, temperature

    async def submit(self, prompt: Sequence[int], *, max_tokens: int) -> list[float]:
        loop, times = asyncio.get_running_loop(), []
        params = SamplingParams(max_tokens=max_tokens, temperature=self.temperature, ignore_eos=True)
        async for update in self.engine.stream(list(prompt), params):
            times += [loop.time()] * len(update.tokens)
            if update.error is not None:
                raise RuntimeError(update.error)
        return times


@dataclass(frozen=True)
class Replayed:
    """What became of a workload. Times are seconds from its beginning; `speed` makes pauses shorter, and no answer."""

    requests: list[RequestMetrics] = field(repr=False)
    """In the order in which they came."""
    errors: dict[int, str]
    """What went wrong, by the numbers of the requests."""
    seconds: float
    latest: float
    """By how many seconds the one was sent late that was latest: what of the times is the client's own doing."""


async def replay(workload: Sequence[Arrival], client: Client, *, vocab: int, speed: float = 1.0) -> Replayed:
    """Send every request of a workload at its time, and wait for all answers.

    Parameters
    ----------
    vocab
        Prompts are made of token ids below this (`prompt_tokens`).
    speed
        2 sends the workload in half its time.

    ValueError for a speed or a vocab that cannot be. An answer that fails, or has not the length that was asked for, is
    one of `errors`, and the others go on. Cancelling it cancels all that are under way.
    """
    if not (math.isfinite(speed) and speed > 0):
        raise ValueError(f"speed must be above 0: 1 for real time, 2 for twice as fast; got {speed}")
    prompts = [prompt_tokens(each, number, vocab=vocab) for number, each in enumerate(workload)]
    loop = asyncio.get_running_loop()
    start = loop.time()
    requests = [RequestMetrics(each.prompt, each.at / speed) for each in workload]
    errors: dict[int, str] = {}
    latest = 0.0

    async def one(number: int) -> None:
        nonlocal latest
        request, output = requests[number], workload[number].output
        await asyncio.sleep(start + request.arrival - loop.time())
        latest = max(latest, loop.time() - start - request.arrival)
        try:
            times = await client.submit(prompts[number], max_tokens=output)
        except Exception as error:
            errors[number] = f"{type(error).__name__}: {error}"
            times = []
        request.ended = loop.time() - start
        if times:
            request.first_token, request.last_token = times[0] - start, times[-1] - start
            request.output_tokens = len(times)
            request.longest_gap = max((b - a for a, b in zip(times, times[1:], strict=False)), default=None)
        request.finished = len(times) == output
        if not request.finished:
            errors.setdefault(number, f"the answer has {len(times)} tokens, and {output} were asked for")

    async with asyncio.TaskGroup() as group:
        for number in range(len(workload)):
            group.create_task(one(number))
    return Replayed(requests, errors, loop.time() - start, latest)
