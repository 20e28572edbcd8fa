"""Schedules over NCCL: losses and gradients are the unsplit model's, step after step.

On as many GPUs as ranks; and on fewer, for NCCL's queues hang or do not hang whatever the transfers go through. NCCL
refuses two ranks of one machine on one GPU, and takes ranks with other `NCCL_HOSTID`s for other machines, to which it
sends through sockets.
"""

import os
import subprocess
import sys

import pytest
import torch

from llmsys.parallel.pipeline import SCHEDULES, make_schedule
from llmsys.parallel.ranks import run
from tests.parallel.execute.models import make_microbatches, make_model, unsplit
from tests.parallel.execute.two_steps import check, two_steps

pytestmark = pytest.mark.gpu

GPUS = torch.cuda.device_count()


def needs(gpus: int):
    return pytest.param(gpus, marks=pytest.mark.skipif(GPUS < gpus, reason=f"needs {gpus} GPUs"))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("ranks", [needs(2), needs(4)])
def test_losses_and_gradients_are_the_unsplit_models(name, ranks):
    schedule = make_schedule(name, ranks, 2 * ranks)
    model, tokens = make_model(max(4, schedule.num_stages), tied=True), make_microbatches(2 * ranks)
    expected = unsplit(model, tokens)
    steps = run(two_steps, ranks, model, schedule, tokens, backend="nccl", timeout=60.0)
    for each in steps:
        check(each, schedule, *expected)
    assert {name for _, found, _ in steps for name in found} == set(expected[1])


@pytest.mark.parametrize("ranks", [4, 8])
def test_several_ranks_share_a_gpu(ranks, tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.parallel.execute.over_nccl", str(rank), str(ranks), str(tmp_path / "ranks")],
            stdout=subprocess.PIPE, text=True,
            env={**os.environ, "NCCL_HOSTID": f"machine {rank // GPUS}", "NCCL_SOCKET_IFNAME": "lo"},
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=120)[0].split("\n") for process in processes]
    except subprocess.TimeoutExpired as late:
        raise AssertionError(f"a rank hangs; it said {late.stdout}") from late
    finally:
        for process in processes:
            process.kill()
    wanted = [f"{what} {name}" for name in SCHEDULES for what in ("begins", "right")]
    assert said == [[*wanted, ""]] * ranks
