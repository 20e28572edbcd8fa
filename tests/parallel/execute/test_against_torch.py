"""torch.distributed.pipelining runs the same model on the same ranks: its runtime gives the same gradients.

Its stages are plain parts of the model, and where it splits a backward pass it walks autograd's graph.
"""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining import schedules as torch_schedules

from llmsys.models import Llama
from llmsys.models.training_step import token_loss
from llmsys.parallel.execute import Cut, Pipeline, stages_of
from llmsys.parallel.pipeline import make_schedule
from llmsys.parallel.ranks import run
from tests.parallel.execute.models import make_microbatches, make_model
from tests.support.size import SEED, sized

PEERS = [
    ("1f1b", "Schedule1F1B"),
    ("interleaved", "ScheduleInterleaved1F1B"),
    ("zb-h1", "ScheduleInterleavedZeroBubble"),  # with one stage a rank it is ZB-H1
    ("zb-v", "ScheduleZBVZeroBubble"),
    ("dualpipe-v", "ScheduleDualPipeV"),
]


class Part(nn.Module):
    """A part of a model as torch's runtime calls it: one tensor in, one out."""

    def __init__(self, part: Llama):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


def by_torch(model, schedule, peer, microbatches):
    """On a rank: the gradients of its stages, by (stage, name)."""
    rank, cut = dist.get_rank(), Cut.by_cost(model.config, schedule.num_stages, 7)
    stages = stages_of(model, schedule, cut, rank, split=False)
    wrapped = [
        PipelineStage(Part(stage.part), number, schedule.num_stages, torch.device("cpu"))
        for (_, number), stage in stages.items()
    ]
    made = getattr(torch_schedules, peer)(
        wrapped[0] if peer == "Schedule1F1B" else wrapped, len(microbatches), loss_fn=token_loss
    )
    batch = torch.cat(microbatches)
    inputs = [batch[:, :-1].contiguous()] if rank == schedule.placement.rank(0) else []
    has_last = rank == schedule.placement.rank(schedule.num_stages - 1)
    made.step(*inputs, target=batch[:, 1:].contiguous() if has_last else None)
    return _gradients(stages)


def by_ours(model, schedule, microbatches):
    stages = stages_of(model, schedule, Cut.by_cost(model.config, schedule.num_stages, 7), dist.get_rank())
    Pipeline(schedule, stages).step(microbatches)
    return _gradients(stages)


def _gradients(stages):
    return {(stage, name): weight.grad for (_, stage), each in stages.items() for name, weight in each.weights.items()}


@pytest.mark.parametrize("name, peer", sized(short=[PEERS[SEED % len(PEERS)]], full=PEERS))
def test_torchs_runtime_gives_the_same_gradients(name, peer):
    schedule = make_schedule(name, 2, 4)
    model, tokens = make_model(4), make_microbatches(4)
    ours = run(by_ours, 2, model, schedule, tokens, backend="gloo")
    theirs = run(by_torch, 2, model, schedule, peer, tokens, backend="gloo")
    assert sum(map(len, ours)) == len(list(model.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
