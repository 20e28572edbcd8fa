"""A scheduler at work without a model, and its log read by steps: what is read is what happened, by any policy."""

from collections import Counter
from functools import cache

import pytest

from llmsys.serving import POLICIES, RequestLength, Scheduler, draw_lengths
from llmsys.serving.telemetry.events import Admitted, Preempted, StepDone
from llmsys.viz.continuous_batching.play import Asked, asked, play
from llmsys.viz.continuous_batching.timeline import read

REQUESTS = asked(RequestLength(1 + each.prompt // 40, 1 + each.output // 20) for each in draw_lengths(
    "azure-conversation", 24, seed=2
))  # fmt: skip


@cache  # several tests look at the same logs
def log_of(policy, num_blocks=40):
    return play(
        REQUESTS, policy=policy, max_tokens_per_step=48, max_sequences=6, num_blocks=num_blocks, block_size=8,
        watermark=0,
    )  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_gets_as_many_tokens_as_it_asked_for(policy):
    said = Counter(request for step in read(log_of(policy)) for request in step.said)
    assert said == {each.id: each.output for each in REQUESTS}


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_computed_and_found_less_what_is_lost_is_what_was_known(policy):
    steps = read(log_of(policy))
    for each in REQUESTS:
        computed = sum(part.tokens for step in steps for part in step.parts if part.request == each.id)
        found = sum(step.admitted.get(each.id, 0) for step in steps)
        lost = sum(step.preempted.get(each.id, 0) for step in steps)
        assert computed + found - lost == len(each.prompt) + each.output - 1  # the last token is never fed


@pytest.mark.parametrize("policy", POLICIES)
def test_steps_have_what_the_log_says_of_them(policy):
    log = log_of(policy)
    steps, done = read(log), [event for event in log if isinstance(event, StepDone)]
    assert [step.number for step in steps] == list(range(len(done)))
    for step, event in zip(steps, done, strict=True):
        assert (step.tokens, len(step.parts), step.running, step.waiting) == (
            event.tokens, event.sequences, event.running, event.waiting
        )  # fmt: skip
        assert (step.blocks_used, step.blocks) == (event.blocks_used, 40 - 1)
        assert {"prefill": (False, True), "decode": (True, False), "mixed": (True, True)}[event.phase] == (
            step.decodes > 0, step.prompt_tokens > 0
        )  # fmt: skip


def test_preemptions_are_read_too():
    log = log_of("stall-free", num_blocks=24)
    steps = read(log)
    assert sum(len(step.preempted) for step in steps) == sum(isinstance(each, Preempted) for each in log) > 0
    assert sum(len(step.admitted) for step in steps) == sum(isinstance(each, Admitted) for each in log) > len(REQUESTS)


def test_a_request_arrives_before_its_step_or_when_nobody_else_is_there():
    requests = [Asked("a", (1, 2), 3), Asked("b", (3,), 1, step=2), Asked("late", (4,), 1, step=90)]
    steps = read(play(requests, max_tokens_per_step=8, max_sequences=4))
    assert [step.arrived for step in steps] == [["a"], [], ["b"], ["late"]]


def test_the_next_token_does_not_depend_on_the_schedule():
    texts = {}

    class Keeps(Scheduler):
        def add(self, request):
            added = super().add(request)
            self.all = [*getattr(self, "all", []), *added]
            texts[self.policy.__class__.__name__] = self.all
            return added

    for policy in POLICIES:
        play(REQUESTS[:8], policy=policy, max_tokens_per_step=48, max_sequences=6, num_blocks=40, block_size=8,
             scheduler=Keeps)  # fmt: skip
    one, *others = [[each.tokens for each in found] for found in texts.values()]
    assert len(others) == 3 and all(other == one for other in others)
    assert len({tuple(tokens[-3:]) for tokens in one}) > 4


def test_a_scheduler_that_plans_nothing_is_found_out():
    class Idle(Scheduler):
        def plan(self):
            return None

    with pytest.raises(RuntimeError, match="24 requests are unfinished, and the scheduler planned nothing"):
        play(REQUESTS, max_tokens_per_step=48, max_sequences=6, scheduler=Idle)


def test_a_step_that_is_not_done_is_left_out():
    log = list(log_of("orca"))
    assert read(log[:-1]) == read(log)[:-1] and read([]) == []


def test_tokens_are_those_of_answers_and_of_prompts():
    steps = read(log_of("stall-free", num_blocks=400))
    assert not any(step.preempted for step in steps)
    assert sum(step.decodes for step in steps) == sum(each.output - 1 for each in REQUESTS)  # the first is the prompt's
    assert sum(step.prompt_tokens for step in steps) == sum(len(each.prompt) for each in REQUESTS)
