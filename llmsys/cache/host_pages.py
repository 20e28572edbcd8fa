"""The host tier's memory: slots in main memory, each with the keys and values of one block in all layers.

    host = HostPages(slots_of(2 << 30, spec, 16), spec, 16, device=model.device)
    cache = PagedCache(num_blocks=1000, block_size=16, spec=spec, host=host)
    cache.copy_blocks(plan.copies)                 # those out and in among them, before the step

On the device a block is scattered, a page of it in each layer's keys and values. A copy over the link is fast if it is
large, so a block crosses as one piece: its pages are gathered on the device into a row of bytes, and the row is copied;
on its way back the row is scattered again. A row is as a slot is:

    │ layer 0: keys │ values │ layer 1: keys │ values │ …      each padded to 16 bytes; without values where those
                                                               are columns of the keys (absorbed latent attention)

**On a GPU nobody waits who need not.** The model's steps run on torch's current stream, copies over the link on two
others, one each way, for the link works both ways at once:

    steps     │ step n ──────────────────────►│gather│step n + 1 …             │gather│ scatter │step n + 2 …
    out                                              └►│ rows ──► slots │
    in                 │ slots ──► rows │ begun in the shadow of step n + 1, waited for by the scatter alone │

*Out*: the gather has read the block before the step overwrites it, so the step goes on at once (or, where there are
more blocks than `AT_ONCE`, when the link is done with all but the last turn). *In*: the host launches a step while the
one before it runs (`Execution.ahead`), so the copy begins then, and only the scatter waits for it. A copy in waits for
the copy out that wrote its slot, by that one's event, and a copy out for all copies in before it. The memory is pinned,
or no copy could run while the host goes on. (torch takes pinned memory in powers of two: a budget of 3 GiB costs 4 on a
GPU.)

On a CPU the same copies are made in order, and are done when the call returns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.cache.block_table import CopyIn, CopyOut
from llmsys.cache.spec import CacheSpec

ALIGNED = 16
AT_ONCE = 64 << 20
"""Bytes of rows on the device, for as long as they are on their way: more blocks than fit are copied in turns, in the
same rows. (New ones would be taken before the link is done with any: a long prompt that evicts a whole pool would want
as much memory again.)"""


@dataclass(frozen=True)
class Part:
    """Where a layer's keys, or values, lie in a row."""

    layer: int
    values: bool
    start: int
    end: int  #  of the bytes that are used


