"""Metrics: what they say is what the events say, and the times are those of the clock."""

import itertools

import pytest

from llmsys.serving.engine import Engine
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.telemetry.events import (
    Admitted,
    Arrived,
    Computed,
    EventLog,
    Finished,
    Preempted,
    RequestEvent,
    StepDone,
    Token,
)
from llmsys.serving.telemetry.metrics import PHASES, RequestMetrics

PROMPT = (5, 9, 30, 12, 44, 8, 60)


@pytest.fixture(scope="module")
def run(llama):
    """An engine of 36 slots that served four requests, two of them with two answers; its log, and the answers."""
    ticks = itertools.count(100)
    log = EventLog()
    engine = Engine(
        llama.ours, num_blocks=10, block_size=4, max_tokens_per_step=9, max_sequences=4, events=log,
        clock=lambda: float(next(ticks)),
    )  # fmt: skip
    prompts = [PROMPT, PROMPT[2:], PROMPT, PROMPT[:1]]
    params = [SamplingParams(max_tokens=n, n=m, ignore_eos=True) for n, m in ((12, 1), (9, 2), (1, 1), (20, 2))]
    responses = engine.generate(prompts, params)
    return engine, list(log), {
        response.id + (f".{answer.index}" if answer.index else ""): answer
        for response in responses
        for answer in response.answers
    }  # fmt: skip


def of(events, request, kind):
    return [each for each in events if isinstance(each, kind) and each.request == request]


def test_an_answers_metrics_are_what_the_events_say(run):
    _, events, answers = run
    assert len(answers) == 6
    for name, answer in answers.items():
        m = answer.metrics
        (arrived,), (finished,) = of(events, name, Arrived), of(events, name, Finished)
        tokens, admitted = of(events, name, Token), of(events, name, Admitted)
        assert m.queue_seconds == admitted[0].time - arrived.time > 0
        assert m.time_to_first_token == tokens[0].time - arrived.time > m.queue_seconds
        assert m.end_to_end == finished.time - arrived.time >= m.time_to_first_token
        assert m.output_tokens == len(tokens) == len(answer.tokens)
        gaps = [b.time - a.time for a, b in itertools.pairwise(tokens)]
        assert m.time_per_output_token == (pytest.approx(sum(gaps) / len(gaps)) if gaps else None)
        assert m.hit_tokens == admitted[0].hit_tokens and m.prompt_tokens == arrived.prompt_tokens
        assert m.preemptions == len(of(events, name, Preempted)) == len(admitted) - 1
        assert m.lost_tokens == sum(each.lost for each in of(events, name, Preempted))
    assert sum(answer.metrics.preemptions for answer in answers.values()) > 0, "nobody was preempted in this run"


def test_each_step_says_what_it_did_and_where_its_time_went(run):
    engine, events, _ = run
    steps = list(engine.metrics.steps)
    assert [each.step for each in steps] == list(range(len(steps)))
    done = [each for each in events if isinstance(each, StepDone)]
    for step, event in zip(steps, done, strict=True):
        its = [each for each in events if isinstance(each, RequestEvent) and each.step == step.step]
        assert step.output_tokens == sum(isinstance(each, Token) for each in its)
        assert step.tokens == sum(each.tokens for each in its if isinstance(each, Computed)) <= 9
        assert step.preemptions == sum(isinstance(each, Preempted) for each in its)
        assert step.hit_tokens == sum(each.hit_tokens for each in its if isinstance(each, Admitted))
        assert (step.blocks_used, step.blocks, step.kind) == (event.blocks_used, 9, event.phase)
        assert tuple(step.seconds) == PHASES and min(step.seconds.values()) > 0
        assert step.total_seconds == sum(step.seconds.values())
    assert max(each.blocks_used for each in steps) > 6 and steps[-1].blocks_used == 0


def test_totals_are_the_sums(run):
    engine, events, answers = run
    totals, steps = engine.metrics.totals, engine.metrics.steps
    assert totals.requests == totals.finished == 6 and totals.failed == totals.aborted == 0
    assert totals.output_tokens == sum(answer.metrics.output_tokens for answer in answers.values())
    assert totals.computed_tokens == sum(each.tokens for each in steps) and totals.steps == len(steps)
    assert totals.hit_tokens == sum(each.hit_tokens for each in steps) > 0
    assert totals.prompt_tokens == sum(each.prompt_tokens for each in events if isinstance(each, Arrived))
    assert sum(totals.seconds.values()) == sum(totals.seconds_by_kind.values()) == sum(x.total_seconds for x in steps)
    # Each token of an answer was computed, or was hit, but for its last; what was lost was computed or hit again.
    needed = sum(answer.metrics.prompt_tokens + answer.metrics.output_tokens - 1 for answer in answers.values())
    assert totals.computed_tokens + totals.hit_tokens == needed + totals.lost_tokens


def test_what_has_not_happened_is_none():
    m = RequestMetrics(prompt_tokens=3, arrival=5.0)
    assert (m.queue_seconds, m.time_to_first_token, m.time_per_output_token, m.end_to_end) == (None,) * 4
    m.first_token = m.last_token = 7.0
    m.output_tokens = 1
    assert m.time_to_first_token == 2 and m.time_per_output_token is None


def test_a_clock_may_begin_at_zero(llama):
    now = 0.0
    engine = Engine(llama.ours, num_blocks=10, block_size=4, clock=lambda: now)
    answer = engine.add(PROMPT, SamplingParams(max_tokens=3, ignore_eos=True)).answers[0]
    while engine.has_unfinished:
        engine.step()
        now += 1
    assert (answer.metrics.time_to_first_token, answer.metrics.time_per_output_token) == (0.0, 1.0)


def test_a_step_that_raised_is_counted_and_the_next_one_has_its_own_numbers(llama, monkeypatch):
    engine = Engine(llama.ours, num_blocks=10, block_size=4)
    params = SamplingParams(max_tokens=1)
    engine.generate([PROMPT], params)
    engine.add(PROMPT, params)  # hits a block
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(llama.ours.head, "forward", lambda x: 1 / 0)
        engine.step()
    engine.generate([PROMPT[1:]], params)
    assert [(step.step, step.hit_tokens) for step in engine.metrics.steps] == [(0, 0), (2, 0)]
    assert engine.metrics.totals.steps == sum(isinstance(each, StepDone) for each in engine.events) == 3
    assert engine.metrics.totals.hit_tokens == 4
