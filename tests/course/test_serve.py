"""`llmsys serve` and `llmsys chat` as a user meets them; that the server serves is tests/serving/server's matter."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmsys.course import cli

pytest.importorskip("fastapi", reason="the serving extra is not installed")

from llmsys.models import save_model
from tests.serving.server.running import serving, tiny_model
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
