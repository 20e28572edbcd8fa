"""The same function under torchrun, on two "machines": two agents here, each with a rank."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llmsys.parallel.ranks import pair_group, run, run_here, under_torchrun

ROOT = Path(__file__).parents[3]
SCRIPT = """
from llmsys.parallel.ranks import run_here, under_torchrun
from tests.parallel.ranks.test_torchrun import both

assert under_torchrun()
print("it returned", run_here(both, 5.0))
"""
FAILS = """
import torch, torch.distributed as dist
from llmsys.parallel.ranks import run_here

def fails():
    dist.all_reduce(torch.ones(3))
    raise KeyError("of rank", dist.get_rank())

run_here(fails)
"""


def both(x: float) -> tuple:
    """What each rank knows, and what the two make together."""
    total = torch.tensor([x + dist.get_rank()])
    pair, swapped = pair_group(0, 1), torch.zeros(1)
    (pair.send if dist.get_rank() == 0 else pair.recv)(swapped if dist.get_rank() else total)
    dist.all_reduce(total)
    return dist.get_rank(), dist.get_world_size(), total.item(), swapped.item()


def torchrun(script: str, folder: Path, agents: int = 2) -> list[tuple[int, str]]:
    """Exit code and all that it says of each agent; each has one process."""
    path = folder / "script.py"
    path.write_text(script)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", f"--nnodes={agents}", "--nproc-per-node=1",
                f"--node-rank={agent}", "--master-addr=127.0.0.1", f"--master-port={port}", str(path),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for agent in range(agents)
    ]  # fmt: skip
    try:
        return [(agent.wait(), said) for agent in started for said in [agent.communicate(timeout=120)[0]]]
    finally:
        for agent in started:
            agent.kill()


def test_one_function_does_the_same_here_and_under_two_agents_of_torchrun(tmp_path):
    here = run(both, 2, 5.0)
    assert here == [(0, 2, 11.0, 0.0), (1, 2, 11.0, 5.0)]
    for result, (code, said) in zip(here, torchrun(SCRIPT, tmp_path), strict=True):
        assert code == 0, said
        assert f"it returned {result}" in said


@pytest.mark.long
def test_torchruns_summary_says_which_rank_failed_and_in_which_call(tmp_path):
    [(code, said)] = torchrun(FAILS, tmp_path, agents=1)
    assert code != 0 and "KeyError: ('of rank', 0)" in said
    assert "This was rank 0 of 1, on" in said and "its last communication call was all_reduce of float32 (3,)" in said


def test_run_here_outside_torchrun_says_how_to_start_it(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert not under_torchrun()
    with pytest.raises(ValueError, match="RANK.* is not set: start the script with `torchrun --nproc-per-node 4"):
        run_here(both, 1.0)


@pytest.mark.parametrize(
    ("wrong", "says"), [({"backend": "mpi"}, "backend must be"), ({"timeout": -1}, "timeout must be seconds")]
)
def test_wrong_arguments_of_run_here_are_named(monkeypatch, wrong, says):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match=says):
        run_here(both, 1.0, **wrong)
