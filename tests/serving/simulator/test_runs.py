"""Skipped steps: whatever comes and whoever decides, the events are those of planning every step, to the last bit."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.serving import POLICIES, EventLog, Metrics, Request, SamplingParams
from llmsys.serving.policies import Turn
from llmsys.serving.simulator import Instance, Prices, StepTimes
from llmsys.serving.simulator.runs import Run, SkippedSteps, begin_run, steps_with_room
from llmsys.serving.telemetry.events import Admitted, Preempted

TIMES = StepTimes(Prices(4e-3, 2e-6, 5e-6, 30e-6, 0.7e-6), Prices(5e-3, 2e-4, 5e-6, 60e-6), (8, 16))


EVEN = StepTimes(Prices(0.01), Prices(0.02))  # steps end at whole hundredths of a second


def drawn(count, *, seed, prompt=30, output=40, pause=0.05, alike=0.0, even=False):
    """(at, prompt, output) each; with the probability `alike` a prompt begins as all of these do. `even`: at whole
    hundredths of a second."""
    draw, at, found = random.Random(seed), 0.0, []
    for n in range(count):
        at += draw.expovariate(1 / pause) if draw.random() < 0.8 else 0.0
        tokens = [1000 * (n + 1) + i for i in range(draw.randint(1, prompt))]
        if draw.random() < alike:
            tokens = [*range(draw.choice((8, 17, 24))), *tokens]
        found.append((round(at, 2) if even else at, tokens, draw.randint(1, output)))
    return found


def served(requests, *, skip, stops=(), times=TIMES, **engine):
    """The instance, when all have ended. `stops`: times to which it is advanced on the way."""
    instance = Instance(times, skip=skip, **engine)
    coming = sorted([(at, 0, n) for n, (at, _, _) in enumerate(requests)] + [(at, 1, -1) for at in stops])
    for at, is_stop, n in coming:
        if is_stop:
            instance.advance(at)
        else:
            _, prompt, output = requests[n]
            instance.add(Request(str(n), prompt, SamplingParams(max_tokens=output)), at)
    instance.advance()
    return instance


def same(requests, *, stops=(), **engine):
    """Both ways, compared; the way that skips."""
    skipping, stepping = (served(requests, skip=skip, stops=stops, **engine) for skip in (True, False))
    ours, theirs = list(skipping.events), list(stepping.events)
    assert ours == theirs
    assert len(skipping.events) == len(ours)
    for one in (skipping, stepping):
        assert one.scheduler.steps_done == one.steps and not one.busy and not one.scheduler.has_unfinished
    assert (skipping.now, skipping.steps, skipping.computed) == (stepping.now, stepping.steps, stepping.computed)
    assert skipping.scheduler.pool.stats == stepping.scheduler.pool.stats
    assert stepping.planned == stepping.steps and skipping.planned <= stepping.planned
    return skipping


@given(
    st.integers(0, 10**6), st.sampled_from(list(POLICIES)), st.sampled_from([26, 40, 200]), st.sampled_from([2, 5, 16]),
    st.sampled_from([16, 17, 64]), st.booleans(), st.sampled_from([0.0, 0.5]), st.sampled_from([0.0, 0.1]),
    st.booleans(),
)  # fmt: skip
@settings(max_examples=40)
def test_the_events_are_the_same(seed, policy, num_blocks, max_sequences, budget, ahead, alike, watermark, even):
    requests = drawn(12, seed=seed, alike=alike, even=even)
    stops = sorted(random.Random(seed).uniform(0, 2) for _ in range(seed % 4))
    same(requests, stops=stops, policy=policy, num_blocks=num_blocks, block_size=4, max_sequences=max_sequences,
         max_tokens_per_step=budget, ahead=ahead, watermark=watermark, times=EVEN if even else TIMES)  # fmt: skip


def test_who_comes_at_one_time_is_in_one_step_and_who_comes_at_a_step_s_end_in_the_next():
    requests = [(0.0, [1] * 5, 9), (0.0, [2] * 5, 9), (0.05, [3] * 5, 2), (0.07, [4] * 5, 2), (0.07, [5] * 5, 2)]
    done = same(requests, num_blocks=60, block_size=4, times=EVEN)
    steps = {event.request: event.step for event in done.events if isinstance(event, Admitted)}
    assert steps == {"0": 0, "1": 0, "2": 4, "3": 5, "4": 5}  # ends: 0.02, 0.03, 0.04, 0.05, 0.07, …


@pytest.mark.parametrize("policy", POLICIES)
def test_most_steps_are_skipped_and_some_requests_preempted(policy):
    requests = drawn(30, seed=7, output=200, pause=0.3)
    skipping = same(requests, policy=policy, num_blocks=80, block_size=4, max_sequences=6, max_tokens_per_step=32)
    assert skipping.planned < 0.2 * skipping.steps
    if policy != "static":
        assert any(isinstance(event, Preempted) for event in skipping.events)


class LastComeFirst:
    """A policy of one's own that says nothing of being steady."""

    def turns(self, running, head, budget):
        yield Turn(list(reversed(running)), admit=True)


