"""A machine with two memories, to count what an algorithm moves between them.

A GPU computes on what is on the chip: a few hundred kilobytes a multiprocessor, called SRAM here. Everything else lives
in a memory that is a thousand times as large and slower by an order of magnitude, HBM. Which of the two a tensor is in
is not visible in PyTorch. Here it is:

    with HBM(sram=64 * KIB, q=q, k=k) as hbm:          # q and k live in HBM
        s = hbm.empty((T, T), dtype=q.dtype, name="s")
        tile = hbm.load(q[:64]) @ hbm.load(k[:64]).T   # loaded, a tile is on the chip, and so is what is computed of it
        hbm.store(s[:64, :64], tile)
    hbm.loaded["q"], hbm.stored["s"], hbm.sram_peak    # bytes

Three rules hold inside the block, and the line that breaks one raises an error. An operation may not be given a tensor
that was not loaded (`NotLoaded`). What is on the chip takes room for as long as it is alive, temporaries too, and must
fit (`SRAMOverflow`). And a tensor made with `empty` is NaN until it is stored to. Every byte that crosses is counted,
by tensor. Otherwise an algorithm is plain PyTorch: one with an argument `hbm`, which is `DIRECT` by default, runs
anywhere, uncounted.

The model is that of I/O complexity (Aggarwal and Vitter, https://doi.org/10.1145/48529.48535; for attention: Dao et
al., https://arxiv.org/abs/2205.14135, section 3.2): a word costs nothing on the chip and one transfer to get there.
Registers, caches and the width of a transfer are left out.
"""

import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from llmsys.hardware.dispatch import (
    FunctionObserver,
    Observer,
    is_freed,
    is_view,
    only_takes_the_shape,
    storage_id,
    tensors_in,
)

KIB = 1024
H100_SRAM = 227 * KIB
"""Bytes that one program can have on an H100's multiprocessor (CUDA C++ programming guide, compute capability 9.0)."""


class NotLoaded(RuntimeError):
    """An operation was given a tensor that is in HBM."""


class SRAMOverflow(RuntimeError):
    """More is alive on the chip than fits."""


@dataclass(frozen=True)
class Transfer:
    """One tile that crossed between HBM and chip.

    kind     "load" or "store"
    tensor   the name of the tensor in HBM that the tile is of
    start    the index of the tile's first element in that tensor
    """

    kind: str
    tensor: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    bytes: int


class Direct:
    """The interface of `HBM` without the rules and the counting. `DIRECT` is the one that is used everywhere."""

    def load(self, tile: Tensor) -> Tensor:
        """A copy of the tile, so that what is done in place changes the copy and not the tensor."""
        return tile.clone()

    def store(self, into: Tensor, value: Tensor) -> None:
        """Write `value` into `into`, a view of a tensor in HBM, converted to that tensor's dtype.

        Raises ValueError where their shapes differ.
        """
        if into.shape != value.shape:
            raise ValueError(f"store: value must have the shape of what it overwrites, {tuple(into.shape)}, got "
                             f"{tuple(value.shape)}")  # fmt: skip
        into.copy_(value)

    def empty(
        self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, device=None, name: str = ""
    ) -> Tensor:
        """A tensor to be stored to; until then all NaN. `name` is what it is called in counts and messages."""
        return torch.full(shape, float("nan"), dtype=dtype, device=device)


DIRECT = Direct()


class HBM(Direct):
    """HBM that holds the named tensors, beside a chip with `sram` bytes for each program (None: any number).

    A tensor often carries a batch of heads that are computed side by side, each by a program on a multiprocessor of its
    own. `programs` says how many there are: each has `sram` bytes, and bytes that cross are counted for all together.

    Within the block no gradient is recorded: autograd would keep every tile alive.
    """

    def __init__(self, *, sram: int | None = H100_SRAM, programs: int = 1, **tensors: Tensor):
        if programs < 1:
            raise ValueError(f"programs must be at least 1, got {programs}")
        if sram is not None and sram < 1:
            raise ValueError(f"sram must be a number of bytes, or None for a chip without limit, got {sram}")
        self.sram, self.programs = sram, programs
        self.loaded: Counter[str] = Counter()
        """Bytes that were loaded, by tensor."""
        self.stored: Counter[str] = Counter()
        """Bytes that were stored, by tensor."""
        self.transfers: list[Transfer] = []
        self.sram_peak = 0
        """The most bytes that one program had on the chip."""
        self._homes: dict[int, tuple[str, Tensor]] = {}
        for name, tensor in tensors.items():
            self._place(name, tensor)
        self._watch, self._no_way_around = _Watch(self), _NoWayAround(self)

    @property
    def bytes(self) -> int:
        """Bytes that crossed, both ways together."""
        return self.loaded.total() + self.stored.total()

    def __enter__(self) -> "HBM":
        self._no_grad = torch.no_grad()
        self._no_grad.__enter__()
        self._watch.__enter__()
        self._no_way_around.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._no_way_around.__exit__(*error)
        self._watch.__exit__(*error)
        self._no_grad.__exit__(*error)

    def load(self, tile: Tensor) -> Tensor:
        """Bring a view of a tensor in HBM onto the chip. Raises ValueError for one that is not in HBM."""
        name = self._count("load", tile)
        with self._watch.crossing():
            copy = tile.clone()
        self._watch.arrive(copy, "loaded of", name)
        return copy

    def store(self, into: Tensor, value: Tensor) -> None:
        self._count("store", into)
        with self._watch.crossing():
            super().store(into, value)

    def empty(
        self, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, device=None, name: str = ""
    ) -> Tensor:
        if device is None and self._homes:
            device = next(iter(self._homes.values()))[1].device
        with self._watch.crossing():
            tensor = super().empty(shape, dtype=dtype, device=device)
        self._place(name or f"empty {len(self._homes)}", tensor)
        return tensor

    def home(self, tensor: Tensor) -> str | None:
        """The name of the tensor in HBM that this is, or is a view of; None for what is on the chip."""
        return self._homes.get(storage_id(tensor), (None,))[0]

    def _place(self, name: str, tensor: Tensor) -> None:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor to live in HBM, got {type(tensor).__name__}")
        self._homes[storage_id(tensor)] = (name, tensor)  # keeps it, so that its storage is nobody else's

    def _count(self, kind: str, tile: Tensor) -> str:
        if (name := self.home(tile)) is None:
            names = ", ".join(name for name, _ in self._homes.values()) or "nothing"
            raise ValueError(f"{kind}: a tile of shape {tuple(tile.shape)} is not in HBM, which holds {names}: "
                             "give a view of one of these, such as q[:, :, 0:64]")  # fmt: skip
        size = tile.numel() * tile.element_size()
        home = self._homes[storage_id(tile)][1]
        with self._watch.lock:
            (self.loaded if kind == "load" else self.stored)[name] += size
            self.transfers.append(Transfer(kind, name, _index(tile, home), tuple(tile.shape), size))
        return name


