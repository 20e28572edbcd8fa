"""What is alive: how much memory a piece of PyTorch holds at once, and how it reads the tensors that it is given.

The largest tensor says little of a program that keeps a row as a list of tiles, in a NumPy array, or as Python's
numbers. What is alive does: here the memory of every tensor that an operation makes is counted until it is freed.

    with memory_of({"x": x}) as memory:
        y = online_softmax(x, tile=64)
    memory.reads["x"].passes, memory.alive.beside(y)

A tensor that leaves torch, by `x.numpy()` or `x.tolist()`, is read as a whole, and an array of NumPy that was made so
is alive until it is freed. What is computed of it then can no longer be followed; so that it is not followed back
either, to what lies beside a tile, the array has memory of its own. While the given tensors are read, the variables of
the functions that run in the block are looked through for arrays of NumPy and for numbers, in lists, tuples and dicts,
too: they are alive as well.

By its address, its storage or DLPack a tensor can be read without an end. `memory.left` says by which ways data left
torch in the block, these and NumPy and lists among them. Whole numbers may leave as numbers: a list of sizes or of
places is nobody's data.
"""

import ctypes
import inspect
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from llmsys.hardware.dispatch import (
    FunctionObserver,
    Observer,
    argument_names,
    is_freed,
    is_view,
    only_moves,
    only_takes_the_shape,
    overwritten,
    storage_id,
    tensors_in,
)


@dataclass
class Allocation:
    """The largest tensor that one operation allocated: its `bytes` and `shape`. Zero and () where there was none."""

    bytes: int = 0
    shape: tuple[int, ...] = ()


@dataclass
class Reads:
    """How many `elements` were read of a tensor that has `size` elements, and how many of them `at_once`: by that
    operation which read the most."""

    size: int
    elements: int = 0
    at_once: int = 0

    @property
    def passes(self) -> float:
        """How many times over the tensor was read."""
        return self.elements / self.size if self.size else 0.0


class Alive:
    """How many bytes were alive at once, in each pass over the tensors that are read.

    The first pass (number 0) ends when one of them has been read once over, the second when one has been read twice,
    and so on. `peaks` has the most bytes of each pass.
    """

    def __init__(self) -> None:
        self.large = 0  # bytes from which on a tensor is counted apart, so that it can be left out as a result
        self._alive: dict[int, tuple[StorageWeakRef, int, int]] = {}  # its memory, bytes, and `_births` at its own
        self._bytes = 0
        self._arrays: dict[int, int] = {}  # NumPy's, of the given tensors' memory: their bytes
        self._births = 0  # of large tensors
        self._most: dict[tuple[int, int], int] = {}  # bytes, in each pass and after each birth
        self._pass = 0

    @property
    def peaks(self) -> tuple[int, ...]:
        return self.beside(())

    def beside(self, result: object) -> tuple[int, ...]:
        """The most bytes in each pass, without the memory of the tensors in `result`, which were made in the block."""
        apart, foreign = [], 0
        plain = [x for x in tensors_in(result) if type(x) is Tensor]  # of another class, it may say anything
        for storage in {storage_id(x): x.untyped_storage() for x in plain}.values():
            if storage._cdata in self._alive:
                apart.append(self._alive[storage._cdata][1:])
            else:  # it is NumPy's
                foreign += storage.nbytes()
        peaks = [0] * (self._pass + 1)
        for (number, births), size in self._most.items():
            size -= sum(own for own, birth in apart if birth <= births) + foreign
            peaks[number] = max(peaks[number], size)
        return tuple(peaks)

    def made(self, storage: torch.UntypedStorage) -> None:
        """That memory is new, or has grown."""
        _, size, _ = self._alive.get(storage._cdata, (None, 0, 0))
        self._births += storage.nbytes() > self.large
        self._bytes += storage.nbytes() - size
        self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), self._births)

    def shared(self, array: np.ndarray) -> None:
        """That array holds what a given tensor does."""
        self._arrays[id(array)] = array.nbytes
        weakref.finalize(array, self._arrays.pop, id(array)).atexit = False

    def note(self, elsewhere: int = 0) -> None:
        """Look at what is alive now, beside so many bytes that are no tensors."""
        when = self._pass, self._births
        most, beside = self._most.get(when, 0), sum(self._arrays.values()) + elsewhere
        if self._bytes + beside > most:  # unless some of it is gone, which is asked only here: it takes a while
            for key in [key for key, (memory, *_) in self._alive.items() if is_freed(memory.cdata)]:
                self._bytes -= self._alive.pop(key)[1]
            self._most[when] = max(most, self._bytes + beside)

    def begin(self, number: int) -> None:
        """So many passes are complete."""
        self._pass = number


