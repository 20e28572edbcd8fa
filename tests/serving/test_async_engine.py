"""The engine in an event loop: each reader gets its own, whoever else comes, hangs up or breaks something."""

import asyncio
import threading

import pytest

from llmsys.serving.async_engine import AsyncEngine
from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.sampling.sampling_params import SamplingParams

PROMPT = (5, 9, 30, 12, 44, 8, 60)
PROMPTS = [PROMPT[:n] for n in range(1, 8)]


EXECUTION = Execution()


@pytest.fixture(autouse=True, params=[False, True], ids=["a step at a time", "ahead"])
def ahead(request, monkeypatch):
    """Each test with steps that are planned one at a time, and ahead."""
    monkeypatch.setattr(f"{__name__}.EXECUTION", Execution(ahead=request.param))


def served(pair, **more) -> AsyncEngine:
    return AsyncEngine(Engine(pair.ours, **dict(num_blocks=40, block_size=4, execution=EXECUTION) | more))


def params(n=8, **more) -> SamplingParams:
    return SamplingParams(max_tokens=n, ignore_eos=True, **more)


def in_time(task):
    """Runs it, and fails where it hangs."""
    return asyncio.run(asyncio.wait_for(task, timeout=60))


def nothing_left(engine: Engine) -> bool:
    return engine.pool.stats.used == 0 and not engine.has_unfinished and not engine.metrics.requests


async def read(stream) -> list[int]:
    return [token async for update in stream for token in update.tokens]


def test_many_at_once_each_get_their_own(llama):
    async def go():
        async with served(llama, max_sequences=3) as engine:
            streams = [read(engine.stream(prompt, params())) for prompt in PROMPTS]
            calls = [engine.generate(prompt, params(n=5)) for prompt in PROMPTS]
            said = await asyncio.gather(*streams, *calls)
        assert nothing_left(engine.engine)
        return said[:7], [response.tokens for response in said[7:]]

    streams, calls = in_time(go())
    assert streams == [llama.greedy(prompt)[0][:8] for prompt in PROMPTS]
    assert calls == [llama.greedy(prompt)[0][:5] for prompt in PROMPTS]


def test_who_comes_later_is_served_beside_those_who_came_before(llama):
    async def go():
        async with served(llama) as engine:
            first = engine.stream(PROMPT, params(20))
            begun = [await anext(first) for _ in range(3)]
            second = await engine.generate(PROMPT[:3], params(4))
            rest = await read(first)
            return [token for update in begun for token in update.tokens] + rest, second.tokens

    first, second = in_time(go())
    assert first == llama.greedy(PROMPT)[0][:20] and second == llama.greedy(PROMPT[:3])[0][:4]


def test_the_event_loop_goes_on_while_a_step_is_computed(llama, monkeypatch):
    step, inside, may_go_on = Engine.step, threading.Event(), threading.Event()

    def slow(self):
        inside.set()
        assert may_go_on.wait(timeout=30), "the event loop stands still"
        return step(self)

    monkeypatch.setattr(Engine, "step", slow)

    async def go():
        async with served(llama) as engine:
            answer = asyncio.create_task(engine.generate(PROMPT, params(2)))
            while not inside.is_set():
                await asyncio.sleep(0)
            may_go_on.set()  # by the loop, in the middle of a step
            return (await answer).tokens

    assert in_time(go()) == llama.greedy(PROMPT)[0][:2]


@pytest.mark.parametrize("how", ["close", "cancel", "abort"])
def test_who_hangs_up_is_aborted_and_the_others_are_not(llama, how):
    async def go():
        async with served(llama) as engine:
            other = asyncio.create_task(engine.generate(PROMPT[:4], params(20)))
            if how == "cancel":
                mine = asyncio.create_task(engine.generate(PROMPT, params(20)))
                while not engine.engine.metrics.totals.output_tokens:
                    await asyncio.sleep(0)
                mine.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await mine
            else:
                stream = engine.stream(PROMPT, params(20), id="mine")
                await anext(stream)
                if how == "close":
                    await stream.aclose()
                else:
                    engine.abort("mine")
                    updates = [update async for update in stream]
                    assert updates[-1].reason == "abort"
            tokens = (await other).tokens
            await engine.generate(PROMPT[:2], params(1))  # a step later it is certainly gone
            assert engine.engine.metrics.totals.aborted == 1 and nothing_left(engine.engine)
            return tokens

    assert in_time(go()) == llama.greedy(PROMPT[:4])[0][:20]


def test_to_abort_what_is_not_there_does_nothing_to_what_comes_later(llama):
    async def go():
        async with served(llama) as engine:
            engine.abort("a")  # nobody's yet
            tokens = (await engine.generate(PROMPT, params(3), id="a")).tokens
            engine.abort("a")  # and no more
            again = (await engine.generate(PROMPT, params(5), id="a")).tokens
            return tokens, again

    tokens, again = in_time(go())
    assert tokens == llama.greedy(PROMPT)[0][:3] and again == llama.greedy(PROMPT)[0][:5]


