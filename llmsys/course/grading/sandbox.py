"""A learner's process, seen from outside: started, spoken to, listened to for so long and no longer, and killed.

It is in a jail (`llmsys.course.grading.jail`) where there is one; elsewhere it may read what its user may read. What
it gets is little: an environment without the caller's variables (tokens live there), no GPU, no workspace, an empty
directory that is removed afterwards, no input, and a session of its own, so that whatever it starts dies with it. Two
pipes carry requests and replies. A third takes all it prints; that is read continually, so that a flood does not block
it, and forgotten but for its end, so that a flood fills no memory here.
"""

import contextlib
import math
import os
import selectors
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from llmsys.course.grading import jail

CLOCK = 5  # so many times its processor time a process may take by the clock: other people's work is not its fault
LOOKS = 0.5  # seconds between two looks for what a process has started
TAIL = 3000  # bytes kept of what is printed
_ROOT = Path(__file__).resolve().parents[3]  # where this llmsys is imported from: the worker takes the same
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


class GradeError(RuntimeError):
    """Nothing can be graded, here or there. The message says why, and what to do."""


class Stopped(Exception):
    """The process gives no more answers. `kind`: "time limit", "crash" or "protocol"; the message is a sentence."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


class Sandbox:
    """A worker process, started at once. `path` is where it may import from besides this installation. `isolate` puts
    it into a jail, in which the places in `hidden` are not there."""

    def __init__(
        self, path: Sequence[str | Path] = (), *, isolate: bool = False, hidden: Iterable[str | Path] = ()
    ):
        if os.name != "posix":
            raise GradeError(
                "grading needs Linux or macOS: on Windows, run it in WSL 2 or in the dev container; "
                "`check` in the notebook works everywhere"
            )
        try:
            self.directory = tempfile.mkdtemp(prefix="llmsys-grade-")
        except OSError as error:  # every place that Python tries is full, or may not be written to
            raise GradeError(
                f"grading needs a temporary directory, and there is none to be had ({error.strerror}): make room on "
                "the disk, or let TMPDIR name another place"
            ) from None
        self._tail, self._printed = b"", 0
        its_requests, self._requests = os.pipe()
        self._replies, its_replies = os.pipe()
        self._output, its_output = os.pipe()
        try:
            # -P: what lies in the current directory is not imported
            command = [sys.executable, "-P", "-m", "llmsys.course.grading.worker"]
            command += map(str, (0 if isolate else os.getpid(), its_requests, its_replies))
            environment = _environment(self.directory, path)
            if isolate:
                command = jail.jailed(command, self.directory, environment["PYTHONPATH"].split(os.pathsep), hidden)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=its_output,
                stderr=its_output,
                pass_fds=(its_requests, its_replies),
                cwd=self.directory,
                env=environment,
                start_new_session=True,
            )
        finally:
            for fd in (its_requests, its_replies, its_output):
                os.close(fd)
        self._selector = selectors.DefaultSelector()
        for fd in (self._requests, self._replies, self._output):
            os.set_blocking(fd, False)
        for fd in (self._replies, self._output):
            self._selector.register(fd, selectors.EVENT_READ)
        self._open, self._jailed = True, isolate
        self._family, self._looked, self._used = [self._process.pid], 0.0, 0.0

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    @property
    def printed(self) -> str:
        """The end of what the process printed, and how much was before it."""
        text = self._tail.decode("utf-8", "replace")
        lost = self._printed - len(self._tail)
        return f"({lost:,} bytes before this)\n{text}" if lost > 0 else text

    def processor_time(self) -> float:
        """Seconds that the process has used, and what it has started; 0 where the system does not say."""
        if self._open:
            if time.monotonic() - self._looked > LOOKS:
                self._family, self._looked = _descendants(self._process.pid), time.monotonic()
            self._used = max(self._used, sum(map(_used_by, self._family)))
        return self._used

    def talk(self, request: bytes, seconds: float, processor: float = math.inf) -> Iterator[bytes]:
        """Send the request, and yield the bytes of the reply as they arrive; the caller knows where it ends.

        Raises Stopped where the process ends, closes its pipe, takes longer than `seconds` by the clock, or more
        `processor` seconds.
        """
        rest, deadline = memoryview(request), time.monotonic() + seconds
        until = self.processor_time() + processor
        if rest:
            self._selector.register(self._requests, selectors.EVENT_WRITE)
        try:
            while True:
                left = deadline - time.monotonic()
                unused = until - self.processor_time() if processor < math.inf else math.inf
                if left <= 0 or unused <= 0:
                    raise Stopped("time limit", f"it gave no answer within {min(seconds, processor):.3g} s")
                patience = max(unused / (os.cpu_count() or 1), 0.02)  # so long it cannot have used all that is left
                for key, _ in self._selector.select(min(left, patience)):
                    if key.fd == self._output:
                        self._listen()
                    elif key.fd == self._requests:
                        rest = self._send(rest)
                    elif chunk := self._receive():
                        yield chunk
        finally:
            if rest and self._open:
                self._selector.unregister(self._requests)

    def kill(self) -> None:
        """Kill the process and whatever it has started; whoever waits for it is told that it has ended."""
        if self._process.returncode is None:  # until wait(), its number, which is also its group's, is nobody else's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the process and whatever it has started, and take its directory away."""
        if not self._open:
            return
        self.processor_time()
        self.kill()
        self._open = False
        self._process.wait()
        self._listen()
        self._selector.close()
        for fd in (self._requests, self._replies, self._output):
            os.close(fd)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _send(self, rest: memoryview) -> memoryview:
        try:
            rest = rest[os.write(self._requests, rest[: 1 << 16]) :]
        except BlockingIOError:
            return rest
        except BrokenPipeError:  # what it still has to say is read to the end, which then tells why
            rest = rest[:0]
        if not rest:
            self._selector.unregister(self._requests)
        return rest

    def _receive(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            if chunk := os.read(self._replies, 1 << 20):
                return chunk
            raise self._why()
        return b""

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            chunk = os.read(self._output, 1 << 16)
            self._printed += len(chunk)
            self._tail = (self._tail + chunk)[-TAIL:]
            if not chunk and self._open and self._output in self._selector.get_map():
                self._selector.unregister(self._output)

    def _why(self) -> Stopped:
        """Why the reply pipe was closed."""
        if not self._has_ended():
            return Stopped("crash", "it closed the pipe to the grader")
        self.close()
        status = self._process.returncode
        if self._jailed and status > 128:  # as a shell, bubblewrap says so that a signal ended what it ran
            status = 128 - status
        if status >= 0:
            return Stopped("crash", f"it ended its process (with status {status}) before it had given a result")
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        if name == "SIGXCPU":
            return Stopped("time limit", "it took too much processor time")
        reason = {"SIGKILL": " (out of memory?)"}.get(name, "")
        return Stopped("crash", f"its process was killed by {name}{reason} before it had given a result")

    def _has_ended(self) -> bool:
        """Whether the process is about to end by itself, without taking note of its end: its group must be killed."""
        if not hasattr(os, "waitid"):
            return True
        for _ in range(100):
            if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                return True
            time.sleep(0.01)
        return False


def _descendants(pid: int) -> list[int]:
    """The process, and all that it and its children have started, where the system lists them."""
    parents: dict[int, list[int]] = {}
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return [pid]
    for number in numbers:
        if fields := _status_of(number):
            parents.setdefault(int(fields[1]), []).append(number)
    found = [pid]
    for each in found:  # which grows
        found += parents.get(each, ())
    return found


def _used_by(pid: int) -> float:
    """Processor seconds of a process, and of its children that have ended."""
    fields = _status_of(pid)
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def _status_of(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the program's name: its state, its parent, …"""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def _environment(directory: str, path: Sequence[str | Path]) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    installed = _ROOT.name in ("site-packages", "dist-packages")
    wanted = [str(Path(each).resolve()) for each in path] + ([] if installed else [str(_ROOT)])
    return kept | {
        "HOME": directory,
        "TMPDIR": directory,
        "PYTHONUSERBASE": site.getuserbase(),  # which would otherwise be looked for under HOME
        "PYTHONPATH": os.pathsep.join(wanted),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "LLMSYS_WORKSPACE": "",  # there is none: no progress, no `mine`
        "CUDA_VISIBLE_DEVICES": "",  # every machine grades on the tier that every machine has
        "TRITON_INTERPRET": "1",
        "OMP_NUM_THREADS": "1",  # another exercise's process is next to it
        "MPLBACKEND": "agg",
    }

