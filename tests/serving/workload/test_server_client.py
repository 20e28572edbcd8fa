"""A workload against a server: times are those of its chunks, and what fails over the network fails alone."""

import asyncio
import json
import time

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")
pytest.importorskip("httpx2", reason="the serving extra is not installed")

from llmsys.serving.goodput import Limits, attainment, goodput
from llmsys.serving.server.limits import Limits as ServerLimits
from llmsys.serving.workload import Arrival, ServerClient, ServerError, replay
from tests.serving.server.running import NAME, serving, tiny_model

WORKLOAD = [Arrival(0.0, 5, 30), Arrival(0.1, 40, 1), Arrival(0.1, 2, 6), Arrival(0.3, 7, 12)]
VOCAB = 259


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def served(model):
    with serving(model) as running:
        yield running


def replayed(url, workload=WORKLOAD, *, speed=1.0, **options):
    async def go():
        async with ServerClient(url, **options) as client:
            return await replay(workload, client, vocab=VOCAB, speed=speed)

    return asyncio.run(go())


@pytest.mark.parametrize("speed", [1.0, 3.0])
def test_against_a_server(served, speed):
    before, began = served.engine.metrics.totals.output_tokens, time.perf_counter()
    found = replayed(served.url, speed=speed)
    seconds = time.perf_counter() - began
    served.wait_until_empty()
    assert not found.errors and [each.output_tokens for each in found.requests] == [each.output for each in WORKLOAD]
    assert served.engine.metrics.totals.output_tokens - before == sum(each.output for each in WORKLOAD)
    for each, due in zip(found.requests, WORKLOAD, strict=True):
        assert each.finished and each.arrival == due.at / speed
        assert each.arrival < each.first_token <= each.last_token <= each.ended <= found.seconds <= seconds
    assert attainment(found.requests, Limits(ttft=60, tpot=60)) == 1.0
    assert goodput(found.requests, Limits()) > 0 and attainment(found.requests, Limits(ttft=1e-9)) == 0


def test_times_are_those_of_chunks(model):
    with serving(model) as running:
        running.slow(0.02)
        (request,) = replayed(running.url, [Arrival(0.0, 5, 30)]).requests
        assert request.time_to_first_token >= 0.02 and request.last_token - request.first_token >= 0.02 * 20
        assert request.longest_gap >= 0.02 and request.time_per_output_token >= 0.02 * 20 / 29
        running.wait_until_empty()


def test_who_is_refused_is_refused_alone(model):
    """A prompt that is too long gets 400; of two that come together where there is room for one, one gets 429."""
    with serving(model, limits=ServerLimits(prompt_tokens=50)) as running:
        found = replayed(running.url, [Arrival(0.0, 5, 3), Arrival(0.0, 51, 3), Arrival(0.1, 50, 3)])
    assert [each.finished for each in found.requests] == [True, False, True]
    assert set(found.errors) == {1} and found.errors[1].startswith("ServerError: 400: prompt must have at most 50 ")
    with serving(model, limits=ServerLimits(running=1, waiting=0), max_sequences=1) as running:
        running.slow(0.02)
        found = replayed(running.url, [Arrival(0.0, 5, 60)] * 2)
        running.wait_until_empty()
    (error,) = found.errors.values()
    assert error.startswith("ServerError: 429: too many requests") and attainment(found.requests, Limits()) == 0.5


def test_the_server_is_told_who_asks(model):
    with serving(model, api_key="secret") as running:
        assert not replayed(running.url + "/v1/", [Arrival(0.0, 5, 3)], api_key="secret", model=NAME).errors
        with pytest.raises(ServerError, match="^401: ") as refused:
            replayed(running.url, api_key="another")
        assert refused.value.status == 401
        found = replayed(running.url, [Arrival(0.0, 5, 3)], api_key="secret", model="gpt")
        assert found.errors[0].startswith("ServerError: 404: there is no model 'gpt' here")


def test_a_replay_that_is_cancelled_hangs_up(served):
    async def go():
        async with ServerClient(served.url) as client:
            task = asyncio.create_task(replay([Arrival(0.0, 5, 590)] * 2, client, vocab=VOCAB))
            while len(served.engine.scheduler.running) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(go())
    served.wait_until_empty()


def test_an_answer_that_ends_by_itself_is_short_and_so_a_failed_one(served, monkeypatch):
    monkeypatch.setattr(served.engine.scheduler, "eos_ids", frozenset(range(VOCAB)))
    found = replayed(served.url, [Arrival(0.0, 5, 9)], ignore_eos=False)
    assert found.errors == {0: "the answer has 1 tokens, and 9 were asked for"}
    assert not replayed(served.url, [Arrival(0.0, 5, 9)]).errors


# Servers that misbehave


def chunk(text="a", **more) -> bytes:
    return event({"choices": [{"index": 0, "text": text}]} | more)


def event(what) -> bytes:
    return b"data: " + (what if isinstance(what, bytes) else json.dumps(what, ensure_ascii=False).encode()) + b"\n\n"