class SteadyLastComeFirst(LastComeFirst):
    steady = True


class HalfOfThem:
    """Only every second one of those that run computes, in turn."""

    def __init__(self):
        self.odd = 0

    def turns(self, running, head, budget):
        self.odd = 1 - self.odd
        yield Turn(running[self.odd :: 2] or running, admit=True)


@pytest.mark.parametrize("policy", [LastComeFirst, SteadyLastComeFirst, HalfOfThem])
def test_with_a_policy_of_ones_own(policy):
    requests, engine = drawn(15, seed=3), dict(num_blocks=60, block_size=4, max_sequences=4, max_tokens_per_step=32)
    skipping, stepping = (served(requests, skip=skip, policy=policy(), **engine) for skip in (True, False))
    assert list(skipping.events) == list(stepping.events)
    assert (skipping.planned < skipping.steps) == (policy is SteadyLastComeFirst), "what is not known is not skipped"


def test_a_plain_pool_has_as_many_blocks_as_before_when_all_have_ended():
    done = served(drawn(25, seed=9), skip=True, prefixes=False, num_blocks=40, block_size=4, max_sequences=6)
    pool = done.scheduler.pool
    assert sorted(pool.reuse_order()) == list(range(1, 40)) and pool.stats.used == 0
    assert any(isinstance(event, Preempted) for event in done.events)


def test_without_prefixes_the_same_happens_unless_somebody_is_preempted():
    requests = drawn(12, seed=5)
    engine = dict(num_blocks=400, block_size=4, max_sequences=8, max_tokens_per_step=32)
    plain, found = (served(requests, skip=True, prefixes=prefixes, **engine) for prefixes in (False, True))
    assert list(plain.events) == list(found.events)


def test_until_when_how_many_steps_end():
    instance = Instance(TIMES, num_blocks=100, block_size=4)
    for n, output in enumerate((50, 60, 70)):
        instance.add(Request(str(n), [n + 1] * 9, SamplingParams(max_tokens=output)), 0.0)
    instance.advance(0.05)
    run = begin_run(instance.scheduler, TIMES, instance.now)
    assert isinstance(run, Run) and run.steps > 20 and run.growth > 0
    for n in range(run.steps + 1):
        end = run.now + run.ticks(n)
        assert run.until(end) == n and run.until(end - 1) == max(n - 1, 0)
    assert run.until(run.now + 10**18) == run.steps
    flat = Run(instance.scheduler, StepTimes(Prices(1e-3)), run.requests, 0, 7)
    assert [flat.until(int(tick * 1e12)) for tick in (0.5, 1, 1.5, 6.9, 7, 100)] == [0, 1, 1, 6, 7, 7]


def test_the_steps_that_fit_are_those_that_do():
    instance = Instance(TIMES, num_blocks=24, block_size=4)
    for n in range(3):
        instance.add(Request(str(n), [n + 1] * (7 + n), SamplingParams(max_tokens=60)), 0.0)
    instance.advance(0.01)
    scheduler = instance.scheduler
    fit = steps_with_room(scheduler, 60)
    needed = [
        sum(scheduler.pool.blocks_for(len(each.tokens) + n - 1) for each in scheduler.running) for n in range(1, 61)
    ]
    assert 0 < fit < 60 and needed[fit - 1] <= 23 < needed[fit]
    assert steps_with_room(scheduler, 3) == 3


def test_a_run_in_the_log_is_one_entry_until_somebody_reads_it():
    run = SkippedSteps(5, 3, 0, 10**12, 10**9, (("a", 9, 77), ("b", 4, 78)), 4, waiting=1, others=2, blocks=20)
    events = list(run.events())
    assert len(events) == run.size == 15
    steps = [event for event in events if type(event).__name__ == "StepDone"]
    assert [event.step for event in steps] == [5, 6, 7]
    assert [event.blocks_used for event in steps] == [2 + 3 + 1, 2 + 3 + 2, 2 + 3 + 2]
    assert [round(event.time, 6) for event in steps] == [0.001, 0.002001, 0.003003]


def test_who_listens_is_told_of_skipped_steps_and_a_short_log_has_the_last_events():
    heard: dict[bool, list] = {True: [], False: []}
    metrics, kept = {}, {}
    for skip in (True, False):
        log = EventLog(keep=50)
        metrics[skip] = Metrics()
        log.listen(heard[skip].append)
        log.listen(metrics[skip].on, progress=metrics[skip].on_progress)
        served(drawn(8, seed=2), skip=skip, num_blocks=60, block_size=4, max_sequences=4, events=log)
        kept[skip] = list(log)
        assert len(log) == 50
    assert heard[True] == heard[False] and kept[True] == kept[False] == heard[True][-50:]
    assert metrics[True].requests == metrics[False].requests and metrics[True].totals == metrics[False].totals
