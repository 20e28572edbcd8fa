"""The scheduler, case by case: what has gone wrong in other engines, each under its name, and its contract."""

import random

import pytest

from llmsys.cache import BlockPool
from llmsys.serving.plan import Output, StepResult, TokenLogprobs
from llmsys.serving.policies import POLICIES, Turn
from llmsys.serving.request import Request, Status
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import Admitted, Computed, Finished, Preempted, StepDone
from tests.support.made_up_runner import EOS, MadeUpRunner, expected_tokens, next_token
from tests.support.pools import assert_consistent
from tests.support.size import sized


class NewestFirst:
    """A policy of one's own, in an order in which who is preempted has been planned already."""

    name = "newest-first"

    def turns(self, running, head, budget):
        yield Turn(running[::-1], admit=True)


class Service:
    """A scheduler with a runner; `blocks` without block 0."""

    def __init__(self, blocks: int, block_size: int = 4, salts=None, **settings):
        self.scheduler = Scheduler(BlockPool(blocks + 1, block_size), **{"max_sequences": 8, **settings})
        self.pool, self.events = self.scheduler.pool, self.scheduler.events
        self.runner = MadeUpRunner(blocks + 1, block_size, salts)

    def add(self, name: str, prompt, *, salt=None, **sampling) -> Request:
        sampling = {"max_tokens": 8, "ignore_eos": True, **sampling}
        return self.scheduler.add(Request(name, prompt, SamplingParams(**sampling), salt=salt))[0]

    def step(self, poison=None):
        """The plan that was run; None where there was nothing to do."""
        plan = self.scheduler.plan()
        if plan is not None:
            self.scheduler.update(plan, self.runner(plan, poison))
            assert_consistent(self.pool, [each.table for each in self.scheduler.running])
        return plan

    def finish(self, at_most: int = 1000) -> int:
        """Steps until all have ended; then nothing is in use."""
        for n in range(at_most):
            if self.step() is None:
                assert not self.scheduler.has_unfinished and self.pool.stats.used == 0
                return n
        raise AssertionError(f"not done after {at_most} steps")

    def of(self, kind, name=None):
        return [each for each in self.events if isinstance(each, kind) and name in (None, each.request)]


def assert_right(request: Request, room: int = 10**9) -> None:
    tokens, reason = expected_tokens(request, room)
    assert (request.status, request.tokens, request.reason) == (Status.FINISHED, tokens, reason)


# What has gone wrong in other engines


def test_two_identical_prompts_in_flight_and_the_first_is_aborted():
    """mini-sglang#142: the first one's blocks were freed, and the second's with them."""
    for in_flight in (False, True):
        service = Service(20)
        prompt = [1, 0] * 5
        first, second = service.add("a", prompt, max_tokens=9), service.add("b", prompt, max_tokens=9)
        service.step()
        plan = service.scheduler.plan()
        if in_flight:
            assert service.scheduler.abort("a")
        service.scheduler.update(plan, service.runner(plan))
        if not in_flight:
            assert service.scheduler.abort("a")
        third = service.add("c", prompt, max_tokens=9)  # takes what the first has left behind
        service.finish()
        assert first.status is Status.ABORTED
        assert_right(second)
        assert_right(third)
        assert service.of(Admitted, "c")[0].hit_tokens == 8


def test_a_preempted_request_that_hits_its_own_blocks_gets_the_same_tokens():
    """nano-vllm#144, #211, #233."""
    service = Service(8, block_size=2, watermark=0)
    first, second = service.add("a", [1] * 5, max_tokens=6), service.add("b", [0] * 5, max_tokens=9)
    service.finish()
    lost = service.of(Preempted, "b")
    again = service.of(Admitted, "b")[1:]
    assert lost and len(again) == len(lost) and again[0].hit_tokens > 0
    assert again[0].hit_tokens <= lost[0].lost
    assert_right(first)
    assert_right(second)


