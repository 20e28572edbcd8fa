"""Engines in processes of their own, over gloo: the same tokens, also when processes are killed; and how they start."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llmsys.models import load_model, save_model
from llmsys.parallel.ranks import close
from llmsys.serving import SamplingParams
from llmsys.serving.disaggregate import Plan, front_of, start
from llmsys.serving.disaggregate.messages import Lost
from llmsys.serving.disaggregate.router import NOBODY_LEFT

ROOT = Path(__file__).parents[3]
PROMPTS = [[(11 * i + 7 * j) % 60 + 4 for j in range(n)] for i, n in enumerate((5, 16, 21, 33, 4, 12))]
PROMPTS.append([*PROMPTS[3][:20], 50, 51])
SETTINGS = dict(num_blocks=80, block_size=4, device="cpu")


def params(n: int, **more) -> SamplingParams:
    return SamplingParams(max_tokens=n, ignore_eos=True, **more)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    torch.set_num_threads(1)
    yield
    close()


def loading(model, folder: Path):
    """Makes the model in each rank, which says whose process that is."""

    def load(device):
        (folder / str(dist.get_rank())).write_text(str(os.getpid()))
        return model

    return load


def pid(folder: Path, rank: int) -> int:
    return int((folder / str(rank)).read_text())


def step_until(engine, condition, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        engine.step()
        assert time.monotonic() < until, "that has not happened in time"


def test_processes_say_what_one_engine_says_and_those_that_are_killed_cost_no_request(llama, tmp_path):
    expected = {tuple(prompt): llama.greedy(tuple(prompt))[0] for prompt in PROMPTS}
    load = loading(llama.ours, tmp_path)
    with start(load, prefill=1, decode=2, of_decode=dict(block_size=7), **SETTINGS) as engine:
        for response in engine.generate(PROMPTS, params(20)):
            assert response.tokens == expected[response.prompt_tokens][:20]
        drawn = [engine.generate(PROMPTS[:3], params(9, temperature=0.9, seed=i)) for i in (1, 1)]
        assert [each.tokens for each in drawn[0]] == [each.tokens for each in drawn[1]]
        assert engine.metrics.totals.hit_tokens and engine.pool.stats.used == 0

        killed = [engine.add(prompt, params(24)) for prompt in PROMPTS]
        step_until(engine, lambda: sum(len(each.tokens) for each in killed) > 20)
        os.kill(pid(tmp_path, 1), signal.SIGKILL)
        step_until(engine, lambda: all(each.finished for each in killed))
        assert "decode 0" not in engine.scheduler.alive
        for response in (*killed, *engine.generate(PROMPTS, params(6))):
            assert response.tokens == expected[response.prompt_tokens][: len(response.tokens)]
            assert response.answers[0].reason == "length"
        assert engine.pool.stats.used == 0, "nothing of those is left in the engines that live"

        alone = [engine.add(prompt, params(24)) for prompt in PROMPTS]
        os.kill(pid(tmp_path, 0), signal.SIGKILL)
        step_until(engine, lambda: all(each.finished for each in alone))
        assert engine.scheduler.alive == {"decode 1"}
        for response in (*alone, *engine.generate(PROMPTS, params(6))):
            assert response.tokens == expected[response.prompt_tokens][: len(response.tokens)]
        assert engine.pool.stats.used == 0

        last = engine.add(PROMPTS[0], params(24))
        os.kill(pid(tmp_path, 2), signal.SIGKILL)
        step_until(engine, lambda: last.finished)
        assert last.answers[0].error == NOBODY_LEFT


def test_processes_that_hang_are_noticed_in_time_killed_and_cost_no_request(llama, tmp_path):
    """Stopped, they neither answer nor die; and one is told more than its socket holds, which keeps nobody else."""
    expected = {tuple(prompt): llama.greedy(tuple(prompt))[0] for prompt in PROMPTS}
    load = loading(llama.ours, tmp_path)
    with start(load, prefill=1, decode=2, silent_after=2.0, **SETTINGS) as engine:
        engine.generate(PROMPTS, params(2))
        responses = [engine.add(prompt, params(24)) for prompt in PROMPTS]
        step_until(engine, lambda: sum(len(each.tokens) for each in responses) > 10)
        os.kill(pid(tmp_path, 1), signal.SIGSTOP)
        for _ in range(100):
            engine.links.send("decode 0", Lost("nobody" + 20_000 * "."))  # 2 MB
        began = time.monotonic()
        step_until(engine, lambda: all(each.finished for each in responses))
        assert engine.scheduler.alive == {"prefill 0", "decode 1"} and time.monotonic() - began < 30.0
        with pytest.raises(ProcessLookupError):
            step_until(engine, lambda: os.kill(pid(tmp_path, 1), 0))
        alone = [engine.add(prompt, params(24)) for prompt in PROMPTS]
        os.kill(pid(tmp_path, 0), signal.SIGSTOP)
        step_until(engine, lambda: all(each.finished for each in alone))
        assert engine.scheduler.alive == {"decode 1"}
        for response in (*responses, *alone, *engine.generate(PROMPTS, params(6))):
            assert response.tokens == expected[response.prompt_tokens][: len(response.tokens)]
            assert response.answers[0].reason == "length"
        assert engine.pool.stats.used == 0


def test_what_an_engine_refuses_is_raised_by_start(llama):
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        start(llama.ours, **SETTINGS | dict(block_size=0))

    def load(device):
        raise OSError("no such checkpoint")

    with pytest.raises(RuntimeError, match=r"(?s)rank [01] could not be started.*no such checkpoint"):
        start(load, **SETTINGS)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (dict(prefill=0), "prefill must be at least 1"),
        (dict(decode=-1), "decode must be at least 1"),
        (dict(load=3), "load must be a function"),
        (dict(device="mps"), 'device must be "cpu", "cuda" or None'),
        (dict(silent_after=0), "silent_after must be seconds above 0, or None"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_started(llama, wrong, says):
    with pytest.raises(ValueError, match=says):
        start(**dict(load=llama.ours) | SETTINGS | wrong)


@pytest.mark.parametrize("device", [None, "cuda"])
def test_more_engines_than_gpus_are_refused(llama, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="are 3 engines, each with a GPU of its own, and there are 2: ask for fewer"):
        start(llama.ours, prefill=1, decode=2, **SETTINGS | dict(device=device))


def test_a_front_to_which_nobody_comes_says_whom_it_waited_for(llama):
    plan = Plan(llama.ours, prefill=1, decode=1, key=b"secret")
    with pytest.raises(RuntimeError, match="prefill 0, decode 0 did not come within 0.1 s"):
        front_of(plan, timeout=0.1)
    with pytest.raises(ValueError, match="key must be given"):
        front_of(Plan(llama.ours))
    with pytest.raises(ValueError, match='device must be "cpu", "cuda" or None'):
        Plan(llama.ours, device="tpu")


SCRIPT = """
import sys
from llmsys.models import load_model
from llmsys.parallel.ranks import run_here
from llmsys.serving.disaggregate import Plan, serve_as_rank

