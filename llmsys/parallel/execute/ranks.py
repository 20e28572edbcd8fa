"""A pipeline on ranks: each process has its stages, and calls this.

    def on_a_rank():                                        # `llmsys.parallel.ranks.run(on_a_rank, 4)`, or torchrun
        stages = stages_of(model, schedule, cut, dist.get_rank())
        pipeline = Pipeline(schedule, stages)
        losses = pipeline.step(microbatches)                # gradients are in the stages' weights
        timeline = pipeline.timeline()                      # of all ranks
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from llmsys.parallel.execute.here import timeline
from llmsys.parallel.execute.stage import Key, Stage
from llmsys.parallel.execute.wire import RankWire
from llmsys.parallel.execute.worker import Clock, GpuClock, Worker
from llmsys.parallel.pipeline import Event, Exchange, Schedule, Timeline, programs, validate


class Pipeline:
    """One rank's end of a pipeline; every rank makes one, with the same schedule, and calls the same methods.

    Parameters
    ----------
    schedule
        For as many ranks as torch.distributed has.
    stages
        This rank's, by (replica, stage), on its device.
    gradients
        False for a schedule of forwards alone, which keeps nothing.
    transfers
        Where results are received: "late", in the last pause before they are needed, or "early", in the first one where
        they are there if all actions take the same (`llmsys.parallel.pipeline.programs`). The numbers are the same.

    Raises ValueError (`InvalidSchedule`) for a schedule that cannot be run, and where ranks or stages are others than
    the schedule's.
    """

    def __init__(
        self,
        schedule: Schedule,
        stages: Mapping[Key, Stage],
        *,
        gradients: bool = True,
        transfers: Literal["late", "early"] = "late",
    ):
        validate(schedule, gradients=gradients).check()
        if transfers not in ("late", "early"):
            raise ValueError(f'transfers must be "late" or "early", got {transfers!r}')
        lowered = programs(schedule, transfers)
        exchanges = [step for program in lowered for step in program if isinstance(step, Exchange)]
        self.schedule, self.rank = schedule, dist.get_rank()
        wire = RankWire(schedule, [each for step in exchanges for each in step.transfers])
        self._device = next((stage.device for stage in stages.values()), torch.device("cpu"))
        self._worker = Worker(
            schedule, self.rank, stages, wire, program=lowered[self.rank],
            clock=GpuClock if self._device.type == "cuda" else Clock, gradients=gradients,
        )  # fmt: skip
        self._last = "none"  # or "under way", "done"
        dist.barrier()  # NCCL connects all ranks in the first call of all, and that is no part of a step

    def step(self, microbatches: Sequence[Tensor]) -> Tensor:
        """Run the schedule once: adds to the gradients of this rank's stages. Returns the loss of each microbatch, (N,)
        in fp64, the same on all ranks; their sum is the step's mean.

        `microbatches` are (B, T + 1) token ids, the same on all ranks. Raises ValueError as `Worker.begin` does, before
        anything has begun, and RuntimeError after a step that failed midway.
        """
        if self._last == "under way":
            raise RuntimeError(
                "the step before failed midway, and what ranks have sent may still be on its way: make a new Pipeline"
            )
        worker = self._worker
        worker.begin([each.to(self._device) for each in microbatches])
        self._last = "under way"
        while worker.advance() is not None:
            pass
        own = worker.finish()
        losses = torch.zeros(self.schedule.num_microbatches, dtype=torch.float64, device=self._device)
        for m, loss in own.items():
            losses[m] = loss
        dist.all_reduce(losses)  # each is on one rank, and 0 on the others
        self._last = "done"
        return losses

    def timeline(self) -> Timeline:
        """When every rank did what in the last step, in seconds since its first start. All ranks of one machine have
        one clock; those of several machines must be synchronised (NTP), and their shifts are in it. RuntimeError before
        the first step, and after one that failed midway."""
        if self._last != "done":
            failed = self._last == "under way"
            raise RuntimeError("the last step failed midway" if failed else "there was no step yet, whose it could be")
        rows: list[list[Event]] = [[] for _ in range(self.schedule.num_ranks)]
        dist.all_gather_object(rows, self._worker.events())
        return timeline(self.schedule, [event for row in rows for event in row])