@pytest.mark.parametrize("length", [4, 5, 8, 9])
def test_a_prompt_that_is_one_full_hit_computes_one_token_or_the_rest_of_a_block(length):
    """vLLM #30320, #53706: with nothing to compute there are no logits."""
    service = Service(20, block_size=4)
    first = service.add("a", [1] * length, max_tokens=7)
    service.finish()
    second = service.add("b", [1] * length, max_tokens=7)
    service.step()
    hit = (length - 1) // 4 * 4
    assert service.of(Admitted, "b")[0].hit_tokens == hit
    assert [(each.start, each.tokens) for each in service.of(Computed, "b")] == [(hit, length - hit)]
    service.finish()
    assert_right(first)
    assert_right(second)
    assert first.tokens == second.tokens


def test_with_blocks_of_one_token_a_full_hit_leaves_the_last_token_alone():
    service = Service(20, block_size=1)
    for name in "ab":
        service.add(name, [1, 0, 1], max_tokens=2)
        service.finish()
    assert [(each.start, each.tokens) for each in service.of(Computed, "b")][0] == (2, 1)


def test_a_lone_sequence_ends_where_the_pool_does():
    """nano-vllm asserts here: the sequence preempts itself, and nothing is running."""
    service = Service(3, block_size=4)
    request = service.add("a", [1] * 5, max_tokens=None)
    service.finish()
    assert_right(request, room=13)
    assert len(request.tokens) == 13 and not service.of(Preempted)
    assert max(each.blocks_used for each in service.events if isinstance(each, StepDone)) == 3


def test_a_request_that_cannot_ever_fit_is_refused_at_once():
    service = Service(3, block_size=4)
    with pytest.raises(ValueError, match="prompt must have at most 12 tokens, got 13.*room for 12"):
        service.add("a", [1] * 13)
    with pytest.raises(ValueError, match="max_tokens must be at most 8 after a prompt of 5 tokens, got 9.*give None"):
        service.add("a", [1] * 5, max_tokens=9)
    assert not service.scheduler.has_unfinished and not len(service.events) and service.step() is None
    for prompt, most in ((5, 8), (12, 1)):
        request = service.add("a", [1] * prompt, max_tokens=most)
        service.finish()
        assert_right(request)


def test_the_model_s_length_is_a_limit_too():
    service = Service(100, max_model_len=10)
    with pytest.raises(ValueError, match="at most 9 tokens, got 10: max_model_len is 10"):
        service.add("a", [1] * 10)
    with pytest.raises(ValueError, match="max_tokens must be at most 4"):
        service.add("a", [1] * 6, max_tokens=5)
    request = service.add("a", [1] * 6, max_tokens=None)
    service.finish()
    assert len(request.tokens) == 10 and request.reason == "length"


def test_a_prompt_of_no_tokens_is_refused_and_one_of_one_token_is_served():
    service = Service(3)
    with pytest.raises(ValueError, match="prompt must have at least one token"):
        service.add("a", [])
    request = service.add("a", [1], max_tokens=1)
    assert service.finish() == 1
    assert_right(request)
    assert len(request.generated) == 1


def test_the_watermark_spares_a_newcomer_from_being_preempted_at_once():
    """nano-vllm has none: a request is admitted into the last block, and a neighbour's next token throws it out."""
    preempted = {}
    for watermark in (0, 0.25):
        service = Service(8, block_size=2, watermark=watermark)
        requests = [service.add("a", [1] * 4, max_tokens=10), service.add("b", [0] * 9, max_tokens=6)]
        service.finish()
        preempted[watermark] = len(service.of(Preempted))
        for each in requests:
            assert_right(each)
    assert preempted[0] > preempted[0.25] == 0


def test_what_is_not_finite_is_handed_on_to_nobody():
    """A prompt in pieces: the first is computed wrongly, and only the last one's logits show it."""
    service = Service(30, max_tokens_per_step=8, max_sequences=4)
    prompt = [1, 0] * 8
    failing, neighbour = service.add("a", prompt), service.add("b", [0] * 3, max_tokens=9)
    service.step(poison="a")
    late = service.add("c", prompt, max_tokens=4)
    service.finish()
    assert failing.status is Status.FAILED and failing.error == "the logits are not finite" and not failing.generated
    assert service.of(Admitted, "c")[0].hit_tokens == 0
    assert_right(neighbour)
    assert_right(late)