def usage(tokens: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": tokens}})


DONE = event(b"[DONE]")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
MODELS = b'{"data": [{"id": "x"}]}'


def against(*answers: bytes | list, models: bytes = MODELS, **options):
    """Replays a request for each answer, four tokens each, one after the other. An answer is bytes to be sent after
    its head, seconds to wait first, or a list of these; what is not bytes at its end is a connection that hangs."""

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        try:
            if b"/v1/models" in head:
                writer.write(HEAD.replace(b"text/event-stream", b"application/json") + models)
                return
            pieces = next(left)
            for piece in pieces if isinstance(pieces, list) else [HEAD + pieces]:
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(piece)
        finally:
            writer.close()

    async def go():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            async with ServerClient(f"http://{host}:{port}", **options) as client:
                return await replay([Arrival(0.2 * n, 5, 4) for n in range(len(answers))], client, vocab=VOCAB)

    left = iter(answers)
    return asyncio.run(go())


GOOD = chunk() * 4 + usage(4) + DONE


def test_a_server_that_breaks_off_or_hangs_does_not_stop_the_others():
    found = against(
        GOOD,
        [b""],  # hangs up without a word
        [HEAD + chunk()],  # hangs up in the middle
        [HEAD + chunk(), 3],  # hangs in the middle
        [3],  # hangs at once
        event({"error": {"message": "this request failed", "type": "server_error"}}) + DONE,
        b"data: {\n\n" + DONE,
        event([1]) + DONE,
        chunk() * 4 + DONE,
        [b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhaha"],
        [b"what\r\n\r\n"],
        GOOD,
        timeout=1.0,
    )
    assert [number for number, each in enumerate(found.requests) if each.finished] == [0, 11]
    expected = {
        1: "broke: ", 2: "the connection ended before the answer did", 3: "not a byte came in 1 s",
        4: "not a byte came in 1 s", 5: "the server broke off: this request failed",
        6: "no chunk of OpenAI's API: b'{'",
        7: "no chunk of OpenAI's API: b'[1]'", 8: "it must know include_usage",
        9: "502, and not in the form of OpenAI's errors: b'haha'", 10: "broke: ",
    }  # fmt: skip
    assert set(found.errors) == set(expected)
    for number, what in expected.items():
        assert found.errors[number].startswith("ServerError: ") and what in found.errors[number], found.errors[number]
    for each in (found.requests[3], found.requests[4]):
        assert 1.0 <= each.ended - each.arrival < 2.9


def test_tokens_without_a_chunk_count_with_the_last_one_and_a_chunk_without_a_token_does_not():
    late = [HEAD + b": a comment\r\n" + chunk("\u2028"), 0.3, chunk(), 0.3, chunk()[:9], 0.1, chunk()[9:]]
    few = [*late, usage(4) + DONE]
    many = [HEAD + chunk() * 2, 0.3, chunk() * 2, 0.5, chunk("") + usage(4) + DONE]
    crlf = (chunk() * 4 + usage(4) + DONE).replace(b"\n", b"\r\n").replace(b"data: ", b"data:")
    found = against(few, many, crlf)
    assert not found.errors and [each.output_tokens for each in found.requests] == [4] * 3
    first, second, _ = found.requests
    assert 0.35 < first.longest_gap < first.last_token - first.first_token > 0.65
    assert second.last_token - second.first_token > 0.25 and second.ended - second.last_token > 0.4


def test_where_nobody_answers_it_says_so_at_once():
    async def free() -> int:
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
            return server.sockets[0].getsockname()[1]

    port = asyncio.run(free())
    with pytest.raises(ServerError, match=f"^nobody answers at http://127.0.0.1:{port} .*: does the server run"):
        replayed(f"http://127.0.0.1:{port}")
    for models in (b"<html>", b"[]", b"{}", b'{"data": []}'):
        with pytest.raises(ServerError, match="names no model: does it have OpenAI's API"):
            against(models=models)


def test_a_server_that_goes_away_fails_what_comes_then(model):
    """It is stopped in the middle of a workload: later requests find nobody, and the replay comes to its end."""

    async def go(running):
        async with ServerClient(running.url) as client:
            task = asyncio.create_task(replay([Arrival(0.0, 5, 3), Arrival(3.0, 5, 3)], client, vocab=VOCAB))
            while not running.engine.metrics.totals.finished:
                await asyncio.sleep(0.01)
            running.server.stop()
            await asyncio.to_thread(running.thread.join)
            return await task

    with serving(model) as running:
        found = asyncio.run(go(running))
    assert set(found.errors) == {1} and "nobody answers at" in found.errors[1]


def test_what_cannot_be_is_refused():
    for url in ("127.0.0.1:8000", "ftp://a", "", "http://", "http://a:99999", "http://a:b", "http://[::1"):
        with pytest.raises(ValueError, match="url must be one of http or https"):
            ServerClient(url)
    for timeout in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout must be seconds above 0"):
            ServerClient("http://a", timeout=timeout)
    with pytest.raises(RuntimeError, match="within its block alone"):
        asyncio.run(ServerClient("http://127.0.0.1:1").submit([1], max_tokens=1))


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs httpx2, which is missing: pip install "llmsys\[serving\]"'):
        replayed("http://127.0.0.1:1")
