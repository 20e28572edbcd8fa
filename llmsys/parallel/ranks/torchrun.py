"""`run_here`: the same function, in processes that `torchrun` has started, on one machine or many.

    # script.py
    print(run_here(function, *args))

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 script.py

torchrun watches the processes and ends them when one fails; `run_here` says in which call it failed.
"""

import datetime
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

from llmsys.parallel.ranks import calls
from llmsys.parallel.ranks.launch import BACKENDS
from llmsys.parallel.ranks.record import Record

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def under_torchrun() -> bool:
    """Whether this process is one that `torchrun` has started."""
    return all(name in os.environ for name in _VARIABLES)


def run_here(function: Callable, *args, backend: str | None = None, timeout: float = 1800.0):
    """Calls `function(*args)` as the rank that torchrun says, and returns what it returns, on this rank.

    backend    as for `run`; every machine must come to the same
    timeout    seconds that a communication call may take, after which it raises

    Raises ValueError outside torchrun, and for wrong arguments; and what the function raises, with a note that says
    which rank it was, on which machine, and its communication call. torchrun's summary shows it.
    """
    import torch  # here: `import llmsys.parallel.ranks` stays quick
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import record as for_torchruns_summary

    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ValueError(
            f"run_here is for processes that torchrun starts, and {', '.join(missing)} is not set: "
            "start the script with `torchrun --nproc-per-node 4 script.py`, or call run(function, 4, …)"
        )
    if not callable(function):
        raise TypeError(f"function must be what each rank calls; it is {function!r}")
    if backend not in (None, *BACKENDS):
        raise ValueError(f'backend must be "gloo", "nccl" or None; it is {backend!r}')
    if not timeout > 0:
        raise ValueError(f"timeout must be seconds, more than 0; it is {timeout!r}")
    if dist.is_initialized():
        raise ValueError("torch.distributed is set up already: call the function itself")
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    gpus = torch.cuda.device_count() if torch.cuda.is_available() and dist.is_nccl_available() else 0
    if backend == "nccl" and gpus < here:
        raise ValueError(f'backend "nccl" needs a GPU for each of the {here} ranks here, and there are {gpus}')
    gpu = torch.device("cuda", local) if backend != "gloo" and gpus >= here else None
    if gpu is not None:
        torch.cuda.set_device(gpu)

    def call():
        limit = datetime.timedelta(seconds=timeout)
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=limit, device_id=gpu)
        try:
            result = function(*args)
            dist.barrier()  # so that nobody leaves while another still needs it
        except Exception as error:
            call = _record().current()
            what = "it had made no communication call" if call is None else (
                f"it was in {call}" if call.waiting else f"its last communication call was {call}"
            )  # fmt: skip
            rank, ranks = os.environ["RANK"], os.environ["WORLD_SIZE"]
            error.add_note(f"This was rank {rank} of {ranks}, on {socket.gethostname()}; {what}.")
            raise
        dist.destroy_process_group()
        return result

    _record()
    return for_torchruns_summary(call)()


def _record() -> Record:
    """The record of this process's calls; nobody but itself reads it."""
    if calls.watching() is None:
        with tempfile.TemporaryDirectory() as directory:  # mapped into memory, it needs no name
            calls.watch(Record(Path(directory) / "calls"))
    return calls.watching()
