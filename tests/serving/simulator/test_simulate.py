"""The simulator as a whole: nothing is lost, queues are as long as queueing theory says, and a run is a run."""

import math
import random
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.serving import POLICIES, EventLog, Lengths, Request, SamplingParams
from llmsys.serving.goodput import Limits, request_metrics
from llmsys.serving.policies import StallFree
from llmsys.serving.simulator import Instance, Prices, Score, StepLoad, StepTimes, capacity, leaderboard, simulate
from llmsys.serving.simulator.step_times import TICKS
from llmsys.serving.telemetry.events import Admitted, Arrived, Computed, Finished, Preempted, Token
from llmsys.serving.workload import Arrival, read_mooncake, shared_share, synthetic
from tests.support.traces import trace_path

TIMES = StepTimes(Prices(4e-3, 0.0, 5e-6, 30e-9), Prices(5e-3, 2e-5, 2e-5, 60e-9, 4e-9))
ONE = Lengths(1, (5,) * 11, (1,) * 11, 5.0, 1.0)


@given(st.integers(0, 10**6), st.sampled_from(list(POLICIES)), st.booleans(), st.sampled_from([300, 4000]))
@settings(max_examples=15)
def test_every_token_is_computed_and_said_and_no_other(seed, policy, ahead, num_blocks):
    workload = [Arrival(at, min(prompt, 2000), output) for at, prompt, output, _ in
                synthetic("azure-conversation", 15, rate=20.0, seed=seed, cv=2.0)]  # fmt: skip
    log = EventLog()
    result = simulate(workload, times=TIMES, num_blocks=num_blocks, policy=policy, ahead=ahead, events=log,
                      max_sequences=8, prefixes=seed % 2 > 0)  # fmt: skip
    events = list(log)
    computed = sum(event.tokens for event in events if isinstance(event, Computed))
    hit = sum(event.hit_tokens for event in events if isinstance(event, Admitted))
    lost = sum(event.lost for event in events if isinstance(event, Preempted))
    # Of each request all tokens but the last are computed or hit, and what was lost once more.
    assert computed == result.computed_tokens == sum(e.prompt + e.output - 1 for e in workload) + lost - hit
    said = [event.request for event in events if isinstance(event, Token)]
    assert [said.count(str(n)) for n in range(15)] == [each.output for each in workload]
    assert result.output_tokens == len(said)
    assert sum(isinstance(event, Finished) for event in events) == 15
    times = [event.time for event in events if not (ahead and isinstance(event, Arrived))]
    assert times == sorted(times)
    logged = list(request_metrics(events).values())
    gaps = simulate(workload, times=TIMES, num_blocks=num_blocks, policy=policy, ahead=ahead, gaps=True,
                    max_sequences=8, prefixes=seed % 2 > 0).requests  # fmt: skip
    without = [[replace(each, longest_gap=None) for each in one] for one in (logged, gaps)]
    assert result.requests == without[0] == without[1], "what the tally kept is what the log says"
    for ours, theirs in zip(gaps, logged, strict=True):
        assert ours.longest_gap == pytest.approx(theirs.longest_gap, abs=1e-12)
    assert [each.arrival for each in result.requests] == pytest.approx([each.at for each in workload], abs=1e-15)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_requests_wait_as_long_as_in_a_queue_of_one_server_and_equal_services(load):
    """M/D/1: W = ρ s / (2 (1 − ρ)), Pollaczek and Khinchine's formula for services of one length s."""
    service = 0.01
    workload = synthetic(ONE, 6000, rate=load / service, seed=1)
    result = simulate(workload, times=StepTimes(Prices(service)), num_blocks=10, max_sequences=1, max_tokens_per_step=8)
    waits = [each.time_to_first_token - service for each in result.requests]
    assert min(waits) > -1e-9
    assert mean(waits) == pytest.approx(load * service / (2 * (1 - load)), rel=0.09)
    assert result.steps == 6000


def test_requests_wait_as_long_as_in_a_queue_of_one_server_and_unequal_services():
    """M/G/1: W = λ E[S²] / (2 (1 − ρ)); here a service takes as long as its prompt has tokens."""
    lengths = Lengths(1, (1, 1, 1, 1, 1, 1, 30, 30, 30, 30, 30), (1,) * 11, 0.0, 1.0)
    workload = synthetic(lengths, 8000, rate=0.05, seed=2)
    engine = dict(num_blocks=10, max_sequences=1, max_tokens_per_step=32)
    result = simulate(workload, times=StepTimes(Prices(per_token=1.0)), **engine)
    waits = [each.time_to_first_token - each.prompt_tokens for each in result.requests]
    first, second = (mean(each.prompt**power for each in workload) for power in (1, 2))
    assert mean(waits) == pytest.approx(0.05 * second / (2 * (1 - 0.05 * first)), rel=0.1)


