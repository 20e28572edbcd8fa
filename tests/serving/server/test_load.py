"""Many streaming clients at once, some of whom hang up; nothing is lost, nothing is left, and it answers throughout.

Each client's answer is known beforehand (it is greedy), so a token that was lost, or went to somebody else, is seen.
The whole form, 200 clients that come 3 times each, is of `make test-all`.
"""

import asyncio
import json
import random

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from llmsys.serving import Engine, SamplingParams
from llmsys.serving.server.limits import Limits
from tests.serving.server.running import open_files, raw_request, serving
from tests.support.size import SEED, sized

CLIENTS = sized(short=40, full=200)
TURNS = sized(short=1, full=3)
PATH = "/v1/completions"
KINDS = 16  # of prompts
TOKENS = 24
HANG_UPS = 0.3
LIMITS = Limits(running=32, waiting=CLIENTS)


def prompt(kind: int) -> list[int]:
    """Some share a beginning, and they are of many lengths."""
    return [7, 8, 9, 10, 11, 12, 13, 14] * (kind % 5) + [20 + kind, 40 + kind]


@pytest.fixture(scope="module")
def answers(model) -> list[str]:
    engine = Engine(model, num_blocks=400, block_size=4)
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    return [response.text for response in engine.generate([prompt(kind) for kind in range(KINDS)], params)]


async def events(reader: asyncio.StreamReader):
    """What a stream says, undone from chunks, up to [DONE]."""
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    while await reader.readline() != b"\r\n":
        pass
    while size := int(await reader.readline(), 16):
        event = (await reader.readexactly(size + 2)).strip()
        assert event.startswith(b"data: ")
        if event == b"data: [DONE]":
            return
        yield json.loads(event[6:])
    raise AssertionError("a stream ended without [DONE]")


async def client(running, draw: random.Random, answers: list[str], counts: dict[str, int]) -> None:
    kind = draw.randrange(KINDS)
    body = {"prompt": prompt(kind), "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0, "stream": True}
    leaves_after = draw.randrange(TOKENS) if draw.random() < HANG_UPS else None
    await asyncio.sleep(draw.random() * 0.5)
    reader, writer = await asyncio.open_connection(*running.address)
    try:
        writer.write(b"".join(raw_request(PATH, body)))
        await writer.drain()
        if leaves_after == 0:
            counts["left"] += 1
            return
        text, pieces = "", 0
        async for event in events(reader):
            text += event["choices"][0]["text"]
            pieces += 1
            if leaves_after == pieces:
                assert answers[kind].startswith(text)
                counts["left"] += 1
                return
        assert text == answers[kind] and event["choices"][0]["finish_reason"] == "length"
        counts["answered"] += 1
    finally:
        writer.close()


async def watch(running, alive: list[float]) -> None:
    """Asks how it does, all the time, and is always answered soon."""
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        reader, writer = await asyncio.open_connection(*running.address)
        writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        alive.append(loop.time() - began)
        await asyncio.sleep(0.05)


def test_many_clients_some_of_whom_hang_up(model, answers):
    counts, alive = {"left": 0, "answered": 0}, []

    async def go(running):
        draw = random.Random(SEED)
        watching = asyncio.create_task(watch(running, alive))
        for _ in range(TURNS):
            each = [client(running, random.Random(draw.random()), answers, counts) for _ in range(CLIENTS)]
            await asyncio.wait_for(asyncio.gather(*each), sized(short=120, full=600))
        assert not watching.done(), watching
        watching.cancel()

    # Fewer blocks than all of them want: some wait, and some are preempted.
    with serving(model, limits=LIMITS, max_sequences=32, num_blocks=150) as running:
        assert running.post(PATH, {"prompt": "a"}).status_code == 200
        loop = running.service.served._task.get_loop()
        running.wait(lambda: not running.server.server_state.connections and not running.server.server_state.tasks)
        tasks, files = len(asyncio.all_tasks(loop)), open_files()
        before = running.engine.metrics.totals.requests
        asyncio.run(go(running))
        running.wait_until_empty()
        totals = running.engine.metrics.totals
        assert counts["left"] + counts["answered"] == CLIENTS * TURNS
        assert counts["answered"] > CLIENTS * TURNS / 2 and counts["left"] > 0
        assert totals.finished + totals.aborted == totals.requests and totals.failed == 0
        assert totals.requests - before <= CLIENTS * TURNS
        assert totals.finished >= counts["answered"]
        running.wait(lambda: not running.server.server_state.connections and not running.server.server_state.tasks)
        running.wait(lambda: len(asyncio.all_tasks(loop)) <= tasks and open_files() <= files)
        assert max(alive) < 10 and len(alive) > 3
        assert running.post(PATH, {"prompt": "a"}).status_code == 200
