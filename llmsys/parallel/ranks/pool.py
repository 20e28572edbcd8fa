"""Warm ranks: processes that wait for the next run, so that only the first one pays for starting.

The pool keeps, for each rank, the processes that were that rank and did well: a run of two takes the first two of what
a run of four has left. What a failed run used is killed, not kept. A process that was started under other settings of
the libraries (CUDA_VISIBLE_DEVICES, TRITON_INTERPRET, OMP_NUM_THREADS, …) is of no use: the pool then begins anew.
"""

import atexit
import os
import threading
import time

from llmsys.parallel.ranks.processes import Process, Server

# Variables that libraries read when they are first imported.
_AT_START = ("CUDA_", "GLOO_", "LD_", "MKL_", "NCCL_", "OMP_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TORCH", "TRITON_")
START_SECONDS = 30.0  # a copy of a process that has imported everything


class Pool:
    """A fork server and its idle ranks. `take` makes what is missing."""

    def __init__(self, settings: dict[str, str]):
        self.settings = settings
        self._server: Server | None = None
        self._idle: dict[int, list[Process]] = {}
        self._lent = 0
        self._closed = False
        self._lock = threading.RLock()

    def take(self, ranks: int) -> list[Process]:
        """Processes for ranks 0 to ranks - 1; they are the caller's until `give_back` or `discard`."""
        with self._lock:
            self._lent += ranks
        taken: list[Process] = []
        try:
            for rank in range(ranks):
                taken.append(self._take(rank))
            for process in taken:
                _expect_ready(process)
        except BaseException:
            self.discard(taken, lent=ranks)
            raise
        return taken

    def replace(self, process: Process) -> Process:
        """A new process for one that is stale."""
        _kill([process])
        new = self._start(process.rank)
        _expect_ready(new)
        return new

    def give_back(self, processes: list[Process]) -> None:
        """They are warm from now on."""
        with self._lock:
            self._lent -= len(processes)
            if not self._closed:
                for process in processes:
                    self._idle.setdefault(process.rank, []).append(process)
                return
        _kill(processes)
        self._end_if_unused()

    def discard(self, processes: list[Process], lent: int | None = None) -> None:
        """They are killed; returns when they have ended."""
        _kill(processes)
        with self._lock:
            self._lent -= len(processes) if lent is None else lent
        self._end_if_unused()

    def close(self) -> None:
        """Ends what is idle, and the server; ranks of a run that is under way end with their run."""
        with self._lock:
            self._closed = True
            idle = [process for processes in self._idle.values() for process in processes]
            self._idle = {}
        _kill(idle)
        self._end_if_unused()

    def idle(self) -> int:
        """How many warm processes there are."""
        with self._lock:
            return sum(len(processes) for processes in self._idle.values())

    def _take(self, rank: int) -> Process:
        with self._lock:
            while self._idle.get(rank):
                process = self._idle[rank].pop()
                if process.status is None and process.server.usable():
                    return process
                process.channel.close()
        return self._start(rank)

    def _start(self, rank: int) -> Process:
        with self._lock:
            if self._server is None or not self._server.usable():
                if self._server is not None:
                    self._server.close()
                self._server = Server()
            server = self._server
        return server.start(rank)

    def _end_if_unused(self) -> None:
        with self._lock:
            if self._closed and self._lent == 0 and self._server is not None:
                self._server.close()
                self._server = None


def _expect_ready(process: Process) -> None:
    if process.is_ready:
        return
    try:
        if not process.channel.poll(START_SECONDS):
            raise EOFError
        process.channel.recv()
    except (EOFError, OSError):
        said = "".join(f"{line.text}\n" for line in process.output.lines(1, 0.5))
        raise RuntimeError(f"{process.name} did not start. It said:\n{said or '(nothing)'}") from None
    process.is_ready = True


def _kill(processes: list[Process]) -> None:
    for process in processes:
        process.kill()
    until = time.monotonic() + 10.0
    for process in processes:
        if not process.wait(max(until - time.monotonic(), 0.0)):  # the server is stuck: without it there are no ranks
            process.server.close(timeout=1.0)
            process.wait(5.0)
        process.channel.close()


_pool: Pool | None = None
_lock = threading.Lock()


def current() -> Pool:
    """The pool for the environment as it is now. An older one is closed."""
    global _pool
    settings = {name: value for name, value in os.environ.items() if name.startswith(_AT_START)}
    with _lock:
        old = _pool
        if old is not None and old.settings == settings:
            return old
        _pool = new = Pool(settings)
    if old is not None:
        old.close()
    return new


def close() -> None:
    """Ends all warm ranks and the process that starts them. The next run makes them anew. It is called at exit, too."""
    global _pool
    with _lock:
        old, _pool = _pool, None
    if old is not None:
        old.close()


def _forget() -> None:
    """In a copy of this process: the ranks are the original's."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


atexit.register(close)
if hasattr(os, "register_at_fork"):  # not on Windows, where `run` says so
    os.register_at_fork(after_in_child=_forget)
