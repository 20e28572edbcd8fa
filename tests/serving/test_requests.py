"""Requests, what they may ask for, plans and results, and the log of events."""

import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from llmsys.cache import BlockPool
from llmsys.serving.plan import Output, StepPlan, StepResult, TokenLogprobs, Work
from llmsys.serving.request import Request, Status
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import (
    Aborted,
    Admitted,
    Arrived,
    Computed,
    EventLog,
    Finished,
    Progress,
    StepDone,
    Token,
)
from llmsys.serving.telemetry.metrics import Metrics
from tests.support.made_up_runner import MadeUpRunner


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"max_tokens": True}, "max_tokens must be a whole number, got True"),
        ({"temperature": -1}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_k": 5}, "top_k has no effect at temperature 0"),
        ({"temperature": 1, "top_k": 0}, "top_k must be at least 1"),
        ({"temperature": 1, "top_p": 0}, "top_p must be above 0"),
        ({"min_p": 0.1}, "min_p has no effect at temperature 0"),
        ({"temperature": 1, "min_p": 1.1}, "min_p must be above 0 and at most 1"),
        ({"seed": 2**64}, "seed must have at most 64 bits"),
        ({"stop": ("a", "")}, "stop must be texts of at least one character"),
        ({"stop": 5}, "stop must be a list or a tuple"),
        ({"stop_token_ids": 5}, "stop_token_ids must be a list or a tuple"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids must be at least 0"),
        ({"logprobs": -1}, "logprobs must be at least 0"),
        ({"n": 0}, "n must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


def test_lists_and_one_text_become_tuples_so_that_settings_can_be_hashed():
    assert SamplingParams(stop="end") == SamplingParams(stop=["end"])
    assert len({SamplingParams(stop_token_ids=[1, 2]), SamplingParams(stop_token_ids=(1, 2))}) == 1
    assert SamplingParams(max_tokens=None).most_tokens > 10**9 and SamplingParams(3).most_tokens == 3


def test_each_answer_has_a_seed_of_its_own_where_there_is_one():
    wanted = SamplingParams(temperature=1.0, seed=2**64 - 1, n=3)
    assert [wanted.of_answer(i).seed for i in range(3)] == [2**64 - 1, 0, 1]
    assert {wanted.of_answer(i).n for i in range(3)} == {1}
    assert SamplingParams(n=2).of_answer(1) == SamplingParams()


def test_a_request_is_a_text_and_tokens():
    for name, prompt, message in (("", [1], "id must be"), (5, [1], "id must be"), ("a", [], "at least one token"),
                                  ("a", [-1], "prompt's tokens must be at least 0"),
                                  ("a", ["x"], "prompt's tokens must be a whole number")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            Request(name, prompt)


def test_what_is_known_and_not_computed_remains():
    request = Request("a", [5, 6, 7])
    assert (request.remaining, request.in_prefill, request.num_generated, request.ended) == (3, True, 0, False)
    request.computed = 2
    assert request.remaining == 1 and request.in_prefill, "it has said nothing yet"
    request.tokens.append(9)
    request.computed = 3
    assert request.generated == [9] and not request.in_prefill
    request.computed = 0
    assert request.in_prefill, "preempted: all of it is a prompt"
    for status in Status:
        request.status = status
        assert request.ended == (status not in (Status.WAITING, Status.RUNNING))


def test_plans_and_results_are_plain_values():
    work = Work("a", (1, 2, 3), 4, (7, 8), 3, SamplingParams(stop="x"))
    assert work.end == 7 and work.guesses == (2, 3)
    assert [Work("a", (1, 2), 0, (7,), logits, SamplingParams()).guesses for logits in (0, 1, 2)] == [(), (), (2,)]
    plan = StepPlan(3, (work,), ended=("b",))
    result = StepResult(3, (Output("a", (2,), (TokenLogprobs(-0.5, ((2, -0.5),)),)), Output("b", error="not finite")))
    assert pickle.loads(pickle.dumps((plan, result))) == (plan, result)
    assert plan.num_tokens == 3
    with pytest.raises(AttributeError):
        plan.step = 4


def ticking():
    ticking.now += 1.0
    return ticking.now


def test_the_log_tells_a_request_s_life():
    ticking.now = 0.0
    scheduler = Scheduler(BlockPool(20, 2), max_tokens_per_step=4, max_sequences=4, clock=ticking)
    heard = []
    scheduler.events.listen(heard.append)
    runner = MadeUpRunner(20, 2)
    scheduler.add(Request("a", [1] * 5, SamplingParams(2, ignore_eos=True)))
    scheduler.add(Request("b", [0], SamplingParams(2)))
    while plan := scheduler.plan():
        scheduler.update(plan, runner(plan))
        scheduler.abort("b")
    events = list(scheduler.events)
    own = [each for each in events if getattr(each, "request", None) == "a"]
    kinds = [Arrived, Admitted, Computed, Computed, Token, Computed, Token, Finished]
    assert [type(each) for each in own] == kinds
    assert [(each.start, each.tokens) for each in own if isinstance(each, Computed)] == [(0, 4), (4, 1), (5, 1)]
    assert [each.step for each in own] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert own[-1].reason == "length" and own[-1].generated == 2
    assert [each.time for each in events] == sorted(each.time for each in events)
    assert [type(each) for each in events if getattr(each, "request", None) == "b"] == [Arrived, Aborted]
    steps = [each for each in events if isinstance(each, StepDone)]
    assert [(each.phase, each.tokens, each.sequences, each.waiting) for each in steps] == [
        ("prefill", 4, 1, 1), ("prefill", 1, 1, 0), ("decode", 1, 1, 0)
    ]  # fmt: skip
    assert [(each.blocks_used, each.blocks) for each in steps] == [(3, 19), (3, 19), (0, 19)]
    assert all(each.seconds > 0 for each in steps)
    assert heard == events


def test_the_log_can_be_written_as_json_and_keeps_as_much_as_it_is_asked_to():
    log = EventLog(keep=2)
    for i in range(3):
        log.add(Token(i, 0.5, "a", token=i))
    assert json.loads(json.dumps(log.records())) == [
        {"event": "Token", "step": i, "time": 0.5, "request": "a", "token": i} for i in (1, 2)
    ]
    assert len(log) == 2 and [each.token for each in log] == [1, 2]
    with pytest.raises(ValueError, match="keep must be at least 0"):
        EventLog(keep=-1)


def test_what_a_step_brought_is_read_as_the_events_that_it_stands_for():
    brought = Progress(3, 0.5, [("a", 7, 3, 2, (4, 5)), ("b", 0, 6, 0, ())])
    events = [Computed(3, 0.5, "a", 7, 3, 2), Token(3, 0.5, "a", 4), Token(3, 0.5, "a", 5), Computed(3, 0.5, "b", 0, 6)]
    for keep in (None, 9, 4, 3, 2, 1, 0):
        log, heard, at_once = EventLog(keep=keep), [], []
        log.listen(heard.append)
        log.listen(heard.append, progress=at_once.append)
        log.add_progress(brought)
        kept = events if keep is None else events[4 - min(keep, 4) :]
        assert list(log) == kept and len(log) == len(kept) == len(log.records())
        assert heard == events and at_once == [brought]
        log.add(Aborted(4, 0.6, "a"))
        assert heard[-2:] == [Aborted(4, 0.6, "a")] * 2 and len(log) == min(5, 9 if keep is None else keep)
        for _ in range(50):
            log.add_progress(brought)
        assert len(log._entries) <= 2 + (99 if keep is None else keep) and len(list(log)) == len(log)


def test_nothing_is_made_of_a_token_that_nobody_reads(monkeypatch):
    made = []
    monkeypatch.setattr("llmsys.serving.telemetry.events.Progress.events", lambda self: made.append(self) or iter(()))
    scheduler, runner = Scheduler(BlockPool(20, 2)), MadeUpRunner(20, 2)
    metrics = Metrics()
    scheduler.events.listen(metrics.on, progress=metrics.on_progress)
    scheduler.add(Request("a", [1] * 5, SamplingParams(9, ignore_eos=True)))
    while plan := scheduler.plan():
        scheduler.update(plan, runner(plan))
    assert metrics.totals.output_tokens == 9 and metrics.totals.computed_tokens == 13 and not made
    list(scheduler.events)
    assert len(made) == 9


def test_a_log_keeps_a_number_of_events():
    with pytest.raises(ValueError, match="keep must be a whole number"):
        EventLog(keep="all")


def test_numbers_of_other_libraries_become_pythons_so_that_a_step_can_use_them():
    params = SamplingParams(
        np.int64(3), temperature=np.float32(0.5), top_k=torch.tensor(4), top_p=np.float64(0.5), min_p=Fraction(1, 2),
        seed=np.int64(3), logprobs=np.int8(2), n=np.int32(2),
    )  # fmt: skip
    assert params == SamplingParams(3, 0.5, 4, 0.5, 0.5, 3, logprobs=2, n=2)
    numbers = [value for value in vars(params).values() if not isinstance(value, tuple | bool) and value is not None]
    assert len(numbers) == 8 and {type(value) for value in numbers} == {int, float}
