"""The pipeline benchmark: what it gives the simulator is what the actions took."""

import random

import pytest

from llmsys.bench.pipeline import PEERS
from llmsys.parallel.pipeline import Costs, costs_of, make_schedule, simulate
from tests.support.size import SEED


@pytest.mark.parametrize("name", [*PEERS, "dualpipe-v"])
def test_a_runs_costs_simulated_again_are_the_run(name):
    draw = random.Random(f"{SEED} {name}")
    schedule = make_schedule(name, 2, 6)
    costs = Costs(**{kind: [draw.uniform(1, 3) for _ in range(schedule.num_stages)] for kind in "FIW"})
    run = simulate(schedule, costs)
    again = simulate(schedule, costs_of(run, schedule.num_stages))
    for row, expected in zip(again.events, run.events, strict=True):
        assert [event.action for event in row] == [event.action for event in expected]
    if name != "dualpipe-v":  # a pair's time goes by its forward's stage alone, in the mean over its backwards'
        assert again.makespan == pytest.approx(run.makespan)
        assert again.bubble_share == pytest.approx(run.bubble_share)
