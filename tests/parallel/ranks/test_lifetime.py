"""Ranks never outlive who called them, however that ends; and they work in a notebook."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import ipykernel.kernelspec
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from tests.parallel.ranks.conftest import all_gone

ROOT = Path(__file__).parents[3]
# Ranks, one of them with a program that it has started, the server, and the caller; then the caller waits.
PROGRAM = """
import json, os, subprocess, sys, time
from llmsys.parallel.ranks import pool, run
assert "torch" not in sys.modules, "calling needs no torch"

def start():
    child = subprocess.Popen(["sleep", "100"]) if os.environ["RANK"] == "1" else None
    return [os.getpid(), os.getppid(), *([child.pid] if child else [])]

class Own:  # of this script: a rank can import it from nowhere
    def __eq__(self, other):
        return type(other) is Own

assert run(Own, 2, backend="gloo") == [Own(), Own()]
pids = {pid for each in run(start, 2, backend="gloo") for pid in each}
print(json.dumps([sorted(pids), str(pool.current()._server.directory)]), flush=True)
"""
BUSY = 'run(time.sleep, 2, 100, backend="gloo")\n'


@pytest.mark.parametrize(
    ("then", "ends"),
    [
        ("input()\n", signal.SIGKILL),  # while they are idle
        (BUSY, signal.SIGKILL),  # while they run, and cannot hear
        ("", None),  # by itself
        ("os.fork() or (os.close(1), time.sleep(7), os._exit(0))\n" + BUSY, signal.SIGTERM),  # its sockets stay open
    ],
    ids=["killed when idle", "killed in a run", "ended", "ended with a copy that goes on"],
)
def test_no_rank_outlives_its_caller(tmp_path, then, ends):
    script = tmp_path / "script.py"
    script.write_text(PROGRAM + then)
    caller = subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    pids, directory = json.loads(caller.stdout.readline())
    assert len(pids) == 4 and Path(directory).exists() and directory.startswith(tempfile.gettempdir())
    if ends:
        assert not all_gone(set(pids), within=0.3)
        caller.send_signal(ends)
    assert caller.wait(20) == (-ends if ends else 0)
    assert all_gone(set(pids))
    assert not Path(directory).exists()
    caller.stdin.close()
    caller.stdout.close()


CELL = """
import asyncio, torch, torch.distributed as dist
from llmsys.parallel.ranks import RanksFailed, run
asyncio.get_running_loop()
scale = 3

class Part:
    def __init__(self, x):
        self.x = x

def total(part):
    dist.all_reduce(part.x)
    return Part(part.x * scale)

print([each.x.item() for each in run(total, 2, Part(torch.tensor(1.0)))])
"""
FAILING = """
def fails():
    if dist.get_rank():
        raise ValueError(scale)
    dist.barrier()

try:
    run(fails, 2)
except RanksFailed as error:
    print(error)
"""


class ThisInterpreter(KernelManager):
    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**ipykernel.kernelspec.get_kernel_dict())


@pytest.mark.slow
def test_functions_and_classes_of_a_notebook_run_while_its_event_loop_does():
    kernel = ThisInterpreter()
    kernel.start_kernel(cwd=str(ROOT))
    client = kernel.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        said = [""]

        def hear(message):
            if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
                said[-1] += message["content"]["text"]

        assert client.execute_interactive(CELL, timeout=60, output_hook=hear)["content"]["status"] == "ok"
        assert said == ["[6.0, 6.0]\n"]
        said.append("")
        assert client.execute_interactive(FAILING, timeout=60, output_hook=hear)["content"]["status"] == "ok"
        assert "rank 1 of 2 raised." in said[1] and "raise ValueError(scale)" in said[1], "the cell's own line"
        assert "rank 0 waits for rank 1 (which has raised)" in said[1]
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