def test_a_fault_while_decoding_ends_that_request_alone_and_its_prompt_can_still_be_hit():
    service = Service(30)
    failing, neighbour = service.add("a", [1] * 9), service.add("b", [0] * 9, max_tokens=9)
    service.step()
    service.step(poison="a")
    assert failing.status is Status.FAILED and len(failing.generated) == 1
    late = service.add("c", [1] * 9, max_tokens=4)
    service.finish()
    assert service.of(Admitted, "c")[0].hit_tokens == 8
    assert_right(neighbour)
    assert_right(late)


# First come, first served


def test_nobody_passes_a_request_that_has_no_room_yet():
    service = Service(8, block_size=2)
    service.add("a", [1] * 6, max_tokens=5)
    service.step()
    service.add("long", [0] * 12, max_tokens=1)
    service.add("short", [0], max_tokens=1)
    service.finish()
    assert [each.request for each in service.of(Admitted)] == ["a", "long", "short"]
    ends = [each.request for each in service.of(Finished)]
    assert ends.index("a") < ends.index("long")
    assert service.of(Admitted, "long")[0].step > service.of(Finished, "a")[0].step


def test_nobody_is_admitted_in_a_step_that_preempted():
    """a and b fill the pool; a's next token throws b out, and a.1, which comes before b, would have room at once."""
    service = Service(6, block_size=2, watermark=0)
    answers = service.scheduler.add(Request("a", [1] * 4, SamplingParams(4, n=2, ignore_eos=True)))
    other = service.add("b", [0] * 8, max_tokens=2)
    for _ in range(3):
        service.step()
    assert [(each.step, each.request) for each in service.of(Preempted)] == [(1, "b")]
    assert [(each.step, each.request) for each in service.of(Admitted)] == [(0, "a"), (0, "b"), (2, "a.1")]
    service.finish()
    for each in (*answers, other):
        assert_right(each)


def test_no_more_than_the_limits_allow():
    service = Service(100, max_sequences=3, max_tokens_per_step=5)
    for i in range(7):
        service.add(f"r{i}", [1] * 7, max_tokens=3)
    plans = []
    while plan := service.step():
        plans.append(plan)
    assert max(plan.num_tokens for plan in plans) == 5
    assert max(len(plan.work) for plan in plans) == 3


def test_a_salt_keeps_equal_prompts_apart():
    service = Service(30, salts={"b": "tenant", "c": "tenant"})
    for name, salt in (("a", None), ("b", "tenant"), ("c", "tenant")):
        service.add(name, [1] * 9, salt=salt, max_tokens=2)
        service.finish()
    assert [each.hit_tokens for each in service.of(Admitted)] == [0, 0, 8]


# Several answers to one prompt


def test_a_prompt_with_three_answers_is_computed_once():
    service = Service(30, block_size=4)
    answers = service.scheduler.add(Request("a", [1] * 10, SamplingParams(5, 1.0, seed=3, n=3, ignore_eos=True)))
    assert [each.id for each in answers] == ["a", "a.1", "a.2"]
    assert [each.sampling.seed for each in answers] == [3, 4, 5] and {each.sampling.n for each in answers} == {1}
    service.step()
    assert [each.id for each in service.scheduler.running] == ["a"], "the others wait for it"
    plan = service.step()
    assert [(each.request, each.computed, len(each.tokens)) for each in plan.work] == [
        ("a", 10, 1), ("a.1", 9, 1), ("a.2", 9, 1)
    ]  # fmt: skip
    assert len(plan.copies) == 2 == service.pool.stats.copies, "of the last and unfinished block"
    assert [len(set(each.table.blocks) - set(answers[0].table.blocks)) for each in answers[1:]] == [1, 1]
    service.finish()
    for each in answers:
        assert_right(each)
    assert len({tuple(each.tokens) for each in answers}) == 3


