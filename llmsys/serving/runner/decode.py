"""A decode step as a graph: one token of each of B sequences.

What is in its buffer says least: of each sequence its row, how many tokens are computed, the newest token, a new block.
All else is put together on the device (`begin`), and as it ends, the step in the buffer becomes the one after it. So
where the same sequences go on, `run` may be called again, with nothing sent.

What fills up has no keys (length 0), is kept nowhere (slot −1), and its newest token is row 0's, which is nobody's.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from llmsys.cache import Batch, PagedCache
from llmsys.serving.runner.begin import Buffered, begin, end
from llmsys.serving.runner.forms import Form
from llmsys.serving.runner.graph import Graph
from llmsys.serving.runner.packed import Packing, Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.runner.step import HostStep
from llmsys.serving.sampling.draw import draw_tokens


class DecodeGraph(Graph):
    """The decode step of `size` sequences."""

    def __init__(self, size: int, form: Form, rows: Rows, cache: PagedCache):
        B = size
        packing = Packing(
            row=(np.int64, B), seed=(np.int64, B), temperature=(np.float64, B), computed=(np.int32, B),
            tokens=(np.int32, B), query_start_loc=(np.int32, B + 1), columns=(np.int32, B), entries=(np.int32, B),
        )  # fmt: skip
        super().__init__(size, form, rows, cache, packing)
        self._buffered = Buffered(*(self._step[name] for name in Buffered._fields))
        # The last two parts are also sent by themselves.
        self._new = Packing(columns=(np.int32, B), entries=(np.int32, B))
        self._buffer_of_new = self._buffer[packing.bytes - self._new.bytes :]
        self._starts = np.arange(B + 1)
        self._place = np.zeros(len(rows.host), np.int64)  # of a row in the step

    def send(self, step: HostStep | None, sender: Sender) -> None:
        none = np.zeros(0, np.int64)
        if step is None:
            values = dict.fromkeys(self._step, none) | dict(columns=(none, -1))
        else:
            row, n = step.row, len(step.row)
            values = dict(
                row=row, seed=step.seed.view(np.int64), temperature=step.temperature, computed=step.computed,
                tokens=step.tokens, query_start_loc=(self._starts[: n + 1], n), **self._new_blocks(row, sender),
            )  # fmt: skip
        sender.send(self._packing, values, self._buffer)

    def send_blocks(self, row: np.ndarray, changed: Sequence[tuple[int, tuple[int, ...]]], sender: Sender) -> None:
        """Of a step that is in the buffer because the one before it ended, the blocks that are new: the numbers of
        works whose blocks are others, with these."""
        rows = row.tolist()
        places, columns, entries = [], [], []
        for i, blocks in changed:
            if (column := self._rows.append(rows[i], blocks)) is not None:
                places.append(i), columns.append(column), entries.append(blocks[column])
        cells, new = self._rows.changes()
        if len(cells):
            self._rows.send(cells, new, sender)
        values = dict(columns=np.full(len(row), -1), entries=np.zeros(len(row), np.int64))
        values["columns"][places], values["entries"][places] = columns, entries
        sender.send(self._new, values | dict(columns=(values["columns"], -1)), self._buffer_of_new)

    def _new_blocks(self, row: np.ndarray, sender: Sender) -> dict[str, np.ndarray | tuple]:
        """Of each row the column and the id of a block that is new, −1 for none. Where one has several, as when it was
        preempted and is back, all are sent by themselves."""
        columns, entries = np.full(len(row), -1), np.zeros(len(row), np.int64)
        cells, new = self._rows.changes()
        if len(cells):
            changed, column = np.divmod(cells, self._rows.width)
            if len(set(changed.tolist())) == len(changed):
                self._place[row] = np.arange(len(row))
                columns[self._place[changed]], entries[self._place[changed]] = column, new
            else:
                self._rows.send(cells, new, sender)
        return dict(columns=(columns, -1), entries=entries)

    def _compute(self) -> tuple[Tensor, Tensor]:
        begun = begin(self._rows, self._buffered, self._cache.block_size)
        batch = Batch(
            positions=begun.positions, tokens=begun.tokens[None], query_start_loc=self._step["query_start_loc"],
            seq_lens=begun.seq_lens, slot_mapping=begun.slots, block_table=begun.table,
            block_size=self._cache.block_size, max_query_len=1, max_seq_len=self._rows.width * self._cache.block_size,
        )  # fmt: skip
        logits = self.form.forward(batch.tokens, self._cache, batch)[0]
        drawn = draw_tokens(logits, self._step["temperature"], begun.u)
        end(self._rows, self._buffered, drawn)
        return logits, drawn
