"""What the runner keeps of each request it knows: a row of block ids and its newest token, on the device.

    table    (R, M)  int32    row r: the request's blocks in order, −1 behind the last
    newest   (R,)    int32    the token that was drawn for it last, which the host may not know yet; −1 where logits
                              were not finite, and nobody wants what comes next

A plan brings each request's blocks whole, and nearly all of them are as they were. The host has a copy of the table
(`host`), so a step sends what is new alone: a block now and then, and a whole row where the request was preempted or
its blocks became others by copy-on-write. Row 0 is nobody's: it stands for what fills up a batch.

All of it but a token that the host does not know yet is in every plan, too. So a row may be taken from a request that
was not in the last steps, and given back to it as a new one.
"""

from collections.abc import Sequence

import numpy as np
import torch

from llmsys.serving.plan import StepPlan
from llmsys.serving.runner.packed import Packing, Sender
from llmsys.serving.sampling.sampling_params import SamplingParams

KEPT = 2
"""Steps for which a row stays its request's, though it is in none of them."""
MASK = 2**64 - 1


class Rows:
    """The rows, on the host and on the device.

    Attributes
    ----------
    on_device, newest
        The tensors.
    version : int
        Counts how often they were made anew, larger. What was captured with the old ones is then of no use.
    temperature, seed, special
        (R,), NumPy: how each request's tokens are drawn; special: by more than a temperature.
    known
        (R,) bool: `newest` is the row's newest token.
    """

    def __init__(self, num_blocks: int, device: torch.device, *, rows: int = 32, width: int = 16):
        self.num_blocks, self.device = num_blocks, device
        self.version = -1
        self._row: dict[str, int] = {}
        self._blocks: list[tuple[int, ...] | None] = []  # by row; None: nobody knows what the device has there
        self._sampling: list[SamplingParams | None] = []
        self._cells: list[int] = []  # of the table, that are to be sent
        self._step = 0
        self.host = np.full((0, 0), -1, np.int32)
        self._make(max(rows, 1) + 1, max(width, 1))

    @property
    def width(self) -> int:
        return self.host.shape[1]

    def take(self, plan: StepPlan) -> np.ndarray:
        """The row of each work of a plan, int64, when the host's copies are up to date. `changes` is what to send.

        Raises
        ------
        ValueError
            A request is in the plan twice, or a block is not there.
        """
        self._step += 1
        for request in plan.ended:
            self._forget(request)
        works = plan.work
        found = [self._row.get(work.request) for work in works]
        if None in found:
            self._find_rows([work.request for work in works], found)
        if len(set(found)) < len(found):
            raise ValueError(f"the works of step {plan.step} must be of one request each, got two of one")
        known, known_sampling = self._blocks, self._sampling
        for row, work in zip(found, works, strict=True):
            blocks, sampling = work.blocks, work.sampling
            if blocks is not known[row] and blocks != known[row]:
                self._change(row, blocks)
            if sampling is not known_sampling[row]:
                self._set_sampling(row, sampling)
        rows = np.fromiter(found, np.int64, len(found))
        self._seen[rows] = self._step
        return rows

    def append(self, row: int, blocks: tuple[int, ...]) -> int | None:
        """Takes note that a row's blocks are these. If they are one more than before, there is nothing for `changes` to
        say: where that one stands is returned, for the caller to send. Else None."""
        known, n = self._blocks[row], len(blocks) - 1
        if known is None or len(known) != n or blocks[:n] != known or not 0 <= blocks[n] < self.num_blocks:
            if blocks != known:
                self._change(row, blocks)
            return None
        self.host[row, n] = blocks[n]
        self._blocks[row] = blocks
        return n

    def skip(self, row: np.ndarray, ended: Sequence[str]) -> None:
        """A step of these rows went by, of which nothing needs to be sent."""
        self._step += 1
        self._seen[row] = self._step
        for request in ended:
            self._forget(request)

    def changes(self) -> tuple[np.ndarray, np.ndarray]:
        """Cells of the flat table that the device does not have right, and what belongs there. They count as sent."""
        cells = np.array(self._cells, np.int64)
        self._cells = []
        return cells, self.host.reshape(-1)[cells]

    def send(self, cells: np.ndarray, entries: np.ndarray, sender: Sender) -> None:
        """Writes these entries to the device's table, in a copy of their own."""
        packing = Packing(cells=(np.int64, len(cells)), entries=(np.int32, len(cells)))
        sent = packing.tensors(sender.send(packing, dict(cells=cells, entries=entries)))
        self.on_device.view(-1).index_copy_(0, sent["cells"], sent["entries"])

    def lose(self) -> None:
        """A step went wrong: nobody knows what of it the device has. All is sent again."""
        self._cells = []
        self.known[:] = False
        self._blocks = [None] * len(self._blocks)

    def _find_rows(self, names: Sequence[str], found: list[int | None]) -> None:
        """Gives rows to requests that have none."""
        here = [row for row in found if row is not None]
        self._seen[here] = self._step
        new = [i for i, row in enumerate(found) if row is None]
        if len(self._free) < len(new):  # whose requests ended without anybody saying so, or wait for long
            for request in [name for name, row in self._row.items() if self._seen[row] < self._step - KEPT]:
                self._forget(request)
        if len(self._free) < len(new):
            self._make(2 * len(self._blocks) + len(new), self.width)
        for i in new:
            if names[i] not in self._row:
                self._row[names[i]] = self._free.pop()
            found[i] = self._row[names[i]]

    def _forget(self, request: str) -> None:
        row = self._row.pop(request, None)
        if row is not None:
            self._free.append(row)
            self._sampling[row], self.known[row] = None, False

    def _change(self, row: int, blocks: tuple[int, ...]) -> None:
        known = self._blocks[row]
        before, now = self.width if known is None else len(known), len(blocks)
        first = before if known is not None and before < now and blocks[:before] == known else 0
        new = blocks[first:]
        if new and not 0 <= min(new) <= max(new) < self.num_blocks:
            wrong = next(block for block in new if not 0 <= block < self.num_blocks)
            raise ValueError(f"blocks must be from 0 to {self.num_blocks - 1}, got {wrong}")
        if now > self.width:
            self._make(len(self._blocks), max(now, 2 * self.width))
            before = min(before, self.width)
        self.host[row, first:now] = new
        self.host[row, now:before] = -1
        start = row * self.width
        self._cells.extend(range(start + first, start + max(now, before)))
        self._blocks[row] = blocks

    def _set_sampling(self, row: int, sampling: SamplingParams) -> None:
        self._sampling[row] = sampling
        self.temperature[row] = sampling.temperature
        self.seed[row] = (sampling.seed or 0) & MASK
        self.special[row] = sampling.logprobs is not None or (
            sampling.temperature > 0
            and (sampling.top_k is not None or sampling.min_p is not None or (sampling.top_p or 1) < 1)
        )

    def _make(self, rows: int, width: int) -> None:
        """New tensors, with what the old ones had."""
        before, columns = self.host.shape
        old = self.host
        self.host = np.full((rows, width), -1, np.int32)
        self.host[:before, :columns] = old
        more = rows - before
        kinds = dict(temperature=np.float64, seed=np.uint64, special=np.bool_, known=np.bool_, _seen=np.int64)
        for name, dtype in kinds.items():
            array = np.zeros(rows, dtype)
            if before:
                array[:before] = getattr(self, name)
            setattr(self, name, array)
        self._blocks += [()] * more
        self._sampling += [None] * more
        self._free = [*reversed(range(max(before, 1), rows)), *(self._free if before else ())]
        with torch.inference_mode():
            table = torch.full((rows, width), -1, dtype=torch.int32, device=self.device)
            newest = torch.zeros(rows, dtype=torch.int32, device=self.device)
            if before:
                table[:before, :columns] = self.on_device
                newest[:before] = self.newest
        self.on_device, self.newest = table, newest
        # Of a table of another width, cells have other numbers.
        self._cells = [cell // columns * width + cell % columns for cell in self._cells] if columns else []
        self.version += 1
