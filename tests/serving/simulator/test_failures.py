"""Engines that die: nobody is lost, nothing is said twice, and skipped steps change nothing of it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.serving import EventLog
from llmsys.serving.routing import Engines
from llmsys.serving.simulator import Cluster, Failure, Failures, Placement, Prices, StepTimes, Transfer, simulate
from llmsys.serving.simulator.failures import Outages
from llmsys.serving.simulator.step_times import TICKS
from llmsys.serving.telemetry.events import Admitted, Computed, Token
from llmsys.serving.workload import Arrival, synthetic

TIMES = StepTimes(Prices(4e-3, 0.0, 5e-6, 30e-9), Prices(5e-3, 2e-5, 2e-5, 60e-9, 4e-9))
WHOLE = Transfer(bytes_per_token=131_072, bandwidth=5e9, latency=1e-4)
LAYERS = Transfer(bytes_per_token=131_072, bandwidth=5e9, latency=1e-4, layers=32)
PLACEMENTS = [Placement(colocated=3), Placement(prefill=1, decode=1), Placement(prefill=2, decode=2)]


def drawn(count, *, seed, rate=15.0, longest=1500):
    """Requests, some of which have one token to say; some begin alike."""
    found = synthetic("azure-conversation", count, rate=rate, seed=seed, cv=2.0)
    return [
        each._replace(
            prompt=(prompt := min(each.prompt, longest)), output=1 if n % 5 == 3 else each.output,
            blocks=tuple(range(1 + n % 2, 1 + n % 2 + -(-prompt // 512))),
        )
        for n, each in enumerate(found)
    ]  # fmt: skip


def most_cached(request, engines: Engines) -> int:
    """A route that looks at hits, and at nothing else where there are some."""
    return max(range(len(engines)), key=lambda i: (engines.hits[i], -engines.queued[i], -engines.held[i]))


@given(
    st.integers(0, 10**6), st.sampled_from(PLACEMENTS), st.sampled_from([Transfer(), WHOLE, LAYERS]), st.booleans(),
    st.sampled_from([300, 4000]), st.sampled_from(["fewest-tokens", most_cached]),
    st.sampled_from(["stall-free", "orca", "alternating"]),
)  # fmt: skip
@settings(max_examples=15)
def test_nobody_is_lost_and_skipped_steps_change_nothing(seed, placement, transfer, ahead, num_blocks, route, policy):
    workload = drawn(16, seed=seed)
    engine = dict(times=TIMES, num_blocks=num_blocks, placement=placement, transfer=transfer, ahead=ahead, route=route,
                  policy=policy, max_sequences=6, failures=Failures(every=2.0, repair=0.3, seed=seed))  # fmt: skip
    skipping, stepping = (simulate(workload, skip=skip, **engine) for skip in (True, False))
    assert [each.output_tokens for each in skipping.requests] == [each.output for each in workload]
    assert all(each.finished for each in skipping.requests)
    for each, came in zip(skipping.requests, workload, strict=True):
        assert each.prompt_tokens == came.prompt and each.arrival == pytest.approx(came.at, abs=1e-12)
        assert each.arrival <= each.admitted < each.first_token <= each.last_token == each.ended
    assert skipping.requests == stepping.requests and skipping.transfers == stepping.transfers
    for name in ("seconds", "steps", "computed_tokens", "output_tokens", "moved_tokens"):
        assert getattr(skipping, name) == getattr(stepping, name)
    assert skipping.planned <= stepping.planned == stepping.steps


@given(st.integers(0, 10**6), st.sampled_from(PLACEMENTS), st.sampled_from([Transfer(), WHOLE, LAYERS]), st.booleans())
@settings(max_examples=10)
def test_what_is_computed_is_what_is_needed_and_what_was_lost(seed, placement, transfer, ahead):
    workload = drawn(14, seed=seed)
    logs = [EventLog() for _ in range(placement.gpus)]
    result = simulate(workload, times=TIMES, num_blocks=2000, placement=placement, transfer=transfer, ahead=ahead,
                      events=logs, failures=Failures(every=1.5, repair=0.2, seed=seed))  # fmt: skip
    events = [event for log in logs for event in log]
    said = [event.request for event in events if isinstance(event, Token)]
    assert [said.count(str(n)) for n in range(14)] == [each.output for each in workload], "no token is said twice"
    door = placement.colocated or placement.prefill
    hits = sum(event.hit_tokens for log in logs[:door] for event in log if isinstance(event, Admitted))
    computed = sum(event.tokens for event in events if isinstance(event, Computed))
    lost = sum(each.lost_tokens for each in result.requests)
    expected = sum(each.prompt + each.output - 1 for each in workload) + lost - hits
    assert result.computed_tokens == expected
    assert computed <= expected, "what a step computes of a request that is given up meanwhile is in no log"
    if not placement.decode:
        assert computed == expected
    # Without failures the same is said.
    alone = simulate(workload, times=TIMES, num_blocks=2000, placement=placement, transfer=transfer, ahead=ahead)
    assert alone.output_tokens == result.output_tokens


def test_a_request_goes_on_elsewhere_with_what_was_said_and_its_cache_is_computed_again():
    cluster = Cluster(Placement(colocated=2), times=TIMES, num_blocks=900, failures=[Failure("both 0", at=1.0)])
    cluster.add(Arrival(0.0, 700, 400))
    cluster.advance(0.999)
    (one,) = cluster.first[0].scheduler.running
    said = one.num_generated
    assert said > 150
    cluster.advance(1.0)
    (other,) = cluster.first[1].scheduler.requests.values()
    assert len(other.prompt) in (700 + said, 701 + said) and other.num_generated == 0
    assert other.limit == 1100
    cluster.advance()
    (metrics,) = cluster.requests()
    assert metrics.output_tokens == 400 and metrics.preemptions == 1
    assert metrics.lost_tokens == len(other.prompt) - 1 and metrics.first_token < 0.1


def test_what_was_to_go_to_a_dead_decoder_or_came_from_a_dead_prefiller_begins_anew():
    slow = Transfer(bytes_per_token=1e6, bandwidth=1e9)  # 0.7 s for a prompt of 700 tokens
    engine = dict(times=TIMES, num_blocks=900, transfer=slow, placement=Placement(prefill=2, decode=2))
    first = simulate([Arrival(0.0, 700, 50)], **engine).requests[0].first_token
    for name, at, prompts in (("prefill 0", 0.3, 2), ("decode 0", 0.3, 2), ("decode 0", first / 2, 2),
                              ("prefill 0", 0.9, 1), ("decode 0", 0.75, 2), ("prefill 1", 0.3, 1)):  # fmt: skip
        result = simulate([Arrival(0.0, 700, 50)], failures=[Failure(name, at=at)], **engine)
        (one,) = result.requests
        assert one.output_tokens == 50 and one.preemptions == prompts - 1
        # A first token that was said is known, and its prompt computed again with it.
        assert one.first_token == pytest.approx(first) or at < first
        again = 0 if prompts == 1 else 700
        assert one.lost_tokens >= again and (one.lost_tokens > 0) == (prompts == 2)


def test_after_a_repair_nothing_is_cached():
    workload = [Arrival(float(n), 1024, 4, (1, 2)) for n in range(5)]
    engine = dict(times=TIMES, num_blocks=500)
    assert [each.hit_tokens for each in simulate(workload, **engine).requests] == [0, 1008, 1008, 1008, 1008]
    result = simulate(workload, failures=[Failure("both 0", at=1.5, until=1.6)], **engine)
    assert [each.hit_tokens for each in result.requests] == [0, 1008, 0, 1008, 1008]


def test_who_comes_when_nobody_is_there_waits_until_somebody_is_back():
    workload = [Arrival(0.0, 100, 30), Arrival(1.0, 100, 5), Arrival(1.5, 100, 5)]
    failures = [Failure("prefill 0", at=0.9, until=3.0)]
    result = simulate(workload, times=TIMES, num_blocks=99, placement=Placement(prefill=1, decode=1), failures=failures)
    assert result.requests[0].ended < 0.9 and all(3.0 < each.first_token < 3.1 for each in result.requests[1:])
    with pytest.raises(RuntimeError, match="2 requests are left, and no engine is there, or ever will be"):
        simulate(workload, times=TIMES, num_blocks=99, failures=[Failure("both 0", at=0.9)])


def test_a_dead_engine_is_given_nothing_and_drawn_failures_are_as_long_as_they_say():
    seen = []

    def route(request, engines):
        seen.append(tuple(engines.names))
        return len(seen) % len(engines)

    simulate([Arrival(n / 10, 20, 3) for n in range(30)], times=TIMES, num_blocks=99, placement=Placement(colocated=3),
             route=route, failures=[Failure("both 1", at=0.95, until=2.05)])  # fmt: skip
    whole, without = ("both 0", "both 1", "both 2"), ("both 0", "both 2")
    assert seen == [whole] * 10 + [without] * 11 + [whole] * 9
    outages = Outages(Failures(every=100.0, repair=25.0, seed=3), ["both 0", "both 1"])
    died, dead, last = {}, {"both 0": 0, "both 1": 0}, 0
    for _ in range(8000):
        outage = outages.pop()
        assert outage.tick >= last
        last = outage.tick
        if outage.dies:
            died[outage.engine] = outage.tick
        else:
            dead[outage.engine] += outage.tick - died.pop(outage.engine)
    assert [each / last for each in dead.values()] == pytest.approx([0.2, 0.2], abs=0.02)
    assert last / TICKS == pytest.approx(2000 * 125, rel=0.1)


@pytest.mark.parametrize("repair", [1e-17, 1e-15, 3e-15])
def test_however_short_a_repair_is_the_engine_dies_before_it_is_back(repair):
    workload = [Arrival(0.0, 1000, 300), Arrival(0.1, 1000, 300)]
    failures = Failures(every=0.5, repair=repair, seed=1)
    outages = Outages(failures, ["both 0"])
    seen = [outages.pop() for _ in range(40)]
    assert [each.dies for each in seen] == [True, False] * 20
    assert [each.tick for each in seen] == sorted(each.tick for each in seen)
    cluster = Cluster(Placement(colocated=2), times=TIMES, num_blocks=4000, failures=failures)
    for each in workload:
        cluster.add(each)
    cluster.advance(until=60.0)
    assert all(each.finished and each.preemptions for each in cluster.requests())


@pytest.mark.parametrize("wrong", [True, 2, -1, None])
def test_a_route_that_chooses_none_of_the_engines_is_refused(wrong):
    with pytest.raises(ValueError, match="route must choose one of 2 engines, by its number from 0 on, got"):
        simulate([Arrival(0.0, 5, 5)], times=TIMES, num_blocks=99, placement=Placement(colocated=2),
                 route=lambda request, engines: wrong)  # fmt: skip


def test_whoever_could_not_begin_anew_is_refused_when_he_comes():
    asked = [Arrival(0.0, 1000, 300), Arrival(0.1, 900, 100)]
    small = dict(times=TIMES, num_blocks=4000, placement=Placement(prefill=1, decode=2),
                 prefill_settings={"num_blocks": 70})  # fmt: skip
    assert all(each.finished for each in simulate(asked, **small).requests)
    failures = [Failure("decode 0", at=1.0)]
    with pytest.raises(ValueError, match="request 0, which begins anew where engines die: max_tokens must be at most"):
        simulate(asked, failures=failures, **small)
    assert all(each.finished for each in simulate(asked[1:], failures=failures, **small).requests)
    alone = Cluster(Placement(colocated=1), times=TIMES, num_blocks=70, failures=[Failure("both 0", at=0.5, until=1.0)])
    alone.advance(0.6)
    with pytest.raises(ValueError, match="request 0, which begins anew where engines die: prompt must have at most"):
        alone.add(Arrival(0.7, 2000, 3))  # nobody is there who could refuse it


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="from a time of at least 0 until a later one, got at=3.0, until=2.0"):
        Failure("both 0", at=3.0, until=2.0)
    with pytest.raises(ValueError, match="every must be seconds above 0"):
        Failures(every=0.0, repair=1.0)
    good = dict(workload=[Arrival(0.0, 5, 5)], times=TIMES, num_blocks=99)
    with pytest.raises(ValueError, match="failures must be of engines among 'both 0', got 'prefill 0'"):
        simulate(**good, failures=[Failure("prefill 0", at=3.0)])
    with pytest.raises(ValueError, match="failures of 'both 0': it dies at 2 s, and is dead until 3 s"):
        simulate(**good, failures=[Failure("both 0", at=1.0, until=3.0), Failure("both 0", at=2.0)])


WRONG = [5, True, Failure("both 0", at=1.0), ("both 0", 1.0), "both 0", {"both 0": 1.0}, Failures]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_list_of_failures_is_refused_with_what_is_one(wrong):
    said = r'failures must be a list of Failure\("both 0", at=…, until=…\), or Failures\(every=…, repair=…\), got '
    with pytest.raises(ValueError, match=said):
        simulate([Arrival(0.0, 5, 5)], times=TIMES, num_blocks=99, failures=wrong)


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Failure(3, at=1.0), 'engine must be the name of one, as "both 0" or "prefill 3", got 3'),
        (lambda: Failure("both 0", at="1"), "at must be seconds, a number, got '1'"),
        (lambda: Failure("both 0", at=True), "at must be seconds, a number, got True"),
        (lambda: Failure("both 0", at=1, until=None), "until must be seconds, a number, got None"),
        (lambda: Failures(every="1", repair=1.0), "every must be seconds above 0, on average, got '1'"),
        (lambda: Failures(every=1.0, repair=None), "repair must be seconds above 0, on average, got None"),
    ],
)
def test_a_failure_of_the_wrong_types_is_refused(make, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        make()


def test_failures_that_can_be_gone_through_once_all_happen():
    both = [Failure(name, at=0.01, until=0.5) for name in ("both 0", "both 1")]
    asked = dict(workload=[Arrival(0.0, 500, 50)] * 4, times=TIMES, num_blocks=99, placement=Placement(colocated=2))
    assert simulate(**asked, failures=iter(both)) == simulate(**asked, failures=both) != simulate(**asked)