def test_answers_that_wait_for_their_prompt_keep_nobody_waiting():
    service = Service(30)
    service.scheduler.add(Request("a", [1] * 10, SamplingParams(2, n=3, ignore_eos=True)))
    service.add("b", [0] * 4, max_tokens=2)
    assert [each.request for each in service.step().work] == ["a", "b"]
    assert [each.request for each in service.step().work] == ["a", "b", "a.1", "a.2"]
    service.finish()


def test_an_answer_shares_nothing_that_the_first_one_has_yet_to_compute_again():
    """a is preempted, and enters again with two blocks that it hits, in the same step as a.1, which hits these, too."""
    service = Service(4, block_size=4, watermark=0, max_sequences=2)
    first = service.add("b", [0] * 3, max_tokens=3)
    answers = service.scheduler.add(Request("a", [1] * 10, SamplingParams(6, n=2, ignore_eos=True)))
    for _ in range(4):
        service.step()
    assert [(each.step, each.request) for each in service.of(Preempted)] == [(2, "a")]
    assert [(each.step, each.request, each.hit_tokens, each.shared) for each in service.of(Admitted)][2:] == [
        (3, "a", 8, False), (3, "a.1", 8, False)
    ]  # fmt: skip
    service.finish()
    for each in (first, *answers):
        assert_right(each)


def test_the_other_answers_do_without_the_first_one():
    for when, how in ((0, "abort"), (1, "abort"), (1, "poison")):
        service = Service(30, max_tokens_per_step=8)
        first, *others = service.scheduler.add(Request("a", [1] * 10, SamplingParams(4, n=3, ignore_eos=True)))
        if when:
            service.step(poison="a" if how == "poison" else None)
        if how == "abort":
            service.scheduler.abort("a")
        service.finish()
        assert first.status is (Status.FAILED if how == "poison" else Status.ABORTED)
        for each in others:
            assert_right(each)


def test_answers_of_one_token_come_although_the_first_is_gone_when_they_begin():
    service = Service(10)
    answers = service.scheduler.add(Request("a", [1] * 9, SamplingParams(1, n=2)))
    service.finish()
    assert service.of(Admitted, "a.1")[0].hit_tokens == 8
    for each in answers:
        assert_right(each)


# Results of 0 to k + 1 tokens


def guessed(right: int, wrong: int, **settings):
    """A request of 6 tokens, and 1 generated, and a plan with guesses of which so many are right."""
    service = Service(30, block_size=2, **settings)
    request = service.add("a", [1] * 6, max_tokens=20, logprobs=0)
    service.step()
    draft = []
    for i in range(right + wrong):
        token = next_token((*request.tokens, *draft))
        draft.append(token if i < right else (token + 1) % 8)
    service.scheduler.propose("a", draft)
    return service, request, service.scheduler.plan()


