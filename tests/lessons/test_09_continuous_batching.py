"""Lesson 09: what a script says is worked out by hand, the given scheduler does what the library's does, the checks
stand their self-test, take right answers and reject wrong ones that they have not seen; and both exercises together,
with a reader's classes, drive the engine."""

import pytest
import torch

from llmsys.cache import BlockPool
from llmsys.course.checking.answer import Answer
from llmsys.lessons.lesson_09_continuous_batching.checks.lives import life
from llmsys.lessons.lesson_09_continuous_batching.scheduler_parts import (
    GivenAdmission,
    GivenSteps,
    SchedulerParts,
)
from llmsys.lessons.lesson_09_continuous_batching.scripts import next_token, played
from llmsys.models import Llama, LlamaConfig, generate
from llmsys.serving import POLICIES, Engine, Output, Request, SamplingParams, Scheduler, StepResult
from llmsys.serving.request import Status
from llmsys.serving.telemetry.events import Admitted, Computed, Finished, Preempted, StepDone
from llmsys.viz.continuous_batching.play import play
from llmsys.viz.continuous_batching.stepper import REQUESTS
from llmsys.viz.continuous_batching.timeline import read
from tests.lessons import answers_09
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.size import SEED, sized
from tests.support.verdicts import assert_rejected, assert_taken, verdict

# What is played


def test_a_script_says_what_each_step_does():
    """Blocks of 4 and three of them: a and b fill one each, c waits for a block that stays free beside its own."""
    a, b = [1, 2, 3, 4], [5, 6, 7]
    said = {"a": [], "b": []}
    for name, tokens, count in (("a", a, 3), ("b", b, 4)):
        for _ in range(count):
            said[name].append(next_token((*tokens, *said[name])))
    c = next_token((1, 2, 3, 4, 9))
    script = [[0, "add", "a", a, 3], [0, "add", "b", b, 4], [1, "add", "c", [*a, 9], 1]]
    assert played(SchedulerParts)(script=script, budget=6, sequences=3, blocks=3) == [
        f"step 0: a comes in; b comes in; a 0+4 says {said['a'][0]}; b 0+2; 1 blocks free",
        f"step 1: a 4+1 says {said['a'][1]}; b 2+1 says {said['b'][0]}; c waiting; 0 blocks free",
        f"step 2: a 5+1 says {said['a'][2]}, ends after 3; b 3+1 says {said['b'][1]}; c waiting; 2 blocks free",
        f"step 3: b 4+1 says {said['b'][2]}; c waiting; 1 blocks free",
        f"step 4: b 5+1 says {said['b'][3]}, ends after 4; c waiting; 3 blocks free",
        f"step 5: c comes in with 4 hit; c 4+1 says {c}, ends after 1; 3 blocks free",
    ]


def test_an_aborted_request_leaves_and_the_work_alone_can_be_told():
    script = [[0, "add", "a", [1] * 9, 3], [1, "abort", "a"]]
    assert played(SchedulerParts)(script=script, budget=6, sequences=3, told="work") == ["step 0: a 0+6"]


def test_a_class_that_is_built_on_nothing_is_told_so():
    for make in (type("Steps", (), {}), lambda: 3):
        with pytest.raises(TypeError, match="must be a class that is built on SchedulerParts"):
            played(make)(script=[], budget=6, sequences=3)


def test_a_step_has_the_number_of_its_turn_although_nobody_was_there_before_it():
    script = [[0, "add", "a", [1, 2], 1], [3, "add", "b", [1, 2], 1]]
    lines = played(SchedulerParts)(script=script, budget=6, sequences=3)
    assert [line.split(":")[0] for line in lines] == ["step 0", "step 3"]