@dataclass
class Memory:
    """What `memory_of` meters: how the given tensors are read, the largest tensor made, and what is `alive`.

    `afterwards` counts what is computed from other memory once the given tensors have been read for the last time: of
    each operation that does more than copy, the elements of its largest tensor. A loop that finishes a tile before it
    reads the next one leaves a few tiles; one more pass over its result leaves all of it.
    """

    reads: dict[Hashable, Reads]
    afterwards: int = 0
    largest: Allocation = field(default_factory=Allocation)
    alive: Alive = field(default_factory=Alive)
    left: list[str] = field(default_factory=list)


@contextmanager
def memory_of(tensors: Mapping[Hashable, Tensor]) -> Iterator[Memory]:
    """Meter how `tensors` are read, the largest tensor made, and what is alive beside the given ones, which were there
    before."""
    memory = Memory({key: Reads(size=x.numel()) for key, x in tensors.items()})
    reads: dict[int, list[Reads]] = {}  # of each storage: several tensors may share one
    for key, x in tensors.items():
        reads.setdefault(storage_id(x), []).append(memory.reads[key])
    memory.alive.large = max((x.nbytes for x in tensors.values()), default=0) // 8
    operations = _Operations(memory, reads)
    with _Leaving(operations), operations:
        yield memory


class _Operations(Observer):
    """Sees what operations read and make."""

    LOOKS = 16  # into the variables, in a pass

    def __init__(self, memory: Memory, reads: dict[int, list[Reads]]):
        super().__init__()
        self.memory, self.reads = memory, reads
        self.lock = threading.RLock()
        self.size = sum(reads.size for reads in memory.reads.values()) or 1
        self.looked = 0.0  # passes over all of them that were complete when the variables were last looked through
        # With their code: a frame of those here that has ended may leave its number to one of the block's.
        self.outside = {id(frame): frame.f_code for frame in _frames()}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_view(operator):
            return operator(*args, **kwargs)
        given = {s._cdata: s.nbytes() for s in [x.untyped_storage() for x in tensors_in((args, kwargs))]}
        read = [] if self.reads.keys().isdisjoint(given) else self._read(operator, args, kwargs)
        result = operator(*args, **kwargs)
        with self.lock:
            for x in tensors_in(result):
                self._made(x, given)
            self.memory.alive.note()
            if read:
                self.count(read)
            elif not (only_moves(operator) or only_takes_the_shape(operator)):
                self.memory.afterwards += max((x.numel() for x in tensors_in((args, kwargs))), default=0)
        return result

    def count(self, read: list[Tensor]) -> None:
        """The elements of these tensors were read at once."""
        self.memory.afterwards = 0
        views: dict[int, dict[tuple, int]] = {}  # of each storage the different ones: x * x has one tile, and not two
        for x in read:
            for reads in self.reads[storage_id(x)]:
                reads.elements += x.numel()
            views.setdefault(storage_id(x), {})[x.storage_offset(), x.shape, x.stride()] = x.numel()
        for storage, sizes in views.items():
            for reads in self.reads[storage]:
                reads.at_once = max(reads.at_once, sum(sizes.values()))
        passes = sum(reads.elements for reads in self.memory.reads.values()) / self.size
        if passes >= self.looked + 1 / self.LOOKS:
            self.looked = passes
            self.memory.alive.note(_held(self.outside))
        self.memory.alive.begin(int(max(reads.passes for reads in self.memory.reads.values())))

    def _read(self, operator, args, kwargs) -> list[Tensor]:
        """What the operation reads of the tensors that are metered."""
        if only_takes_the_shape(operator):
            return []
        not_read = overwritten(operator)
        named = dict(zip(argument_names(operator), args, strict=False)) | kwargs
        given = [x for name, value in named.items() if name not in not_read for x in tensors_in(value)]
        return [x for x in given if storage_id(x) in self.reads]

    def _made(self, x: Tensor, given: dict[int, int]) -> None:
        storage = x.untyped_storage()
        size = storage.nbytes()
        if size <= given.get(storage._cdata, -1):
            return
        if size > self.memory.largest.bytes:
            self.memory.largest.bytes, self.memory.largest.shape = size, tuple(x.shape)
        self.memory.alive.made(storage)


