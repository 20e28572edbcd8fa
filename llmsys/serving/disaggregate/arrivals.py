"""The receiving side: rows that arrive are written into the blocks that were reserved for them.

What arrives is written between two steps, by the thread that takes the steps: nobody writes pages while a step reads
them. (On a GPU in the order of its queue.) So nothing that comes late can do harm: an attempt that was given up is not
known any more, and its rows are dropped, whoever has the blocks by then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmsys.cache import CacheSpec, PagedCache
from llmsys.serving.disaggregate.push import LayerEvent, Piece
from llmsys.serving.disaggregate.relayout import slots_of, write_rows
from llmsys.serving.request import Request


class Announced(NamedTuple):
    """A frame begins."""

    sender: str
    frame: int
    pieces: tuple[Piece, ...]


class Rows(NamedTuple):
    """A layer of it is here, whole: (T, Hkv, D), on the engine's device or in CPU memory."""

    sender: str
    frame: int
    layer: int
    rows: Tensor
    read: Callable[[], object] | None = None
    """Called before the current stream reads them, where their memory is another stream's."""


class Cut(NamedTuple):
    """No more of it will come; what has come is right all the same."""

    sender: str
    frame: int


@dataclass
class Arriving:
    """An attempt of which something is missing."""

    request: Request
    missing: int  #  tokens times layers


@dataclass
class Frame:
    """A step's pieces, while their layers come."""

    pieces: tuple[Piece, ...]
    left: set[int]  #  layers that have not come
    wanted: list[Piece] | None = None
    slots: Tensor | None = None  #  of what is wanted, on the device


class Arrivals:
    """What one engine receives.

    Parameters
    ----------
    cache, spec, device, log
        As for `Push`.
    """

    def __init__(
        self,
        cache: PagedCache,
        spec: CacheSpec,
        device: torch.device,
        log: Callable[[LayerEvent], object] | None = None,
    ):
        self._cache, self._device, self._log = cache, device, log
        self._specs = {each.layer: each for each in spec.layers}
        self._arriving: dict[int, Arriving] = {}
        self._frames: dict[tuple[str, int], Frame] = {}

    def expect(self, key: int, request: Request, start: int) -> None:
        """The request has blocks; its tokens from `start` on will come, in all layers."""
        self._arriving[key] = Arriving(request, (len(request.tokens) - start) * len(self._specs))

    def forget(self, key: int) -> None:
        """It has been given up: what still comes of it is dropped."""
        self._arriving.pop(key, None)

    def lost(self, sender: str) -> None:
        """No more will come from there."""
        self._frames = {frame: rest for frame, rest in self._frames.items() if frame[0] != sender}

    def take(self, item: Announced | Rows | Cut) -> list[int]:
        """Takes in what came. The keys of attempts of which all is here now."""
        frame = item.sender, item.frame
        if isinstance(item, Announced):
            self._frames[frame] = Frame(tuple(item.pieces), set(self._specs))
            return []
        if isinstance(item, Cut):
            self._frames.pop(frame, None)
            return []
        if frame not in self._frames:  # of one who is lost
            return []
        coming = self._frames[frame]
        coming.left.remove(item.layer)
        if not coming.left:
            del self._frames[frame]
        return self._write(item, coming)

    @torch.inference_mode()  # as the pages were made
    def _write(self, item: Rows, frame: Frame) -> list[int]:
        spec, whole = self._specs[item.layer], []
        wanted = [piece for piece in frame.pieces if piece.key in self._arriving]
        if wanted:
            if item.read is not None:
                item.read()
            keys, values = self._cache.pages_of(spec, self._device)
            rows = item.rows if len(wanted) == len(frame.pieces) else _rows_of(wanted, frame.pieces, item.rows)
            slots = self._slots(frame, wanted)
            write_rows(rows.to(self._device), keys, None if spec.values_in_keys else values, slots)
        for piece in wanted:
            arriving = self._arriving[piece.key]
            arriving.missing -= piece.stop - piece.start
            if not arriving.missing:
                del self._arriving[piece.key]
                whole.append(piece.key)
        if self._log is not None:
            self._log(LayerEvent("received", item.layer, tuple(piece.key for piece in frame.pieces)))
        return whole

    def _slots(self, frame: Frame, wanted: list[Piece]) -> Tensor:
        """On the device, where they are sent once for all layers, as long as the same pieces are wanted."""
        if frame.slots is None or frame.wanted != wanted:
            of_each = [
                slots_of(self._arriving[key].request.table.blocks, self._cache.block_size, start, stop)
                for key, start, stop in wanted
            ]
            frame.wanted, frame.slots = wanted, torch.cat(of_each).to(self._device, non_blocking=True)
        return frame.slots


def _rows_of(wanted: Sequence[Piece], pieces: Sequence[Piece], rows: Tensor) -> Tensor:
    """Those of some of a frame's pieces."""
    parts = rows.split([piece.stop - piece.start for piece in pieces])
    return torch.cat([part for piece, part in zip(pieces, parts, strict=True) if piece in wanted])
