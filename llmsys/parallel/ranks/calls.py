"""Which communication call a rank is in, written where others can read it: the record behind "who waits for whom".

A rank that hangs cannot be asked, and one that is dead even less. So each rank keeps a small file mapped into memory in
which it writes what it begins and ends: the collective, send or receive, with its peers, its tensor, and the line that
called it. The methods of torch's process groups and of the works that they return are watched, so every way to them
counts: `dist.send`, `batch_isend_irecv`, DTensor. Calls that torch makes in C++ are not seen (DDP's own all-reduces).
"""

import functools
import json
import mmap
import os
import struct
import sys
import threading
import time
import weakref
from dataclasses import dataclass, field
from pathlib import Path

SIZE = 1 << 14  # bytes of a record
SHOWN = 24  # unfinished calls that a record lists
_HEAD = struct.Struct("QQ")  # how often it was written (odd: it is being written), bytes

# Methods of torch's ProcessGroup, and what users call them.
METHODS = {
    "allreduce": "all_reduce", "allreduce_coalesced": "all_reduce_coalesced", "broadcast": "broadcast",
    "reduce": "reduce", "gather": "gather", "scatter": "scatter", "barrier": "barrier",
    "monitored_barrier": "monitored_barrier", "allgather": "all_gather", "allgather_coalesced": "all_gather_coalesced",
    "_allgather_base": "all_gather_into_tensor", "all_gather_single": "all_gather_into_tensor",
    "allgather_into_tensor_coalesced": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter_tensor", "reduce_scatter_single": "reduce_scatter_tensor",
    "reduce_scatter_tensor_coalesced": "reduce_scatter_tensor", "alltoall": "all_to_all",
    "alltoall_base": "all_to_all_single", "all_to_all_single": "all_to_all_single",
    "send": "send", "recv": "recv", "recv_anysource": "recv",
}  # fmt: skip
_TORCH = f"{os.sep}torch{os.sep}"


@dataclass
class Call:
    """One communication call of a rank.

    name       as users know it: "all_reduce", "send"
    group      the name of the process group
    members    the global ranks of the group
    peer       for send and recv, the other's global rank; None for collectives, and for a recv from anyone
    number     it is the group's so-manieth collective on this rank, or the so-manieth message to or from that peer
    tensor     what is sent, in words
    place      the file, line and function that called
    began      seconds of `time.monotonic()`
    waiting    somebody waits for it now (False: it was begun, and other things are done meanwhile)
    """

    name: str
    group: str
    members: list[int]
    peer: int | None
    number: int
    tensor: str
    place: str
    began: float = field(default_factory=time.monotonic)
    waiting: bool = True

    @property
    def collective(self) -> bool:
        return self.name not in ("send", "recv")

    def __str__(self) -> str:
        toward = {"send": "to", "recv": "from"}.get(self.name)
        with_whom = f" {toward} {'any rank' if self.peer is None else f'rank {self.peer}'}" if toward else ""
        of_what = f" of {self.tensor}" if self.tensor else ""
        return f"{self.name}{with_whom}{of_what}, at {self.place}"


@dataclass
class Written:
    """What a rank has written: its unfinished calls, the last finished one, how many collectives it has begun in each
    group, and how often it has written at all (which shows whether anything moves)."""

    unfinished: list[Call] = field(default_factory=list)
    last: Call | None = None
    begun: dict[str, int] = field(default_factory=dict)
    writes: int = 0

    @property
    def waiting(self) -> Call | None:
        """The call that the rank is stuck in, if it is in any."""
        return next((call for call in self.unfinished if call.waiting), None)


def read(path: Path) -> Written:
    """The record in a file; an empty one where the rank was stopped in the middle of writing."""
    data = path.read_bytes()
    writes, length = _HEAD.unpack_from(data)
    if not length:
        return Written(writes=writes)
    try:
        content = json.loads(data[_HEAD.size : _HEAD.size + length])
    except ValueError:
        return Written(writes=writes)
    last = content["last"] and Call(**content["last"])
    return Written([Call(**call) for call in content["unfinished"]], last, content["begun"], writes)


