"""The goodput explorer shows the longest stall of a run, and the waits of all of its requests."""

import math
import statistics
import time
from functools import cache
from xml.etree import ElementTree

import pytest

from llmsys.serving import POLICIES, EventLog, Turn
from llmsys.serving.goodput import Limits, request_metrics
from llmsys.serving.simulator import Prices, StepTimes, simulate
from llmsys.serving.workload import synthetic
from llmsys.serving.workload.arrivals import Arrival
from llmsys.viz.chunked_prefill import Service, stepper
from llmsys.viz.chunked_prefill.explored import BEFORE, frames_of
from llmsys.viz.chunked_prefill.explorer_frame import BARS, BINS, LOW, counted, draw, share
from llmsys.viz.chunked_prefill.stepper import BUDGETS, LIMITS, RATES
from llmsys.viz.chunked_prefill.witness import Witness

SVG = "{http://www.w3.org/2000/svg}"
TIMES = StepTimes(
    Prices(fixed=4.5e-3, per_token=2e-5, per_attended=2.3e-8),
    Prices(fixed=3.6e-3, per_token=1.8e-5, per_sequence=4.6e-5, per_attended=5.8e-8, per_pair=2.6e-9),
)


@cache  # several tests look at the same runs
def service():
    return Service(TIMES, count=40)


@cache
def frames(policy="orca", budget=8192, rate=20.0, limits="0.5 s, 30 ms, no gap above 100 ms"):
    result, witness = service().witnessed(rate, policy=policy, budget=budget)
    return frames_of(result, witness, policy=policy, budget=budget, rate=rate, limits=LIMITS[limits])


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rate", [3.0, 25.0])
def test_the_witness_saw_what_the_whole_log_says(policy, rate):
    asked = synthetic("azure-conversation", 25, rate=rate, seed=4)
    settings = dict(times=TIMES, num_blocks=20_000, policy=policy, max_tokens_per_step=1024, max_sequences=16)
    witness, log = Witness(), EventLog()
    simulate(asked, events=witness.events, **settings)
    simulate(asked, events=log, **settings)
    moments = witness.between(0.0, math.inf)
    done = [each for each in log if type(each).__name__ == "StepDone"]
    assert [each.tokens for each in moments] == [each.tokens for each in done]
    assert [each.end for each in moments] == pytest.approx([each.time for each in done], abs=1e-12)
    assert [each.seconds for each in moments] == pytest.approx([each.seconds for each in done], abs=1e-9)
    longest = max(each.longest_gap or 0.0 for each in request_metrics(log).values())
    gap = witness.longest_gap()
    assert gap.seconds == pytest.approx(longest, abs=1e-9)
    inside = [each for each in moments if each.start >= gap.start - 1e-9 and each.end < gap.end - 1e-9]
    assert all(gap.request not in each.decodes for each in inside)
    prompts = sum(sum(each.pieces.values()) for each in moments)
    assert prompts == sum(each.prompt for each in asked)


def test_a_run_is_done_once_and_a_part_of_its_time_can_be_looked_at():
    mine = Service(TIMES, count=10)
    result, witness = mine.witnessed(20.0, policy="stall-free", budget=512)
    assert mine.run(20.0, policy="stall-free", budget=512) is result
    all_of_it = witness.between(0.0, math.inf)
    start, end = all_of_it[3].start, all_of_it[7].end
    assert witness.between(start + 1e-9, end - 1e-9) == all_of_it[3:8]


def test_a_policy_of_the_readers_own_is_served_beside_the_others():
    class Own:
        steady = True

        def turns(self, running, head, budget):
            yield Turn(running, admit=True)

    mine = Service(TIMES, count=20, policies={"own": Own})
    limits = Limits(ttft=0.5, tpot=0.03, gap=0.1)
    assert mine.attained(limits, 20.0, policy="own") == mine.attained(limits, 20.0, policy="stall-free")
    shown = stepper(mine, policy="own", budget=2048)
    assert list(shown.controls[0].options) == ["own", *POLICIES]
    assert "own, 2,048 tokens a step" in shown.svg()


