"""Told to stop, the server keeps its promises: who was let in is answered, and then it ends."""

import signal
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")

import httpx

from llmsys.models import save_model
from llmsys.serving.server.drain import listening, url
from llmsys.serving.server.limits import Limits
from tests.serving.server.running import in_a_process, raw_request, serving

PATH = "/v1/completions"
LONG = {"prompt": "a", "max_tokens": 80, "ignore_eos": True}


def in_the_background(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    return thread, found


def test_who_was_let_in_is_answered_and_nobody_else_is(model):
    with serving(model, max_sequences=2) as running:
        running.slow(0.005)
        asked = [in_the_background(lambda: running.post(PATH, LONG)) for _ in range(5)]  # some of them wait
        running.wait(lambda: running.service.door.inside == 5)
        with running.client() as kept_alive:
            assert kept_alive.get("/health").status_code == 200
            running.server.stop()
            running.wait(lambda: not running.server.servers[0].is_serving())
            with pytest.raises(httpx.TransportError):
                running.get("/health")
        for thread, _ in asked:
            thread.join(60)
        assert [found[0].json()["usage"]["completion_tokens"] for _, found in asked] == [80] * 5
        running.thread.join(10)
        assert not running.thread.is_alive() and running.engine.pool.stats.used == 0


def test_while_it_drains_a_connection_that_is_there_is_told_so(model):
    with serving(model) as running:
        running.service.draining = True  # as between the signal and the end of the connections
        for path, said in (("/health", '{"status":"draining"}'), ("/engine", '"state":"draining"')):
            assert said in running.get(path).text
        refused = running.post(PATH, LONG)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert running.get("/health").status_code == 503


def test_what_takes_too_long_is_ended_and_told(model):
    with serving(model, limits=Limits(drain_seconds=1, running=16)) as running:
        stream = LONG | {"stream": True, "max_tokens": 590, "n": 8}
        slow, streamed = in_the_background(lambda: running.post(PATH, stream))
        waiting, whole = in_the_background(lambda: running.post(PATH, LONG | {"max_tokens": 590}))
        running.wait(lambda: running.service.door.inside == 9)
        running.slow(0.05)
        running.server.stop()
        began = time.monotonic()
        for each in (slow, waiting, running.thread):
            each.join(30)
        assert time.monotonic() - began < 10 and not running.thread.is_alive()
        assert "the server stopped" in streamed[0].text and streamed[0].text.endswith("data: [DONE]\n\n")
        assert whole[0].status_code == 503 and running.engine.pool.stats.used == 0


def test_an_address_that_is_taken_is_known_at_once():
    with listening("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):  # nobody waits for a server that loads its model
            socket.create_connection(("127.0.0.1", port), timeout=5)
        first.listen()
        with pytest.raises(OSError, match="in use"):
            listening("127.0.0.1", port)
        assert url(first) == f"http://127.0.0.1:{port}"
    with pytest.raises(OSError):
        listening("no-such-name.invalid", 0)


@pytest.fixture
def process(model, tmp_path):
    """`llmsys serve` in a process of its own: (the process, its address)."""
    save_model(model, tmp_path / "tiny")
    with in_a_process("--model", "tiny", "--cache", "0.01", cwd=tmp_path) as (server, address, said):
        assert said.startswith("tiny on cpu: 16 answers at a time, room for ")
        yield server, address


@pytest.mark.slow
def test_sigterm_lets_answers_end_and_exits_with_0(process):
    server, address = process
    with httpx.stream("POST", f"{address}{PATH}", json=LONG | {"stream": True}, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.send_signal(signal.SIGTERM)
        assert list(lines)[-2] == "data: [DONE]"
    assert server.wait(30) == 0


@pytest.mark.slow
def test_a_second_signal_does_not_wait(process):
    server, address = process
    body = LONG | {"stream": True, "max_tokens": 590, "n": 16}
    with httpx.stream("POST", f"{address}{PATH}", json=body, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.send_signal(signal.SIGINT)
        time.sleep(0.3)
        server.send_signal(signal.SIGINT)
        assert "the server stopped" in "".join(lines)
    assert server.wait(10) == 0


def test_who_does_not_read_is_cut_off_in_the_end(model, monkeypatch):
    monkeypatch.setattr("llmsys.serving.server.drain.LAST_WORDS", 0.5)
    with serving(model, limits=Limits(drain_seconds=1, running=16), send_buffer=4096) as running:
        with socket.create_connection(running.address, timeout=30) as deaf:
            body = {"prompt": ["a"] * 8, "max_tokens": 100, "ignore_eos": True, "logprobs": 5, "stream": True}
            deaf.sendall(b"".join(raw_request(PATH, body)))
            running.wait(lambda: running.engine.metrics.totals.finished == 8)
            running.server.stop()
            running.thread.join(10)
            assert not running.thread.is_alive()
