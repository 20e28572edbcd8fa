"""Whether a plan is the next step of the last one's sequences: then the graph has it already, and little is sent.

No arrays are made: of one sequence that would take ten times as long. Lists are compared as wholes, and nearly all that
is in them is the very same object as it was.
"""

from operator import is_not, sub

import numpy as np

from llmsys.serving.plan import PLACEHOLDER, StepPlan
from llmsys.serving.runner.decode import DecodeGraph
from llmsys.serving.runner.rows import Rows

HIDDEN = (PLACEHOLDER,)


class GoingOn:
    """The sequences of a decode step that was launched as a graph, none of which needed more than a temperature."""

    def __init__(self, plan: StepPlan, graph: DecodeGraph, row: np.ndarray, rows: Rows, block_size: int):
        self.graph, self.row = graph, row
        self._rows, self._block_size, self._version = rows, block_size, rows.version
        self._requests = [work.request for work in plan.work]
        self._samplings = [work.sampling for work in plan.work]
        self._blocks = [work.blocks for work in plan.work]
        self._computed = [work.computed for work in plan.work]
        self._steps = 0  # since then
        self._left = 0  # for how many steps there certainly is room in all blocks

    def takes(self, plan: StepPlan) -> list[tuple[int, tuple[int, ...]]] | None:
        """Which works have other blocks than before, and these, where the plan has the same requests in the same order,
        each with one token more, which is the one that was drawn. None where it has not. What it takes is the last step
        then."""
        works, n = plan.work, len(self._requests)
        if len(works) != n or self._version != self._rows.version:
            return None
        computed = [work.computed for work in works]
        if (
            [work.request for work in works] != self._requests
            or [work.tokens for work in works].count(HIDDEN) != n
            or [work.logits for work in works].count(1) != n
            or any(map(is_not, [work.sampling for work in works], self._samplings))
            or set(map(sub, computed, self._computed)) != {self._steps + 1}
            or plan.ended and not set(self._requests).isdisjoint(plan.ended)  # others of the same names
        ):
            return None
        blocks = [work.blocks for work in works]
        changed = [(i, blocks[i]) for i, other in enumerate(map(is_not, blocks, self._blocks)) if other]
        if changed or self._left < 1:
            held = list(map(len, blocks))
            self._left = min(map(sub, map(self._block_size.__mul__, held), computed))
            if self._left < 1 or max(held) > self._rows.width:
                return None
        self._blocks, self._steps, self._left = blocks, self._steps + 1, self._left - 1
        return changed
