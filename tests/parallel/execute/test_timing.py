"""Runs of actions of known length take as long as the simulator says.

The actions sleep: a stage that computes nothing, and holds no core that somebody else wants. A sleep is never too
short, so no action begins before its simulated time; how much later it may be is left to the machine, within reason.
"""

import time
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist

from llmsys.parallel.execute import Pipeline
from llmsys.parallel.pipeline import Costs, make_schedule, simulate
from llmsys.parallel.ranks import run
from tests.parallel.execute.models import make_microbatches
from tests.support.size import SEED, sized

NAMES = ["gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "chimera", "dualpipe"]
COSTS = Costs(F=0.02, I=0.03, W=0.01)


@dataclass
class Sleeping:
    """A stage whose actions take their time."""

    costs: Costs
    device = torch.device("cpu")

    def forget(self):
        pass

    def boundary(self, tokens):
        return torch.empty(1)

    def forward(self, microbatch, x, tokens, divisor):
        time.sleep(self.costs.F)
        return torch.zeros(1)

    def backward_input(self, microbatch, dy):
        time.sleep(self.costs.I)
        return torch.zeros(1)

    def backward_weight(self, microbatch):
        time.sleep(self.costs.W)


def sleep_through(schedule, costs, microbatches):
    stages = {key: Sleeping(costs) for key in schedule.placement.stages(dist.get_rank())}
    pipeline = Pipeline(schedule, stages)
    pipeline.step(microbatches)  # the first one connects the ranks
    pipeline.step(microbatches)
    return pipeline.timeline()


@pytest.mark.parametrize("name", sized(short=[NAMES[SEED % len(NAMES)]], full=NAMES))
def test_a_run_of_sleeping_actions_is_the_simulated_one(name):
    schedule = make_schedule(name, 2, 6)
    measured = run(sleep_through, 2, schedule, COSTS, make_microbatches(6), backend="gloo")[0]
    simulated = simulate(schedule, COSTS)
    for row, expected in zip(measured.events, simulated.events, strict=True):
        assert [event.action for event in row] == [event.action for event in expected]
        for event, other in zip(row, expected, strict=True):
            assert event.start >= other.start - 0.001 and event.duration >= other.duration - 0.001
    assert measured.makespan < 5 * simulated.makespan