def test_what_cannot_be_computed_is_named_and_ends_the_script():
    def steps(share):
        return type("Steps", (SchedulerParts,), {"share_out": lambda self: share(self)})

    def admitted(self, n):
        return [(self.running[0] if self.running else self.admit(), n)]

    script = [[0, "add", "a", [1, 2, 3], 2]]
    for share, said in (
        (lambda self: admitted(self, 4), "share_out gives a 4 tokens: 3 are known, and 0 computed"),
        (lambda self: admitted(self, 0), "share_out gives a 0 tokens: 3 are known, and 0 computed"),
        (lambda self: admitted(self, 3) * 2, "and has given it some before: one share a request"),
        (lambda self: [(self.waiting[0], 3)], "share_out gives a 3 tokens, which is not running"),
        (lambda self: admitted(self, 3) + [3], "share_out must return a list of pairs (request, n)"),
        (lambda self: None, "share_out must return a list of pairs (request, n)"),
    ):
        lines = played(steps(share))(script=script, budget=8, sequences=2)
        assert len(lines) == 1 and lines[0].startswith("step 0: ValueError: ") and lines[0].endswith(said)
    (line,) = played(steps(lambda self: []))(script=script, budget=8, sequences=2)
    assert line == "step 0: nobody computes; 0 are running, a waiting"

    class NeverGrows(SchedulerParts):
        def make_room(self, request):
            return True

    lines = played(NeverGrows)(script=script, budget=8, sequences=2, block_size=1)
    assert lines[-1] == "step 1: ValueError: share_out gives a 1 tokens after 3, and it has slots for 3"


# The scheduler that is given