def test_the_window_holds_the_longest_stall_and_whoever_causes_it():
    last = frames()[-1]
    assert last.start == pytest.approx(max(0.0, last.gap.start - BEFORE))
    assert last.gap.end <= last.start + last.seconds and last.now.end <= last.start + last.seconds
    assert [row.why for row in last.rows][0] == "stalled" and last.rows[0].name == last.gap.request
    readers = [row.name for row in last.rows if row.why == "reads"]
    assert readers and all(any(name in each.pieces for each in last.moments) for name in readers)
    assert last.gap.seconds == pytest.approx(max(last.latencies.gap))


def test_cells_are_to_scale_and_one_for_each_step_of_a_row():
    frame = frames()[-1]
    found = [each for each in ElementTree.fromstring(draw(frame).markup()).iter(f"{SVG}rect") if each.get("rx") == "1"]
    fills = [each for each in found if each.get("class") in ("blue", "orange", "blue-soft", "orange-soft")]
    names = [row.name for row in frame.rows]
    assert len(fills) == sum((name in each.decodes) + (name in each.pieces) for each in frame.past for name in names)
    widest = max(float(each.get("width")) for each in fills)
    longest = max(each.seconds for each in frame.past if {*names} & {*each.decodes, *each.pieces})
    assert widest == pytest.approx(600 * longest / frame.seconds - 1, abs=0.2)


def test_a_stall_is_marked_when_it_is_over_and_not_before(words):
    before, after = frames()[0], frames()[-1]
    assert "from one token to the next" not in words(draw(before).markup())
    assert f"from one token to the next: {1e3 * after.gap.seconds:.3g} ms" in words(draw(after).markup())


def test_histograms_count_every_request_and_split_at_the_limit():
    values = (0.004, 0.02, 0.02, 0.3, 0.5, 0.51, 70.0)
    bins = counted(values, 0.5, 0.01, 1.0)
    assert len(bins) == BINS and sum(a for a, _ in bins) == 5 and sum(b for _, b in bins) == 2
    assert bins[0][0] == 1 and bins[-1] == (0, 1)
    frame = frames()[-1]
    bars = [each for each in ElementTree.fromstring(draw(frame).markup()).iter(f"{SVG}rect") if each.get("rx") == "0"]
    assert bars and max(float(each.get("height")) for each in bars) <= LOW - BARS
    orange = [each for each in bars if each.get("class") == "orange"]
    assert bool(orange) == (frame.latencies.met < 1)
    assert [share(each) for each in (0.0, 0.001, 0.25, 1.0)] == ["0%", "under 1%", "25%", "100%"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("limits", LIMITS)
def test_texts_can_be_read(policy, limits, assert_legible):
    for budget in (512, 8192):
        found = frames(policy, budget, 20.0, limits)
        for frame in (found[0], found[len(found) // 2], found[-1]):
            assert_legible(draw(frame).markup())


def test_it_says_in_words_what_it_shows():
    shown = stepper(service())
    frame = shown.frame
    said = repr(shown)
    assert f"{frame.latencies.met:.0%} are within all limits" in said
    assert f"Request {frame.gap.request} waits {1e3 * frame.gap.seconds:.3g} ms" in said
    assert "beyond 100 ms in their longest gap" in said and said.count("beyond") == 3
    shown.set(limits="2 s, 50 ms")
    assert repr(shown).count("beyond") == 2 and shown.index > 0


def test_every_choice_can_be_made():
    shown = stepper(Service(TIMES, count=6))
    for name, values in (("policy", POLICIES), ("budget", BUDGETS), ("rate", RATES), ("limits", LIMITS)):
        for value in values:
            shown.set(**{name: value})
            assert shown.frames and shown.svg()


def test_a_run_in_which_nobody_has_two_tokens_is_refused():
    witness = Witness()
    result = simulate([Arrival(0.0, 9, 1)], times=TIMES, num_blocks=99, events=witness.events, gaps=True)
    with pytest.raises(ValueError, match="no request with two tokens"):
        frames_of(result, witness, policy="orca", budget=9, rate=1.0, limits=Limits())


def test_a_frame_costs_milliseconds(record_property):
    times = []
    for frame in frames() * 3:
        start = time.perf_counter()
        draw(frame).markup()
        times.append(time.perf_counter() - start)
    record_property("median_ms", 1e3 * statistics.median(times))  # the bound is for a busy machine
    assert statistics.median(times) < 0.1
