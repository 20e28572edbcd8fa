"""The caller's side of the processes: the fork server, and the ranks that it starts.

`Server.start(rank)` gives a `Process`: messages go to and fro on its `channel`, its `output` is read all the time,
`status` says how it ended. Nothing here outlives the caller: the server sees the socket close.
"""

import itertools
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from llmsys.parallel.ranks import output
from llmsys.parallel.ranks.channel import Channel

START_SECONDS = 120.0  # how long importing torch may take, on the slowest disk
_CODE = "import sys; sys.path[:] = {path!r}; from llmsys.parallel.ranks import forkserver; forkserver.serve({args})"


class Process:
    """A rank's process. `status` is None while it lives; then its exit code, or minus the signal that killed it.
    `is_ready` is set by who has heard from it for the first time."""

    def __init__(self, server: "Server", rank: int, pid: int, channel: Channel, reader: output.Reader):
        self.server, self.rank, self.pid, self.channel, self.output = server, rank, pid, channel, reader
        self.status: int | None = None
        self.ended, self.is_ready = threading.Event(), False

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank} (process {self.pid})"

    def kill(self) -> None:
        """Ends it, with all that it has started. `wait` says when that is done."""
        self.server.tell({"kill": self.pid})

    def dump_stacks(self, number: int) -> None:
        """Sends it the signal at which it writes its stacks."""
        self.server.tell({"signal": self.pid, "number": number})

    def wait(self, timeout: float) -> bool:
        """Whether it has ended within so many seconds."""
        return self.ended.wait(timeout)


class Server:
    """The fork server of this process, with what its ranks share: a directory, and the environment of their start."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="llmsys-ranks-"))
        self.processes: dict[int, Process] = {}
        self._ended_early: dict[int, int] = {}
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        self._starts = itertools.count(1)
        self._starting, self._telling = threading.Lock(), threading.Lock()
        self.alive, self._closed = True, False
        self._socket, theirs = socket.socketpair()
        path = [each or os.getcwd() for each in sys.path]
        arguments = f"{theirs.fileno()}, {os.getpid()}, {str(self.directory)!r}"
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", _CODE.format(path=path, args=arguments)],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True, cwd="/",
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # else NumPy makes threads, and it must have none
            )  # fmt: skip
        self._said: list[str] = []
        threading.Thread(target=self._hear_errors, daemon=True, name="errors of the ranks' fork server").start()
        threading.Thread(target=self._hear, daemon=True, name="listens to the ranks' fork server").start()
        try:
            self.threads = self._answer("threads")  # how many it has: one, or copies of it would not be safe
        except BaseException:  # Ctrl-C, while torch is imported
            self.close(timeout=1.0)
            raise

    def usable(self) -> bool:
        """Whether it lives, and nobody has tidied its directory away, as is done in /tmp with what is days old."""
        return self.alive and self.directory.exists()

    def start(self, rank: int) -> Process:
        """A new process, which will be this rank."""
        ours, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        given = [theirs.fileno(), pipes[0][1], pipes[1][1]]
        with self._starting:
            try:
                number = next(self._starts)
                request = {"start": rank, "number": number}
                socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], given)
                pid = self._answer("started", number)
            except BaseException:
                ours.close()
                for read, _ in pipes:
                    os.close(read)
                raise
            finally:
                theirs.close()
                for _, write in pipes:
                    os.close(write)
        reader = output.Reader(rank, {"stdout": pipes[0][0], "stderr": pipes[1][0]})
        process = Process(self, rank, pid, Channel(ours), reader)
        with self._telling:
            self.processes[pid] = process
            if pid in self._ended_early:
                self._end(pid, self._ended_early.pop(pid))
        return process

    def tell(self, message: dict) -> None:
        """Says something to the server. If it is gone, so are the ranks."""
        try:
            with self._telling:
                self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            pass

    def close(self, timeout: float = 10.0) -> None:
        """Ends the server and all its ranks, and returns when they have ended."""
        if self._closed:
            return
        self.alive, self._closed = False, True
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:  # stopped, perhaps: what it would have done is done here
            os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        self._socket.close()
        self._popen.stderr.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _answer(self, name: str, number: int = 0):
        """What the server answers. Ctrl-C may have left the answers to former requests, with lower numbers, unheard."""
        try:
            while (answer := self._answers.get(timeout=START_SECONDS)) and answer["number"] < number:
                pass
        except queue.Empty:
            answer = None
        if not answer or name not in answer:
            time.sleep(0.1)
            said = "".join(self._said[-30:]) or "(it said nothing)"
            raise RuntimeError(f"the process that starts ranks does not work. It said:\n{said}")
        return answer[name]

    def _hear(self) -> None:
        rest = b""
        while True:
            try:
                data = self._socket.recv(4096)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "ended" in message:
                    with self._telling:
                        self._end(message["ended"], message["status"])
                else:
                    self._answers.put(message)
        self.alive = False
        self._answers.put(None)
        with self._telling:
            for pid in list(self.processes):  # nothing lives without the server
                self._end(pid, -signal.SIGKILL)

    def _end(self, pid: int, status: int) -> None:
        process = self.processes.pop(pid, None)
        if process is None:
            self._ended_early[pid] = status
        else:
            process.status = status
            process.ended.set()

    def _hear_errors(self) -> None:
        try:
            for line in self._popen.stderr:
                self._said.append(line.decode(errors="replace"))
        except (OSError, ValueError):  # closed
            pass
