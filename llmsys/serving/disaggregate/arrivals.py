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
        self._frames: dict[tuple[str, int], tuple[tuple[Piece, ...], set[int]]] = {}

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
            self._frames[frame] = tuple(item.pieces), set(self._specs)
            return []
        if isinstance(item, Cut):
            self._frames.pop(frame, None)
            return []
        if frame not in self._frames:  # of one who is lost
            return []
        pieces, left = self._frames[frame]
        left.remove(item.layer)
        if not left:
            del self._frames[frame]
        return self._write(item, pieces)

    @torch.inference_mode()  # as the pages were made
    def _write(self, item: Rows, pieces: Sequence[Piece]) -> list[int]:
        spec, first, found, slots, whole = self._specs[item.layer], 0, [], [], []
        for piece in pieces:
            rows, first = slice(first, first + piece.stop - piece.start), first + piece.stop - piece.start
            arriving = self._arriving.get(piece.key)
            if arriving is None:
                continue
            blocks = arriving.request.table.blocks
            slots.append(slots_of(blocks, self._cache.block_size, piece.start, piece.stop))
            found.append(rows)
            arriving.missing -= piece.stop - piece.start
            if not arriving.missing:
                del self._arriving[piece.key]
                whole.append(piece.key)
        if found:
            if item.read is not None:
                item.read()
            keys, values = self._cache.pages_of(spec, self._device)
            rows = item.rows if len(found) == len(pieces) else torch.cat([item.rows[each] for each in found])
            write_rows(rows.to(self._device), keys, None if spec.values_in_keys else values, torch.cat(slots))
        if self._log is not None:
            self._log(LayerEvent("received", item.layer, tuple(piece.key for piece in pieces)))
        return whole
