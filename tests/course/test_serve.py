"""`llmsys serve` and `llmsys chat` as a user meets them; that the server serves is tests/serving/server's matter."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmsys.course import cli

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from llmsys.models import save_model
from tests.serving.server.running import httpx, in_a_process, serving, tiny_model
from tests.support.size import drawn

ROOT = Path(__file__).parents[2]


def run(*arguments, **more):
    return CliRunner().invoke(cli.app, [str(each) for each in arguments], prog_name="llmsys", **more)


def is_one_line(done) -> str:
    assert done.exit_code == 2 and not done.stdout and len(done.stderr.splitlines()) == 1, done.output
    return done.stderr


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("llmsys.models.load_model", lambda *_, **__: pytest.fail("it loaded a model"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert "in use. --port 0 takes a free one" in is_one_line(run("serve", "--port", port))
    assert "--host 192.0.2.1" in is_one_line(run("serve", "--host", "192.0.2.1"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model", "/nowhere/model.gguf"], "/nowhere/model.gguf"),
        (["--model", "tiny", "--max-model-len", "100000"], "max_model_len must be from 2"),
        (["--model", "tiny", "--cache", "0"], "memory must hold at least 2 blocks"),
        (["--model", "tiny", "--host-cache", "1000000"], "host_cache must be at most the"),
        (["--model", "tiny", "--policy", "nothing"], "policy"),
        (["--model", "tiny", "--api-key", " "], "api_key must not be empty"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_cannot_be_served_costs_one_line(model, options, says, tmp_path, monkeypatch):
    save_model(model, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert says in is_one_line(run("serve", "--port", "0", "--device", "cpu", *options))


def test_without_the_extra_one_line_says_how_to_get_it(tmp_path):
    package = drawn(["fastapi", "uvicorn", "prometheus_client"], 1)[0]
    program = f"import sys; sys.modules[{package!r}] = None\nfrom llmsys.course.cli import main; main()"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, "serve"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f'this command needs {package}, which is missing: pip install "llmsys[serving]"\n'


def test_a_chat_in_a_terminal(model):
    with serving(model) as running:
        done = run("chat", "--url", running.url, "--max-tokens", "4", input="Hello\n\nMore\n/new\nAnd now?\n")
        assert done.exit_code == 0 and done.stdout.startswith("tiny. Ctrl-C ends an answer")
        totals = running.engine.metrics.totals
        assert totals.finished == 3 and totals.output_tokens <= 12
        assert "too long" not in done.stdout
        refused = run("chat", "--url", running.url, input="a" * 700 + "\nShort\n")
        assert refused.exit_code == 0 and "at most 599 tokens" in " ".join(refused.stdout.split())
        assert running.engine.metrics.totals.finished == 4, "and it goes on"


def test_a_chat_with_nobody():
    assert "start one with `llmsys serve`" in is_one_line(run("chat", "--url", "http://127.0.0.1:9"))


def test_ctrl_c_ends_an_answer_and_not_the_conversation(model, monkeypatch):
    from llmsys.serving.server.terminal import Conversation

    say, asked = Conversation.say, []

    def interrupted(self, text):
        pieces = say(self, text)
        asked.append(text)
        yield next(pieces)
        if len(asked) == 1:
            pieces.close()
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(Conversation, "say", interrupted)
    with serving(model) as running:
        done = run("chat", "--url", running.url, "--max-tokens", "300", input="Hello\nMore\n")
        assert done.exit_code == 0 and asked == ["Hello", "More"]
        running.wait_until_empty()
        assert running.engine.metrics.totals.aborted == 1


def test_prefill_and_decode_go_together_and_are_counts():
    assert "--prefill and --decode go together" in is_one_line(run("serve", "--prefill", 1))
    assert "--host-cache is for one engine" in is_one_line(
        run("serve", "--prefill", 1, "--decode", 1, "--host-cache", 1)
    )
    done = run("serve", "--prefill", 0, "--decode", 1)
    assert done.exit_code == 2 and "--prefill" in done.stderr


@pytest.mark.parametrize(
    ("options", "environ", "says"),
    [
        (("--front", "127.0.0.1:7000"), {}, "it goes with --prefill and --decode"),
        (("--prefill", 1, "--decode", 1, "--front", "127.0.0.1:7000"), {}, "LLMSYS_ENGINE_KEY in the environment"),
        (("--prefill", 1, "--decode", 1, "--front", "7000"), {"LLMSYS_ENGINE_KEY": "k"}, "a host and a port"),
        (("--prefill", 1, "--decode", 1, "--front", "a:x"), {"LLMSYS_ENGINE_KEY": "k"}, "a host and a port"),
        (
            ("--prefill", 1, "--decode", 1),
            dict.fromkeys("RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT".split(), "1"),
            "under torchrun --front says where the engines meet",
        ),
    ],
)
def test_what_a_front_needs_is_said_before_anything_is_loaded(monkeypatch, options, environ, says):
    monkeypatch.setattr("llmsys.models.load_model", lambda *_, **__: pytest.fail("it loaded a model"))
    monkeypatch.delenv("LLMSYS_ENGINE_KEY", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert says in is_one_line(run("serve", *options))


def test_more_engines_than_gpus_cost_one_line(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    said = is_one_line(run("serve", "--port", 0, "--prefill", 1, "--decode", 1))
    assert "prefill and decode are 2 engines, each with a GPU of its own, and there are 1" in said


def test_two_engines_serve_as_one_does(model, tmp_path):
    save_model(model, tmp_path / "tiny")
    asked = {"model": "tiny", "prompt": "Hello, who is there?", "max_tokens": 12, "temperature": 0}
    with serving(model) as running:
        expected = running.post("/v1/completions", asked).json()["choices"][0]["text"]
    options = ("--model", "tiny", "--device", "cpu", "--prefill", "1", "--decode", "1", "--api-key", "a key")
    with in_a_process(*options, cwd=tmp_path) as (server, address, said):
        assert said.startswith("tiny on cpu, cpu: 16 answers at a time")
        assert httpx.post(f"{address}/v1/completions", json=asked).status_code == 401
        with httpx.Client(base_url=address, headers={"Authorization": "Bearer a key"}, timeout=60) as client:
            for _ in range(2):
                assert client.post("/v1/completions", json=asked).json()["choices"][0]["text"] == expected
            with client.stream("POST", "/v1/completions", json=asked | {"max_tokens": 500, "stream": True}) as stream:
                next(stream.iter_lines())  # and hangs up
            assert client.post("/v1/completions", json=asked | {"max_tokens": 9999}).status_code == 400
            metrics = client.get("/metrics").text
        assert 'llmsys_answers_total{model="tiny",reason="length"} 2.0' in metrics
        assert "llmsys_time_to_first_token_seconds_count" in metrics and "llmsys_steps_total" in metrics
        server.terminate()
        assert server.wait(60) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def test_two_engines_that_torchrun_starts_serve_as_one_does(model, tmp_path):
    save_model(model, tmp_path / "tiny")
    asked = {"model": "tiny", "prompt": "Hello, who is there?", "max_tokens": 12, "temperature": 0}
    with serving(model) as running:
        expected = running.post("/v1/completions", asked).json()["choices"][0]["text"]
    front, secret = f"127.0.0.1:{free_port()}", {"LLMSYS_ENGINE_KEY": "of this test"}
    options = ["--model", "tiny", "--device", "cpu", "--prefill", "1", "--decode", "1", "--front", front]
    environ = os.environ | secret | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "llmsys"]
    with subprocess.Popen(
        [*torchrun, "serve", *options], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as engines:
        try:
            with in_a_process(*options, cwd=tmp_path, **secret) as (server, address, said):
                assert said.startswith("tiny on cpu, cpu: 16 answers at a time")
                for _ in range(2):
                    done = httpx.post(f"{address}/v1/completions", json=asked, timeout=60)
                    assert done.json()["choices"][0]["text"] == expected
                server.terminate()
                assert server.wait(60) == 0
            assert engines.wait(60) == 0, engines.stdout.read().decode()
        finally:
            engines.kill()