class _Leaving(FunctionObserver):
    """Sees how tensors leave torch, or are copied, without an operation: all of their elements are read."""

    COPIED = ("__deepcopy__",)  # it stays in torch, and no operation is seen
    OUT = ("numpy", "tolist", "__array__", "__dlpack__")
    FOR_GOOD = (
        "storage", "untyped_storage", "_typed_storage", "data_ptr", "const_data_ptr", "mutable_data_ptr",
        "__dlpack__", "__reduce_ex__", "share_memory_",
    )  # fmt: skip

    def __init__(self, operations: _Operations):
        super().__init__()
        self.operations = operations

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if not args or name not in (*self.COPIED, *self.OUT, *self.FOR_GOOD):
            return function(*args, **(kwargs or {}))
        # What torch, Triton and these meters themselves do with a tensor's memory is none of the block's doing.
        # (They have no use for DLPack: torch.from_dlpack is called by the block.)
        leaves = name == "__dlpack__" or name not in self.COPIED and not _is_ours(_caller(sys._getframe(1), name))
        given = storage_id(args[0]) in self.operations.reads
        if leaves and (args[0].is_floating_point() or (given and name in self.FOR_GOOD)):
            with self.operations.lock:
                if name not in self.operations.memory.left:
                    self.operations.memory.left.append(name)
        if not given or not (leaves or name in (*self.COPIED, *self.OUT)):
            return function(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        with self.operations.lock:
            if isinstance(result, np.ndarray):
                result = _apart(result)
                self.operations.memory.alive.shared(result)
            self.operations.memory.alive.note()
            self.operations.count([args[0]])
        return result


def _apart(array: np.ndarray) -> np.ndarray:
    """The same array in memory that holds nothing else. It is torch's, which `_held` leaves out: it is counted."""
    with _disable_current_modes():
        return torch.from_numpy(np.array(array)).numpy()


def _frames() -> Iterator[FrameType]:
    """The functions that run in this thread, the innermost first."""
    frame = sys._getframe(1)
    while frame := frame.f_back:
        yield frame


def _held(outside: dict[int, CodeType]) -> int:
    """Bytes of NumPy's arrays and of Python's numbers in the variables of the functions that run, but for those whose
    frames are `outside`, by their id and with their code. A number is taken for 8 bytes."""
    values: list = []
    for frame in itertools.takewhile(lambda frame: outside.get(id(frame)) is not frame.f_code, _frames()):
        if not _is_ours(frame):
            values.extend(_variables(frame))
    seen: set[int] = set()
    size = 0
    while values:
        value = values.pop()
        if type(value) in (float, int):
            size += 8
        elif isinstance(value, np.generic):
            size += value.nbytes
        elif isinstance(value, (list, tuple, set, dict, np.ndarray)) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, np.ndarray):
                values.append(value.base)
                size += value.nbytes if value.flags.owndata else 0
            else:
                values.extend(value.values() if isinstance(value, dict) else value)
    return size


def _caller(frame: FrameType, name: str) -> FrameType:
    """The function that has called torch's method `name`: behind other observers, which hand the call on, and behind
    the method itself, where it is written in Python (`Tensor.__array__`)."""
    handed_on = ("__torch_function__", "handle_torch_function", name)
    while frame.f_code.co_name in handed_on and frame.f_back is not None:
        frame = frame.f_back
    return frame


def _is_ours(frame: FrameType) -> bool:
    """Whether that function is one of torch's, of Triton's or of the instruments: by its name and by its file."""
    return frame.f_globals.get("__name__", "").startswith(_OURS) and frame.f_code.co_filename.startswith(_FILES)


_OURS = ("torch.", "triton.", "llmsys.hardware.")
_PACKAGES = Path(torch.__file__).parents[1]
_FILES = (f"{_PACKAGES / 'torch'}{os.sep}", f"{_PACKAGES / 'triton'}{os.sep}", f"{Path(__file__).parent}{os.sep}")


def _variables(frame: FrameType) -> list:
    """The values of a running function's variables."""
    if not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        return []  # no function: its variables are a module's
    variables = frame.f_locals
    values = list(variables.values())
    if sys.version_info < (3, 13):
        # Up to Python 3.12 this is a copy, which stays with the frame and keeps alive what is in it. Under a profile
        # function, Python 3.11 would also renew it later. Say that nothing in it has changed, and empty it.
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), 0)
        variables.clear()
    return values
