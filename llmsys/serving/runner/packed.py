"""Many small arrays on their way to the device in one copy, which nobody waits for.

    packing = Packing(tokens=(np.int32, 8), u=(np.float64, 8))
    buffer = sender.send(packing, {"tokens": [5, 9], "u": [0.25, 0.5]})
    packing.tensors(buffer)["tokens"]                                    # on the device, (8,): what is left over is 0

A copy runs while the host goes on only if it leaves from pinned memory, which is dear to get, so there are a few pieces
of it that are used in turn. Each has an event that says when the copy which left it last is done: until then nobody
writes to it. A step sends three times at most, and two steps are under way: with six pieces nobody has to wait.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

ALIGNED = 64
"""Bytes. Triton compiles a kernel anew for pointers that are not aligned as they were."""
PIECES = 6

_TYPES = {np.int32: torch.int32, np.int64: torch.int64, np.float64: torch.float64}


class Packing:
    """Which arrays lie in a buffer, and where. `parts` are types (of NumPy's) and how many elements there are."""

    def __init__(self, **parts: tuple[type, int]):
        self.parts, self.bytes = [], 0
        for name, (dtype, count) in parts.items():
            length = count * np.dtype(dtype).itemsize
            self.parts.append((name, dtype, self.bytes, self.bytes + length))
            self.bytes += -(-length // ALIGNED) * ALIGNED

    def arrays(self, buffer: np.ndarray) -> dict[str, np.ndarray]:
        return {name: buffer[start:end].view(dtype) for name, dtype, start, end in self.parts}

    def tensors(self, buffer: Tensor) -> dict[str, Tensor]:
        return {name: buffer[start:end].view(_TYPES[dtype]) for name, dtype, start, end in self.parts}


class Sender:
    """Sends packed arrays to one device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._pieces = [_Piece(device) for _ in range(PIECES)]
        self._next = 0

    def send(self, packing: Packing, values: Mapping[str, np.ndarray], target: Tensor | None = None) -> Tensor:
        """The buffer on the device, uint8; `target` is written over where it is given.

        `values` may be shorter than their parts: what is left over is 0, but for what `values` themselves say of it by
        a pair (array, rest).
        """
        piece = self._pieces[self._next]
        self._next = (self._next + 1) % PIECES
        piece.wait()
        arrays = piece.arrays(packing)
        for name, array in arrays.items():
            value = values[name]
            value, rest = value if isinstance(value, tuple) else (value, 0)
            n = len(value)
            array[:n] = value
            if n < len(array):
                array[n:] = rest
        if target is None:
            target = torch.empty(packing.bytes, dtype=torch.uint8, device=self.device)
        target.copy_(piece.tensor[: packing.bytes], non_blocking=True)
        piece.sent()
        return target


class _Piece:
    """Of the host's memory."""

    def __init__(self, device: torch.device):
        self._pinned = device.type == "cuda"
        self._event: torch.cuda.Event | None = None
        self._packing: Packing | None = None
        self._arrays: dict[str, np.ndarray] = {}
        self.tensor = torch.empty(0, dtype=torch.uint8)

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def arrays(self, packing: Packing) -> dict[str, np.ndarray]:
        if packing is not self._packing:  # else they are the same as last time
            if packing.bytes > self.tensor.numel():
                self.tensor = torch.empty(max(2 * packing.bytes, 4096), dtype=torch.uint8, pin_memory=self._pinned)
            self._packing, self._arrays = packing, packing.arrays(self.tensor.numpy())
        return self._arrays

    def sent(self) -> None:
        if self._pinned:
            if self._event is None:
                self._event = torch.cuda.Event()
            self._event.record()


class Fetched:
    """Drawn tokens on their way to the host: the copy begins as this is made."""

    def __init__(self, tokens: Tensor, free: list["_Landing"]):
        """`free` has pinned memory that nobody uses; what is used here comes back to it when it is read."""
        self._count, self._free, self._landing = len(tokens), free, None
        self._host = tokens
        if tokens.is_cuda:
            landing = free.pop() if free else None
            if landing is None or len(landing.tensor) < self._count:
                landing = _Landing(max(64, 1 << (self._count - 1).bit_length()))
            landing.tensor[: self._count].copy_(tokens, non_blocking=True)
            landing.event.record()
            self._landing = landing

    def tokens(self) -> list[int]:
        """Waits until they are here. To be asked for once."""
        landing, self._landing = self._landing, None
        if landing is None:
            return self._host.tolist()
        landing.event.synchronize()
        found = landing.array[: self._count].tolist()
        self._free.append(landing)
        return found


class _Landing:
    """Of the host's memory, for so many tokens, and when the copy to it is done."""

    def __init__(self, room: int):
        self.tensor = torch.empty(room, dtype=torch.int32, pin_memory=True)
        self.array = self.tensor.numpy()
        self.event = torch.cuda.Event()
