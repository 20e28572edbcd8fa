"""Steps' times: loads are counted rightly, and a fit finds the prices that were paid."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.cache import BlockPool
from llmsys.serving import EventLog, Output, Request, SamplingParams, Scheduler, StepResult
from llmsys.serving.simulator import Prices, StepLoad, StepRecorder, StepTimes, TimedStep, fit, relative_errors
from llmsys.serving.simulator.step_times import TICKS, filled_up, non_negative
from llmsys.serving.telemetry.events import Progress, StepDone


def test_a_load_counts_every_query_and_every_key_that_it_sees():
    work = [(0, 5), (7, 1), (16, 3)]
    pairs = sum(start + i + 1 for start, n in work for i in range(n))
    assert StepLoad.of(work) == StepLoad(9, 3, 5 + 8 + 19, pairs)
    assert StepLoad.of([]) == StepLoad(0, 0, 0, 0)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 7))
def test_after_some_steps_of_decoding_each_attends_to_so_many_more(contexts, steps):
    later = StepLoad.of((context + steps, 1) for context in contexts)
    assert StepLoad.of((context, 1) for context in contexts).after(steps) == later


def test_the_recorder_has_each_step_once_with_its_time():
    now = [0.0]
    log = EventLog()
    scheduler = Scheduler(BlockPool(40, 4), max_tokens_per_step=6, max_sequences=3, events=log, clock=lambda: now[0])
    recorder = StepRecorder(log)
    for i in range(3):
        scheduler.add(Request(f"r{i}", [i + 1] * 5, SamplingParams(max_tokens=3)))
    loads = []
    while plan := scheduler.plan():
        loads.append(StepLoad.of_plan(plan))
        now[0] += len(loads)
        scheduler.update(plan, StepResult(plan.step, tuple(Output(w.request, (9,)) for w in plan.work if w.logits)))
    assert [each.load for each in recorder.steps] == loads and sum(load.tokens for load in loads) == 3 * (5 + 2)
    assert [each.seconds for each in recorder.steps] == list(range(1, len(loads) + 1))


def test_a_step_whose_end_nobody_saw_is_left_out_with_the_one_after_it():
    """The first pieces of a prompt say nothing, and take no time on the host's clock: the last one takes all of it."""
    log = EventLog()
    recorder = StepRecorder(log)
    for step, (tokens, said, seconds) in enumerate([(4, (), 1e-4), (4, (), 1e-4), (2, (7,), 0.9), (1, (7,), 0.1)]):
        log.add_progress(Progress(step, 0.0, [("a", 4 * step, tokens, 0, said)]))
        log.add(StepDone(step, 0.0, seconds, "prefill", tokens, 1, 1, 0, 1, 9))
    assert [each.seconds for each in recorder.steps] == [0.1]


def drawn_loads(count, seed=0):
    draw, found = random.Random(seed), []
    for _ in range(count):
        work = [(draw.randrange(4000), 1) for _ in range(draw.randrange(64))]
        work += [(draw.randrange(4000), draw.randrange(1, 2000)) for _ in range(draw.randrange(3))]
        found.append(StepLoad.of(work or [(0, 1)]))
    return found


DECODE, MIXED = Prices(4e-3, 0.0, 5e-6, 30e-9), Prices(5e-3, 2e-5, 2e-5, 60e-9, 4e-9)
TWO = [TimedStep(StepLoad(1, 1, 1, 1), 1.0)] * 2


@pytest.mark.parametrize(
    "true",
    [
        StepTimes(DECODE, MIXED, (64, 256, 1024, 2048)),
        StepTimes(DECODE, MIXED),
        StepTimes(DECODE, MIXED, (64, 256, 1024, 2048), Prices(4e-3, 1e-5, 4e-5, 90e-9), short_tokens=600),
        StepTimes(Prices(4e-3, per_attended=30e-9)),
        StepTimes(Prices(per_token=1e-5)),
    ],
)
def test_prices_that_were_paid_are_found(true):
    steps = [TimedStep(load, true.seconds(load)) for load in drawn_loads(300)]
    found = fit(steps, sizes=true.sizes, short_tokens=true.short_tokens)
    assert max(map(abs, relative_errors(found, steps))) < 1e-5
    others = [TimedStep(load, true.seconds(load)) for load in drawn_loads(100, seed=1)]
    assert max(map(abs, relative_errors(found, others))) < 1e-4


def test_a_fit_is_not_led_astray_by_noise():
    true, draw = StepTimes(DECODE, MIXED), random.Random(0)
    steps = [TimedStep(load, true.seconds(load) * draw.uniform(0.95, 1.05)) for load in drawn_loads(500)]
    clean = [TimedStep(load, true.seconds(load)) for load in drawn_loads(200, seed=1)]
    assert max(map(abs, relative_errors(fit(steps), clean))) < 0.03


def test_steps_with_more_weight_are_fitted_better():
    steps = [TimedStep(StepLoad(1, 1, 1, 1), 1.0), TimedStep(StepLoad(1, 1, 1, 1), 3.0)]
    assert fit(steps, weights=[1000, 1]).seconds(steps[0].load) == pytest.approx(1.0, rel=0.01)
    assert fit(steps, weights=[1, 1000]).seconds(steps[0].load) == pytest.approx(3.0, rel=0.01)


