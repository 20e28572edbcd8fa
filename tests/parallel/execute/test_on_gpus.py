"""Schedules on GPUs of their own, over NCCL: losses and gradients are the unsplit model's, step after step."""

import pytest
import torch
import torch.distributed as dist

from llmsys.parallel.execute import Cut, Joint, Pipeline, stages_of
from llmsys.parallel.pipeline import SCHEDULES, make_schedule
from llmsys.parallel.ranks import device, run
from tests.parallel.execute.models import make_microbatches, make_model, unsplit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


def two_steps(model, schedule, microbatches):
    """On a rank: the losses of two steps, and the gradients of the second, by name in the whole model."""
    rank, cut = dist.get_rank(), Cut.by_cost(model.config, schedule.num_stages, 7)
    stages = stages_of(model.to(device()), schedule, cut, rank)
    pipeline, joint = Pipeline(schedule, stages), Joint(schedule, cut, rank)
    losses = []
    for _ in range(2):
        for stage in stages.values():
            stage.part.zero_grad()
        losses.append(pipeline.step(microbatches))
    found = {(key, name): weight.grad for key, stage in stages.items() for name, weight in stage.weights.items()}
    joint.add_copies(found)
    return losses, {cut.whole_name(name): gradient for (_, name), gradient in found.items()}, pipeline.timeline()


def is_the_unsplit_models(name, ranks, tied=True):
    """AssertionError where a schedule on so many GPUs has other losses or gradients."""
    schedule = make_schedule(name, ranks, 2 * ranks)
    model, tokens = make_model(max(4, schedule.num_stages), tied=tied), make_microbatches(2 * ranks)
    expected_losses, expected = unsplit(model, tokens)
    seen = set()
    for losses, found, timeline in run(two_steps, ranks, model, schedule, tokens, backend="nccl", timeout=60.0):
        for each in losses:
            torch.testing.assert_close(each.cpu(), expected_losses.double(), rtol=0, atol=1e-5)
        for whole, gradient in found.items():
            torch.testing.assert_close(gradient.cpu(), expected[whole], rtol=0, atol=1e-6, msg=whole)
        assert [[event.action for event in row] for row in timeline.events] == [*map(list, schedule.orders)]
        seen |= set(found)
    assert seen == set(expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_losses_and_gradients_are_the_unsplit_models(name):
    is_the_unsplit_models(name, 2)


@pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs four GPUs")
@pytest.mark.parametrize("name", SCHEDULES)
def test_on_four_gpus_too(name):
    is_the_unsplit_models(name, 4)
