"""The record of a rank's communication calls: a file mapped into memory, which others read when the rank hangs or dies.

It is written at each step of each call and read once in a while, so writing has to be cheap: a call has a slot, filled
when it begins, and what happens to it later changes one byte. A call is

    WAITED     somebody is in it, or waits for it
    BEGUN      it was begun, and the rank does something else meanwhile: `dist.isend`
    OVER       it has ended; the header says which was the last

The file: a header; a byte for each slot; the slots; for each process group, its members and how many collectives this
rank has begun in it.
"""

import mmap
import os
import struct
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

SLOTS, GROUPS = 48, 128  # calls and process groups that fit
FREE, WAITED, BEGUN, OVER = range(4)
_HEAD = struct.Struct("QBB")  # how often it was written; the slot of the last call that ended, and whether there is one
_CALL = struct.Struct("HQdB")  # bytes of the text, number, when it began, the group
_GROUP = struct.Struct("HQ")  # bytes of the text, how many collectives were begun
_SLOT, _ENTRY = 512, 1280  # bytes of a call and of a group
_STATES = _HEAD.size
_CALLS = _STATES + SLOTS
_GROUPS = _CALLS + SLOTS * _SLOT
SIZE = _GROUPS + GROUPS * _ENTRY
_NONE = 255  # the group of a call of which the group has no entry
_TORCH, _HERE = f"{os.sep}torch{os.sep}", os.path.dirname(__file__)


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
    waiting    somebody waits for it now (False: it was begun, and other things are done meanwhile; or it is over)
    """

    name: str
    group: str
    members: list[int]
    peer: int | None
    number: int
    tensor: str
    place: str
    began: float
    waiting: bool = True

    @property
    def collective(self) -> bool:
        """Whether all members of the group take part."""
        return self.name not in ("send", "recv")

    def __str__(self) -> str:
        toward = {"send": "to", "recv": "from"}.get(self.name)
        with_whom = f" {toward} {'any rank' if self.peer is None else f'rank {self.peer}'}" if toward else ""
        of_what = f" of {self.tensor}" if self.tensor else ""
        return f"{self.name}{with_whom}{of_what}, at {self.place}"


@dataclass
class Written:
    """What a rank has written: its unfinished calls, those first that it waits for; the last one that is over; how many
    collectives it has begun in each group; and how often it has written at all, which shows whether anything moves."""

    unfinished: list[Call]
    last: Call | None
    begun: dict[str, int]
    writes: int = 0

    @property
    def waiting(self) -> Call | None:
        """The call that the rank is stuck in, if it is in any."""
        return next((call for call in self.unfinished if call.waiting), None)


def glance(path: Path) -> tuple[int, bool]:
    """How often a record was written, and whether its rank waits in a call: a small part of what `read` reads."""
    with open(path, "rb") as file:
        data = file.read(_CALLS)
    return _HEAD.unpack_from(data)[0], WAITED in data[_STATES:]


def read(path: Path) -> Written:
    """All that a rank has written."""
    return _read(path.read_bytes())


def _read(data) -> Written:
    writes, last, any_last = _HEAD.unpack_from(data)
    groups, begun = [], {}
    for n in range(GROUPS):
        length, count = _GROUP.unpack_from(data, _GROUPS + n * _ENTRY)
        if not length:
            break
        text = _text(data, _GROUPS + n * _ENTRY + _GROUP.size, length)
        name, _, members = text.rpartition("\x1f")
        groups.append((name, [int(each) for each in members.split(",")]))
        begun[name] = count
    states = data[_STATES:_CALLS]
    calls = [(states[n], _call(data, n, states[n], groups)) for n in range(SLOTS) if states[n] in (WAITED, BEGUN)]
    unfinished = [call for _, call in sorted(calls, key=lambda each: (each[0], each[1].began))]
    return Written(unfinished, _call(data, last, OVER, groups) if any_last else None, begun, writes)


def _call(data, slot: int, state: int, groups: list[tuple[str, list[int]]]) -> Call:
    length, number, began, group = _CALL.unpack_from(data, _CALLS + slot * _SLOT)
    name, peer, tensor, place = _text(data, _CALLS + slot * _SLOT + _CALL.size, length).split("\x1f")
    of_group, members = groups[group] if group < len(groups) else ("", [])
    return Call(name, of_group, members, int(peer) if peer else None, number, tensor, place, began, state == WAITED)


def _text(data, at: int, length: int) -> str:
    return bytes(data[at : at + length]).decode("utf-8", "replace")


class Record:
    """Writes a rank's calls. One for a process; its threads may share it."""

    def __init__(self, path: Path):
        with open(path, "w+b") as file:
            file.write(bytes(SIZE))  # where the disk is full this fails, and not some write into memory later (SIGBUS)
            file.flush()
            self._memory = mmap.mmap(file.fileno(), SIZE)
        # A work may be collected, which ends its call, while another call is written.
        self._lock = threading.RLock()
        self._writes = 0
        self.clear()

    def clear(self) -> None:
        """Forgets everything, for the next run."""
        with self._lock:
            self._memory[:] = bytes(SIZE)
            self._keys = 0
            self._slot_of: dict[int, int | None] = {}  # of unfinished calls, by their keys; None: no slot was free
            self._kept: dict[int, tuple] = {}  # what a call without a slot would have written
            self._of_work: dict[int, tuple[weakref.ref, int]] = {}
            self._groups: dict[str, int] = {}
            self._messages: dict[tuple, int] = {}
            self._texts: dict[tuple, bytes] = {}
            self._last = _NONE
            self._moved()

    def begin(
        self, name: str, group: str, members: list[int], peer: int | None = None, tensor: str = "", place: str = ""
    ) -> int:
        """A call begins. Returns the key by which it ends."""
        file, line, function = _place() if not place else (place, None, None)
        with self._lock:
            index = self._groups.get(group)
            if index is None:
                index = self._add_group(group, members)
            if name in ("send", "recv"):
                number = self._messages[group, name, peer] = self._messages.get((group, name, peer), 0) + 1
            elif index != _NONE:
                at = _GROUPS + index * _ENTRY
                length, number = _GROUP.unpack_from(self._memory, at)
                number += 1
                _GROUP.pack_into(self._memory, at, length, number)
            else:
                number = 0
            text = self._texts.get((name, peer, tensor, file, line))
            if text is None:
                if len(self._texts) > 4096:
                    self._texts.clear()
                where = file if line is None else f"{file}:{line} in {function}"
                text = self._texts[name, peer, tensor, file, line] = _encoded(name, peer, tensor[:100], where)
            self._keys += 1
            self._slot_of[self._keys] = None
            self._kept[self._keys] = (len(text), number, time.monotonic(), index), text
            self._show(self._keys, WAITED)
            return self._keys

    def issued(self, key: int, work) -> None:
        """A call has returned a work, which somebody may wait for; or None, and it is over."""
        if work is None:
            return self.end(key)
        of_work = id(work)
        with self._lock:
            self._of_work[of_work] = weakref.ref(work, lambda _: self._collected(of_work)), key
            self._set(key, BEGUN)

    def wait(self, work) -> int | None:
        """Somebody begins to wait for a work. Returns the call's key, if the call is known."""
        with self._lock:
            _, key = self._of_work.get(id(work), (None, None))
            if key not in self._slot_of:
                return None
            self._set(key, WAITED)
            return key

    def end(self, key: int | None) -> None:
        """A call is over, well or not."""
        with self._lock:
            if key in self._slot_of:
                self._set(key, OVER)
                slot = self._slot_of.pop(key)
                self._kept.pop(key)
                if slot is not None:
                    self._last = slot
                    self._moved()

    def current(self) -> Call | None:
        """The call that somebody waits for now, or the last one."""
        with self._lock:
            written = _read(self._memory)
        return written.waiting or written.last

    def unfinished(self) -> int:
        """How many calls are not over."""
        return len(self._slot_of)

    def _set(self, key: int, state: int) -> None:
        if self._slot_of[key] is None:
            if state == WAITED:
                self._show(key, state)
            return
        self._memory[_STATES + self._slot_of[key]] = state
        self._moved()

    def _show(self, key: int, state: int) -> None:
        """Puts a call into a slot; one that is waited for takes the place of one that is not."""
        states = self._memory[_STATES:_CALLS]
        slot = states.find(FREE)
        if slot < 0 and (slot := states.find(OVER)) == self._last:
            slot = states.find(OVER, slot + 1)
        if slot < 0 and (slot := states.find(BEGUN)) < 0:
            return
        for other, taken in self._slot_of.items():
            if taken == slot:
                self._slot_of[other] = None
                break
        self._slot_of[key] = slot
        self._memory[_STATES + slot] = FREE
        numbers, text = self._kept[key]
        at = _CALLS + slot * _SLOT
        _CALL.pack_into(self._memory, at, *numbers)
        self._memory[at + _CALL.size : at + _CALL.size + len(text)] = text
        self._memory[_STATES + slot] = state
        self._moved()

    def _add_group(self, group: str, members: list[int]) -> int:
        text = f"{group[:200]}\x1f{','.join(map(str, members))}".encode()
        index = len(self._groups)
        if index >= GROUPS or len(text) > _ENTRY - _GROUP.size:
            self._groups[group] = _NONE
            return _NONE
        self._groups[group] = index
        at = _GROUPS + index * _ENTRY
        self._memory[at + _GROUP.size : at + _GROUP.size + len(text)] = text
        _GROUP.pack_into(self._memory, at, len(text), 0)
        return index

    def _collected(self, of_work: int) -> None:
        with self._lock:
            _, key = self._of_work.pop(of_work, (None, None))
            self.end(key)

    def _moved(self) -> None:
        self._writes += 1
        _HEAD.pack_into(self._memory, 0, self._writes, self._last if self._last != _NONE else 0, self._last != _NONE)


def _encoded(name: str, peer: int | None, tensor: str, place: str) -> bytes:
    head = f"{name}\x1f{'' if peer is None else peer}\x1f{tensor}\x1f".encode()
    room = _SLOT - _CALL.size - len(head)
    return head + place.encode()[-room:]  # of a long path, the end


def _place() -> tuple[str, int, str]:
    """File, line and function: the innermost that are neither torch's nor of this package."""
    frame = sys._getframe(2)
    while frame.f_back and (_TORCH in frame.f_code.co_filename or frame.f_code.co_filename.startswith(_HERE)):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
