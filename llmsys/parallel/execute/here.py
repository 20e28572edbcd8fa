"""A whole pipeline in one process: every rank's worker in turn, in the order that the simulator gives.

No process, no clock that matters, the same numbers: for tests, for lessons, and to see what a schedule of one's own
does to a real model before it gets any ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from llmsys.parallel.execute.stage import Key, Stage
from llmsys.parallel.execute.wire import MadeUpWire
from llmsys.parallel.execute.worker import Worker
from llmsys.parallel.pipeline import Event, Schedule, Timeline, programs, simulate, validate


def execute_here(
    schedule: Schedule, stages: Mapping[Key, Stage], microbatches: Sequence[Tensor], *, gradients: bool = True
) -> tuple[Tensor, Timeline]:
    """A step of a schedule on all of its stages: adds to the weights' gradients, and returns the loss of each
    microbatch, (N,), whose sum is the step's mean, with a timeline of what was done, one thing after the other.

    Parameters
    ----------
    stages
        By (replica, stage), all of the schedule's (`llmsys.parallel.execute.cut`).
    microbatches
        (B, T + 1) token ids each, their sizes may differ.
    gradients
        False for a schedule of forwards alone, which keeps nothing.

    Raises ValueError (`InvalidSchedule`) for a schedule that cannot be run, and as `Worker` does.
    """
    validate(schedule, gradients=gradients).check()
    wire, lowered = MadeUpWire(), programs(schedule, "late")
    workers = [
        Worker(schedule, rank, _of_rank(stages, schedule, rank), wire, program=lowered[rank], gradients=gradients)
        for rank in range(schedule.num_ranks)
    ]
    for worker in workers:
        worker.begin(microbatches)
    for event in sorted((each for row in simulate(schedule).events for each in row), key=lambda each: each.start):
        workers[event.rank].advance()
    losses, events = {}, []
    for worker in workers:
        losses |= worker.finish()
        events += worker.events()
    return torch.stack([losses[m] for m in range(schedule.num_microbatches)]), timeline(schedule, events)


def _of_rank(stages: Mapping[Key, Stage], schedule: Schedule, rank: int) -> dict[Key, Stage]:
    """Those of its stages that are there; a worker says if one is not."""
    return {key: stages[key] for key in schedule.placement.stages(rank) if key in stages}


def timeline(schedule: Schedule, events: Sequence[Event]) -> Timeline:
    """A measured run's timeline, in seconds since its first start."""
    zero = min((each.start for each in events), default=0.0)
    moved = [replace(each, start=each.start - zero, end=each.end - zero) for each in events]
    return Timeline.of(schedule.name, moved, schedule.num_ranks)
