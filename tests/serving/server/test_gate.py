"""Who is let in, bodies that are too long, too slow or no JSON at all, and the door when the server is full."""

import asyncio
import contextlib
import json
import socket
import time

import pytest

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from llmsys.serving.server.drain import LOOPBACK
from llmsys.serving.server.errors import ApiError
from llmsys.serving.server.gate import OPEN, PATHS
from llmsys.serving.server.limits import LONGEST_RETRY, Door, Limits
from tests.serving.server.running import NAME, serving

PATH = "/v1/completions"
HALF = f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"


def is_an_error(response, status: int) -> str:
    """In OpenAI's form, all of it; returns the message."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"] and "Traceback" not in response.text
    return body["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b" ", b"{", b"[]", b'"x"', b"null", b"1", b"{}", b"NaN", b"\xff\xfe{}", b'{"prompt": "a"', b"\x00" * 100,
        b'{"prompt": "a", "prompt": 5}', b"[" * 100_000, b'{"prompt": ' + b"[" * 100_000, b'{"a":' * 50_000,
        b'{"prompt": "a", "n": 1' + b"0" * 5000 + b"}", b'{"prompt": "a", "n": 1' + b"0" * 4000 + b"}",
        b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "temperature": -Infinity}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "a", "\\udfff": 1}', b'{"prompt": ["a", "\\ud800"]}',
        b'{"prompt": [1e400]}', b'{"prompt": [99999999999999999999999]}', b'{"prompt": ""}',
        b'{"prompt": "a", "user": 1}',
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_hostile_bodies_get_400_in_openais_form(served, body):
    is_an_error(served.post(PATH, body), 400)


def test_hostile_conversations_get_400_too(served):
    user = {"role": "user", "content": "a"}
    for messages in (["a"], [[]], [{}], {"role": "user"}, "a", [user | {"content": "\ud800"}], [user] * 200):
        body = json.dumps({"messages": messages, "max_tokens": 4}).encode()
        is_an_error(served.post("/v1/chat/completions", body), 400)
    surrogate = served.post(PATH, b'{"prompt": "a", "model": "\\ud800"}')
    assert "\\ud800" in is_an_error(surrogate, 404), "what is quoted can be sent"


@pytest.mark.parametrize(
    ("path", "before", "each"),
    [
        (PATH, '"prompt": [', "1.5"),
        (PATH, '"prompt": [', '"a", 1'),
        (PATH, '"prompt": [', "[]"),
        (PATH, '"prompt": "a", "stop_token_ids": [', "-1"),
        ("/v1/chat/completions", '"messages": [', "{}"),
        ("/v1/chat/completions", '"messages": [{"role": "user", "content": [', "{}"),
    ],
)
def test_a_megabyte_of_mistakes_is_one_mistake(served, path, before, each):
    """Were each of them told, this would take five seconds and a gigabyte, and nobody would be served meanwhile."""
    end = {"[": "]", "{": "}"}
    many = ",".join([each] * (900_000 // (len(each) + 1)))
    closing = "".join(end[letter] for letter in reversed("{" + before) if letter in end)
    began = time.process_time()
    message = is_an_error(served.post(path, f"{{{before}{many}{closing}".encode()), 400)
    assert not message.startswith("the body must be"), "it is JSON"
    assert time.process_time() - began < 2


def test_other_paths_and_methods(served):
    is_an_error(served.get("/v1/nothing"), 404)
    is_an_error(served.get("/v1/models/none"), 404)
    is_an_error(served.get(PATH), 405)
    is_an_error(served.post("/v1/models", {}), 405)
    is_an_error(served.get("/page/../../../etc/passwd"), 404)
    with served.client() as client:
        is_an_error(client.options(PATH), 405), "no other site's page may ask"


def test_only_json_is_read(served):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        is_an_error(served.post(PATH, b'{"prompt": "a"}', headers={"Content-Type": kind}), 415)
    answer = served.post(PATH, b'{"prompt": "a"}', headers={"Content-Type": "Application/JSON; charset=utf-8"})
    assert answer.status_code == 200


def test_a_body_that_is_too_long_is_refused_and_the_client_sees_that(model):
    with serving(model, limits=Limits(body_bytes=1000, running=4)) as running:
        fits = b'{"prompt": "a", "max_tokens": 1}'.ljust(1000)
        assert running.post(PATH, fits).status_code == 200
        for length in (1001, 10_000, 500_000):
            said = running.post(PATH, fits.ljust(length))
            assert "at most 1,000 bytes" in is_an_error(said, 413)
        with running.client() as client:
            chunks = (b" " * 100 for _ in range(50))
            is_an_error(client.post(PATH, content=chunks, headers={"Content-Type": "application/json"}), 413)
        assert running.post(PATH, fits).status_code == 200


def test_who_sends_slowly_is_cut_off(model):
    with serving(model, limits=Limits(client_seconds=1, running=4)) as running:
        with socket.create_connection(running.address, timeout=20) as slow:
            slow.sendall(HALF.encode())
            began = time.monotonic()
            said = b""
            while piece := slow.recv(4096):  # until it hangs up
                said += piece
        assert said.startswith(b"HTTP/1.1 408 ") and b'"error"' in said and time.monotonic() - began < 10
        assert running.get("/health").status_code == 200


def test_who_says_nothing_is_cut_off_and_who_asks_often_is_not(model):
    with serving(model, limits=Limits(client_seconds=1, running=4)) as running, contextlib.ExitStack() as opened:
        asked = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        silent, half, again = (
            opened.enter_context(socket.create_connection(running.address, timeout=20)) for _ in range(3)
        )
        busy = opened.enter_context(running.client())
        half.sendall(asked[:20])
        again.sendall(asked + asked[:20])  # a whole one first
        deadline, ports = time.monotonic() + 3.5, {}
        while time.monotonic() < deadline:
            answer = busy.get("/health")
            port = answer.extensions["network_stream"].get_extra_info("client_addr")[1]
            assert port == ports.setdefault("first", port), "over one connection"
            time.sleep(0.1)
        for connection in (silent, half, again):
            while connection.recv(4096):
                pass


def test_prompts_and_answers_have_limits(model):
    with serving(model, limits=Limits(prompt_tokens=20, answers=4, running=4)) as running:
        assert running.post(PATH, {"prompt": "a" * 20, "n": 4}).status_code == 200
        assert "at most 20 tokens" in is_an_error(running.post(PATH, {"prompt": "a" * 21}), 400)
        for body in ({"prompt": "a", "n": 5}, {"prompt": ["a"] * 5}, {"prompt": ["a", "b", "c"], "n": 2}):
            assert "n must be at most 4" in is_an_error(running.post(PATH, body), 400)
        running.wait_until_empty()


def test_a_key_opens_all_but_the_page_and_health(model):
    with serving(model, api_key="secret") as running:
        for path in PATHS:
            assert (running.get(path).status_code == 401) == (path not in OPEN)
        wrong = ["secre", "secrets", "Secret", "s" * 10_000]
        for header in [*(f"Bearer {key}" for key in wrong), "secret", "Basic secret", "Bearer", "Bearersecret"]:
            said = running.get("/v1/models", headers={"Authorization": header})
            is_an_error(said, 401)
            assert said.headers["www-authenticate"] == "Bearer"
        for header in ("Bearer secret", "bearer secret", "Bearer  secret"):
            assert running.get("/metrics", headers={"Authorization": header}).status_code == 200


def test_a_name_that_another_site_made_for_this_machine_is_refused(model):
    with serving(model, hosts=LOOPBACK) as running:
        others = "evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[::1].evil.example", "localhost."
        for host in others:
            is_an_error(running.get("/engine", headers={"Host": host}), 403)
        for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000"):
            assert running.get("/engine", headers={"Host": host}).status_code == 200
    with serving(model, hosts=LOOPBACK, api_key="secret") as running:
        named = {"Host": "my.example", "Authorization": "Bearer secret"}
        assert running.get("/engine", headers=named).status_code == 200


def test_a_full_server_says_so_at_once_and_when_to_try_again(model):
    with serving(model, limits=Limits(running=2, waiting=1), max_sequences=2) as running:
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
        running.slow(0.005)
        with running.client() as client:
            streams = [client.build_request("POST", PATH, json=body) for _ in range(3)]
            inside = [client.send(request, stream=True) for request in streams]
            assert [each.status_code for each in inside] == [200] * 3
            began = time.monotonic()
            refused = running.post(PATH, {"prompt": "b"})
            assert "3 answers are under way, of at most 3" in is_an_error(refused, 429)
            assert 1 <= int(refused.headers["retry-after"]) <= LONGEST_RETRY and time.monotonic() - began < 5
            assert running.get("/health").status_code == 200, "it is full, not ill"
            state = running.get("/engine").json()
            assert (state["running"], state["waiting"]) == (2, 1)
            inside[0].close()
            running.wait(lambda: running.service.door.inside == 2)
            assert running.post(PATH, {"prompt": "b", "n": 2}).status_code == 429, "there is room for one"
            assert running.post(PATH, {"prompt": "b", "max_tokens": 1}).status_code == 200
            for each in inside:
                each.close()
        running.wait_until_empty()


def test_what_there_is_never_room_for_is_refused_for_good_also_where_nobody_is_under_way(model):
    with serving(model, limits=Limits(running=4, waiting=4), max_sequences=4) as running:
        for body in ({"prompt": "a", "n": 9}, {"prompt": ["a"] * 9}, {"prompt": ["a"] * 3, "n": 3, "stream": True}):
            refused = running.post(PATH, body | {"max_tokens": 3})
            assert is_an_error(refused, 400) == "n must be at most 8 for all prompts together, got 9 answers"
            assert refused.json()["error"]["param"] == "n" and "retry-after" not in refused.headers
        whole = running.post(PATH, {"prompt": "a", "n": 8, "max_tokens": 3, "ignore_eos": True})
        assert whole.status_code == 200 and len(whole.json()["choices"]) == 8, "all that there is room for"
        running.wait_until_empty()


def test_the_door_counts_whoever_goes_through_and_whatever_happens_inside():
    now = 0.0
    door = Door(5, clock=lambda: now)
    with door.pass_through(3):
        with pytest.raises(ApiError) as full, door.pass_through(3):
            pass
        assert full.value.status == 429 and full.value.headers == {"Retry-After": "1"}
        with pytest.raises(ZeroDivisionError), door.pass_through(2):
            assert door.inside == 5
            1 / 0  # noqa: B018
        assert door.inside == 3
    assert door.inside == 0
    now = 10.0  # five left in ten seconds
    assert [door.retry_after(n) for n in (1, 3, 100)] == [2, 6, LONGEST_RETRY]


@pytest.mark.parametrize("wrong", [dict(running=0), dict(waiting=-1), dict(answers=1.5), dict(body_bytes=None)])
def test_limits_that_are_none(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


def test_a_server_needs_a_tokenizer_and_a_key_that_is_one(model, monkeypatch):
    from llmsys.serving import Engine
    from llmsys.serving.server.app import create_app

    engine = Engine(model, num_blocks=10)
    with pytest.raises(ValueError, match="api_key must not be empty"):
        create_app(engine, name=NAME, api_key=" ")
    monkeypatch.setattr(model, "tokenizer", None)
    with pytest.raises(ValueError, match="with a tokenizer"):
        create_app(engine, name=NAME)


def test_a_request_that_fails_in_us_is_a_500_and_no_more(served, monkeypatch):
    def bug(*_):
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr("llmsys.serving.server.replies.CompletionReply.whole", bug)
        assert "a bug" not in is_an_error(served.post(PATH, {"prompt": "a"}), 500)
        streamed = served.post(PATH, {"prompt": "a", "stream": True})
        assert streamed.status_code == 200 and streamed.text.endswith("data: [DONE]\n\n")
        patch.setattr("llmsys.serving.server.replies.CompletionReply.piece", bug)
        events = served.post(PATH, {"prompt": "a", "stream": True}).text.split("\n\n")
        assert json.loads(events[0].removeprefix("data: "))["error"]["type"] == "server_error"
    assert served.post(PATH, {"prompt": "a"}).status_code == 200


def test_the_gate_reads_no_body_of_who_hangs_up_meanwhile(model):
    with serving(model) as running:

        async def go():
            for _ in range(20):
                _, writer = await asyncio.open_connection(*running.address)
                writer.write(HALF.encode())
                await writer.drain()
                writer.close()

        asyncio.run(go())
        running.wait(lambda: not running.server.server_state.tasks)
        assert running.engine.metrics.totals.requests == 0