def test_a_step_with_prompts_is_filled_up_and_one_that_decodes_is_not():
    assert [filled_up(n, (16, 32)) for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 33]
    times = StepTimes(Prices(per_token=1.0), Prices(per_token=2.0), (16, 32))
    assert times.seconds(StepLoad(17, 1, 17, 9)) == 64 and times.seconds(StepLoad(33, 1, 33, 9)) == 66
    assert times.seconds(StepLoad(17, 17, 17, 17)) == 17


def test_a_short_step_with_prompts_has_prices_of_its_own_and_one_that_decodes_has_not():
    times = StepTimes(Prices(1.0), Prices(2.0), (16, 32, 64), Prices(3.0), short_tokens=32)
    seconds = [times.seconds(StepLoad(n, 1, n, n)) for n in (1, 2, 17, 32, 33, 65)]
    assert seconds == [1.0, 3.0, 3.0, 3.0, 2.0, 2.0] and times.seconds(StepLoad(20, 20, 20, 20)) == 1.0
    steps = [TimedStep(StepLoad(1, 1, 1, 1), 1.0)] * 2 + [TimedStep(StepLoad(n, 1, n, n), 2.0) for n in (8, 40, 80)]
    found = fit(steps, short_tokens=8)  # one short step gives no prices
    assert found.short is None and found.seconds(steps[2].load) == pytest.approx(2.0)


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(3, 30))
def test_non_negative_least_squares_are_optimal(seed, columns, rows):
    draw = np.random.default_rng(seed)
    a, b = draw.normal(size=(rows, columns)) * 10.0 ** draw.integers(-6, 7, columns), draw.normal(size=rows)
    x, error = non_negative(a, b)
    assert error == pytest.approx(float((a @ x - b) @ (a @ x - b)))
    # The problem is convex: x is its solution exactly if no price that may change would lower the error by changing.
    slope = a.T @ (a @ x - b) / np.linalg.norm(a, axis=0)
    assert (x >= 0).all() and (slope > -1e-7).all() and np.abs(slope[x > 0]).max(initial=0) < 1e-7


@given(st.integers(1, 300), st.integers(1, 10**6), st.integers(0, 1000))
def test_the_time_of_decoding_grows_by_the_same_each_step(sequences, attended, steps):
    times = StepTimes(Prices(4.1e-3, 2e-6, 5e-6, 30e-9, 0.7e-9), Prices(1.0))
    first = StepLoad(sequences, sequences, attended, attended)
    assert times.ticks(first.after(steps)) == times.ticks(first) + steps * times.growth(sequences)
    assert times.seconds(first) == times.ticks(first) / TICKS


def test_what_cannot_be_is_refused():
    for bad in (-1.0, math.nan, math.inf, "1"):
        with pytest.raises(ValueError, match="per_token must be seconds from 0 on"):
            Prices(1.0, per_token=bad)
    with pytest.raises(ValueError, match="a step must take time"):
        Prices(per_pair=1.0)
    with pytest.raises(ValueError, match="decode must be Prices"):
        StepTimes(1.0)
    with pytest.raises(ValueError, match="mixed must have prices where short has"):
        StepTimes(DECODE, short=MIXED)
    with pytest.raises(ValueError, match="short must be Prices"):
        StepTimes(DECODE, MIXED, short=2.0)
    with pytest.raises(ValueError, match="short_tokens must be"):
        StepTimes(DECODE, MIXED, short=MIXED, short_tokens=-1)
    with pytest.raises(ValueError, match="sizes must be in order"):
        StepTimes(DECODE, sizes=(2, 1))
    with pytest.raises(ValueError, match="at least two that decode"):
        fit([TimedStep(StepLoad(5, 1, 5, 15), 1.0)] * 3)
    with pytest.raises(ValueError, match="times above 0"):
        fit([TimedStep(StepLoad(1, 1, 1, 1), 0.0)] * 3)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (64, r"sizes must be numbers of tokens, as \(64, 128\), or \(\) for none, got 64"),
        (None, r"sizes must be numbers of tokens, as \(64, 128\), or \(\) for none, got None"),
        ((64, "128"), "each of sizes must be a whole number, got '128'"),
        ((64.5,), "each of sizes must be a whole number, got 64.5"),
        ((0, 64), "each of sizes must be at least 1, got 0"),
    ],
)
def test_sizes_of_the_wrong_types_are_refused(wrong, said):
    for make in (lambda: StepTimes(DECODE, sizes=wrong), lambda: fit(TWO, sizes=wrong)):
        with pytest.raises(ValueError, match=said):
            make()


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(steps=5), r"steps must be TimedStep\(StepLoad\(…\), seconds\), as a StepRecorder has them, got 5"),
        (dict(steps=[(1, 1.0)]), r"steps must be TimedStep\(StepLoad\(…\), seconds\), .*, got \(1, 1.0\)"),
        (dict(steps=[TimedStep((1, 1, 1, 1), 1.0)]), r"steps must be TimedStep\(StepLoad"),
        (dict(steps=[TimedStep(StepLoad(1, 1, 1, 1), "1")]), "times above 0, in seconds, got '1'"),
        (dict(steps=TWO, weights=3), "weights must be one for each of 2 steps, got 1"),
        (dict(steps=TWO, weights=[1.0]), "weights must be one for each of 2 steps, got 1"),
        (dict(steps=TWO, weights=[1.0, -1.0]), "weights must be numbers from 0 on, got -1.0"),
        (dict(steps=TWO, weights=["1", 1.0]), "weights must be numbers from 0 on, got '1'"),
        (dict(steps=TWO, short_tokens="1"), "short_tokens must be a whole number, got '1'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        fit(**given)
