"""What a route is told of simulated engines, and what comes of listening to it."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmsys.serving.routing import Engines
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.simulator import Cluster, Placement, Prices, StepTimes, simulate
from llmsys.serving.simulator.agenda import Agenda
from llmsys.serving.simulator.known_tokens import SimulatedRequest, known_prompt
from llmsys.serving.workload import Arrival, at_rate, read_mooncake
from tests.support.size import sized
from tests.support.traces import trace_path

TIMES = StepTimes(Prices(4e-3, 0.0, 5e-6, 30e-9), Prices(5e-3, 2e-5, 2e-5, 60e-9, 4e-9))


def drawn(count, *, seed, keys=6):
    draw, at, found = random.Random(seed), 0.0, []
    for _ in range(count):
        at += draw.expovariate(20.0)
        blocks = tuple(draw.choice(range(keys)) for _ in range(draw.randint(1, 3)))
        found.append(Arrival(at, 512 * (len(blocks) - 1) + draw.randint(1, 512), draw.randint(1, 30), blocks))
    return found


@given(st.integers(0, 10**6), st.sampled_from([64, 512]), st.sampled_from([4, 9, 200]))
@settings(max_examples=15)
def test_a_route_is_told_of_what_each_cache_holds(seed, block_size, blocks_of_512):
    """As long as nobody decodes while requests come, that is what the pool itself would find."""
    draw, checked = random.Random(seed), []

    def route(request, engines):
        pools = [each.scheduler.pool for each in cluster.first]
        expected = [pool.match(request.tokens).tokens for pool in pools]
        assert engines.hits == expected and engines.block_size == block_size
        checked.append(max(expected))
        return draw.randrange(len(engines))

    engine = dict(times=TIMES, num_blocks=1 + blocks_of_512 * (512 // block_size), block_size=block_size)
    cluster = Cluster(Placement(colocated=3), route=route, prefixes=True, **engine)
    for n, each in enumerate(drawn(25, seed=seed)):
        cluster.add(each._replace(at=float(n), output=1))
    cluster.advance()
    assert len(checked) == 25 and any(checked)


@given(st.integers(0, 10**6), st.sampled_from([Placement(colocated=3), Placement(prefill=2, decode=2)]), st.booleans())
@settings(max_examples=10)
@example(275, Placement(colocated=3), True)  # one ends in the step in which another's prompt is cached
def test_a_route_is_told_the_same_whether_steps_are_skipped_or_not(seed, placement, ahead):
    told = {True: [], False: []}
    for skip, seen in told.items():

        def route(request, engines: Engines, seen=seen):
            columns = (engines.kind, *map(tuple, (engines.names, engines.queued, engines.held, engines.room)))
            seen.append((*columns, tuple(engines.hits)))
            return len(seen) * 7 % len(engines)

        simulate(drawn(30, seed=seed), times=TIMES, num_blocks=250, placement=placement, route=route, skip=skip,
                 ahead=ahead, max_sequences=5)  # fmt: skip
    assert told[True] == told[False] and any(any(each[-1]) for each in told[True])


def test_queued_and_held_are_what_has_no_token_yet_and_what_has_not_ended():
    seen = []

    def route(request, engines):
        seen.append((engines.kind, tuple(engines.queued), tuple(engines.held)))
        return 0

    workload = [Arrival(0.0, 1000, 100), Arrival(0.001, 10, 2), Arrival(0.2, 7, 2), Arrival(2.0, 9, 2)]
    simulate(workload, times=TIMES, num_blocks=900, placement=Placement(colocated=2), route=route)
    assert seen == [("both", (0, 0), (0, 0)), ("both", (1000, 0), (1000, 0)), ("both", (0, 0), (1000, 0)),
                    ("both", (0, 0), (0, 0))]  # fmt: skip
    seen.clear()
    simulate(workload, times=TIMES, num_blocks=900, placement=Placement(prefill=2, decode=2), route=route)
    assert seen[2:4] == [("prefill", (1000, 0), (1000, 0)), ("decode", (1000, 0), (1000, 0))]
    assert seen[4:6] == [("prefill", (0, 0), (0, 0)), ("decode", (0, 0), (1000, 0))]


def test_an_agenda_asks_whom_it_concerns_and_nobody_else():
    cluster = Cluster(Placement(colocated=50), times=TIMES, num_blocks=300)
    asked = []
    for i, engine in enumerate(cluster.first):
        request = SimulatedRequest(str(i), known_prompt(Arrival(0.0, 100, 200), i), SamplingParams(max_tokens=200))
        engine.add_at(request, 0)
        looked = engine.next_change
        engine.next_change = lambda tick, i=i, looked=looked: asked.append(i) or looked(tick)
    agenda = Agenda(cluster.first)
    for i in range(50):
        agenda.changed(i)
    asked.clear()
    for milliseconds in range(50, 700):
        agenda.advance_to(milliseconds * 10**12)
    assert len(asked) < 4 * 50, "once for a prompt, once for all its tokens, and not once for each of 650 times"
    agenda.advance_to(float("inf"))
    assert all(engine.steps == 200 and not engine.scheduler.requests for engine in cluster.first)


def anyone(seed=0):
    draw = random.Random(seed)
    return lambda request, engines: draw.randrange(len(engines))


def least_work(request, engines):
    costs = [len(request.tokens) - hit + held for hit, held in zip(engines.hits, engines.held, strict=True)]
    return costs.index(min(costs))


@pytest.mark.parametrize("name, factor", [("mooncake-conversation", 1.5), ("mooncake-synthetic", 2.5)])
def test_on_mooncakes_traces_a_route_that_looks_at_prefixes_hits_more_and_waits_less(name, factor):
    workload = at_rate(read_mooncake(trace_path(name))[: sized(short=800, full=None)], 4.0)
    engine = dict(times=TIMES, num_blocks=1876, block_size=512, placement=Placement(colocated=8))
    aware, random_ = (simulate(workload, route=route, **engine) for route in (least_work, anyone()))
    assert aware.hit_share > factor * random_.hit_share > 0
    assert aware.ttft(50) < random_.ttft(50) and aware.ttft(90) < random_.ttft(90)
    assert aware.output_tokens == random_.output_tokens
