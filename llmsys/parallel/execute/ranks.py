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
        they are there if all actions take the same (`llmsys.parallel.pipeline.programs`). Only the time differs.

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
        transfers = [
            each for program in lowered for step in program if isinstance(step, Exchange) for each in step.transfers
        ]
        self.schedule, self.rank = schedule, dist.get_rank()
        wire = RankWire(schedule, transfers)
        self._worker = Worker(schedule, self.rank, stages, wire, program=lowered[self.rank], gradients=gradients)
        dist.barrier()  # NCCL connects all ranks in the first call of all, and that is no part of a step

    def step(self, microbatches: Sequence[Tensor]) -> Tensor:
        """Run the schedule once: adds to the gradients of this rank's stages. Returns the loss of each microbatch, (N,)
        in fp64, the same on all ranks; their sum is the step's mean.

        `microbatches` are (B, T + 1) token ids, the same on all ranks.
        """
        worker = self._worker
        device = next(iter(worker.stages.values())).device
        microbatches = [each.to(device) for each in microbatches]
        # Before the first transfers begin, for this waits until the GPU has nothing to do: for those receives, too.
        worker.clock = GpuClock() if device.type == "cuda" else Clock()
        worker.begin(microbatches)
        while worker.advance() is not None:
            pass
        own = worker.finish()
        losses = torch.zeros(self.schedule.num_microbatches, dtype=torch.float64, device=device)
        for m, loss in own.items():
            losses[m] = loss
        dist.all_reduce(losses)  # each is on one rank, and 0 on the others
        return losses

    def timeline(self) -> Timeline:
        """When every rank did what in the last step, in seconds since its first start. All ranks of one machine have
        one clock; those of several machines must be synchronised (NTP), and their shifts are in it."""
        rows: list[list[Event]] = [[] for _ in range(self.schedule.num_ranks)]
        dist.all_gather_object(rows, self._worker.events())
        return timeline(self.schedule, [event for row in rows for event in row])
