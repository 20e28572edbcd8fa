"""Whether a plan is the next step of the last one's sequences: then the graph has it already, and little is sent.

A loop in plain Python, once over the works: for one sequence it takes a microsecond, where arrays of one take forty.
"""

import numpy as np

from llmsys.serving.plan import PLACEHOLDER, StepPlan
from llmsys.serving.runner.graphs import DecodeGraph
from llmsys.serving.runner.rows import Rows

HIDDEN = (PLACEHOLDER,)


class GoingOn:
    """The sequences of a decode step that was launched as a graph, none of which needed more than a temperature."""

    def __init__(self, plan: StepPlan, graph: DecodeGraph, row: np.ndarray, rows: Rows, block_size: int):
        self.graph, self.row = graph, row
        self._works, self._rows, self._block_size, self._version = plan.work, rows, block_size, rows.version

    def takes(self, plan: StepPlan) -> list[int] | None:
        """Which works have other blocks than before, where the plan has the same requests in the same order, each with
        one token more, which is the one that was drawn. None where it has not. What it takes is the last step then."""
        works = plan.work
        if len(works) != len(self._works) or self._version != self._rows.version:
            return None
        changed, size = [], self._block_size
        for i, (work, last) in enumerate(zip(works, self._works, strict=True)):
            computed, blocks = work.computed, work.blocks
            if (
                computed != last.computed + 1 or work.tokens != HIDDEN or work.request != last.request
                or work.logits != 1 or work.sampling is not last.sampling or computed >= len(blocks) * size
            ):  # fmt: skip
                return None
            if blocks is not last.blocks:
                changed.append(i)
        if plan.ended and not {work.request for work in works}.isdisjoint(plan.ended):
            return None  # others of the same names
        if changed and not self._rows.go_on(self.row, works, changed):
            return None
        self._works = works
        return changed

