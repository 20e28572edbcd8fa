"""A log read step by step: also where a step was planned before the one before it was done, or was never done."""

from llmsys.cache import BlockPool
from llmsys.serving.request import Request
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import Arrived, Computed, StepDone
from llmsys.viz.continuous_batching.timeline import read
from tests.support.made_up_runner import MadeUpRunner


def played(ahead: bool):
    scheduler, runner = Scheduler(BlockPool(30, 4), max_tokens_per_step=8, max_sequences=3), MadeUpRunner(30, 4)
    for name, prompt, n in (("a", [1] * 6, 4), ("b", [0] * 12, 3), ("c", [1] * 7, 5), ("d", [2] * 3, 2)):
        scheduler.add(Request(name, prompt, SamplingParams(n, ignore_eos=True)))
    plans = []
    while scheduler.has_unfinished or plans:
        while len(plans) <= ahead and (plan := scheduler.plan()):
            plans.append(plan)
        scheduler.update(plans[0], runner(plans[0]))
        del plans[0]
    return list(scheduler.events)


def test_a_step_has_its_own_requests_also_where_it_was_planned_ahead():
    for events in (played(ahead=False), played(ahead=True)):
        steps = read(events)
        assert [step.number for step in steps] == [each.step for each in events if isinstance(each, StepDone)]
        for step in steps:
            computed = {each.request for each in events if isinstance(each, Computed) and each.step == step.number}
            assert set(step.admitted) <= {part.request for part in step.parts} == computed
        assert sum(step.decodes for step in steps) == 4 + 3 + 5 + 2 - 4


def test_what_happened_in_a_step_that_was_never_done_is_the_next_ones():
    scheduler, runner = Scheduler(BlockPool(30, 4)), MadeUpRunner(30, 4)
    first = scheduler.add(Request("a", [1] * 6, SamplingParams(9)))[0]
    plans = [scheduler.plan(), scheduler.plan()]
    scheduler.update(plans[0], runner(plans[0]))
    scheduler.abort("a")
    scheduler.add(Request("b", [0] * 3, SamplingParams(1)))
    scheduler.forget(plans[1])
    plan = scheduler.plan()
    scheduler.update(plan, runner(plan))
    steps = read(scheduler.events)
    assert first.num_generated == 1 and [step.number for step in steps] == [0, 2]
    assert (steps[1].arrived, steps[1].ended, steps[1].admitted) == (["b"], ["a", "b"], {"b": 0})
    assert [each.step for each in scheduler.events if isinstance(each, Arrived)] == [0, 1]