@pytest.mark.parametrize(("right", "wrong"), [(0, 1), (0, 3), (2, 0), (2, 2), (4, 1)])
def test_guesses_that_are_right_count_and_the_others_are_rolled_back(right, wrong):
    service, request, plan = guessed(right, wrong)
    (work,) = plan.work
    assert (work.computed, len(work.tokens), work.logits) == (6, 1 + right + wrong, 1 + right + wrong)
    assert request.table.length == 7 + right + wrong
    service.scheduler.update(plan, service.runner(plan))
    assert len(request.generated) == len(request.logprobs) == 1 + right + 1
    assert request.computed == 6 + 1 + right and request.remaining == 1 and request.draft == ()
    assert len(request.table.blocks) == -(-min(7 + right + wrong, 8 + right) // 2)
    service.finish()
    assert_right(request)
    assert [each.guesses for each in service.of(Computed)][1] == right + wrong


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_a_result_may_bring_less_than_was_right(taken):
    service, request, plan = guessed(2, 0)
    service.runner.accept = lambda work, right: taken
    service.scheduler.update(plan, service.runner(plan))
    service.runner.accept = lambda work, right: right
    assert len(request.generated) == 1 + taken and request.computed == 6 + taken
    service.finish()
    assert_right(request)


def test_a_prompt_whose_result_brings_nothing_computes_its_last_token_once_more():
    service = Service(10, block_size=4)
    request = service.add("a", [1] * 8, max_tokens=3)
    service.runner.accept = lambda work, right: 0
    service.step()
    assert request.remaining == 1 and not service.scheduler.pool.match([1] * 9).tokens, "no logits have been seen"
    service.runner.accept = lambda work, right: right
    assert [(each.computed, len(each.tokens)) for each in service.step().work] == [(7, 1)]
    service.finish()
    assert_right(request)


def test_what_was_accepted_beyond_the_end_does_not_count():
    prompt = [1] * 6
    alone = expected_tokens(Request("x", prompt, SamplingParams(20, ignore_eos=True)), 100)[0]
    stop = next(token for i, token in enumerate(alone[7:10]) if token not in alone[6 : 7 + i])
    for settings in ({"stop_token_ids": (stop,)}, {"max_tokens": 3}):
        service = Service(30, block_size=2)
        request = service.add("a", prompt, **settings)
        service.step()
        service.scheduler.propose("a", alone[7:12])
        service.finish()
        assert_right(request)
        assert request.stop_token == (stop if "stop_token_ids" in settings else None)
        assert request.tokens == alone[: len(request.tokens)]


def test_guesses_take_only_what_is_left_over():
    service = Service(4, block_size=2, watermark=0, max_tokens_per_step=4, max_sequences=2)
    first, second = service.add("a", [1] * 2, max_tokens=4), service.add("b", [0] * 2, max_tokens=2)
    service.step()
    for request in (first, second):
        service.scheduler.propose(request.id, [next_token(tuple(request.tokens)), 0, 0, 0])
    plan = service.step()
    assert [len(each.tokens) for each in plan.work] == [2, 1], "a free block is left for each: b needs one, too"
    assert not service.of(Preempted)
    service.finish()
    assert_right(first)
    assert_right(second)


# What update and plan refuse


def test_a_result_that_cannot_be_is_refused_and_changes_nothing():
    service, request, plan = guessed(2, 0)
    update, tokens = service.scheduler.update, plan.work[0].guesses
    seen = len(service.events)
    for result, message in (
        (StepResult(plan.step + 1), "result must be of step 1, got one of step 2"),
        (StepResult(plan.step), "there is none for"),
        (StepResult(plan.step, (Output("a", (1,)), Output("a", (1,)))), "two for one"),
        (StepResult(plan.step, (Output("a", (1,)), Output("b", (1,)))), "no work for a request 'b'"),
        (StepResult(plan.step, (Output("a", (*tokens, 1, 1)),)), "at most 3 tokens of this step, got 4"),
        (StepResult(plan.step, (Output("a", (tokens[0], (tokens[1] + 1) % 8, 1)),)), "guesses that were right"),
        (StepResult(plan.step, (Output("a", (1,), logprobs=(TokenLogprobs(0.0),) * 2),)), "a logprob for each of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            update(plan, result)
    assert len(service.events) == seen and len(request.generated) == 1
    update(plan, service.runner(plan))
    with pytest.raises(ValueError, match="the last one"):
        update(plan, service.runner(plan))
    service.finish()
    assert_right(request)


def test_an_id_may_come_again_while_the_step_of_the_one_before_still_runs():
    service = Service(10)
    service.add("a", [1] * 6)
    plan = service.scheduler.plan()
    service.scheduler.abort("a")
    again = service.add("a", [0] * 5, max_tokens=3)
    service.scheduler.update(plan, service.runner(plan))
    assert again.tokens == [0] * 5
    assert service.scheduler.plan().ended == ("a",)


def test_the_next_plan_says_once_who_has_ended():
    service = Service(30)
    service.add("a", [1] * 6, max_tokens=1)
    service.add("b", [0] * 6, max_tokens=3)
    service.add("c", [0] * 6, max_tokens=3)
    assert service.step().ended == ()
    assert service.scheduler.finish("c") and not service.scheduler.finish("c")
    assert set(service.step().ended) == {"a", "c"}
    assert service.step().ended == ()


def test_what_add_and_the_scheduler_refuse():
    service = Service(30)
    request = service.add("a.1", [1, 0])
    with pytest.raises(ValueError, match="added before"):
        service.scheduler.add(request)
    for n in (1, 2):
        with pytest.raises(ValueError, match="request 'a.1' is in use"):
            service.scheduler.add(Request("a" if n > 1 else "a.1", [1], SamplingParams(4, n=n)))
    assert list(service.scheduler.requests) == ["a.1"] and service.scheduler.waiting == [request]
    with pytest.raises(KeyError):
        service.scheduler.propose("b", [1])
    for settings, message in (
        ({"max_sequences": 0}, "max_sequences must be at least 1"),
        ({"max_sequences": 9, "max_tokens_per_step": 8}, "at least max_sequences = 9, a token for each, got 8"),
        ({"watermark": 1}, "watermark must be a share"),
        ({"max_model_len": 1}, "max_model_len must be at least 2"),
        ({"policy": "fastest"}, "policy must be one of static, orca, alternating, stall-free"),
        ({"policy": object()}, "an object with `turns`"),
    ):
        with pytest.raises(ValueError, match=message):
            Scheduler(BlockPool(8), **settings)


def test_a_policy_that_lets_nobody_compute_is_told_so():
    class Lazy:
        def turns(self, running, head, budget):
            yield Turn([], admit=len(running) == 0)

    service = Service(10, policy=Lazy())
    assert service.step() is None
    service.add("a", [1, 0])
    service.step()
    with pytest.raises(RuntimeError, match="policy Lazy lets nobody compute, with 1 requests running and 0 waiting"):
        service.step()


def test_a_prompt_leaves_a_token_to_each_of_those_behind_it():
    service = Service(30, max_tokens_per_step=6, max_sequences=3, policy=NewestFirst())
    requests = [service.add("a", [1], max_tokens=9), service.add("b", [0], max_tokens=9), service.add("c", [1, 0] * 8)]
    service.step()
    assert [(each.request, len(each.tokens)) for each in service.step().work] == [("c", 4), ("b", 1), ("a", 1)]
    service.finish()
    for each in requests:
        assert_right(each)


def test_what_a_preempted_request_was_to_compute_is_left_to_others():
    """c, the newest, is planned first and preempted for b: its token of the step's three goes to a's guess."""
    service = Service(4, block_size=2, max_tokens_per_step=3, max_sequences=3, policy=NewestFirst(), watermark=0)
    requests = [service.add(name, [token], max_tokens=6) for name, token in (("a", 1), ("b", 0), ("c", 2))]
    service.step()
    service.step()
    service.scheduler.propose("a", [next_token(tuple(requests[0].tokens))])
    assert [(each.request, len(each.tokens)) for each in service.step().work] == [("b", 1), ("a", 2)]
    service.finish()
    for each in requests:
        assert_right(each)


# Crowds


@pytest.mark.parametrize("policy", [*POLICIES, NewestFirst()], ids=lambda each: getattr(each, "name", each))
def test_a_crowd_in_a_small_pool_gets_what_each_would_get_alone(policy):
    """Requests keep coming, eight of whom want three times what there is room for, and one in ten is aborted."""
    random_numbers = random.Random(1)
    service = Service(
        16, block_size=3, max_tokens_per_step=32, max_sequences=8, policy=policy, eos_ids=[EOS], watermark=0
    )
    requests = []
    for i in range(sized(short=150, full=2000)):
        prompt = [random_numbers.randrange(2) for _ in range(random_numbers.randint(1, 24))]
        sampling = SamplingParams(random_numbers.randint(1, 24), ignore_eos=random_numbers.random() < 0.8)
        requests += service.scheduler.add(Request(f"r{i}", prompt, sampling))
        for _ in range(random_numbers.randint(0, 4)):
            service.step()
        if random_numbers.random() < 0.1:
            service.scheduler.abort(random_numbers.choice(requests).id)
    service.finish(at_most=200 * len(requests))
    for each in requests:
        if each.status is not Status.ABORTED:
            assert_right(each)
    assert len(service.of(Preempted)) > 2, "the pool was too small"
    assert sum(each.hit_tokens for each in service.of(Admitted)) > 100
