"""The grader's runner: the learner's function is called in its own process, and nothing it says is taken on trust.

    with Sandbox() as sandbox:
        runner = RemoteRunner(sandbox, time_limit=60)
        opened = runner.open(job)               # runs the setup cells and the exercise's cells over there
        result = run_check(check, runner)       # inputs are drawn, expectations held and values compared here

A reply is decoded strictly (`llmsys.course.checking.wire`), and then looked through field by field: a `Run` that a
check sees holds plain data and figures that are possible, however it came about. A process that is too slow, dies or
talks nonsense is killed, and every later call ends at once in the same error.
"""

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from llmsys.course.checking import wire
from llmsys.course.checking.runner import Finding, Raised, Run
from llmsys.course.grading.sandbox import CLOCK, Sandbox, Stopped
from llmsys.course.grading.words import clean

COMPILE_LIMIT = 120.0  # seconds that a GPU's compiler may take for a kernel that passed
SEAL_LIMIT = 60.0  # seconds in which the worker looks at what was changed
STARTUP_LIMIT = 180.0  # seconds that the worker's own imports may take, on a machine that is busy

@dataclass(frozen=True)
class Opened:
    """What came of running the cells: a problem in words, "" where there is none, and what else is to be said. `cell`
    is the one that was running when the process was stopped, or ended."""

    problem: str
    notes: tuple[str, ...] = ()
    cell: str = ""


class RemoteRunner:
    """A `Runner` (`llmsys.course.checking.runner`) whose function lives in a sandbox.

    time_limit      seconds of processor time that the cells and all calls may take together; a process that only waits
                    is stopped by the clock, after CLOCK times as many
    memory_limit    bytes that the process may map beyond what it has mapped when the cells begin
    waiting         entered while the process is at work, and nothing is done here
    """

    must_compile = True  # a kernel of which a compiler is told nothing has not passed

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        time_limit: float = 60.0,
        memory_limit: int = 2 << 30,
        waiting: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.stopped: Stopped | None = None  # why there are no more answers
        self.time_limit, self.memory_limit = time_limit, memory_limit
        self._sandbox, self._left, self._clock_left = sandbox, time_limit, CLOCK * time_limit
        self._waiting, self._frames, self._said_so_far = waiting, wire.Frames(), 0

    def open(self, job: Mapping) -> Opened:
        """Run the cells: `job` holds id, function, setup, cells and module (`llmsys.course.grading.worker`)."""
        limits = {"memory_limit": int(self.memory_limit), "cpu_limit": math.ceil(self.time_limit) + 2}
        try:
            request = wire.pack({"processes": False, **job, **limits})
        except wire.ProtocolError as error:
            return Opened(f"its cells are too large: {error}")
        try:
            self._exchange(b"", STARTUP_LIMIT)  # it says that it is ready
        except Stopped as stopped:
            self._stop(stopped)
            last = clean(self._sandbox.printed).strip().rpartition("\n")[2]
            return Opened(f"the grader's own process did not start: {stopped} {last}".rstrip())
        cell = ""
        try:
            fields = self._timed(request)
            for _ in range(len(job["setup"]) * 2 + len(job["cells"])):  # the cells, as they begin
                if not _is(fields, {"cell": str}):
                    break
                cell = clean(fields["cell"])
                fields = self._timed(b"")
            if not _is(fields, {"serial": int, "problem": str, "notes": tuple}) or fields["serial"] != 0:
                raise Stopped("protocol", "it wrote to the grader's pipe")
            return Opened(clean(fields["problem"]), _texts(fields["notes"]))
        except Stopped as stopped:
            self._stop(stopped, f"the cell {cell}: " if cell else "")
            return Opened(str(self.stopped), (), cell)

    def run(self, args: tuple, kwargs: dict) -> Run:
        if self.stopped is None:
            try:
                fields = self._ask({"args": args, "kwargs": kwargs}, {"run": dict})
                return self._explained(validated(fields["run"]))
            except Stopped as stopped:
                self._stop(stopped)
        return Run(error=Raised(self.stopped.kind, str(self.stopped)))

    def compile(self, calls: Sequence[tuple[tuple, dict]]) -> list[Raised | None]:
        """What a GPU's compiler says of the kernel in each of these calls, as the worker reports it; empty where it
        reports nothing. The time is not the learner's."""
        said = self._said({"compile": [[args, kwargs] for args, kwargs in calls]}, COMPILE_LIMIT)
        try:
            return [_raised(each) for each in said]
        except Stopped as stopped:
            self._stop(stopped)
            return []

    def objections(self) -> tuple[str, ...]:
        """What the worker has to say against the answer after all calls: what it changed, what it left running."""
        return _texts(self._said({"sealed": True}, SEAL_LIMIT))

    def _said(self, asked: dict, seconds: float) -> tuple:
        if self.stopped is not None:
            return ()
        try:
            return self._ask(asked, {"said": tuple}, seconds)["said"]
        except Stopped as stopped:
            self._stop(stopped)
            return ()

    def _ask(self, asked: dict, form: dict, seconds: float | None = None) -> dict:
        """Ask, and take the reply of that form. A call's number nobody knows before; and what had been written before
        it was asked for is no reply."""
        self._said_so_far += seconds is not None
        serial = secrets.randbits(62) if seconds is None else self._said_so_far
        if self._frames.waiting:
            raise Stopped("protocol", "it wrote to the grader's pipe")
        request = wire.pack({"serial": serial, **asked})
        fields = self._timed(request) if seconds is None else self._exchange(request, seconds)
        if not _is(fields, {"serial": int, **form}) or fields["serial"] != serial:
            raise Stopped("protocol", "it wrote to the grader's pipe")
        return fields

    def _stop(self, stopped: Stopped, where: str = "") -> None:
        if stopped.kind == "time limit":
            waited = f" (it waited: {CLOCK * self.time_limit:g} s by the clock)" * (self._clock_left <= 0)
            stopped = Stopped(stopped.kind, f"it took longer than {self.time_limit:g} s{waited}")
        self.stopped = Stopped(stopped.kind, f"{where}{stopped}")
        self._sandbox.close()

    def _timed(self, request: bytes):
        began, used = time.monotonic(), self._sandbox.processor_time()
        try:
            return self._exchange(request, self._clock_left, self._left)
        finally:
            self._clock_left -= time.monotonic() - began
            self._left -= self._sandbox.processor_time() - used

    def _exchange(self, request: bytes, seconds: float, processor: float = math.inf):
        """Send a frame, if any, and take one."""
        try:
            for header, payload in self._frames.feed(b""):  # which came with the last one
                return wire.unpack(header, payload)
            limits = (seconds,) if processor == math.inf else (seconds, processor)
            talk = self._sandbox.talk(request, *limits)
            while True:
                with self._waiting():
                    chunk = next(talk)
                for header, payload in self._frames.feed(chunk):
                    talk.close()
                    return wire.unpack(header, payload)
        except wire.ProtocolError as error:
            raise Stopped("protocol", f"it wrote to the grader's pipe: {clean(str(error))}") from None

    def _explained(self, run: Run) -> Run:
        """The run, with its error in the grader's words where memory ran out."""
        error = run.error
        if error and (error.type == "MemoryError" or "allocate memory" in error.message):
            limit = f"it needed more than the {self.memory_limit / 2**20:,.0f} MiB of memory that an exercise may take"
            return replace(run, error=replace(error, type="MemoryError", message=limit))
        return run