def test_goodput_rises_with_the_limits_and_attainment_falls_with_the_rate():
    results = {rate: simulate(synthetic("azure-code", 150, rate=rate, seed=0), times=TIMES, num_blocks=40_000)
               for rate in (2.0, 12.0, 30.0)}  # fmt: skip
    limits = [Limits(ttft, tpot) for ttft, tpot in ((0.01, 0.004), (0.1, 0.008), (0.1, 0.02), (1.0, 0.02), (9.0, 9.0))]
    for result in results.values():
        met = [result.goodput(each) for each in limits]
        assert met == sorted(met) and met[-1] * (result.seconds - result.requests[0].arrival) == pytest.approx(150)
    attained = [result.attainment(limits[2]) for result in results.values()]
    assert attained == sorted(attained, reverse=True) and attained[0] > attained[-1]


def test_a_workload_has_one_result():
    workload = synthetic("azure-conversation", 40, rate=10.0, seed=4)
    one, other = (simulate(workload, times=TIMES, num_blocks=2000, policy="alternating") for _ in range(2))
    assert one == other and one.planned < 0.2 * one.steps
    assert one.ttft(50) < one.ttft(99) <= one.ttft(100) == max(each.time_to_first_token for each in one.requests)
    assert one.tpot(100) == max(each.time_per_output_token or 0 for each in one.requests)
    assert one.tokens_per_s * one.seconds == pytest.approx(sum(each.output for each in workload))


# Planning ahead


def planned_ahead(workload, **engine):
    """The events of an engine's loop on a simulated clock: step j + 1 is planned as step j begins."""
    from llmsys.cache import BlockPool
    from llmsys.serving import Output, Scheduler, StepResult
    from llmsys.serving.simulator.load import StepLoad

    now, log, coming, flights = [0], EventLog(), list(enumerate(workload)), []
    scheduler = Scheduler(BlockPool(engine.pop("num_blocks")), events=log, clock=lambda: now[0] / TICKS, **engine)
    end = 0
    while coming or scheduler.has_unfinished:
        while coming and round(coming[0][1].at * TICKS) <= now[0]:
            n, each = coming.pop(0)
            request = Request(str(n), [n] * each.prompt, SamplingParams(max_tokens=each.output))
            before, now[0] = now[0], round(each.at * TICKS)
            scheduler.add(request)
            now[0] = before
        while len(flights) < 2 and (plan := scheduler.plan()):
            flights.append(plan)
        if not flights:
            now[0] = end = round(coming[0][1].at * TICKS)
            continue
        plan = flights.pop(0)
        end = now[0] = max(end, now[0]) + TIMES.ticks(StepLoad.of_plan(plan))
        scheduler.update(plan, StepResult(plan.step, tuple(Output(w.request, (1,)) for w in plan.work if w.logits)))
    return request_metrics(log)


def test_ahead_is_an_engine_that_plans_ahead():
    workload = synthetic("azure-conversation", 40, rate=9.0, seed=6)
    engine = dict(num_blocks=20_000, max_tokens_per_step=512)
    expected = planned_ahead(workload, **engine)
    result = simulate(workload, times=TIMES, ahead=True, **engine)
    for ours, theirs in zip(result.requests, expected.values(), strict=True):
        assert ours.time_to_first_token == pytest.approx(theirs.time_to_first_token, abs=1e-12)
        assert ours.ended == pytest.approx(theirs.ended, abs=1e-12)
    at_once = simulate(workload, times=TIMES, **engine)
    waits = [mean(each.time_to_first_token for each in one.requests) for one in (at_once, result)]
    assert waits[1] > waits[0] + 1e-3, "who comes while a step runs waits for another one"


# The highest rate, and the leaderboard


def test_the_highest_rate_within_limits_is_found_from_both_sides():
    def workload(rate):
        return synthetic("azure-code", 40, rate=rate, seed=0)

    limits = Limits(ttft=0.5, tpot=0.03)
    rate = capacity(workload, limits, times=TIMES, num_blocks=4000, low=2.0, high=60.0)
    for factor, enough in ((1.0, True), (1.03, False)):
        result = simulate(workload(rate * factor), times=TIMES, num_blocks=4000)
        assert (result.attainment(limits) >= 0.9) == enough
    stricter = Limits(ttft=0.2, tpot=0.03)
    assert capacity(workload, stricter, times=TIMES, num_blocks=4000, low=2.0, high=60.0, within=0.2) < rate


def test_whole_prompts_beside_what_decodes_stall_it_and_a_limit_to_gaps_sees_that():
    workload = synthetic("azure-code", 60, rate=6.0, seed=0)
    settings = dict(times=TIMES, num_blocks=4000, gaps=True)
    orca = simulate(workload, policy="orca", max_tokens_per_step=8192, **settings)
    chunks = simulate(workload, policy="stall-free", max_tokens_per_step=512, **settings)
    limits = Limits(tpot=0.1, gap=0.025)
    assert chunks.attainment(limits) > orca.attainment(limits) + 0.2
    step = TIMES.seconds(StepLoad(512, 64, 512 + 64 * 7500, 512 * 7500))  # no step of 512 tokens takes longer
    assert max(each.longest_gap or 0 for each in chunks.requests) < step