def load(device):
    return load_model(sys.argv[1], device=device)

plan = Plan(load, address=("127.0.0.1", int(sys.argv[2])), key=bytes.fromhex(sys.argv[3]),
            settings=dict(num_blocks=80, block_size=4))
run_here(serve_as_rank, plan, backend="gloo")
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.long
def test_two_machines_of_torchrun_serve_as_ranks_of_this_one_do(llama, tmp_path):
    save_model(llama.ours, tmp_path / "model")
    load_model(tmp_path / "model")  # is one
    (tmp_path / "script.py").write_text(SCRIPT)
    port, meeting, key = free_port(), free_port(), secrets.token_bytes(16)
    agents = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                f"--node-rank={agent}", "--master-addr=127.0.0.1", f"--master-port={meeting}",
                str(tmp_path / "script.py"), str(tmp_path / "model"), str(port), key.hex(),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        )
        for agent in range(2)
    ]  # fmt: skip
    try:
        plan = Plan(llama.ours, address=("127.0.0.1", port), key=key)
        with front_of(plan, timeout=300) as engine:
            for response in engine.generate(PROMPTS, params(8)):
                assert response.tokens == llama.greedy(response.prompt_tokens)[0][:8]
        for agent in agents:
            said = agent.communicate(timeout=120)[0]
            assert agent.returncode == 0, said
    finally:
        for agent in agents:
            agent.kill()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_two_gpus_keys_and_values_travel_by_nccl_and_the_tokens_are_one_engines(llama, tmp_path, dtype):
    save_model(llama.ours, tmp_path / "model")

    def load(device):
        return load_model(tmp_path / "model", device=device, dtype=dtype)

    with start(load, num_blocks=80, block_size=16, of_decode=dict(block_size=32)) as engine:
        responses = engine.generate(PROMPTS * 4, params(20))
        again = engine.generate(PROMPTS * 4, params(20))
    assert [each.tokens for each in responses] == [each.tokens for each in again] or dtype != torch.float32
    for response in responses:
        assert dtype != torch.float32 or llama.agrees(response.prompt_tokens, response.tokens, max_tokens=20)
        assert len(response.tokens) == 20
