"""The processes of one run, followed from its beginning to its end."""

import contextlib
import itertools
import os
import queue
import sys
import time
from multiprocessing import connection
from pathlib import Path

from llmsys.parallel.ranks import failure, record
from llmsys.parallel.ranks.carry import loads
from llmsys.parallel.ranks.failure import Ending
from llmsys.parallel.ranks.job import DUMP, Job, calls_file, stacks_file
from llmsys.parallel.ranks.output import Line, Output, merged, output_of
from llmsys.parallel.ranks.pool import Pool
from llmsys.parallel.ranks.processes import Process

LOOK = 0.05  # seconds between looks at who has died
GRACE = 0.3  # after a failure: what follows from it is reported beside it
LAST_WORDS = 2.0  # for output that is on its way
LEAVING = 20.0  # seconds for ranks to leave the process group, which NCCL needs a second for

_numbers = itertools.count(1)


class Team:
    """Takes processes from the pool, and gives them back (`end`) or has them killed (`discard`).

    results    what ranks returned, by rank
    endings    how ranks ended, by rank
    outputs    what they printed, by rank; `log` all of it in the order of time. After `end`, or when a run failed
    """

    def __init__(self, pool: Pool, ranks: int, *, may_die: bool, show: bool):
        self.ranks, self.number, self.may_die = ranks, next(_numbers), may_die
        self.results: dict[int, object] = {}
        self.endings: dict[int, Ending] = {}
        self.outputs: list[Output] = []
        self.log = ""
        self._pool = pool
        self._shown: queue.SimpleQueue[Line] | None = queue.SimpleQueue() if show else None
        self._processes = pool.take(ranks)
        self._lent = True
        self._began = time.monotonic()

    def begin(self, payload: bytes, backend: str) -> None:
        """Sends the function to all ranks."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._payload, self._backend = payload, backend
        self._store = self._processes[0].server.directory / f"store-{self.number}"
        self._threads = None if "OMP_NUM_THREADS" in os.environ else max(1, cores // self.ranks)
        self._began = time.monotonic()
        for process in self._processes:
            self._give_job(process)

    def follow(self, timeout: float | None, stalled_after: float | None) -> None:
        """Returns when all ranks have ended; where ranks may die, however they ended. Raises RanksFailed."""
        report_at = None
        moved, seen = time.monotonic(), None
        while running := self._running():
            for ready in connection.wait([each.channel for each in running], LOOK):
                self._hear(next(each for each in running if each.channel is ready))
            for process in self._running():
                if process.status is not None:
                    self._hear(process)
            self._print()
            now = time.monotonic()
            if self._failed() and not self.may_die:
                report_at = report_at or now + GRACE
                if now >= report_at:
                    break
            elif timeout is not None and now - self._began > timeout:
                raise self._explain("hung", f"{self._unfinished()} when the {timeout:g} s of `timeout` were over.")
            elif stalled_after is not None:
                glances = [record.glance(self._calls_file(each)) for each in self._running()]
                if not all(waits for _, waits in glances) or glances != seen:
                    moved, seen = now, glances
                elif now - moved > stalled_after:
                    raise self._explain("hung", f"{self._unfinished()}, and nothing had moved for {stalled_after:g} s.")
        if (failed := self._failed()) and not self.may_die:
            first = min(failed, key=lambda each: (failure.follows(each), each.after))
            headline = f"rank {first.rank} of {self.ranks} {first.kind}."
            raise self._explain(first.kind, headline, first.rank) from first.exception

    def end(self) -> None:
        """The run is over. The processes are warm, if all ranks did well, and have left the process group."""
        for process in self._processes:
            if self.endings[process.rank].kind == "returned":
                self._send(process, ("end", self.number))
        well = not self._failed() and self._have_left()
        if not well:
            self.discard()
        self._collect_output()
        if well:
            self._lent = False
            self._pool.give_back(self._processes)

    def _have_left(self) -> bool:
        """Whether all ranks have left the process group. They are in it until they have been told that all are done."""
        until = time.monotonic() + LEAVING
        staying = {process.channel: process for process in self._processes}
        while staying and (left := until - time.monotonic()) > 0:
            for channel in connection.wait(list(staying), left):
                try:
                    (kind, number, *_), _ = channel.recv()
                except (EOFError, OSError):
                    return False
                if (kind, number) == ("left", self.number):
                    del staying[channel]
        return not staying

    def discard(self) -> None:
        """Ends the processes."""
        if self._lent:
            self._lent = False
            self._pool.discard(self._processes)

    # Talking to ranks

    def _give_job(self, process: Process) -> None:
        job = Job(
            self.number, process.rank, self.ranks, self._backend, str(self._store), self.may_die, self._threads,
            os.getcwd(), dict(os.environ), list(sys.path),
        )  # fmt: skip
        process.output.begin_run(self._shown.put if self._shown else None)
        self._send(process, ("run", job), self._payload)

    def _send(self, process: Process, message: tuple, block: bytes = b"") -> None:
        with contextlib.suppress(OSError):  # it has died, which `follow` notices
            process.channel.send(message, block)

    def _hear(self, process: Process) -> None:
        """Takes a rank's message; or, where there will be none any more, its end."""
        try:
            if process.status is not None and not process.channel.poll():
                raise EOFError  # though a process that it has left behind may still hold the other end
            (kind, number, *rest), block = process.channel.recv()
        except (EOFError, OSError):
            process.wait(5.0)
            self._died(process)
            return
        after = time.monotonic() - self._began
        if number != self.number:
            return
        if kind == "stale":
            self._processes[process.rank] = new = self._pool.replace(process)
            self._give_job(new)
        elif kind == "returned":
            self.results[process.rank] = self._made_again(process.rank, block)
            self.endings[process.rank] = Ending(process.rank, "returned", "", after)
        else:
            told, exception, call = rest
            self._fails(Ending(process.rank, "raised", told, after, _exception(exception), None, call))

    def _made_again(self, rank: int, data: bytearray) -> object:
        try:
            return loads(data)
        except Exception as error:  # whatever the class's own code raises
            error.add_note(f"This was when the result of rank {rank} was unpickled in the process that called run.")
            raise

    def _died(self, process: Process) -> None:
        status = process.status if process.status is not None else -9
        written = self._written(process)
        call = written.waiting or written.last
        stderr = [each.text for each in process.output.lines(self.number, 0.5) if each.stream == "stderr"]
        told = failure.how_it_ended(status, call, stderr)
        after = time.monotonic() - self._began
        self._fails(Ending(process.rank, "died", told, after, None, status, call))

    def _fails(self, ending: Ending) -> None:
        self.endings[ending.rank] = ending
        if self.may_die:
            for process in self._running():
                self._send(process, ("dead", ending.rank))

    # Looking at ranks

    def _running(self) -> list[Process]:
        return [each for each in self._processes if each.rank not in self.endings]

    def _failed(self) -> list[Ending]:
        return [each for each in self.endings.values() if each.kind != "returned"]

    def _unfinished(self) -> str:
        running = [each.rank for each in self._running()]
        some = ", ".join(map(str, running[:8])) + (" …" if len(running) > 8 else "")
        return f"{len(running)} of {self.ranks} ranks had not ended ({some})"

    def _calls_file(self, process: Process) -> Path:
        return calls_file(process.server.directory, process.pid)

    def _written(self, process: Process) -> record.Written:
        return record.read(self._calls_file(process))

    def _stacks(self, processes: list[Process]) -> dict[int, str]:
        """What the ranks' threads are doing, in words, by rank."""
        files = [stacks_file(each.server.directory, each.pid) for each in processes]
        for process in processes:
            process.dump_stacks(DUMP)
        until, before = time.monotonic() + LAST_WORDS, None
        while (sizes := [each.stat().st_size for each in files]) != before or 0 in sizes:
            if time.monotonic() > until:
                break
            before = sizes
            time.sleep(LOOK)
        dumps = {each.rank: file.read_text(errors="replace") for each, file in zip(processes, files, strict=True)}
        return {rank: failure.stack_in_words(dump) if dump else failure.NO_STACK for rank, dump in dumps.items()}

    def _explain(self, reason: str, headline: str, first: int | None = None) -> failure.RanksFailed:
        """The exception, when all processes have ended and all that they said is there."""
        running = self._running()
        states = {
            each.rank: failure.state_of(self.endings.get(each.rank), self._written(each)) for each in self._processes
        }
        now = time.monotonic()
        stacks = self._stacks(running) if reason == "hung" else {}
        for process in running:
            call = states[process.rank].call
            self.endings[process.rank] = Ending(process.rank, "waited", "", now - self._began, None, None, call)
        self.discard()
        self._collect_output()
        if first is None:
            first = next((each.rank for each in running if states[each.rank].call), running[0].rank)
        error = failure.explain(headline, reason, first, self.endings, states, stacks, now)
        error.outputs, error.log = self.outputs, self.log
        return error

    # What they print

    def _collect_output(self) -> None:
        lines = [process.output.lines(self.number, LAST_WORDS) for process in self._processes]
        self.outputs = [output_of(each) for each in lines]
        self.log = merged(line for each in lines for line in each)
        for process in self._processes:
            process.output.begin_run()
        self._print()
        self._store.unlink(missing_ok=True)

    def _print(self) -> None:
        while self._shown is not None and not self._shown.empty():
            print(self._shown.get(), flush=True)


def _exception(data: bytes | None) -> BaseException | None:
    """What a rank raised, unless it cannot be made again here."""
    try:
        return loads(data) if data else None
    except Exception:  # a class whose module is not here, or whose __init__ wants what it did not get
        return None