@pytest.mark.parametrize("number", range(sized(short=40, full=400)))
def test_the_given_scheduler_lives_as_the_librarys_does(number):
    answer = Answer(None, seed=number + SEED)
    block_size, sequences = int(answer.randint(1, 5)), int(answer.randint(1, 7))
    blocks = -(-30 // block_size) + int(answer.randint(0, 6))
    settings = dict(
        script=life(answer, room=blocks * block_size, requests=15),
        budget=sequences + int(answer.randint(0, 20)),
        sequences=sequences,
        blocks=blocks,
        block_size=block_size,
        watermark=int(answer.randint(0, 4)) / 10,
    )
    assert played(SchedulerParts)(**settings) == played(Scheduler)(**settings)


def test_what_the_given_scheduler_refuses():
    for settings, message in (
        ({"policy": "orca"}, 'policy must be "stall-free"'),
        ({"max_sequences": 9, "max_tokens_per_step": 8}, "max_sequences must be from 1 to max_tokens_per_step = 8"),
        ({"watermark": 1}, "watermark must be a share"),
    ):
        with pytest.raises(ValueError, match=message):
            SchedulerParts(BlockPool(8), **settings)
    served = SchedulerParts(BlockPool(8), policy=POLICIES["stall-free"]())
    (request,) = served.add(Request("a", [1, 2], SamplingParams(4)))
    with pytest.raises(ValueError, match="has been added before, or its id is in use"):
        served.add(Request("a", [1, 2]))
    with pytest.raises(ValueError, match="n = 1 and no salt"):
        served.add(Request("b", [1, 2], SamplingParams(4, n=2)))
    with pytest.raises(ValueError, match="n = 1 and no salt"):
        served.add(Request("b", [1, 2], SamplingParams(4), salt="tenant"))
    with pytest.raises(ValueError, match="max_tokens must be at most"):
        served.add(Request("b", [1, 2], SamplingParams(999)))
    assert served.waiting == [request]
    plan = served.plan()
    with pytest.raises(ValueError, match="the result of step 0 has not been taken in"):
        served.plan()
    result = StepResult(0, (Output("a", (5,)),))
    served.update(plan, result)
    with pytest.raises(ValueError, match="plan must be the last one"):
        served.update(plan, result)
    assert served.abort("a") and not served.abort("a") and request.status is Status.ABORTED
    assert served.pool.free_blocks == 7 and not served.has_unfinished


def test_a_request_that_fails_ends_alone_and_nobody_hits_what_it_computed():
    served = SchedulerParts(BlockPool(30, 2))
    for name in "ab":
        served.add(Request(name, [1 + ord(name), 2, 3, 4, 5], SamplingParams(3, ignore_eos=True)))
    requests = dict(served.requests)
    plan = served.plan()
    served.update(plan, StepResult(0, (Output("a", error="not finite"), Output("b", (7,)))))
    assert (requests["a"].status, requests["a"].error) == (Status.FAILED, "not finite")
    assert requests["b"].generated == [7] and served.running == [requests["b"]]
    hits = [served.pool.match([*requests[name].prompt, 0]).tokens for name in "ab"]
    assert hits == [0, 4]


# Answers that the checks have not seen


@pytest.mark.parametrize("answer", answers_09.RIGHT_STEPS)
def test_right_steps_are_taken(answer):
    assert_taken("09.steps", answer)


@pytest.mark.parametrize("answer", answers_09.WRONG_STEPS)
def test_wrong_steps_are_rejected(answer):
    assert_rejected("09.steps", answer)


@pytest.mark.parametrize("answer", answers_09.RIGHT_ADMISSION)
def test_right_admission_is_taken(answer):
    assert_taken("09.admission", answer)


@pytest.mark.parametrize("answer", answers_09.WRONG_ADMISSION)
def test_wrong_admission_is_rejected(answer):
    assert_rejected("09.admission", answer)


NAMED = {"09.steps": answers_09.NAMED_STEPS, "09.admission": answers_09.NAMED_ADMISSION}


@pytest.mark.parametrize("exercise, name", [(exercise, name) for exercise, named in NAMED.items() for name in named])
def test_a_mistake_has_its_own_name_and_no_others(exercise, name):
    result = verdict(exercise, NAMED[exercise][name], name_mistakes=True)
    assert not result and (result.misconception and result.misconception.name) == name, result


def test_a_mistake_that_ends_the_first_step_is_told_where_it_was_made():
    class AppendsTheList(SchedulerParts):
        def take_in(self, request, n, said):
            request.computed += n
            request.tokens.append(said)

    class CountsAhead(SchedulerParts):
        def share_out(self):
            shares = super().share_out()
            for request, n in shares:
                request.computed += n
            return shares

    def step(make):
        return played(make)(script=[[0, "add", "a", [1, 2, 3], 2]], budget=8, sequences=2)

    said = f"take_in leaves [{next_token((1, 2, 3))}] among request.tokens, which are ints, of a"
    assert step(AppendsTheList) == [f"step 0: ValueError: {said}"]
    counted = "3 are known, and 3 computed: take_in is where they are counted, when the step is done"
    assert step(CountsAhead) == [f"step 0: ValueError: share_out gives a 3 tokens: {counted}"]


FRAMES = read(play(REQUESTS, max_tokens_per_step=16, max_sequences=4, num_blocks=13, block_size=4))


def test_the_steppers_service_is_as_the_lesson_tells_it():
    free = [step.blocks - step.blocks_used for step in FRAMES]
    admitted = {name: step.number for step in FRAMES for name in step.admitted}
    assert [free[4], free[5], free[6]] == [7, 5, 8]  # after the steps in which B ends, A and C grow, and A ends
    assert (FRAMES[4].ended, FRAMES[6].ended) == (["B"], ["A"])
    assert admitted["D"] == 7 and [FRAMES[n].arrived for n in (3, 5, 6, 8)] == [["D"], ["E"], ["F"], ["G"]]
    assert free[8] == 1 and FRAMES[8].admitted == {"E": 8}  # so F, with one block and one to stay free, waits for room
    assert FRAMES[10].preempted == {"E": 12} and FRAMES[11].admitted == {"E": 12, "F": 0}


@pytest.mark.parametrize("exercise", ["09.steps", "09.admission"])
@pytest.mark.parametrize("answer", [Scheduler, SchedulerParts])
def test_what_is_there_already_is_right_where_it_is_not_forbidden(exercise, answer):
    assert verdict(exercise, answer, watched=False)
    assert verdict(exercise, answer).failure.kind == "forbidden"


@pytest.mark.parametrize("exercise", exercises_of("09"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


# In the engine


class Both(answers_09.DecodesFirst, answers_09.LooksFirst):
    """Two readers' answers."""


class StepsAlone(answers_09.OneLoop, GivenAdmission):
    """The first exercise's answer."""


class AdmissionAlone(GivenSteps, answers_09.ByOrder):
    """The second one's."""


class Neither(GivenSteps, GivenAdmission):
    """Nobody's."""


PROMPTS = [[5, 11, 2, 60, 3, 3, 17, 8, 9, n, 20 - n][: 11 - n % 3] for n in range(5)]


@pytest.fixture(scope="module")
def tiny() -> Llama:
    torch.manual_seed(0)
    config = LlamaConfig(
        name="tiny", vocab_size=61, hidden_size=32, layers=2, heads=6, kv_heads=2, head_size=8, mlp_size=48,
        context_length=64, tied_embeddings=False,
    )  # fmt: skip
    model = Llama(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.dim() == 2 else 1))
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def alone(tiny) -> list[list[int]]:
    return [generate(tiny, each, cache=False, max_new_tokens=9).tokens for each in PROMPTS]


@pytest.mark.parametrize("scheduler", [Both, StepsAlone, AdmissionAlone, Neither])
@pytest.mark.parametrize("num_blocks", [7, 60])
def test_the_engine_gives_each_prompt_what_it_gets_alone(tiny, alone, scheduler, num_blocks):
    engine = Engine(
        tiny, scheduler=scheduler, num_blocks=num_blocks, block_size=4, max_tokens_per_step=8, max_sequences=4
    )
    params = SamplingParams(max_tokens=9, ignore_eos=True)
    responses = engine.generate(PROMPTS, params, progress=False)
    assert [each.answers[0].tokens for each in responses] == alone
    events = list(engine.events)
    assert engine.pool.free_blocks == num_blocks - 1 and not engine.has_unfinished
    assert sum(isinstance(each, Finished) for each in events) == len(PROMPTS)
    assert any(isinstance(each, Preempted) for each in events) == (num_blocks == 7)
    assert max(each.tokens for each in events if isinstance(each, StepDone)) == 8
    assert engine.metrics.totals.steps == sum(isinstance(each, StepDone) for each in events)


def test_the_engine_aborts_and_streams_on_a_readers_scheduler(tiny, alone):
    engine = Engine(tiny, scheduler=Both, num_blocks=30, block_size=4, max_tokens_per_step=8, max_sequences=4)
    gone = engine.add(PROMPTS[0], SamplingParams(max_tokens=9, ignore_eos=True))
    stream = engine.stream(PROMPTS[1], SamplingParams(max_tokens=9, ignore_eos=True))
    first = next(stream)
    assert engine.abort(gone.id) and gone.answers[0].reason == "abort"
    assert [*first.tokens, *(token for update in stream for token in update.tokens)] == alone[1]
    assert engine.pool.free_blocks == 29


def test_an_end_token_ends_an_answer(tiny, alone):
    engine = Engine(tiny, scheduler=Both, num_blocks=30, block_size=4, max_tokens_per_step=8, max_sequences=4)
    stop = alone[2][3]
    response = engine.generate([PROMPTS[2]], SamplingParams(max_tokens=9, stop_token_ids=(stop,)), progress=False)[0]
    assert response.answers[0].tokens == alone[2][: alone[2].index(stop)]
    assert (response.answers[0].reason, response.answers[0].stopped_by) == ("stop", stop)


def test_the_log_says_what_was_found_and_lost():
    served = SchedulerParts(BlockPool(6, 2), watermark=0, clock=lambda: 1.0)
    for name in "ab":
        served.add(Request(name, [ord(name), 2, 3], SamplingParams(4, ignore_eos=True)))
    while plan := served.plan():
        said = tuple(Output(work.request, (work.end,)) for work in plan.work if work.logits)
        served.update(plan, StepResult(plan.step, said))
    events = list(served.events)
    lost = [(each.step, each.request, each.lost) for each in events if isinstance(each, Preempted)]
    found = [(each.step, each.request, each.hit_tokens) for each in events if isinstance(each, Admitted)]
    assert lost == [(2, "b", 4)] and found == [(0, "a", 0), (0, "b", 0), (4, "b", 4)]
    computed = sum(each.tokens for each in events if isinstance(each, Computed))
    assert computed == 2 * (3 + 3) + 4 - 4, "what was lost was found again"
