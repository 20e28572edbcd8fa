"""A server on a free port of this machine, in a thread, with a random model of two layers whose tokens are bytes."""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

pytest.importorskip("fastapi", reason="the serving extra is not installed")

import httpx

from llmsys.models import Llama, LlamaConfig, Tokenizer
from llmsys.serving import Engine
from llmsys.serving.server.app import create_app
from llmsys.serving.server.drain import Server, listening, url
from llmsys.serving.server.limits import Limits

ROOT = Path(__file__).parents[3]
NAME = "tiny"
CONTEXT = 600
TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"


def tiny_model() -> Llama:
    """Of 259 tokens: <s>, </s>, a byte each, and é, which begins and ends where a character does."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", *alphabet, "Ã©"])}
    core = tokenizers.Tokenizer(models.BPE(vocabulary, [("Ã", "©")]))
    core.decoder, core.pre_tokenizer = decoders.ByteLevel(), pre_tokenizers.ByteLevel(False, use_regex=False)
    core.add_special_tokens(["<s>", "</s>"])
    tokenizer = Tokenizer(core, eos_ids=[1], chat_template=TEMPLATE)
    config = LlamaConfig(
        NAME, vocab_size=len(vocabulary), hidden_size=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp_size=48,
        context_length=CONTEXT,
    )  # fmt: skip
    torch.manual_seed(7)
    model = Llama(config, tokenizer).requires_grad_(False).eval()
    for weight in model.parameters():  # far enough apart for greedy answers to be stable
        weight.copy_(torch.randn_like(weight) * (0.4 if weight.dim() == 2 else 1))
    return model


@dataclass
class Running:
    """A server that runs."""

    engine: Engine
    server: Server
    url: str
    thread: threading.Thread

    @property
    def service(self):
        return self.server.service

    def client(self, **more) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **more)

    def post(self, path: str, body, **more) -> httpx.Response:
        """`body` as JSON, or as it is where it is bytes."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.client() as client:
            headers = {"Content-Type": "application/json"} | more.pop("headers", {})
            return client.post(path, content=content, headers=headers, **more)

    def get(self, path: str, **more) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **more)

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").partition(":")
        return host, int(port)

    def slow(self, seconds: float) -> None:
        """From now on a step takes so much longer: what is to be seen while it runs can be seen on any machine."""
        step = self.engine.step

        def slowly():
            time.sleep(seconds)
            return step()

        self.engine.step = slowly

    def wait(self, condition: Callable[[], object], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "that has not happened in time"
            time.sleep(0.005)

    def wait_until_empty(self) -> None:
        """Nobody is inside, and nothing is left of those who were: no block, no request, no reader."""
        self.wait(lambda: self.service.door.inside == 0 and not self.engine.has_unfinished)
        self.wait(lambda: self.engine.pool.stats.used == 0)  # the engine's thread may be in the middle of an abort
        self.wait(lambda: not self.engine.metrics.requests and not self.service.served._readers)


@contextlib.contextmanager
def serving(
    model: Llama, *, limits: Limits | None = None, api_key=None, hosts=None, send_buffer: int | None = None, **engine
) -> Iterator[Running]:
    """A server for a block; it must end by itself when it is told to stop. `send_buffer` is of each connection, in
    bytes."""
    torch.set_num_threads(1)
    made = Engine(model, **dict(num_blocks=400, block_size=4, max_sequences=16) | engine)
    app = create_app(made, name=NAME, limits=limits, api_key=api_key, hosts=hosts)
    server, bound = Server(app), listening("127.0.0.1", 0)
    if send_buffer is not None:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    where = url(bound)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    running = Running(made, server, where, thread)
    try:
        running.wait(lambda: server.started)
        yield running
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive(), "the server does not stop"


@contextlib.contextmanager
def in_a_process(*options: str, cwd: Path, **environ: str) -> Iterator[tuple[subprocess.Popen, str, str]]:
    """`llmsys serve` in a process of its own, on a free port: (the process, its address, what it said first)."""
    command = [sys.executable, "-m", "llmsys", "serve", "--port", "0", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMSYS")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environ
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=errors) as server,
    ):
        try:
            said, where = (server.stdout.readline().decode() for _ in range(2))
            errors.seek(0)
            assert where, errors.read().decode()
            address, deadline = where.split()[0], time.monotonic() + 60
            while True:
                with contextlib.suppress(httpx.TransportError):
                    httpx.get(f"{address}/health").raise_for_status()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield server, address, said
            errors.seek(0)
            assert b"Traceback" not in errors.read()
        finally:
            server.kill()


def raw_request(path: str, body) -> tuple[bytes, bytes]:
    """A request as it goes over the wire: its head, and its body."""
    content = json.dumps(body).encode()
    lines = (f"POST {path} HTTP/1.1", "Host: a", "Content-Type: application/json", f"Content-Length: {len(content)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode(), content


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
