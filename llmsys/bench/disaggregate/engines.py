"""In each engine's process: its model, and what it writes down; how fast the link alone is; and, from outside, where an
engine that hangs is.

All write into one folder. An engine has three files there, by its name: its steps and what it has sent (`.jsonl`), its
process's number (`.pid`), and where its threads are, once it has been asked (`.stacks`).
"""

import json
import os
import signal
import time
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from llmsys.bench.decode import random_model
from llmsys.bench.disaggregate.designs import ENGINES
from llmsys.bench.goodput import SEED
from llmsys.models.shapes import ModelShape
from llmsys.parallel.ranks import pair_group
from llmsys.serving.disaggregate import Instance
from llmsys.serving.simulator import StepRecorder
from llmsys.serving.telemetry.events import StepDone


def load(shape: ModelShape, max_model_len: int, folder: Path, device: torch.device):
    """An engine's model. Its process says from now on where its threads are, when it is asked."""
    import faulthandler

    name = ENGINES[dist.get_rank()]
    faulthandler.register(signal.SIGUSR2, file=open(folder / f"{name}.stacks", "w"), all_threads=True)
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    torch.manual_seed(SEED)
    return random_model(shape, max_model_len, device=device)


def time_link(messages: tuple[int, ...], gpu: bool, *, repeats: int = 20) -> list[dict]:
    """From rank 0 to rank 1, one message behind the other: the median of five times."""
    rank, where = dist.get_rank(), torch.device("cuda", dist.get_rank()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(where)
    pair, rows = pair_group(0, 1, backend="nccl" if gpu else "gloo"), []
    move = pair.recv if rank else pair.send
    for nbytes in messages:
        message, times = torch.zeros(nbytes, dtype=torch.uint8, device=where), []
        for _ in range(1 + 5):  # the first makes the connection
            dist.barrier()
            began = time.perf_counter()
            for _ in range(repeats):
                move(message)
            if gpu:
                torch.cuda.synchronize(where)
            times.append((time.perf_counter() - began) / repeats)
        seconds = median(times[1:])
        rows.append({"sweep": "link", "name": pair.backend, "bytes": nbytes, "us": digits(1e6 * seconds),
                     "gbps": digits(nbytes / seconds / 1e9)})  # fmt: skip
    return rows


def written_down(folder: Path, instance: Instance) -> None:
    """From now on its steps and what it sends are written into a file, a line each."""
    file = open(folder / f"{instance.name}.jsonl", "a", buffering=1)
    recorder = StepRecorder(instance.engine.events)
    graphs = instance.engine.runner.graphs

    def write(**row) -> None:
        file.write(json.dumps(row) + "\n")

    def on(event) -> None:
        if isinstance(event, StepDone) and recorder.steps:  # the recorder has heard of it before
            (step,) = recorder.steps
            recorder.steps.clear()
            write(engine=instance.name, step=step.load, seconds=step.seconds, at=event.time)

    instance.engine.events.listen(on, progress=lambda progress: None)
    for wire in instance.push.wires.values():
        wire.sent = lambda nbytes, began, ended: write(sent=(nbytes, began, ended))
    write(filled=list(graphs.token_buckets) if graphs else [])


def show_stacks(folder: Path) -> None:
    """Where each engine's threads are, as far as they are alive: something hangs, or has died."""
    for file in sorted(folder.glob("*.pid")):
        try:
            os.kill(int(file.read_text()), signal.SIGUSR2)
        except (OSError, ValueError):  # it is dead
            continue
        time.sleep(1.0)  # for it to write
        print(f"{file.stem}:\n{file.with_suffix('.stacks').read_text()}", flush=True)


def digits(value: float) -> float:
    """As many as a record keeps."""
    return float(f"{value:.5g}")