class Record:
    """Writes a rank's calls. One for a process; threads may share it."""

    def __init__(self, path: Path):
        path.write_bytes(bytes(SIZE))
        with open(path, "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)
        self._lock = threading.RLock()  # a work may be collected, which ends a call, while another one is written
        self._writes = 0
        self.clear()

    def clear(self) -> None:
        """Forgets everything, for the next run."""
        with self._lock:
            self._unfinished: dict[int, Call] = {}
            self._of_work: dict[int, tuple[weakref.ref, int]] = {}
            self._begun: dict[str, int] = {}
            self._messages: dict[tuple, int] = {}
            self._last: Call | None = None
            self._serial = 0
            self._write()

    def begin(
        self, name: str, group: str, members: list[int], peer: int | None = None, tensor: str = "", place: str = ""
    ) -> int:
        """A call begins. Returns the key by which it ends."""
        with self._lock:
            if name in ("send", "recv"):
                key = (group, name, peer)
                number = self._messages[key] = self._messages.get(key, 0) + 1
            else:
                number = self._begun[group] = self._begun.get(group, 0) + 1
            self._serial += 1
            self._unfinished[self._serial] = Call(name, group, members, peer, number, tensor, place or _place())
            self._write()
            return self._serial

    def issued(self, serial: int, work) -> None:
        """A call has returned a work, which somebody may wait for; or None, and it has ended."""
        if work is None:
            return self.end(serial)
        with self._lock:
            self._unfinished[serial].waiting = False
            self._of_work[id(work)] = weakref.ref(work, lambda _: self._collected(id_of_work)), serial
            id_of_work = id(work)
            self._write()

    def wait(self, work) -> int | None:
        """Somebody begins to wait for a work. Returns the call's key, if the call is known."""
        with self._lock:
            reference, serial = self._of_work.get(id(work), (None, None))
            if serial not in self._unfinished:
                return None
            call = self._unfinished.pop(serial)  # put first, so that it is among those shown
            call.waiting = True
            self._unfinished = {serial: call} | self._unfinished
            self._write()
            return serial

    def end(self, serial: int | None) -> None:
        """A call has ended, well or not."""
        with self._lock:
            call = self._unfinished.pop(serial, None)
            if call is not None:
                call.waiting = False
                self._last = call
                self._write()

    def current(self) -> Call | None:
        """The call that somebody waits for now, or the last one."""
        with self._lock:
            return next((call for call in self._unfinished.values() if call.waiting), self._last)

    def _collected(self, id_of_work: int) -> None:
        with self._lock:
            _, serial = self._of_work.pop(id_of_work, (None, None))
            self.end(serial)

    def _write(self) -> None:
        calls = sorted(list(self._unfinished.values()), key=lambda call: not call.waiting)[:SHOWN]
        while True:
            content = {
                "unfinished": [vars(call) for call in calls], "last": self._last and vars(self._last),
                "begun": self._begun,
            }  # fmt: skip
            data = json.dumps(content).encode()
            if len(data) <= SIZE - _HEAD.size or not calls:
                break
            calls = calls[: len(calls) // 2]
        if len(data) > SIZE - _HEAD.size:  # a great many groups
            data = json.dumps({"unfinished": [], "last": None, "begun": {}}).encode()
        self._writes += 2
        _HEAD.pack_into(self._memory, 0, self._writes - 1, 0)
        self._memory[_HEAD.size : _HEAD.size + len(data)] = data
        _HEAD.pack_into(self._memory, 0, self._writes, len(data))


_watching: Record | None = None


def watching() -> Record | None:
    """The record into which this process writes, if it does."""
    return _watching


def watch(record: Record) -> None:
    """From now on the calls of this process are written into `record`. Once in a process."""
    global _watching
    assert _watching is None
    _watching = record
    from torch._C import _distributed_c10d as c10d  # here: the process that only reads records need not load torch

    for name, known_as in METHODS.items():
        if (method := getattr(c10d.ProcessGroup, name, None)) is not None:
            setattr(c10d.ProcessGroup, name, _watched(method, known_as, record))
    c10d.Work.wait = _watched_wait(c10d.Work.wait, record)


def _watched(method, name: str, record: Record):
    @functools.wraps(method)
    def watched(group, *args, **kwargs):
        members = _members(group)
        peer = None
        if name in ("send", "recv") and method.__name__ != "recv_anysource":
            to = args[1] if len(args) > 1 else next((kwargs[k] for k in ("dstRank", "srcRank") if k in kwargs), None)
            peer = members[to] if to is not None else None
        serial = record.begin(name, _name(group), members, peer, in_words([*args, *kwargs.values()]))
        try:
            work = method(group, *args, **kwargs)
        except BaseException:
            record.end(serial)
            raise
        record.issued(serial, work)
        return work

    return watched


def _watched_wait(method, record: Record):
    @functools.wraps(method)
    def wait(work, *args, **kwargs):
        serial = record.wait(work)
        try:
            return method(work, *args, **kwargs)
        finally:
            record.end(serial)

    return wait


def _name(group) -> str:
    try:
        return group.group_name
    except RuntimeError:  # it has none yet
        return "a group"


def _members(group) -> list[int]:
    import torch.distributed as dist  # as above

    try:
        return dist.get_process_group_ranks(group)
    except (KeyError, ValueError):  # not registered, as while it is made
        return list(range(group.size()))


def in_words(values) -> str:
    """The first tensor among the values, in words: "float32 (4, 8)"."""
    for value in values:
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        if isinstance(value, (list, tuple)) and (found := in_words(value)):
            return found
    return ""


def _place() -> str:
    """The innermost line that is neither torch's nor of this file."""
    frame = sys._getframe(1)
    while frame.f_back and (_TORCH in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"
