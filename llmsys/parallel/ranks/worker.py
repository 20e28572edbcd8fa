"""A rank's process: it waits for runs, joins the process group of each, calls the function, and sends back the result.

A run has two steps, so that a rank which is done stays until all are: a peer that still waits for it is reported as
waiting for a rank that has returned, and not as one whose connection broke. Then all leave the group, and say so: while
they do, NCCL's threads may still ask the file by which the ranks have met, and would wait for it if it were gone. A
warm rank begins each run like a fresh one: the caller's environment, working directory and import path, torch's seed
and defaults. A module whose file has changed since it was imported makes the rank stale, and the caller takes a new
one.
"""

import ctypes
import datetime
import faulthandler
import os
import queue
import random
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from llmsys.parallel.ranks import calls, inside, output
from llmsys.parallel.ranks.carry import dumps, loads
from llmsys.parallel.ranks.channel import Channel
from llmsys.parallel.ranks.job import DUMP, Job, calls_file, stacks_file
from llmsys.parallel.ranks.record import Record

NO_LIMIT = datetime.timedelta(days=365)  # of a collective: the caller's process watches the time
_SEED = torch.initial_seed()  # a fresh process's


def work(rank: int, control: int, directory: Path) -> None:
    """Does all runs that come through the socket `control`, until it is closed."""
    output.stamp_this_process()
    record = Record(calls_file(directory, os.getpid()))
    calls.watch(record)
    stacks = open(stacks_file(directory, os.getpid()), "w")
    faulthandler.register(DUMP, file=stacks, all_threads=True, chain=False)
    faulthandler.enable(file=2, all_threads=False)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # not the same numbers in all copies
    caller = Channel(socket.socket(fileno=control))
    caller.send(("ready",))
    told: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(caller, told), daemon=True, name="listens to the caller").start()
    original = frozenset(sys.modules)
    imported: dict[str, int] = {}
    while True:
        (kind, job), payload = told.get()
        assert kind == "run"
        if (stale := _changed(imported)) is not None:
            caller.send(("stale", job.number, stale))
            continue
        fine = _run(job, payload, record, caller, told)
        if fine:
            _leave()  # here, where nothing of the function, its arguments and its result is held any more
            caller.send(("left", job.number))
        elif job.may_die:
            return
        imported |= _modified(set(sys.modules) - original - set(imported))


def _listen(caller: Channel, told: queue.SimpleQueue) -> None:
    """In a thread: what the caller says reaches a rank whose main thread computes or waits, too."""
    while True:
        try:
            message, block = caller.recv()
        except (EOFError, OSError):
            os._exit(0)
        if message[0] == "dead":
            inside.told(message[1])
        else:
            told.put((message, block))


def _run(job: Job, payload: bytearray, record: Record, caller: Channel, told: queue.SimpleQueue) -> bool:
    """One run. Returns whether the function returned."""
    record.clear()
    inside.forget()
    fine, process = True, os.getpid()
    try:
        _prepare(job)
        function, args = loads(payload)
        _join(job)
        result = dumps(function(*args), f"the result of rank {job.rank}")
        message = ("returned", job.number)
    except BaseException as error:  # SystemExit too: it ends this rank, not the run
        fine, result = False, b""
        message = ("raised", job.number, _told_of(error), _sendable(error), record.current())
        del error
    if os.getpid() != process:
        _end_copy(job.rank, message)
    ctypes.CDLL(None).fflush(None)  # what C code has printed
    for stream in (sys.__stdout__, sys.__stderr__):
        stream.end_run(job.number)
    caller.send(message, result)
    del result
    while fine or not job.may_die:
        (kind, number), _ = told.get()
        if kind == "end" and number == job.number:
            break
    return fine


def _end_copy(rank: int, message: tuple) -> NoReturn:
    """In a process that the function has made by os.fork and that came back from it: it must not go on as the rank."""
    told = message[2] if message[0] == "raised" else "it returned from the function\n"
    print(f"a copy of rank {rank}, made by os.fork, ends here: {told}", end="", file=sys.stderr, flush=True)
    os._exit(1)


def _prepare(job: Job) -> None:
    os.environ.clear()
    os.environ.update(job.environment)
    os.environ |= {"RANK": str(job.rank), "WORLD_SIZE": str(job.ranks)}
    os.environ |= {"LOCAL_RANK": str(job.rank), "LOCAL_WORLD_SIZE": str(job.ranks)}
    os.chdir(job.directory)
    sys.path[:] = job.path
    torch.manual_seed(_SEED)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)
    torch.set_grad_enabled(True)
    random.seed()
    if job.threads is not None:
        torch.set_num_threads(job.threads)


def _join(job: Job) -> None:
    """Makes the default process group. With NCCL, tensors in CPU memory travel through gloo."""
    if job.backend == "nccl":
        torch.cuda.set_device(job.rank)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if job.backend == "nccl" else "gloo",
        store=dist.FileStore(job.store, job.ranks), rank=job.rank, world_size=job.ranks, timeout=NO_LIMIT,
        device_id=torch.device("cuda", job.rank) if job.backend == "nccl" else None,
    )  # fmt: skip


def _leave() -> None:
    if dist.is_initialized():  # the function may have left by itself
        dist.destroy_process_group()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _told_of(error: BaseException) -> str:
    """The traceback, from the function's own first line on."""
    told = traceback.TracebackException.from_exception(error)
    while told.stack and told.stack[0].filename == __file__:
        del told.stack[0]
    return "".join(told.format())


def _sendable(error: BaseException) -> bytes | None:
    """The exception itself, where it survives being sent."""
    try:
        data = dumps(error, "the exception")
        loads(data)
    except Exception:  # it holds what cannot be sent, or its __init__ wants other arguments
        return None
    return data


def _modified(names: set[str]) -> dict[str, int]:
    """When the files of modules were last changed; those of Python and of installed packages are left out."""
    found = {}
    for name in names:
        path = getattr(sys.modules.get(name), "__file__", None)
        if path and "site-packages" not in path and not path.startswith((sys.base_prefix, sys.prefix)):
            try:
                found[name] = os.stat(path).st_mtime_ns
            except OSError:  # from a file that is gone, or was never one
                pass
    return found


def _changed(imported: dict[str, int]) -> str | None:
    """A module whose file is no longer what was imported, if there is one."""
    now = _modified(set(imported))
    return next((name for name, at in imported.items() if now.get(name) != at), None)