def test_an_id_may_come_again_while_somebody_still_reads_the_response_before(llama):
    async def go():
        async with served(llama) as engine:
            first = engine.stream(PROMPT, params(2), id="a")
            begun = await anext(first)
            while engine.engine.has_unfinished:  # it ends, unread
                await asyncio.sleep(0)
            second = engine.stream(PROMPT[1:], params(6), id="a")
            update = await anext(second)
            await first.aclose()  # hangs up on a response that has ended
            tokens = [*update.tokens, *await read(second)]
        assert nothing_left(engine.engine) and engine.engine.metrics.totals.aborted == 0
        return begun.tokens, tokens

    begun, tokens = in_time(go())
    assert list(begun) == llama.greedy(PROMPT)[0][:1] and tokens == llama.greedy(PROMPT[1:])[0][:6]


def test_who_waits_to_be_added_can_be_aborted_too(llama):
    async def go():
        async with served(llama) as engine:
            async with engine._lock:  # as in the middle of a step
                coming = asyncio.create_task(engine.generate(PROMPT, params(100), id="a"))
                while not engine._coming:
                    await asyncio.sleep(0)
                engine.abort("a")
            response = await coming
        return response.answers[0].reason, len(response.tokens)

    reason, n = in_time(go())
    assert reason == "abort" and n < 5


def test_a_refusal_is_the_askers_alone(llama):
    async def go():
        async with served(llama) as engine:
            other = asyncio.create_task(engine.generate(PROMPT, params()))
            with pytest.raises(ValueError, match="prompt must have at most"):
                await engine.generate([5] * 300, params())
            with pytest.raises(ValueError, match="from 0 to 66"):
                await read(engine.stream([99]))
            return (await other).tokens

    assert in_time(go()) == llama.greedy(PROMPT)[0][:8]


def test_a_step_that_raises_is_an_error_of_its_requests_and_the_service_goes_on(llama, monkeypatch):
    async def go():
        async with served(llama) as engine:
            with monkeypatch.context() as patch:
                patch.setattr(llama.ours.head, "forward", lambda x: 1 / 0)
                failed = await engine.generate(PROMPT, params())
            return failed.answers[0], (await engine.generate(PROMPT, params())).tokens

    failed, tokens = in_time(go())
    assert failed.reason == "error" and "ZeroDivisionError" in failed.error
    assert tokens == llama.greedy(PROMPT)[0][:8]


def test_closing_ends_what_is_under_way(llama):
    async def go():
        engine = served(llama)
        answer = asyncio.create_task(engine.generate(PROMPT, params(100)))
        stream = engine.stream(PROMPT[:2], params(100))
        await anext(stream)
        await engine.close()
        assert (await answer).answers[0].reason == "abort" and nothing_left(engine.engine)
        assert [update.reason async for update in stream][-1] == "abort"
        with pytest.raises(RuntimeError, match="closed"):
            await engine.generate(PROMPT, params())

    in_time(go())


def test_several_prompts_can_be_read_from_one_queue(llama):
    async def go():
        async with served(llama) as engine:
            updates, tokens = asyncio.Queue(), {}
            async with (
                engine.reading(PROMPT, params(4), id="a", updates=updates) as first,
                engine.reading(PROMPT[:3], params(6), id="b", updates=updates) as second,
            ):
                left = 2
                while left:
                    update = await updates.get()
                    tokens.setdefault(update.id, []).extend(update.tokens)
                    left -= update.reason is not None
                assert first.response.tokens == tokens["a"] and second.response.tokens == tokens["b"]
            assert nothing_left(engine.engine)
            return tokens

    assert in_time(go()) == {"a": llama.greedy(PROMPT)[0][:4], "b": llama.greedy(PROMPT[:3])[0][:6]}


def test_a_reader_that_leaves_without_a_word_is_aborted(llama):
    async def go():
        async with served(llama) as engine:
            async with engine.reading(PROMPT, params(100)) as reader:
                assert not reader.response.finished and not engine.closed
            with pytest.raises(ZeroDivisionError):
                async with engine.reading(PROMPT[:2], params(100)):
                    1 / 0  # noqa: B018
            await engine.generate(PROMPT[:3], params(1))
            assert engine.engine.metrics.totals.aborted == 2 and nothing_left(engine.engine)
        assert engine.closed

    in_time(go())


def test_an_engine_that_is_broken_ends_its_readers_and_says_so(llama):
    class Idle:
        def turns(self, running, head, budget):
            return iter(())

    async def go():
        engine = served(llama, policy=Idle())
        assert (await engine.generate(PROMPT, params())).answers[0].reason == "abort"
        with pytest.raises(RuntimeError, match="lets nobody compute"):
            await engine.close()

    in_time(go())


def test_an_event_loop_that_ends_ends_what_is_under_way_and_the_next_one_is_told(llama):
    engine = served(llama, num_blocks=200)

    async def leave():
        answer = asyncio.create_task(engine.generate(PROMPT, params(100)))
        while not engine.engine.metrics.totals.output_tokens:
            await asyncio.sleep(0.001)
        assert not answer.done()  # and nobody closes the engine

    async def come_again():
        with pytest.raises(RuntimeError, match="closed: make a new AsyncEngine"):
            await engine.generate(PROMPT, params())
        return await AsyncEngine(engine.engine).generate(PROMPT, params())

    in_time(leave())
    assert nothing_left(engine.engine)
    assert in_time(come_again()).tokens == llama.greedy(PROMPT)[0][:8]
