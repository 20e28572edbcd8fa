"""One model's gradients, wherever its stages are: copies of a weight summed, and the length of them all.

A weight is in several places where the schedule runs two replicas of the model (Chimera, DualPipe), and where a
model's embedding is its head. The gradient of each copy is a part of the weight's: of some of the microbatches, or of
one of its two uses. So they are added, and each copy gets the sum; then all are moved alike, and stay equal.

In the length of the gradient, by which it is clipped, each weight counts once, whoever has how many copies.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.parallel.execute.cut import Cut, check_cut
from llmsys.parallel.execute.stage import Key
from llmsys.parallel.pipeline import Schedule


@dataclass(frozen=True, order=True)
class Copy:
    """Where a weight is, and what it is called there."""

    replica: int
    stage: int
    name: str
    rank: int

    @property
    def key(self) -> Key:
        return self.replica, self.stage


def copies(schedule: Schedule, cut: Cut) -> dict[str, tuple[Copy, ...]]:
    """All copies of each of the model's weights, by its name in the whole model.

    Raises ValueError where the cut has another number of stages than the schedule.
    """
    check_cut(cut, schedule)
    found: dict[str, list[Copy]] = {}
    for stage in range(cut.num_stages):
        for name in cut.shapes(stage):
            for replica in range(schedule.num_replicas):
                copy = Copy(replica, stage, name, schedule.placement.rank(stage, replica))
                found.setdefault(cut.whole_name(name), []).append(copy)
    return {name: tuple(sorted(found[name])) for name in sorted(found)}


Gradients = Mapping[tuple[Key, str], Tensor]
"""Gradients of the weights that are here, by ((replica, stage), name)."""


class Joint:
    """Adds up what several ranks have of one weight, and measures what they have of all.

    Parameters
    ----------
    rank
        Whose copies are here; None for all, in one process. With a rank, torch.distributed must be set up, rank r of
        the schedule being rank r there, and all ranks make this at the same time.
    """

    def __init__(self, schedule: Schedule, cut: Cut, rank: int | None = None):
        self.copies, self.rank = copies(schedule, cut), rank
        shapes = [each for stage in range(cut.num_stages) for each in cut.shapes(stage).items()]
        self.shapes = {cut.whole_name(name): shape for name, shape in shapes}
        self._groups = {}
        if rank is not None:
            import torch.distributed as dist

            sets = {tuple(sorted({each.rank for each in several})) for several in self.copies.values()}
            for ranks in sorted(ranks for ranks in sets if len(ranks) > 1):  # all ranks make all groups
                self._groups[ranks] = dist.new_group(list(ranks))

    @torch.no_grad()
    def add_copies(self, gradients: Gradients) -> None:
        """Give each copy the sum of all copies' gradients, in place."""
        under_way = []
        for several in self.copies.values():
            here = [gradients[each.key, each.name] for each in self._here(several)]
            if len(several) == 1 or not here:
                continue
            total = here[0]
            for more in here[1:]:
                total += more
            ranks = tuple(sorted({each.rank for each in several}))
            work = None
            if self.rank is not None and len(ranks) > 1:
                import torch.distributed as dist

                work = dist.all_reduce(total, group=self._groups[ranks], async_op=True)
            under_way.append((work, total, here[1:]))
        for work, total, others in under_way:
            if work is not None:
                work.wait()
            for each in others:
                each.copy_(total)

    @torch.no_grad()
    def length(self, gradients: Gradients) -> Tensor:
        """√(Σ g²) over all weights of the model, each once; a number in fp64, the same on all ranks."""
        own = [gradients[each.key, each.name] for each in self.owned()]
        squares = [torch.linalg.vector_norm(each, dtype=torch.float64).square() for each in own]
        device = next(iter(gradients.values())).device
        total = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)
        if self.rank is not None:
            import torch.distributed as dist

            dist.all_reduce(total)
        return total.sqrt()

    def owned(self) -> Iterator[Copy]:
        """Of each weight the first copy, if it is here: the one that is counted, and saved."""
        return (each[0] for each in self.copies.values() if self.rank in (None, each[0].rank))

    def here(self) -> list[Copy]:
        """All copies that are here."""
        return [each for several in self.copies.values() for each in self._here(several)]

    def _here(self, several: tuple[Copy, ...]) -> list[Copy]:
        return [each for each in several if self.rank in (None, each.rank)]