class _Watch(Observer):
    """Sees every operation in the block: what it is given must be on the chip, and what it makes takes room there."""

    def __init__(self, hbm: HBM):
        super().__init__()
        self.hbm = hbm
        self.lock = threading.RLock()  # several threads may share the chip
        self.thread = threading.local()  # its `is_crossing`: whether this thread is in `crossing`
        # What is on the chip: its memory, bytes, how it came there, of what, its shape. Some may be gone.
        self.alive: list[tuple[StorageWeakRef, int, str, object, tuple[int, ...]]] = []
        self.bytes = 0  # of all that

    @contextmanager
    def crossing(self):
        """While `load`, `store` and `empty` do their own work, the rules do not hold."""
        self.thread.is_crossing = True
        try:
            yield
        finally:
            self.thread.is_crossing = False

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(self.thread, "is_crossing", False) or is_view(operator):
            return operator(*args, **kwargs)
        given = tensors_in((args, kwargs))
        if not only_takes_the_shape(operator):
            for tensor in given:
                if name := self.hbm.home(tensor):
                    raise NotLoaded(
                        f"{operator.overloadpacket} was given {name}, shape {tuple(tensor.shape)}, which is in HBM: "
                        f"hbm.load(...) a tile of it first, or hbm.store(...) into it"
                    )
        result = operator(*args, **kwargs)
        known = {storage_id(tensor) for tensor in given}
        for tensor in tensors_in(result):
            if storage_id(tensor) not in known:
                self.arrive(tensor, "made by", operator)
        return result

    def arrive(self, tensor: Tensor, how: str, of: object) -> None:
        """The tensor is on the chip from now on, "made by" an operator or "loaded of" a name. Raises SRAMOverflow where
        it does not fit."""
        with self.lock:
            self._arrive(tensor, how, of)

    def _arrive(self, tensor: Tensor, how: str, of: object) -> None:
        storage = tensor.untyped_storage()
        self.alive.append((StorageWeakRef(storage), storage.nbytes(), how, of, tuple(tensor.shape)))
        self.bytes += storage.nbytes()
        if -(-self.bytes // self.hbm.programs) <= self.hbm.sram_peak:
            return  # whatever of it is gone: it has been more
        self.alive = [entry for entry in self.alive if not is_freed(entry[0].cdata)]
        self.bytes = sum(size for _, size, *_ in self.alive)
        live = -(-self.bytes // self.hbm.programs)
        if self.hbm.sram is not None and live > self.hbm.sram:
            largest = sorted(self.alive, key=lambda entry: -entry[1])[:6]
            listed = "; ".join(
                f"{size // self.hbm.programs:,} {how} {getattr(of, 'overloadpacket', of)} {shape}"
                for _, size, how, of, shape in largest
            )
            raise SRAMOverflow(
                f"{live:,} bytes are alive on a chip that has {self.hbm.sram:,}. The largest: {listed}. "
                "Take smaller tiles, work in place (x.exp_(), x.mul_(…)), or del what is done with"
            )
        self.hbm.sram_peak = max(self.hbm.sram_peak, live)


class _NoWayAround(FunctionObserver):
    """Refuses to turn a tensor in HBM into a NumPy array, a list or an address: no operations, so that `_Watch` does
    not see them."""

    OUT = ("numpy", "tolist", "__array__", "__dlpack__", "data_ptr")

    def __init__(self, hbm: HBM):
        super().__init__()
        self.hbm = hbm

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in self.OUT and (name := self.hbm.home(args[0])):
            raise NotLoaded(
                f"{function.__name__}() was called on {name}, which is in HBM: hbm.load(...) a tile of it first"
            )
        return function(*args, **(kwargs or {}))


def _index(tile: Tensor, home: Tensor) -> tuple[int, ...]:
    """The index in `home` of the first element of `tile`, a view of it."""
    index, offset = [0] * home.dim(), tile.storage_offset() - home.storage_offset()
    for dim in sorted(range(home.dim()), key=lambda dim: -home.stride(dim)):
        if home.stride(dim) and home.shape[dim] > 1:
            index[dim], offset = divmod(offset, home.stride(dim))
    return tuple(index)
