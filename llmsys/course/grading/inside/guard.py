"""What an answer has no business with, seen as it happens: Python's audit events, in the learner's process.

An answer computes. It starts no processes (but for exercises that ask for them), sends no signals, reads no files of
the course's own, speaks to no other machine, and does not look for what watches it in frames, in the garbage
collector's lists or in memory. Each of these raises an event before it happens; here it is refused with an error, and
remembered, so that swallowing the error does not help. An audit hook cannot be taken away again.

    guard = Guard(variables, processes=False)
    guard.install()
    with guard.during_a_call():
        …                               # the learner's function
    guard.offences                      # in words

What the library, torch and Python themselves do on the way is none of the learner's doing: a frame counts as the
learner's where its variables are the notebook's, or where its text comes from no installed file. Cells may start
processes (matplotlib does, looking for fonts); when they have ended, none may be left, for what runs beside a call is
not watched.

All this sees what is done in Python. What a learner writes in C, or reads out of the process's own memory, it does not
see: see `llmsys.course.grading.jail`.
"""

import _thread
import importlib._bootstrap
import linecache
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

from llmsys.course.checking.watch import sets_profile, threads_are_watched, watch_threads
from llmsys.hardware import dispatch

STARTS_A_PROCESS = {"os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "subprocess.Popen", "pty.spawn"}
SENDS_A_SIGNAL = {"os.kill", "os.killpg"}
STARTS_A_THREAD = {"_thread.start_new_thread", "_thread.start_joinable_thread"}
ASKS_THE_NETWORK = {
    "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.sendto",
    "socket.sendmsg",
}  # fmt: skip
LOOKS_AROUND = {
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._getframe", "sys._current_frames",
    "sys._current_exceptions", "code.__new__", "sys.settrace", "sys.addaudithook", "ctypes.dlopen",
    "ctypes.dlsym", "ctypes.call_function", "ctypes.cdata", "ctypes.string_at", "ctypes.wstring_at",
    "ctypes.addressof", "ctypes.get_errno",
}  # fmt: skip
HELPERS = {
    "inspect", "ctypes", "ctypes.util", "linecache", "tokenize", "os", "io", "pathlib",
    "pkgutil", "importlib", "importlib.util", "importlib.machinery", "importlib._bootstrap_external",
    "importlib._bootstrap", "importlib.resources", "subprocess", "multiprocessing.popen_fork", "socket",
    "zipfile", "codecs", "contextlib",
}  # fmt: skip
"""Modules of Python's that do what their caller wants: the caller is looked for behind them."""

MOST_OFFENCES = 1000

_ROOT = Path(__file__).resolve().parents[4]
_SOURCES = tuple(f"{_ROOT / name}{os.sep}" for name in ("llmsys", "solutions", "lessons"))
_IMPORTING = importlib._bootstrap._find_and_load.__code__
_LOOPBACK = {"localhost", "127.0.0.1", "::1", None, ""}


class Offence(RuntimeError):
    """What the guard refuses."""


class Guard:
    """The rules for one learner's process. `variables` are those of the notebook; `processes` lets calls start
    some."""

    def __init__(self, variables: dict, *, processes: bool = False):
        self.offences: list[str] = []
        self._variables, self._processes = variables, processes
        self._installed = _installed()
        self._helpers = {id(vars(import_module(name))) for name in HELPERS}
        self._state = "off"

    def install(self) -> None:
        """Watch from here on: this process, and threads that it starts."""
        dispatch.follow_threads()
        watch_threads()
        sys.addaudithook(self._hook())

    @contextmanager
    def during_cells(self) -> Iterator[None]:
        with self._during("cells"):
            yield

    @contextmanager
    def during_a_call(self) -> Iterator[None]:
        with self._during("call"):
            yield

    @contextmanager
    def _during(self, state: str) -> Iterator[None]:
        self._state = state
        for name in [each for each in linecache.cache if each.startswith(_SOURCES)]:
            del linecache.cache[name]  # so that whoever reads it opens it
        try:
            yield
        finally:
            self._state = "off"

    def since(self, number: int) -> tuple[str, ...]:
        """The offences after the first `number` ones, each once."""
        return tuple(dict.fromkeys(self.offences[number:]))

    def note(self, offence: str) -> None:
        """Remember it, and stop it."""
        if len(self.offences) < MOST_OFFENCES:
            self.offences.append(offence)
        raise Offence(offence)

    def _hook(self):
        """The audit hook, with everything that it needs in its own variables."""
        guard, own, here, look, this_thread = self, os.getpid(), sys._getframe, LOOKS_AROUND, _thread.get_ident
        the_watch = sets_profile()
        begins = threading.Thread._bootstrap_inner.__code__
        judged = (
            STARTS_A_PROCESS | SENDS_A_SIGNAL | STARTS_A_THREAD | ASKS_THE_NETWORK | look
            | {"open", "sys.setprofile", "object.__getattr__", "object.__setattr__"}
        )  # fmt: skip

        asking: set[int] = set()  # threads that are in the hook, whose own look at a frame is no event

        def hook(event: str, arguments: tuple) -> None:
            if event not in judged or (thread := this_thread()) in asking:
                return
            asking.add(thread)
            try:
                judge(event, arguments)
            finally:
                asking.discard(thread)

        def judge(event: str, arguments: tuple) -> None:
            if event == "sys.setprofile":
                by = here(2)
                begun = by.f_code is begins and by.f_back.f_back is None and threads_are_watched()
                if not (begun or any(by.f_code is each for each in the_watch)):  # equal code may be anybody's
                    raise RuntimeError("sys.setprofile is in use: the grader watches with it what is called")
                return
            if guard._state == "off":
                return
            if event == "open":
                guard._opens(arguments[0], here(2))
            elif event in look:
                by = here(2)
                if event == "sys._getframe" and by.f_globals.get("__name__") == "traceback":
                    by = by.f_back  # walk_stack hands out frames
                if guard._is_learners(by):
                    guard.note(f"it looks for what watches it, or for its memory ({event})")
            elif event in STARTS_A_PROCESS:
                if guard._state == "call" and not guard._processes:
                    guard.note(f"it started a process, which no exercise like this one needs ({event})")
            elif event in SENDS_A_SIGNAL:
                if arguments[0] not in (own, 0) and not guard._processes:
                    guard.note("it sent a signal to another process")
            elif event in STARTS_A_THREAD:
                if not threads_are_watched():
                    guard.note("it starts threads that are not watched")
            elif event in ASKS_THE_NETWORK:
                guard._connects(event, arguments)
            elif event == "object.__getattr__":
                if arguments[1] in ("tb_frame", "__code__", "__globals__") and guard._is_learners(here(2)):
                    guard._looks_into(*arguments)
            elif guard._is_learners(here(2)) and not guard._owns(arguments[0]):
                guard.note(f"it changed {arguments[1]} of {getattr(arguments[0], '__name__', 'something')}")

        return hook

    def _opens(self, path: object, by: FrameType) -> None:
        """The course's texts are not an answer's to read, unless by importing them."""
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or not path.endswith((".py", ".pyc", ".ipynb")):
            return
        if os.path.realpath(path).startswith(_SOURCES) and self._is_learners(by):
            self.note(f"it read {os.path.basename(path)}, a file of the course")

    def _connects(self, event: str, arguments: tuple) -> None:
        where = arguments[1] if event in ("socket.connect", "socket.sendto", "socket.sendmsg") else arguments[0]
        host = where[0] if isinstance(where, tuple) and where else where
        if host not in _LOOPBACK:
            self.note("it asked for the network")

    def _looks_into(self, thing: object, name: str) -> None:
        if name == "tb_frame" or not self._owns(thing):
            self.note(f"it looked into what is not its own ({name})")

    def _owns(self, function: object) -> bool:
        return getattr(function, "__globals__", self._variables) is self._variables

    def _is_learners(self, frame: FrameType | None) -> bool:
        """Whether the learner's code is behind this frame, perhaps with helpers of Python's between them. What a module
        does while it is imported is its own doing."""
        while frame is not None and frame.f_globals is not self._variables:
            if frame.f_code is _IMPORTING:
                return False
            if id(frame.f_globals) not in self._helpers:
                return not frame.f_code.co_filename.startswith(self._installed)
            frame = frame.f_back
        return frame is not None


def _installed() -> tuple[str, ...]:
    """How the file of a frame begins that is none of the learner's: Python's, a package's, the course's."""
    folders = [_ROOT / "llmsys" if Path(each).resolve() == _ROOT else Path(each) for each in sys.path if each]
    named = {f"{each}{os.sep}" for folder in folders for each in (folder, folder.resolve())}
    return (*named, "<frozen ", "<__array_function__")


def left_behind() -> list[str]:
    """What the cells have left running or switched on that would go on beside a call: processes, modes of torch's."""
    import torch

    found = []
    try:
        while True:  # those that have ended are only taken note of
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                found.append("a process that its cells started is still running: wait for it")
                break
    except ChildProcessError:
        pass
    on = torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack()
    if on or not torch._C._is_torch_function_enabled():
        found.append("its cells left a mode of torch's switched on, in which operations are not seen")
    return found
