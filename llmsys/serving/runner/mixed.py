"""Any step as a graph: chunks of prompts, decodes, guesses, up to N tokens of up to S sequences.

To launch some 250 kernels one by one takes the host longer than the device needs to read a short prompt, or than it
computes thousands of tokens of a small model. What the attention launches depends on sizes alone, so a graph serves any
lengths that fit: its buffer is laid out for N tokens, S sequences and S rows of logits, and what a step has less fills
up: tokens that are nobody's (slot −1), sequences without tokens, logits of token 0 that nobody wants.
"""

import numpy as np
from torch import Tensor

from llmsys.cache import Batch, PagedCache
from llmsys.serving.runner.forms import Form
from llmsys.serving.runner.graph import Graph
from llmsys.serving.runner.packed import Packing, Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.runner.step import HostStep
from llmsys.serving.sampling.draw import draw_tokens


class MixedGraph(Graph):
    """The step of at most `size` tokens, `sequences`, and as many rows of logits."""

    def __init__(self, size: int, sequences: int, form: Form, rows: Rows, cache: PagedCache):
        N, S = size, sequences
        packing = Packing(
            row=(np.int64, S), last=(np.int64, S), kept_row=(np.int64, S), temperature=(np.float64, S),
            u=(np.float64, S), tokens=(np.int32, N + 1), positions=(np.int32, N), slots=(np.int32, N),
            query_start_loc=(np.int32, S + 1), seq_lens=(np.int32, S), logits_indices=(np.int32, S),
        )  # fmt: skip
        super().__init__(size, form, rows, cache, packing)

    def send(self, step: HostStep | None, sender: Sender) -> None:
        none = np.zeros(0, np.int64)
        values = dict.fromkeys(self._step, none)
        if step is not None:
            cells, new = self._rows.changes()
            if len(cells):
                self._rows.send(cells, new, sender)
            owner = step.owner
            values = dict(
                row=step.row, last=step.ends - 1, temperature=step.temperature, u=step.u, tokens=step.tokens,
                positions=step.positions, slots=step.slots, seq_lens=step.seq_lens, logits_indices=step.logits_indices,
                query_start_loc=(np.concatenate(([0], step.ends)), len(step.tokens)),
                kept_row=np.where(step.wanted[owner] == 1, step.row[owner], 0),
            )  # fmt: skip
        # What fills up among the sequences has the token behind all others for its last.
        values |= dict(last=(values["last"], self.size), slots=(values["slots"], -1))
        sender.send(self._packing, values, self._buffer)

    def _compute(self) -> tuple[Tensor, Tensor]:
        step, rows = self._step, self._rows
        tokens, row = step["tokens"], step["row"]
        last = tokens.index_select(0, step["last"])
        newest = rows.newest.index_select(0, row).clamp(min=0)
        tokens.index_copy_(0, step["last"], last.where(last >= 0, newest))
        batch = Batch(
            positions=step["positions"], tokens=tokens[None, : self.size], query_start_loc=step["query_start_loc"],
            seq_lens=step["seq_lens"], slot_mapping=step["slots"], block_table=rows.on_device.index_select(0, row),
            logits_indices=step["logits_indices"], block_size=self._cache.block_size, max_query_len=self.size,
            max_seq_len=rows.width * self._cache.block_size,
        )  # fmt: skip
        logits = self.form.forward(batch.tokens, self._cache, batch)[0]
        drawn = draw_tokens(logits, step["temperature"], step["u"])
        rows.newest.index_copy_(0, step["kept_row"], drawn)  # row 0's of what nobody wants
        return logits, drawn
