"""Clients that leave, requests that fail, an engine that breaks: it is their own matter, and nothing is left of it."""

import contextlib
import json
import socket
import threading
import time

import pytest
import torch

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from llmsys.serving import Engine
from llmsys.serving.server.limits import Limits
from tests.serving.server.running import open_files, raw_request, serving

PATH = "/v1/completions"
LONG = {"prompt": "a", "max_tokens": 550, "ignore_eos": True}


@contextlib.contextmanager
def asking(running, body, path=PATH):
    """A connection over which a request was sent, and nothing was read."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)  # so that little fits into it
        connection.settimeout(30)
        connection.connect(running.address)
        connection.sendall(b"".join(raw_request(path, body)))
        yield connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_hangs_up_frees_its_blocks(served, stream, n):
    before = served.engine.metrics.totals.aborted
    with asking(served, LONG | {"stream": stream, "n": n}):
        served.wait(lambda: len(served.engine.scheduler.running) == n)
        assert served.engine.pool.stats.used > 0
    served.wait(lambda: served.engine.pool.stats.used == 0, seconds=5)
    assert served.engine.metrics.totals.aborted == before + n
    served.wait_until_empty()


def test_a_client_that_hangs_up_while_it_waits_is_gone(model):
    with serving(model, max_sequences=1) as running:
        running.slow(0.005)
        with asking(running, LONG):
            running.wait(lambda: running.engine.scheduler.running)
            with asking(running, LONG), asking(running, {"prompt": ["a", "b"]}):
                running.wait(lambda: len(running.engine.scheduler.waiting) == 3)
            running.wait(lambda: not running.engine.scheduler.waiting)
            assert running.engine.scheduler.running, "the first goes on"
        running.wait_until_empty()


def test_hang_ups_at_every_moment_leave_nothing(served):
    """Before the head is whole, before the body is, at once after it, and after the first bytes of the answer."""
    files = open_files()
    head, content = raw_request(PATH, LONG | {"stream": True})
    whole = head + content
    for cut in (0, 1, 20, len(head) - 1, len(head), len(head) + 5, len(whole) - 1, len(whole), len(whole)):
        with socket.create_connection(served.address, timeout=30) as connection:
            connection.sendall(whole[:cut])
            if cut == len(whole):
                assert connection.recv(20).startswith(b"HTTP/1.1 200")
    served.wait(lambda: not served.server.server_state.connections)
    served.wait_until_empty()
    served.wait(lambda: open_files() <= files)


def test_a_client_that_does_not_read_holds_nobody_up(model):
    """Its answer is longer than the buffers on the way, so the server cannot send it; the engine goes on."""
    body = {"prompt": ["a"] * 8, "max_tokens": 100, "ignore_eos": True, "logprobs": 5, "stream": True}
    with serving(model, send_buffer=4096) as running:
        with asking(running, body):
            running.wait(lambda: running.engine.metrics.totals.output_tokens)
            assert running.post(PATH, {"prompt": "b", "max_tokens": 5}).status_code == 200
            running.wait(lambda: running.engine.metrics.totals.finished == 9)
            running.wait(lambda: running.engine.pool.stats.used == 0)  # which is not held until somebody reads
            time.sleep(0.3)
            assert running.service.door.inside == 8, "it is still being sent"
        running.wait_until_empty()


def test_a_client_that_reads_nothing_is_cut_off_in_the_end_and_a_slow_one_is_not(model):
    body = {"prompt": ["a"] * 8, "max_tokens": 200, "ignore_eos": True, "logprobs": 5, "stream": True}
    limits = Limits(client_seconds=1, running=16)
    with serving(model, limits=limits, send_buffer=4096) as running:
        with asking(running, body):
            running.wait(lambda: running.engine.metrics.totals.output_tokens)
            running.wait(lambda: running.service.door.inside == 0)
        with asking(running, body) as slow:
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                assert slow.recv(20_000)
                time.sleep(0.2)
            assert running.service.door.inside == 8
            while piece := slow.recv(1 << 20):
                if piece.endswith(b"0\r\n\r\n"):
                    break
            assert piece, "it got all"
        running.wait_until_empty()


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_not_finite_fail_their_own_request(served, model, monkeypatch, stream):
    """A prompt with token 200 in it breaks; its neighbours in the same steps do not notice."""
    embed = model.embedding.forward

    def broken(tokens):
        found = embed(tokens)
        return torch.where((tokens == 200)[..., None], float("nan"), found)

    monkeypatch.setattr(model.embedding, "forward", broken)
    fine = {"prompt": [5, 6], "max_tokens": 40, "ignore_eos": True, "temperature": 0}
    expected = served.post(PATH, fine).json()["choices"]
    found = []
    neighbours = [threading.Thread(target=lambda: found.append(served.post(PATH, fine))) for _ in range(4)]
    for each in neighbours:
        each.start()
    failed = served.post(PATH, {"prompt": [200, 5], "max_tokens": 5, "stream": stream})
    for each in neighbours:
        each.join()
    assert [each.json()["choices"] for each in found] == [expected] * 4
    if stream:
        first, *_, last, end = failed.text.split("\n\n")
        assert (failed.status_code, last, end) == (200, "data: [DONE]", "")
        error = json.loads(first.removeprefix("data: "))["error"]
    else:
        assert failed.status_code == 500
        error = failed.json()["error"]
    assert error["type"] == "server_error" and "not finite" in error["message"]


def test_a_step_that_raises_fails_its_requests_and_the_server_goes_on(served, model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(model.head, "forward", lambda x: 1 / 0)
        failed = served.post(PATH, {"prompt": "a"})
        assert failed.status_code == 500 and "ZeroDivisionError" in failed.json()["error"]["message"]
    assert served.post(PATH, {"prompt": "a"}).status_code == 200
    assert served.get("/health").json() == {"status": "ok"}


def test_an_engine_that_is_broken_says_so(model, monkeypatch):
    with serving(model) as running:

        def lost(self):
            raise SystemError("the scheduler is at odds with itself")

        monkeypatch.setattr(Engine, "step", lost)
        failed = running.post(PATH, {"prompt": "a"})
        assert failed.status_code == 503
        health = running.get("/health")
        assert health.status_code == 503 and health.json() == {"status": "broken"}
        refused = running.post(PATH, {"prompt": "a"})
        assert refused.status_code == 503 and "started again" in refused.json()["error"]["message"]
