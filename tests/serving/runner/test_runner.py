"""The runner: from plans that are written by hand to what the model says to each sequence by itself."""

import math
import pickle
import random

import pytest
import torch

from llmsys.cache import BlockPool, Copy, PagedCache
from llmsys.serving.plan import PLACEHOLDER, StepPlan, StepResult, TokenLogprobs, Work
from llmsys.serving.runner import Runner
from llmsys.serving.sampling.sampling_params import SamplingParams

GREEDY = SamplingParams()
PROMPT = (5, 9, 30, 12, 44, 8, 60)


@pytest.fixture
def runner(llama) -> Runner:
    return Runner(llama.ours, PagedCache(num_blocks=40, block_size=4, spec=llama.ours.cache_spec()))


def plan(*work, step=0, copies=()) -> StepPlan:
    return StepPlan(step, work, tuple(copies))


def work(name, tokens, computed, blocks, logits=1, sampling=GREEDY) -> Work:
    return Work(name, tuple(tokens), computed, tuple(blocks), logits, sampling)


def test_chunks_say_nothing_and_the_last_one_says_the_next_token(runner, llama):
    expected = llama.greedy(PROMPT)[0]
    assert runner.run(plan(work("a", PROMPT[:3], 0, [7], logits=0))) == StepResult(0)
    both = plan(work("a", PROMPT[3:], 3, [7, 2]), work("b", PROMPT[:5], 0, [5, 6], logits=0), step=1)
    result = runner.run(both)
    assert [(each.request, each.tokens) for each in result.outputs] == [("a", (expected[0],))] and result.step == 1
    result = runner.run(plan(work("b", PROMPT[5:], 5, [5, 6]), work("a", expected[:1], 7, [7, 2])))
    assert [each.tokens for each in result.outputs] == [(expected[0],), (expected[1],)]


def test_plans_and_results_may_be_pickled_on_their_way(runner, llama):
    sampling = SamplingParams(logprobs=2)
    sent = pickle.loads(pickle.dumps(plan(work("a", PROMPT, 0, [1, 2], sampling=sampling))))
    result = runner.run(sent)
    assert pickle.loads(pickle.dumps(result)) == result
    (output,) = result.outputs
    (logprobs,) = output.logprobs
    assert logprobs.top[0] == (output.tokens[0], logprobs.logprob) and isinstance(logprobs, TokenLogprobs)
    theirs = torch.log_softmax(llama.theirs(torch.tensor([PROMPT])).logits[0, -1], 0).topk(2)
    assert [token for token, _ in logprobs.top] == theirs.indices.tolist()
    assert [p for _, p in logprobs.top] == pytest.approx(theirs.values.tolist(), abs=1e-4)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("wrong_from", [0, 1, 2, 9])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=4)])
def test_guesses_hold_as_far_as_the_model_would_have_said_them_itself(runner, k, wrong_from, sampling):
    said = []
    for i in range(k + 1):  # without guesses, one after the other
        new, computed = (said[-1:], len(PROMPT) + i - 1) if i else (PROMPT, 0)
        said += runner.run(plan(work("a", new, computed, range(1, 9), 1, sampling))).outputs[0].tokens
    guesses = [token if i < wrong_from else (token + 1) % 67 for i, token in enumerate(said[:k])]
    result = runner.run(plan(work("a", [*PROMPT, *guesses], 0, range(11, 20), k + 1, sampling)))
    assert list(result.outputs[0].tokens) == said[: min(wrong_from, k) + 1]


def test_copies_are_made_before_anything_is_written(runner, llama):
    expected = llama.greedy(PROMPT)[0]
    runner.run(plan(work("a", PROMPT, 0, [1, 2])))
    # "a" writes its eighth token into block 2, of which "b" has a copy: as if neither knew of the other.
    step = plan(work("a", [40], 7, [1, 2]), work("b", expected[:1], 7, [1, 3]), copies=[Copy(2, 3)])
    a, b = runner.run(step).outputs
    assert b.tokens == (expected[1],)
    assert a.tokens == (llama.greedy((*PROMPT, 40))[0][0],)


def test_one_with_logits_that_are_not_finite_fails_alone(runner, llama, monkeypatch):
    head = llama.ours.head.forward

    def broken(x):
        logits = head(x).clone()
        logits[0, 1] = math.nan
        return logits

    three = plan(*(work(name, PROMPT, 0, [i, i + 10]) for i, name in enumerate("abc", 1)))
    good = runner.run(three).outputs
    monkeypatch.setattr(llama.ours.head, "forward", broken)
    a, b, c = runner.run(three).outputs
    assert (a, c) == (good[0], good[2]) and b.tokens == () and "not finite" in b.error


def test_not_finite_behind_a_guess_that_did_not_hold_is_nobodys_concern(runner, llama, monkeypatch):
    right = runner.run(plan(work("a", PROMPT, 0, [1, 2]))).outputs[0].tokens
    head = llama.ours.head.forward
    monkeypatch.setattr(llama.ours.head, "forward", lambda x: head(x).index_fill(1, torch.tensor([1]), math.nan))
    wrong = (right[0] + 1) % 67
    assert runner.run(plan(work("a", [*PROMPT, wrong], 0, [1, 2], 2))).outputs[0].tokens == right
    assert runner.run(plan(work("a", [*PROMPT, *right], 0, [1, 2], 2))).outputs[0].error


def test_a_draw_depends_on_seed_and_place_alone(runner):
    sampling = SamplingParams(temperature=1.5, seed=11)
    alone = runner.run(plan(work("a", PROMPT, 0, [1, 2], sampling=sampling))).outputs[0].tokens
    others = [work(f"o{i}", [i + 3] * 5, 0, [2 * i + 10, 2 * i + 11], sampling=sampling) for i in range(9)]
    random.Random(0).shuffle(others)
    runner.run(plan(*others[:4], work("a", PROMPT[:4], 0, [3], logits=0)))
    together = plan(*others[:4], work("a", PROMPT[4:], 4, [3, 4], sampling=sampling), *others[4:])
    assert {each.request: each.tokens for each in runner.run(together).outputs}["a"] == alone


def test_a_step_says_where_its_time_went(llama):
    ticks = iter(range(100))
    pool = BlockPool(40, 4)
    cache = PagedCache(num_blocks=pool.num_blocks, block_size=4, spec=llama.ours.cache_spec())
    launched = Runner(llama.ours, cache, clock=lambda: next(ticks)).launch(plan(work("a", PROMPT, 0, [1, 2])))
    assert launched.result().outputs and launched.seconds == {"prepare": 1, "launch": 1, "wait": 1}


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=4)])
def test_a_place_holder_is_the_token_that_was_drawn(runner, sampling):
    def said(hidden):
        tokens, found = PROMPT, []
        for i in range(5):
            computed = len(PROMPT) + i - 1 if i else 0
            both = plan(work("b", [7 + i], 0, [9]), work("a", tokens, computed, [1, 2, 3], 1, sampling))
            found += runner.run(both).outputs[1].tokens
            tokens = [PLACEHOLDER] if hidden else found[-1:]
        return found

    assert said(True) == said(False)


def test_a_place_holder_for_a_token_that_nobody_drew_is_refused(runner):
    with pytest.raises(ValueError, match="'a' has a place-holder"):
        runner.run(plan(work("a", [PLACEHOLDER], 7, [1, 2])))
    runner.run(plan(work("a", PROMPT, 0, [1, 2])))
    with pytest.raises(ValueError, match="'a' has a place-holder"):
        runner.run(StepPlan(1, (work("a", [PLACEHOLDER], 7, [1, 2]),), ended=("a",)))