def parts_of(spec: CacheSpec, block_size: int) -> tuple[tuple[Part, ...], int]:
    """The parts of a row, and its bytes."""
    parts, at = [], 0
    for each in spec.layers:
        sizes = (each.Dk,) if each.values_in_keys else (each.Dk, each.Dv)
        for values, size in enumerate(sizes):
            end = at + block_size * each.heads * size * each.dtype.itemsize
            parts.append(Part(each.layer, bool(values), at, end))
            at = -(-end // ALIGNED) * ALIGNED
    return tuple(parts), at


def slots_of(budget: int, spec: CacheSpec, block_size: int) -> int:
    """How many blocks fit into so many bytes of main memory. ValueError where not even one does."""
    _, row = parts_of(spec, block_size)
    if budget < row:
        raise ValueError(
            f"host_cache must have room for a block of {block_size} tokens, {row:,} bytes, or be 0 for none, got "
            f"{budget:,} bytes"
        )
    return budget // row


class HostPages:
    """Memory for `slots` blocks, taken at once.

    Parameters
    ----------
    slots
        How many: as many as the pool's `host_blocks`.
    spec
        The model's `cache_spec()`.
    block_size
        Tokens in a block.
    device
        Where the pages are. On a GPU the memory is pinned.

    Raises
    ------
    ValueError
        A layer keeps further entries; or there are no slots.
    RuntimeError
        torch's, where there is no such memory.
    """

    def __init__(self, slots: int, spec: CacheSpec, block_size: int, *, device: torch.device | str = "cpu"):
        if slots < 1:
            raise ValueError(f"slots must be at least 1, got {slots}")
        if strange := [each.layer for each in spec.layers if each.entries]:
            raise ValueError(f"the host tier keeps keys and values alone, and layer {strange[0]} has further entries")
        self.slots, self.device = slots, torch.device(device)
        self._parts, self.row_bytes = parts_of(spec, block_size)
        on_gpu = self.device.type == "cuda"
        self.rows = torch.empty(slots, self.row_bytes, dtype=torch.uint8, pin_memory=on_gpu)
        self._out, self._in = (torch.cuda.Stream(self.device) for _ in range(2)) if on_gpu else (None, None)
        self._written: dict[int, torch.cuda.Event] = {}  # by slot: when the last copy to it is done

    @property
    def bytes(self) -> int:
        """Of main memory."""
        return self.rows.nbytes

    def copy_out(self, copies: Sequence[CopyOut], keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        """Each block to its slot; of several to one slot the last one counts. `keys` and `values` are the layers'
        pages, (num_blocks, block_size, Hkv, D) each, by the layers' numbers."""
        if self._out is not None:
            self._out.wait_stream(self._in)  # what these slots held may be on its way back
        rows = None
        for turn in self._turns({copy.slot: copy for copy in copies}):
            blocks = self._indices([copy.block for copy in turn])
            if rows is None:
                rows = self._rows_for(turn)
            elif self._out is not None:
                torch.cuda.current_stream(self.device).wait_stream(self._out)
            for part, pages in self._pages(keys, values):
                _part(rows[: len(turn)], part, pages).copy_(pages.index_select(0, blocks))
            self._cross(turn, rows[: len(turn)])

    def copy_in(self, copies: Sequence[CopyIn], keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> None:
        """Each slot to its block, whose pages must have been made; of several to one block the last one counts."""
        rows = None
        for turn in self._turns({copy.block: copy for copy in copies}):
            blocks = self._indices([copy.block for copy in turn])
            rows = self._fetch(turn, rows)
            for part, pages in self._pages(keys, values):
                pages.index_copy_(0, blocks, _part(rows[: len(turn)], part, pages))

    def _cross(self, copies: Sequence[CopyOut], rows: Tensor) -> None:
        """Rows on the device to slots."""
        if self._out is None:
            self.rows.index_copy_(0, torch.tensor([copy.slot for copy in copies]), rows)
            return
        self._out.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._out):
            for copy, row in zip(copies, rows, strict=True):
                self.rows[copy.slot].copy_(row, non_blocking=True)
            done = self._out.record_event()
        rows.record_stream(self._out)
        self._written.update((copy.slot, done) for copy in copies)

    def _fetch(self, copies: Sequence[CopyIn], rows: Tensor | None) -> Tensor:
        """Slots to rows on the device, which the current stream may read: to new ones, or those of the turn before."""
        if self._in is None:
            return self.rows.index_select(0, torch.tensor([copy.slot for copy in copies]))
        current = torch.cuda.current_stream(self.device)
        if rows is not None:
            self._in.wait_stream(current)
        with torch.cuda.stream(self._in):
            if rows is None:
                rows = self._rows_for(copies)
            for done in {self._written.get(copy.slot) for copy in copies} - {None}:
                self._in.wait_event(done)
            for copy, row in zip(copies, rows[: len(copies)], strict=True):
                row.copy_(self.rows[copy.slot], non_blocking=True)
        current.wait_stream(self._in)
        rows.record_stream(current)
        return rows

    def _rows_for(self, copies: Sequence[CopyOut | CopyIn]) -> Tensor:
        """Memory on the device, of the current stream."""
        return torch.empty(len(copies), self.row_bytes, dtype=torch.uint8, device=self.device)

    def _turns(self, by_target: dict[int, CopyOut] | dict[int, CopyIn]) -> Iterator[list]:
        copies, most = list(by_target.values()), max(1, AT_ONCE // self.row_bytes)
        return (copies[first : first + most] for first in range(0, len(copies), most))

    def _pages(self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor]) -> Iterator[tuple[Part, Tensor]]:
        return ((part, (values if part.values else keys)[part.layer]) for part in self._parts)

    def _indices(self, numbers: list[int]) -> Tensor:
        host = torch.tensor(numbers)
        return (host.pin_memory() if self._out is not None else host).to(self.device, non_blocking=True)


def _part(rows: Tensor, part: Part, pages: Tensor) -> Tensor:
    """The rows' bytes of one layer's keys or values, (n, block_size, Hkv, D) as the pages are."""
    return rows[:, part.start : part.end].view(pages.dtype).unflatten(1, pages.shape[1:])
