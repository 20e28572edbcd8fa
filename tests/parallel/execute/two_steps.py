"""What the tests over NCCL do on a rank, and what must come out."""

import torch
import torch.distributed as dist
from torch import Tensor

from llmsys.models import Llama
from llmsys.parallel.execute import Cut, Joint, Pipeline, stages_of
from llmsys.parallel.pipeline import Schedule, Timeline
from llmsys.parallel.ranks import device

Steps = tuple[list[Tensor], dict[str, Tensor], Timeline]


def two_steps(model: Llama, schedule: Schedule, microbatches: list[Tensor]) -> Steps:
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


def check(steps: Steps, schedule: Schedule, expected_losses: Tensor, expected: dict[str, Tensor]) -> None:
    """AssertionError where losses or gradients are not the unsplit model's, or the timeline is not the schedule's."""
    losses, found, timeline = steps
    # The model is in fp64, but for the loss, in fp32: a GPU's exponentials are not a CPU's to the last digit.
    for each in losses:
        torch.testing.assert_close(each.cpu(), expected_losses.double(), rtol=0, atol=1e-5)
    for whole, gradient in found.items():
        torch.testing.assert_close(gradient.cpu(), expected[whole], rtol=0, atol=1e-6, msg=whole)
    assert [[event.action for event in row] for row in timeline.events] == [*map(list, schedule.orders)]