class Nobody:
    def turns(self, running, head, budget):
        return iter(())


def test_the_leaderboard_ranks_by_goodput_and_survives_a_policy_that_does_not_work():
    policies = {"static": "static", "mine": StallFree, "nobody": Nobody, "not one": 3}
    board = dict(limits=Limits(ttft=1.0, tpot=0.03), times=TIMES, count=25, low=0.1, high=32.0, within=0.2)
    scores = leaderboard(policies, **board)
    assert [score.name for score in scores][:2] == ["mine", "static"]
    assert scores == leaderboard(policies, **board)
    best = scores[0]
    assert best.goodput > scores[1].goodput > 0 and best.ttft <= 2.0 and best.error is None
    errors = {score.name: score.error for score in scores[2:]}
    assert "lets nobody compute" in errors["nobody"] and "policy must be a name" in errors["not one"]
    impossible = leaderboard({"stall-free": "stall-free"}, limits=Limits(ttft=1e-9), times=TIMES, count=20)
    assert impossible == [Score("stall-free", 0.0, impossible[0].ttft, impossible[0].tpot)]


# Prefixes


def test_a_cache_of_one_s_own_trace_hits_what_was_there():
    workload = [Arrival(float(n), 1500, 3, blocks) for n, blocks in
                enumerate([(1, 2, 3), (1, 2, 4), (5, 2, 3), (1, 2, 3), (1, 6, 7)])]  # fmt: skip
    result = simulate(workload, times=TIMES, num_blocks=2000)
    assert [each.hit_tokens for each in result.requests] == [0, 1024, 0, 1488, 512]  # of 1500 in blocks of 16
    assert simulate(workload, times=TIMES, num_blocks=2000, prefixes=False).hit_share == 0
    small = simulate(workload, times=TIMES, num_blocks=110)  # room for one
    assert sum(each.hit_tokens for each in small.requests) < 3024


@pytest.mark.parametrize("count", [100, pytest.param(None, marks=pytest.mark.long)])
@pytest.mark.parametrize("name, share", [("mooncake-conversation", 0.374), ("mooncake-synthetic", 0.651)])
def test_a_cache_without_a_limit_hits_what_mooncakes_traces_share(name, share, count):
    workload = read_mooncake(trace_path(name))[:count]
    engine = dict(num_blocks=400_000, block_size=512, max_tokens_per_step=200_000)
    result = simulate(workload, times=StepTimes(Prices(1e-5)), **engine)
    # Here whole blocks are hit, and a prompt's last token is computed.
    assert result.hit_share == pytest.approx(shared_share(workload), abs=0.005)
    if count is None:
        assert result.hit_share == pytest.approx(share, abs=0.001)


# What is refused


def test_what_cannot_be_is_refused():
    good = dict(times=TIMES, num_blocks=100)
    for workload, words in (([], "at least one request"), ([Arrival(1.0, 5, 5), Arrival(0.5, 5, 5)], "order of time"),
                            ([Arrival(-1.0, 5, 5)], "order of time"), ([Arrival(math.nan, 5, 5)], "order of time"),
                            ([Arrival(0.0, 5000, 5)], "prompt must have at most 1584 tokens")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            simulate(workload, **good)
    with pytest.raises(ValueError, match="times must be StepTimes"):
        simulate([Arrival(0.0, 5, 5)], times=0.1, num_blocks=100)
    with pytest.raises(ValueError, match="what makes a policy"):
        capacity(lambda rate: [], Limits(), policy=StallFree(), **good)
    instance = Instance(TIMES, num_blocks=100)
    instance.add(Request("a", [1], SamplingParams(max_tokens=3)), 1.0)
    instance.advance()
    with pytest.raises(ValueError, match="at must be at least 1.0"):
        instance.add(Request("b", [1], SamplingParams(max_tokens=3)), 1.0)
    with pytest.raises(ValueError, match="sampling.n must be 1 here, got 2"):
        instance.add(Request("b", [1], SamplingParams(max_tokens=3, n=2)), 9.0)
    ahead = Instance(TIMES, num_blocks=10, ahead=True)
    ahead.add(Request("a", [1], SamplingParams(max_tokens=3)), 1.0)
    ahead.advance(1.0)
    with pytest.raises(ValueError, match="prompt must have at most 144 tokens"):
        ahead.add(Request("b", [1] * 200, SamplingParams(max_tokens=3)), 1.0)


def test_where_all_is_done_nothing_happens():
    instance = Instance(TIMES, num_blocks=100)
    instance.advance()
    instance.advance(5.0)
    assert not instance.busy and instance.steps == 0
    draw = random.Random(0)
    for n in range(5):
        at = n + draw.random()
        instance.add(Request(str(n), [n + 1] * 20, SamplingParams(max_tokens=9)), at)
        assert instance.now <= round(at * TICKS)
    instance.advance()
    assert instance.scheduler.pool.stats.used == 0
