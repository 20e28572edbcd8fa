"""Replay: requests are sent when they are due, times are those of a client, and what fails fails alone."""

import asyncio
import time

import pytest

from llmsys.bench.decode import random_model
from llmsys.models.shapes import ModelShape
from llmsys.serving import AsyncEngine, Engine
from llmsys.serving.goodput import Limits, attainment
from llmsys.serving.workload import Arrival, EngineClient, prompt_tokens, replay

TINY = ModelShape("tiny", layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn=16, vocab=97)
WORKLOAD = [Arrival(0.0, 5, 3), Arrival(0.1, 40, 1), Arrival(0.1, 2, 6), Arrival(0.3, 7, 2)]


class Loop(asyncio.SelectorEventLoop):
    """An event loop on a clock of its own: it does not wait for a timer, but moves the clock on to it."""

    def __init__(self):
        super().__init__()
        self.moved = 0.0

    def time(self):
        return self.moved

    def _run_once(self):
        if not self._ready and self._scheduled:
            self.moved = max(self.moved, self._scheduled[0]._when)
        super()._run_once()


def run(coroutine):
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(coroutine)


class Fake:
    """A service that takes a tenth of a second for each token, and remembers what it was asked."""

    def __init__(self, *, broken=(), short=()):
        self.asked, self.broken, self.short = [], broken, short

    async def submit(self, prompt, *, max_tokens):
        loop, number = asyncio.get_running_loop(), len(self.asked)
        self.asked.append((loop.time(), tuple(prompt), max_tokens))
        if number in self.broken:
            raise ConnectionError("hung up")
        times = []
        for _ in range(max_tokens - (number in self.short)):
            await asyncio.sleep(0.1)
            times.append(loop.time())
        return times


@pytest.mark.parametrize("speed", [1.0, 4.0])
def test_each_is_sent_when_it_is_due_whatever_the_others_do(speed):
    fake = Fake()
    found = run(replay(WORKLOAD, fake, vocab=50, speed=speed))
    start = fake.asked[0][0]
    assert [at - start for at, _, _ in fake.asked] == pytest.approx([each.at / speed for each in WORKLOAD])
    assert [prompt for _, prompt, _ in fake.asked] == [prompt_tokens(e, n, vocab=50) for n, e in enumerate(WORKLOAD)]
    assert [tokens for _, _, tokens in fake.asked] == [each.output for each in WORKLOAD]
    assert [each.time_to_first_token for each in found.requests] == pytest.approx([0.1] * 4)
    assert [each.time_per_output_token for each in found.requests] == [pytest.approx(0.1), None, pytest.approx(0.1),
                                                                      pytest.approx(0.1)]  # fmt: skip
    assert [each.longest_gap for each in found.requests] == [pytest.approx(0.1), None, pytest.approx(0.1),
                                                             pytest.approx(0.1)]  # fmt: skip
    assert all(each.finished for each in found.requests) and not found.errors and found.latest < 1e-9
    assert found.seconds == pytest.approx(max(each.at / speed + 0.1 * each.output for each in WORKLOAD))


def test_what_fails_fails_alone():
    found = run(replay(WORKLOAD, Fake(broken=(1,), short=(2,)), vocab=50))
    assert found.errors == {1: "ConnectionError: hung up", 2: "the answer has 5 tokens, and 6 were asked for"}
    assert [each.finished for each in found.requests] == [True, False, False, True]
    assert attainment(found.requests, Limits()) == 0.5


def test_who_is_sent_late_has_waited_since_it_was_due():
    class Slow(Fake):
        async def submit(self, prompt, *, max_tokens):
            asyncio.get_running_loop().moved += 0.5  # the client's own doing: nobody else is sent meanwhile
            return await super().submit(prompt, max_tokens=max_tokens)

    found = run(replay(WORKLOAD, Slow(), vocab=50))
    assert found.latest == pytest.approx(1.2) and found.requests[-1].time_to_first_token > 1.2


def test_a_replay_that_is_cancelled_leaves_nothing_behind():
    async def cancelled():
        task = asyncio.create_task(replay([Arrival(0.0, 5, 1000)], fake, vocab=50))
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(asyncio.all_tasks())

    fake = Fake()
    assert run(cancelled()) == 1


def test_against_an_engine():
    model = random_model(TINY, 64)

    async def served():
        async with AsyncEngine(Engine(model, num_blocks=40)) as engine:
            start = time.perf_counter()
            found = await replay(WORKLOAD, EngineClient(engine), vocab=TINY.vocab, speed=3.0)
            return found, time.perf_counter() - start, engine.engine

    found, seconds, engine = asyncio.run(served())
    assert not found.errors and [each.output_tokens for each in found.requests] == [each.output for each in WORKLOAD]
    for each in found.requests:
        assert each.arrival < each.first_token <= each.last_token <= each.ended <= found.seconds <= seconds
    assert found.seconds >= 0.1 and engine.pool.stats.used == 0 and not engine.has_unfinished
    late = asyncio.run(refused(model))
    assert set(late.errors) == {0} and "prompt must have at most" in late.errors[0]


async def refused(model):
    async with AsyncEngine(Engine(model, num_blocks=40)) as engine:
        return await replay([Arrival(0.0, 500, 1), Arrival(0.0, 5, 1)], EngineClient(engine), vocab=TINY.vocab)


def test_what_cannot_be_is_refused():
    for speed in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="speed must be above 0"):
            asyncio.run(replay(WORKLOAD, Fake(), vocab=50, speed=speed))
    with pytest.raises(ValueError, match="vocab must be at least 2"):
        asyncio.run(replay(WORKLOAD, Fake(), vocab=1))
