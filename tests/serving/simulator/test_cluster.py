"""Several engines: nothing is lost between them, and where they do not wait for each other they are what one is."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.serving import POLICIES, EventLog
from llmsys.serving.goodput import Limits
from llmsys.serving.policies import StallFree
from llmsys.serving.simulator import Cluster, Placement, Prices, StepLoad, StepTimes, Transfer, simulate
from llmsys.serving.simulator.step_times import TICKS
from llmsys.serving.telemetry.events import Admitted, Computed, Preempted, Token
from llmsys.serving.workload import Arrival, synthetic

TIMES = StepTimes(Prices(4e-3, 0.0, 5e-6, 30e-9), Prices(5e-3, 2e-5, 2e-5, 60e-9, 4e-9))
WHOLE = Transfer(bytes_per_token=131_072, bandwidth=5e9, latency=1e-4)
BY_LAYER = replace(WHOLE, layers=32)
PLACEMENTS = [Placement(colocated=3), Placement(prefill=1, decode=1), Placement(prefill=2, decode=1),
              Placement(prefill=1, decode=3)]  # fmt: skip


def drawn(count, *, seed, rate=15.0, longest=1500):
    """Requests, some of which have one token to say."""
    found = synthetic("azure-conversation", count, rate=rate, seed=seed, cv=2.0)
    return [each._replace(prompt=min(each.prompt, longest), output=1 if n % 5 == 3 else each.output)
            for n, each in enumerate(found)]  # fmt: skip


def logs_of(workload, placement, **engine):
    logs = [EventLog() for _ in range(placement.gpus)]
    return simulate(workload, placement=placement, events=logs, **engine), logs


@given(
    st.integers(0, 10**6), st.sampled_from(PLACEMENTS), st.sampled_from([Transfer(), WHOLE, BY_LAYER]),
    st.sampled_from(list(POLICIES)), st.booleans(), st.sampled_from([260, 4000]),
)  # fmt: skip
@settings(max_examples=15)
def test_every_token_is_computed_and_said_and_no_other(seed, placement, transfer, policy, ahead, num_blocks):
    workload = drawn(14, seed=seed)
    result, logs = logs_of(workload, placement, times=TIMES, num_blocks=num_blocks, transfer=transfer, policy=policy,
                           ahead=ahead, max_sequences=6, prefixes=seed % 2 > 0)  # fmt: skip
    events = [event for log in logs for event in log]
    lost = sum(event.lost for event in events if isinstance(event, Preempted))
    at_door = placement.colocated or placement.prefill
    hits = [[event.hit_tokens for event in log if isinstance(event, Admitted)] for log in logs]
    moved = sum(each.prompt for each in workload if each.output > 1) if placement.decode else 0
    assert result.moved_tokens == moved == sum(map(sum, hits[at_door:])), "each cache is received, and used once"
    computed = sum(event.tokens for event in events if isinstance(event, Computed))
    expected = sum(each.prompt + each.output - 1 for each in workload) + lost - sum(map(sum, hits[:at_door]))
    assert computed == result.computed_tokens == expected
    said = [event.request for event in events if isinstance(event, Token)]
    assert [said.count(str(n)) for n in range(14)] == [each.output for each in workload]
    assert [each.output_tokens for each in result.requests] == [each.output for each in workload]
    assert all(each.finished for each in result.requests) and result.output_tokens == len(said)
    for each, came in zip(result.requests, workload, strict=True):
        assert each.prompt_tokens == came.prompt and each.arrival == pytest.approx(came.at, abs=1e-12)
        assert each.arrival <= each.admitted < each.first_token <= each.last_token == each.ended
    assert len(result.transfers) == (sum(each.output > 1 for each in workload) if placement.decode else 0)


@given(
    st.integers(0, 10**6), st.sampled_from(PLACEMENTS), st.sampled_from([WHOLE, BY_LAYER]), st.booleans(),
    st.sampled_from([260, 4000]), st.sampled_from(["stall-free", "orca", "static"]),
)  # fmt: skip
@settings(max_examples=12)
def test_where_steps_are_skipped_the_events_are_the_same(seed, placement, transfer, ahead, num_blocks, policy):
    workload = drawn(12, seed=seed)
    engine = dict(times=TIMES, num_blocks=num_blocks, transfer=transfer, ahead=ahead, policy=policy, max_sequences=6)
    (ours, our_logs), (theirs, their_logs) = (
        logs_of(workload, placement, skip=skip, gaps=True, **engine) for skip in (True, False)
    )
    assert [list(log) for log in our_logs] == [list(log) for log in their_logs]
    assert ours.planned < ours.steps == theirs.steps == theirs.planned
    assert ours.transfers == theirs.transfers and ours.seconds == theirs.seconds
    for one, other in zip(ours.requests, theirs.requests, strict=True):
        assert replace(one, longest_gap=None) == replace(other, longest_gap=None)
        assert one.longest_gap == pytest.approx(other.longest_gap, abs=1e-12)


# What is arithmetic


@pytest.mark.parametrize("transfer", [Transfer(), WHOLE, BY_LAYER, replace(BY_LAYER, bandwidth=1e9)])
def test_one_request_is_arithmetic(transfer):
    prompt, output = 700, 50
    result = simulate([Arrival(0.5, prompt, output)], times=TIMES, num_blocks=200, transfer=transfer,
                      placement=Placement(prefill=1, decode=1))  # fmt: skip
    (one,) = result.requests
    prefill = TIMES.seconds(StepLoad.of([(0, prompt)]))
    assert one.time_to_first_token == pytest.approx(prefill)
    sending = prompt * transfer.bytes_per_token / transfer.bandwidth
    if transfer.layers:
        sending = max(sending / 32, sending - prefill * 31 / 32)
    assert result.transfers == [pytest.approx(sending + transfer.latency, abs=1e-12)]
    decoding = sum(TIMES.seconds(StepLoad.of([(prompt + n, 1)])) for n in range(output - 1))
    assert one.ended == pytest.approx(0.5 + prefill + sending + transfer.latency + decoding)
    assert one.time_per_output_token == pytest.approx((sending + transfer.latency + decoding) / (output - 1))


def by_hand(workload, transfer):
    """One prefiller, which takes one prompt at a time, and one decoder with room for all: two loops, no scheduler."""
    free, link, moved, first = 0, 0, [], {}
    for n, each in enumerate(workload):
        free = max(free, round(each.at * TICKS)) + TIMES.ticks(StepLoad.of([(0, each.prompt)]))
        first[n] = free
        if each.output > 1:
            link = max(link, free) + transfer.ticks(each.prompt)
            moved.append((link + transfer.latency_ticks, n))
    now, decoding, ended = 0, {}, dict(first)
    while moved or decoding:
        if not decoding:
            now = max(now, moved[0][0])
        while moved and moved[0][0] <= now:
            decoding[moved.pop(0)[1]] = 0  # tokens that it has said
        now += TIMES.ticks(StepLoad.of((workload[n].prompt + said, 1) for n, said in decoding.items()))
        for n in list(decoding):
            decoding[n] += 1
            if decoding[n] == workload[n].output - 1:
                ended[n] = now
                del decoding[n]
    return first, ended


@pytest.mark.parametrize("transfer", [Transfer(), WHOLE, replace(WHOLE, bandwidth=1e9)])
@pytest.mark.parametrize("seed", [0, 1])
def test_one_of_each_is_what_two_plain_loops_say(transfer, seed):
    workload = drawn(25, seed=seed, longest=2000)
    result = simulate(workload, times=TIMES, num_blocks=5000, transfer=transfer, prefill_settings={"max_sequences": 1},
                      placement=Placement(prefill=1, decode=1))  # fmt: skip
    first, ended = by_hand(workload, transfer)
    assert [each.first_token for each in result.requests] == [first[n] / TICKS for n in range(25)]
    assert [each.ended for each in result.requests] == [ended[n] / TICKS for n in range(25)]


def test_with_as_many_of_each_as_requests_and_a_free_link_nobody_waits():
    workload = [each._replace(output=max(2, each.output)) for each in drawn(8, seed=3, rate=200.0)]
    result = simulate(workload, times=TIMES, num_blocks=300, placement=Placement(prefill=8, decode=8),
                      route=lambda request, engines: int(request.id))  # fmt: skip
    for each, came in zip(result.requests, workload, strict=True):
        assert each.time_to_first_token == pytest.approx(TIMES.seconds(StepLoad.of([(0, came.prompt)])))
        decoding = sum(TIMES.seconds(StepLoad.of([(came.prompt + n, 1)])) for n in range(came.output - 1))
        assert each.ended - each.first_token == pytest.approx(decoding)
    assert result.transfers == [0.0] * 8


def test_prompts_wait_as_if_nobody_decoded():
    workload = drawn(30, seed=4)
    engine = dict(times=TIMES, num_blocks=3000, max_tokens_per_step=512)
    divided = simulate(workload, placement=Placement(prefill=1, decode=1), **engine)
    alone = simulate([each._replace(output=1) for each in workload], **engine)
    assert [each.first_token for each in divided.requests] == [each.first_token for each in alone.requests]
    together = simulate(workload, **engine)
    assert sum(each.first_token for each in divided.requests) < sum(each.first_token for each in together.requests)


def test_colocated_engines_are_each_what_one_is():
    workload = drawn(24, seed=5)
    engine = dict(times=TIMES, num_blocks=400, max_sequences=5)
    three = simulate(workload, placement=Placement(colocated=3), route=lambda request, engines: int(request.id) % 3,
                     **engine)  # fmt: skip
    for i in range(3):
        one = simulate(workload[i::3], **engine)
        assert one.requests == three.requests[i::3]


def test_routes_are_told_of_what_is_not_done_and_requests_go_where_the_fewest_tokens_are():
    told = []

    def route(request, engines):
        told.append(tuple(engines.held))
        return engines.held.index(min(engines.held))

    workload = [Arrival(0.0, 100, 5), Arrival(0.0, 30, 5), Arrival(0.0, 20, 5), Arrival(0.0, 60, 5), Arrival(9.0, 7, 5)]
    for placement in (Placement(colocated=2), Placement(prefill=2, decode=2)):
        told.clear()
        result = simulate(workload, times=TIMES, num_blocks=99, placement=placement, route=route)
        assert told[:: 2 if placement.decode else 1] == [(0, 0), (100, 0), (100, 30), (100, 50), (0, 0)]
        assert result == simulate(workload, times=TIMES, num_blocks=99, placement=placement), "the default's rule"


# What is scarce


def test_more_limits_are_met_the_wider_they_are_and_a_workload_has_one_result():
    workload = drawn(60, seed=6, rate=12.0)
    engine = dict(times=TIMES, num_blocks=3000, placement=Placement(prefill=1, decode=1), transfer=BY_LAYER)
    one, other = (simulate(workload, **engine) for _ in range(2))
    assert one == other
    met = [one.attainment(Limits(ttft, tpot)) for ttft, tpot in ((0.03, 0.005), (0.1, 0.006), (0.3, 0.007), (9.0, 9.0))]
    assert met == sorted(met) and met[0] < met[-1] == 1.0


def test_a_faster_link_and_hidden_layers_bring_a_cache_sooner():
    workload = drawn(25, seed=7)
    engine = dict(times=TIMES, num_blocks=5000, placement=Placement(prefill=1, decode=1),
                  prefill_settings={"max_sequences": 1})  # fmt: skip
    found = {}
    for bandwidth in (1e9, 4e9, 50e9):
        for layers in (None, 32):
            transfer = replace(WHOLE, bandwidth=bandwidth, layers=layers)
            found[bandwidth, layers] = simulate(workload, transfer=transfer, **engine).transfers
    for layers in (None, 32):
        for slow, fast in ((1e9, 4e9), (4e9, 50e9)):
            assert all(a > b for a, b in zip(found[slow, layers], found[fast, layers], strict=True))
    for bandwidth in (1e9, 4e9, 50e9):
        assert all(a >= b for a, b in zip(found[bandwidth, None], found[bandwidth, 32], strict=True))
    for each, seconds in zip([each for each in workload if each.output > 1], found[50e9, 32], strict=True):
        assert seconds == pytest.approx(1e-4 + each.prompt * 131_072 / 50e9 / 32, abs=1e-12), "all but the last layer"


def test_a_slow_link_fills_a_prefiller_which_waits_and_loses_nobody():
    workload = [each._replace(prompt=800, output=20) for each in drawn(12, seed=8, rate=100.0)]
    engine = dict(times=TIMES, num_blocks=130, placement=Placement(prefill=1, decode=1),
                  decode_settings={"num_blocks": 5000})  # fmt: skip
    slow = Transfer(bytes_per_token=131_072, bandwidth=0.2e9)  # half a second each
    result, fast = (simulate(workload, transfer=transfer, **engine) for transfer in (slow, Transfer()))
    assert fast.requests[-1].first_token < 1.0
    # Two prompts have room side by side: the third begins when the first one has arrived, and so on.
    arrived = [each.first_token + moved for each, moved in zip(result.requests, result.transfers, strict=True)]
    for n in range(10):
        assert result.requests[n + 2].admitted == pytest.approx(arrived[n], abs=1e-9)
    assert result.requests[-1].first_token > 4.0


def test_what_a_prefiller_holds_is_what_has_not_arrived():
    cluster = Cluster(Placement(prefill=1, decode=1), times=TIMES, num_blocks=500,
                      transfer=Transfer(bytes_per_token=1e6, bandwidth=1e9))  # fmt: skip
    cluster.add(Arrival(0.0, 160, 9))
    cluster.add(Arrival(0.1, 80, 9))
    cluster.advance(0.15)
    (prefiller,), (decoder,) = cluster.first, cluster.second
    assert prefiller.held_blocks == 15 == prefiller.scheduler.pool.stats.used and not decoder.scheduler.requests
    cluster.add(Arrival(0.2, 16, 1))
    cluster.advance()
    assert prefiller.held_blocks == 5 == prefiller.scheduler.pool.stats.used, "the first one's had arrived by then"
    assert decoder.scheduler.pool.stats.used == 0 and not decoder.scheduler.pool.received


@pytest.mark.parametrize("gaps", [False, True])
def test_who_is_asked_after_on_the_way_has_not_ended(gaps):
    """At each time, whatever is going on then: a request that has more to say than its first token has not ended."""
    link = replace(WHOLE, bandwidth=1e8)  # a cache of 900 tokens takes 1.2 s
    cluster = Cluster(Placement(prefill=1, decode=1), times=TIMES, num_blocks=4000, transfer=link, gaps=gaps)
    cluster.add(Arrival(0.0, 900, 50))
    said_first = set()
    for hundredths in range(140):
        cluster.advance(hundredths / 100)
        (one,) = cluster.requests()
        said_first.add(one.first_token is not None)
        assert not one.finished and one.ended is None and one.output_tokens == 0
    cluster.advance()
    (one,) = cluster.requests()
    assert said_first == {False, True} and one.finished and one.output_tokens == 50 and one.ended > 1.4


def test_who_is_preempted_is_computed_again_by_the_decoder():
    workload = [Arrival(0.0, 60, 100), Arrival(0.0, 60, 100), Arrival(0.0, 60, 100)]
    placement = Placement(prefill=1, decode=1)
    result, (_, decoding) = logs_of(workload, placement, times=TIMES, num_blocks=21, watermark=0.0, transfer=BY_LAYER)
    lost = [event.lost for event in decoding if isinstance(event, Preempted)]
    assert lost and sum(each.preemptions for each in result.requests) == len(lost)
    assert [event.hit_tokens for event in decoding if isinstance(event, Admitted)].count(60) == 3
    assert sum(each.lost_tokens for each in result.requests) == sum(lost) and result.moved_tokens == 180


def test_a_prefiller_s_prefixes_are_not_computed_and_still_sent():
    workload = [Arrival(n / 2, 1024, 4, blocks=(1, 2 + n)) for n in range(4)]
    engine = dict(times=TIMES, num_blocks=500, placement=Placement(prefill=1, decode=1))
    for transfer in (WHOLE, BY_LAYER):
        result, (prefilling, _) = logs_of(workload, transfer=transfer, **engine)
        assert [each.hit_tokens for each in result.requests] == [0, 512, 512, 512]
        assert sum(event.tokens for event in prefilling if isinstance(event, Computed)) == 4 * 1024 - 3 * 512
        assert result.moved_tokens == 4 * 1024
    # What was found leaves when the step begins: all of it but the last layer is there with the first token.
    sending = 512 * 131_072 / 5e9
    assert result.transfers[1] == pytest.approx(1e-4 + max(sending / 32, 2 * sending - TIMES.seconds(
        StepLoad.of([(512, 512)]))), abs=1e-9)  # fmt: skip


# What is refused


def test_what_cannot_be_is_refused():
    for bad in (dict(), dict(prefill=1), dict(decode=2), dict(colocated=1, prefill=1, decode=1)):
        with pytest.raises(ValueError, match="colocated engines, or else some for prefill and some for decode"):
            Placement(**bad)
    with pytest.raises(ValueError, match="prefill must be"):
        Placement(prefill=-1, decode=1)
    both = Placement(prefill=1, decode=1)
    good = dict(times=TIMES, num_blocks=100, placement=both)
    with pytest.raises(ValueError, match="what makes a policy"):
        simulate([Arrival(0.0, 5, 5)], policy=StallFree(), **good)
    with pytest.raises(ValueError, match="a log for each of 2 engines, got 1"):
        simulate([Arrival(0.0, 5, 5)], events=EventLog(), **good)
    with pytest.raises(ValueError, match="route must choose one of 2 engines"):
        simulate([Arrival(0.0, 5, 5)], times=TIMES, num_blocks=100, placement=Placement(colocated=2),
                 route=lambda request, engines: 2)  # fmt: skip
    with pytest.raises(ValueError, match="max_tokens must be at most 85 after a prompt of 1500"):
        simulate([Arrival(0.0, 1500, 100)], **good)
    cluster = Cluster(both, times=TIMES, num_blocks=100)
    cluster.add(Arrival(1.0, 5, 5))
    cluster.advance()
    with pytest.raises(ValueError, match="at must be at least 1 s, when the last request came, got 0.5"):
        cluster.add(Arrival(0.5, 5, 5))
    cluster = Cluster(Placement(colocated=2), times=TIMES, num_blocks=100)  # an engine to which nobody came, too
    cluster.add(Arrival(1.0, 5, 5))
    with pytest.raises(ValueError, match="at must be at least 1 s"):
        cluster.add(Arrival(0.5, 5, 5))