_TUPLES = ("largest_shape", "alive_bytes", "findings", "modified", "called", "offences", "left")


def validated(fields: dict) -> Run:
    """The `Run` that a worker's report describes. Raises Stopped where it is not such a report."""
    if set(fields) != set(Run.__dataclass_fields__):
        raise Stopped("protocol", "it sent something else than the report of a call")
    error, findings = fields["error"], fields["findings"]
    sound = (
        all(_is(fields, {name: tuple}, exactly=False) for name in _TUPLES)
        and all(
            _is(fields, {name: dict}, exactly=False)
            for name in ("reads", "at_once", "bytes_loaded", "bytes_stored", "multiply_adds", "operations")
        )
        and type(fields["watched"]) is bool
        and all(type(key) in (int, str) and _figure(n, float) for key, n in fields["reads"].items())
        and all(type(key) in (int, str) and _figure(n, int) for key, n in fields["at_once"].items())
        and all(_figure(fields[name], int) for name in ("largest_bytes", "afterwards"))
        and all(_figure(n, int) for name in ("largest_shape", "alive_bytes") for n in fields[name])
        and all(
            type(key) is str and _figure(n, int)
            for name in ("bytes_loaded", "bytes_stored", "multiply_adds", "operations")
            for key, n in fields[name].items()
        )
        and all(_is(each, {"kind": str, "message": str, "place": str}) for each in findings)
        and all(type(each) is str for name in ("modified", "called", "offences", "left") for each in fields[name])
        and type(fields["refused"]) is str
        and type(fields["printed"]) is str
        and (error is None or _is(error, _RAISED))
    )
    if not sound:
        raise Stopped("protocol", "its report of a call holds something impossible")
    return Run(
        **{name: fields[name] for name in ("value", "reads", "at_once", "alive_bytes")},
        **{name: fields[name] for name in ("afterwards", "largest_bytes", "largest_shape", "operations", "watched")},
        **{name: fields[name] for name in ("bytes_loaded", "bytes_stored", "multiply_adds")},
        findings=tuple(Finding(*(clean(each[name]) for name in ("kind", "message", "place"))) for each in findings),
        modified=_texts(fields["modified"]),
        called=_texts(fields["called"]),
        offences=_texts(fields["offences"]),
        left=_texts(fields["left"]),
        refused=clean(fields["refused"]),
        error=error and _raised(error),
        printed=clean(fields["printed"]),
    )


_RAISED = {"type": str, "message": str, "line": (int, type(None)), "source": str}  # the fields of a Raised


def _raised(fields: dict | None) -> Raised | None:
    if fields is None:
        return None
    if not _is(fields, _RAISED):
        raise Stopped("protocol", "its report of an error holds something impossible")
    return Raised(clean(fields["type"]), clean(fields["message"]), fields["line"], clean(fields["source"]))


def _is(value, fields: Mapping, exactly: bool = True) -> bool:
    """Whether it is a dict with these keys, and values of exactly these types."""
    if type(value) is not dict or (exactly and set(value) != set(fields)):
        return False
    kinds = {name: kind if isinstance(kind, tuple) else (kind,) for name, kind in fields.items()}
    return all(name in value and type(value[name]) in kinds[name] for name in fields)


def _figure(value, kind: type) -> bool:
    return type(value) is kind and 0 <= value < math.inf


def _texts(values: tuple) -> tuple[str, ...]:
    return tuple(clean(each) for each in values if type(each) is str)
