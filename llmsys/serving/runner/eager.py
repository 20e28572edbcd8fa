"""A step of any kind, launched one kernel at a time: its arrays on the device, and what runs there.

Everything that a step needs goes to the device in one copy. Its block tables are gathered there from the rows, cut to
the longest of the step's, and tokens that only the device knows are put in the place of place-holders.
"""

import numpy as np
from torch import Tensor

from llmsys.cache import Batch, PagedCache
from llmsys.serving.runner.forms import Form
from llmsys.serving.runner.packed import Packing, Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.runner.step import HostStep
from llmsys.serving.sampling.draw import draw_tokens

_TYPES = dict(
    row=np.int64, cells=np.int64, filled=np.int64, filled_row=np.int64, kept=np.int64, kept_row=np.int64,
    temperature=np.float64, u=np.float64,
)  # fmt: skip
"""All others are int32."""


class EagerStep:
    """One step, sent to the device as it is made."""

    def __init__(self, step: HostStep, rows: Rows, cache: PagedCache, sender: Sender, *, draw: bool):
        """`draw`: rows of logits that are not special are to be drawn here."""
        self._rows, self._cache, self._draw = rows, cache, draw
        N = len(step.tokens)
        cells, entries = rows.changes()
        values = dict(
            row=step.row, cells=cells, entries=entries, tokens=step.tokens, positions=step.positions, slots=step.slots,
            query_start_loc=np.concatenate(([0], step.ends)), seq_lens=step.seq_lens,
        )  # fmt: skip
        if step.hidden:
            values |= dict(filled=step.ends[step.filled] - 1, filled_row=step.row[step.filled])
        self._all_wanted = N == step.logits
        if not self._all_wanted:
            values |= dict(logits_indices=step.logits_indices)
        if draw:
            kept = (step.wanted[step.owner] == 1).nonzero()[0]
            values |= dict(kept=kept, kept_row=step.row[step.owner[kept]], temperature=step.temperature, u=step.u)
        packing = Packing(**{name: (_TYPES.get(name, np.int32), len(value)) for name, value in values.items()})
        self._step = packing.tensors(sender.send(packing, values))
        self._hidden, self._held, self.logits = step.hidden, step.held, step.logits
        self._longest, self._longest_sequence = step.longest, int(step.seq_lens.max())

    def run(self, form: Form) -> tuple[Tensor | None, Tensor | None]:
        """The rows of logits that are wanted (L, V), and the tokens drawn (L,). None for what there is not."""
        rows, step = self._rows, self._step
        if len(step["cells"]):
            rows.on_device.view(-1).index_copy_(0, step["cells"], step["entries"])
        tokens = step["tokens"]
        if self._hidden:
            tokens.index_copy_(0, step["filled"], rows.newest.index_select(0, step["filled_row"]).clamp(min=0))
        batch = Batch(
            positions=step["positions"], tokens=tokens[None], query_start_loc=step["query_start_loc"],
            seq_lens=step["seq_lens"], slot_mapping=step["slots"],
            block_table=rows.on_device[:, : self._held].index_select(0, step["row"]),
            logits_indices=step.get("logits_indices"), block_size=self._cache.block_size,
            max_query_len=self._longest, max_seq_len=self._longest_sequence,
        )  # fmt: skip
        if not self.logits:  # chunks alone, of which nobody wants logits
            form.hidden(batch.tokens, self._cache, batch)
            return None, None
        logits = form.forward(batch.tokens, self._cache, batch)[0]
        if not self._draw:
            return logits, None
        drawn = draw_tokens(logits, step["temperature"], step["u"])
        kept = drawn if len(step["kept"]) == len(drawn) else drawn.index_select(0, step["kept"])
        rows.newest.index_copy_(0, step["kept_row"], kept)
        return logits, drawn
