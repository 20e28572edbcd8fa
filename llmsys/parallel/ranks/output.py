"""What ranks print: each rank's stdout and stderr by themselves, and one log of all, in the order in which it was said.

A rank writes into two pipes, and a thread of the caller's process reads them: what comes from C++ code or from a
program that the rank has started is caught too, and what a rank said before it died is there. Lines that Python prints
carry the time at which they began, by a clock that all processes of a machine share; so a line that one rank printed
before it sent a message stands in the log before what the receiver printed. Other lines have the time at which they
came.
"""

import io
import os
import re
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

KEPT = 8 << 20  # bytes that are kept of each stream in a run
_STAMP = re.compile(rb"\x1e(\d+)\x1f")
_MARK = re.compile(rb"\x1eend (\d+)\x1f\n")
_LONGEST_MARK = 64  # bytes


@dataclass(frozen=True, order=True)
class Line:
    """A line of a rank's output. `at` is when it began: seconds of `time.monotonic()`; `text` has no line's end."""

    at: float
    rank: int = field(compare=False)
    stream: str = field(compare=False)
    text: str = field(compare=False)

    def __str__(self) -> str:
        return f"rank {self.rank}{'!' if self.stream == 'stderr' else ' '}| {self.text}"


@dataclass(frozen=True)
class Output:
    """What one rank wrote, as lines with their ends."""

    stdout: str
    stderr: str


def output_of(lines: Iterable[Line]) -> Output:
    """The lines of one rank, put together."""
    texts = {"stdout": [], "stderr": []}
    for line in lines:
        texts[line.stream].append(line.text + "\n")
    return Output("".join(texts["stdout"]), "".join(texts["stderr"]))


def merged(lines: Iterable[Line]) -> str:
    """One log of all ranks, in the order of time. Each line names its rank; "!" marks stderr."""
    return "".join(f"{line}\n" for line in sorted(lines))


# In the rank's process


class Stamped(io.TextIOWrapper):
    """A text stream whose lines begin with the time."""

    def __init__(self, descriptor: int):
        raw = open(descriptor, "wb", closefd=False)
        super().__init__(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._new_line = True

    def write(self, text: str) -> int:
        if text:
            stamp = f"\x1e{time.monotonic_ns()}\x1f"
            body = text[:-1].replace("\n", "\n" + stamp) + text[-1]
            super().write(stamp + body if self._new_line else body)
            self._new_line = text[-1] == "\n"
        return len(text)

    def close(self) -> None:
        """Only flushes: a function that closes sys.stdout must not end the output of the runs that follow."""
        self.flush()

    def end_run(self, number: int) -> None:
        """Writes the mark after which all belongs to the next run. A last line without end gets one."""
        if not self._new_line:
            self.write("\n")
        self.flush()
        os.write(self.fileno(), b"\x1eend %d\x1f\n" % number)


def stamp_this_process() -> None:
    """sys.stdout and sys.stderr are stamped from now on."""
    sys.stdout = sys.__stdout__ = Stamped(1)
    sys.stderr = sys.__stderr__ = Stamped(2)


# In the caller's process


class Reader:
    """Reads a rank's two pipes in a thread, from its start to its end, and keeps the lines of the current run."""

    def __init__(self, rank: int, descriptors: dict[str, int]):
        self.rank, self.on_line = rank, None
        self._lines: list[Line] = []
        self._ended = dict.fromkeys(descriptors, 0)  # the number of the last run that has ended in each stream
        self._open = set(descriptors)
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, args=(descriptors,), daemon=True, name=f"output of {rank}")
        self._thread.start()

    def begin_run(self, on_line: Callable[[Line], None] | None = None) -> None:
        """Forgets the last run. `on_line` is called with each line as it comes, in another thread."""
        with self._changed:
            self._lines, self.on_line = [], on_line

    def lines(self, number: int, timeout: float) -> list[Line]:
        """The lines of the run so far; waits at most so many seconds for the end of the run, or of the process."""
        with self._changed:
            self._changed.wait_for(lambda: all(self._ended[name] >= number for name in self._open), timeout)
            return list(self._lines)

    def _read(self, descriptors: dict[str, int]) -> None:
        selector = selectors.DefaultSelector()
        for name, descriptor in descriptors.items():
            selector.register(descriptor, selectors.EVENT_READ, name)
        rest = {name: bytearray() for name in descriptors}
        kept = dict.fromkeys(descriptors, 0)
        while selector.get_map():
            for ready, _ in selector.select():
                name, data = ready.data, os.read(ready.fd, 1 << 16)
                if not data:
                    selector.unregister(ready.fd)
                    os.close(ready.fd)
                rest[name] += data
                whole: list[bytearray] = []
                if b"\n" in data:
                    *whole, rest[name] = rest[name].split(b"\n")
                elif len(rest[name]) > KEPT:  # a line without end; its own end may be the beginning of a mark
                    whole, rest[name] = [rest[name][:-_LONGEST_MARK]], rest[name][-_LONGEST_MARK:]
                if rest[name] and not data:
                    whole.append(rest[name])
                with self._changed:
                    for each in whole:
                        self._take(name, each + b"\n", kept)
                    if not data:
                        self._open.discard(name)
                    self._changed.notify_all()
        selector.close()

    def _take(self, name: str, data: bytearray, kept: dict[str, int]) -> None:
        mark = _MARK.search(data)
        if mark is None:
            self._keep(name, data, kept)
            return
        if mark.start() > 0:
            self._keep(name, data[: mark.start()], kept)
        self._ended[name] = int(mark[1])
        kept[name] = 0

    def _keep(self, name: str, data: bytearray, kept: dict[str, int]) -> None:
        stamp = _STAMP.search(data)
        at = int(stamp[1]) / 1e9 if stamp else time.monotonic()
        text = _STAMP.sub(b"", data).removesuffix(b"\n").decode("utf-8", "replace")
        before = kept[name]
        kept[name] += len(data)
        if before > KEPT:
            return
        if kept[name] > KEPT:
            text = f"(more than {KEPT >> 20} MiB: what follows is not kept)"
        line = Line(at, self.rank, name, text)
        self._lines.append(line)
        if self.on_line:
            self.on_line(line)
