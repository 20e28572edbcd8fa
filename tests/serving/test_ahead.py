"""A step planned while one runs, case by case: what it has of whom, what comes to nothing, and what goes wrong."""

import contextlib
from dataclasses import replace

import pytest

from llmsys.serving.engine import Engine
from llmsys.serving.execution import Execution
from llmsys.serving.plan import PLACEHOLDER
from llmsys.serving.policies import StallFree, Turn
from llmsys.serving.request import Request, Status
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import Admitted, Arrived, Computed, EventLog, Failed, StepDone, Token
from tests.serving.test_scheduler import Service, assert_right
from tests.support.made_up_runner import expected_tokens, next_token

PROMPT = (5, 9, 30, 12, 44, 8, 60)


# What the scheduler plans ahead


def shares(plan):
    return {each.request: (each.computed, each.tokens, each.logits) for each in plan.work}


def take(service, plan, **more):
    service.scheduler.update(plan, service.runner(plan, **more))


def test_a_decode_has_a_place_holder_and_a_prompt_its_next_piece():
    service = Service(30, max_tokens_per_step=8)
    service.add("a", [1] * 5), service.add("b", [0] * 12)
    first, second = service.scheduler.plan(), service.scheduler.plan()
    assert shares(first) == {"a": (0, (1,) * 5, 1), "b": (0, (0,) * 3, 0)}
    assert shares(second) == {"a": (5, (PLACEHOLDER,), 1), "b": (3, (0,) * 7, 0)}
    for plan in (first, second):
        take(service, plan)
    assert service.runner.filled == 1
    service.finish()


def test_who_comes_in_with_a_plan_ahead_comes_in_with_its_step():
    service = Service(30)
    service.add("a", [1] * 5)
    first = service.scheduler.plan()
    service.add("b", [0] * 5)
    second = service.scheduler.plan()
    assert [(each.request, each.step) for each in service.of(Admitted)] == [("a", 0), ("b", 1)]
    assert [(each.request, each.step) for each in service.of(Arrived)] == [("a", 0), ("b", 0)], "0 is done next"
    take(service, first)
    take(service, second)
    service.finish()


def test_a_result_that_brings_nothing_voids_what_was_planned_after_it():
    service = Service(30, block_size=2)
    request = service.add("a", [1] * 5)
    first, second = service.scheduler.plan(), service.scheduler.plan()
    service.runner.accept = lambda work, right: 0
    take(service, first)
    service.runner.accept = lambda work, right: right
    assert not service.scheduler.awaits(second) and (request.remaining, request.table.length) == (1, 5)
    take(service, second)
    assert not request.generated
    third = service.scheduler.plan()
    assert shares(third) == {"a": (4, (1,), 1)}, "its last token, once more"
    take(service, third)
    service.finish()
    assert_right(request)


def test_no_more_than_one_plan_is_ahead():
    service = Service(30)
    service.add("a", [1] * 5)
    plans = [service.scheduler.plan(), service.scheduler.plan()]
    with pytest.raises(ValueError, match="the result of step 0 has not been taken in"):
        service.scheduler.plan()
    with pytest.raises(ValueError, match="the last one that was made, or the one before it"):
        service.scheduler.update(plans[1], service.runner(plans[0]))
    assert [plan.step for plan in plans] == [0, 1]


@pytest.mark.parametrize("max_tokens", [1, 2, 3])
def test_a_request_that_ends_by_its_length_is_in_no_plan_beyond(max_tokens):
    service = Service(30)
    request = service.add("a", [1] * 5, max_tokens=max_tokens)
    other = service.add("b", [0] * 5, max_tokens=9)
    plans = []
    while request in service.scheduler.running or not plans:
        plans += [plan for _ in range(2 - len(service.scheduler._under_way)) if (plan := service.scheduler.plan())]
        take(service, next(plan for plan in plans if plan.step == service.scheduler.steps_done))
    assert sum("a" in shares(plan) for plan in plans) == max_tokens
    assert_right(request)
    while plan := service.scheduler._under_way and service.scheduler._under_way[0].plan:
        take(service, plan)
    service.finish()
    assert_right(other)


def test_a_plan_ahead_preempts_nobody_and_where_it_would_have_to_there_is_none():
    """Two requests fill the pool, and their next tokens need a block each: one has to go, when all is known."""
    service = Service(4, block_size=2, watermark=0)
    requests = [service.add("a", [1] * 4, max_tokens=3), service.add("b", [0] * 4, max_tokens=3)]
    plan, tables = service.scheduler.plan(), [list(each.table.blocks) for each in requests]
    assert service.scheduler.plan() is None
    assert [each.table.blocks for each in requests] == tables and not service.scheduler.waiting
    take(service, plan)
    assert [each.request for each in service.scheduler.plan().work] == ["a"], "b is preempted"


def test_where_guesses_are_under_way_or_wait_their_request_is_in_no_plan_ahead():
    service = Service(30)
    request = service.add("a", [1] * 5, max_tokens=20)
    service.step()
    right = expected_tokens(request, 100)[0]
    service.scheduler.propose("a", right[6:9])
    plan = service.scheduler.plan()
    assert plan.work[0].guesses == tuple(right[6:9]) and service.scheduler.plan() is None
    take(service, plan)
    plan = service.scheduler.plan()
    service.scheduler.propose("a", right[10:13])  # while a step runs that says right[10]
    assert service.scheduler.plan() is None, "these can be computed when it has"
    take(service, plan)
    assert request.draft == tuple(right[11:13]), "the first has been said"
    assert service.scheduler.plan().work[0].guesses == tuple(right[11:13])


def test_guesses_that_a_step_under_way_refutes_are_gone():
    service = Service(30)
    request = service.add("a", [1] * 5, max_tokens=20)
    plan = service.scheduler.plan()
    service.scheduler.propose("a", [(next_token((1,) * 5) + 1) % 8, 3, 4])
    take(service, plan)
    assert request.draft == ()


def stops_at(prompt, n):
    """A token that `prompt` is continued with in the n-th place first, if there is one."""
    said = expected_tokens(Request("x", prompt, SamplingParams(n, ignore_eos=True)), 100)[0][len(prompt) :]
    return said[-1] if said[-1] not in said[:-1] else None


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_of_what_is_computed_after_an_end_token_nothing_is_seen(n):
    prompt = next(p for i in range(64) if stops_at(p := [i >> k & 1 for k in range(6)], n) is not None)
    services = {}
    for ahead in (False, True):
        service = services[ahead] = Service(30, block_size=2, clock=lambda: 0.0)
        request = service.add("a", prompt, max_tokens=9, stop_token_ids=[stops_at(prompt, n)], logprobs=0)
        plan = service.scheduler.plan()
        while not request.ended:
            after = service.scheduler.plan() if ahead else None
            take(service, plan)
            plan = after or service.scheduler.plan()
        assert_right(request)
        if ahead:
            assert shares(plan)["a"][1] == (PLACEHOLDER,) and not service.scheduler.awaits(plan)
            if n % 2:  # either way
                service.scheduler.forget(plan)
            else:
                take(service, plan)
        assert service.scheduler.plan() is None and service.pool.stats.used == 0
        assert len(request.logprobs) == len(request.generated) == n
    plain, ahead = (
        [replace(each, blocks_used=0) if isinstance(each, StepDone) else each for each in services[ahead].events]
        for ahead in (False, True)
    )
    assert ahead == plain, "but for a block that is in use until the end is known"
    assert sum(each.tokens for each in ahead if isinstance(each, StepDone)) == len(prompt) + n - 1
    # What can be hit is the same: no block that holds a token behind the end.
    longer = [*prompt, *[1] * 9]
    assert len({service.pool.match(longer).tokens for service in services.values()}) == 1


def test_what_a_failed_request_has_under_way_comes_to_nothing_and_its_neighbours_go_on():
    service = Service(30)
    failing, other = service.add("a", [1] * 5), service.add("b", [0] * 5, max_tokens=4)
    first, second = service.scheduler.plan(), service.scheduler.plan()
    take(service, first, poison="a")
    assert failing.status is Status.FAILED and service.scheduler.awaits(second)
    take(service, second)
    assert [type(each) for each in service.events if getattr(each, "request", None) == "a"][-1] is Failed
    assert [each.sequences for each in service.events if isinstance(each, StepDone)] == [2, 1]
    service.finish()
    assert_right(other)


def test_blocks_of_an_ended_request_may_be_anothers_while_its_step_still_runs():
    service = Service(2, block_size=4, watermark=0)
    service.add("a", [1] * 6, max_tokens=3)
    plan, after = service.scheduler.plan(), service.scheduler.plan()
    service.scheduler.abort("a")
    again = service.add("a", [0] * 7, max_tokens=2)  # of the same id, in the same blocks
    take(service, plan)
    third = service.scheduler.plan()
    assert third.ended == ("a",) and third.work[0].tokens == (0,) * 7 and set(third.work[0].blocks) == {1, 2}
    take(service, after)
    take(service, third)
    service.finish()
    assert_right(again)


def test_answers_that_share_a_prompt_wait_until_its_first_token_is_known():
    service = Service(30, block_size=4)
    answers = service.scheduler.add(Request("a", [1] * 10, SamplingParams(5, 1.0, seed=3, n=3, ignore_eos=True)))
    first, second = service.scheduler.plan(), service.scheduler.plan()
    assert list(shares(second)) == ["a"]
    take(service, first)
    third = service.scheduler.plan()
    assert list(shares(third)) == ["a", "a.1", "a.2"] and len(third.copies) == 2
    take(service, second)
    take(service, third)
    service.finish()
    for each in answers:
        assert_right(each)


def test_the_end_of_a_request_that_was_never_planned_is_told_to_nobody():
    service = Service(30)
    for i in range(5):
        service.add(f"r{i}", [1] * 5)
        service.scheduler.abort(f"r{i}")
    service.add("a", [1])
    assert service.step().ended == () and not service.scheduler._ended


# The engine


class Watched:
    """An engine's runner, which writes down what it is asked for, and raises where it is told to."""

    def __init__(self, engine, *, launch=(), result=()):
        self.runner, self.said = engine.runner, []
        self.raises = {"launch": launch, "result": result}
        engine.runner = self

    def note(self, what, step):
        self.said.append((what, step))
        if step in self.raises[what]:
            raise RuntimeError(f"{what} {step} breaks")

    def launch(self, plan):
        self.note("launch", plan.step)
        launched = self.runner.launch(plan)
        result = launched.result

        def asked():
            self.note("result", plan.step)
            return result()

        launched.result = asked
        return launched


def made(pair, ahead=True, **more) -> Engine:
    return Engine(pair.ours, execution=Execution(ahead=ahead), **dict(num_blocks=40, block_size=4) | more)


def params(n=6, **more) -> SamplingParams:
    return SamplingParams(max_tokens=n, **dict(ignore_eos=True) | more)


def nothing_left(engine) -> bool:
    quiet = not engine._loop._flights and not engine.scheduler._under_way
    return quiet and engine.pool.stats.used == 0 and not engine.has_unfinished and not engine.metrics.requests


def test_a_step_is_launched_before_the_one_before_it_is_waited_for(llama):
    engine = made(llama)
    watched = Watched(engine)
    assert engine.generate([PROMPT], params(4))[0].tokens == llama.greedy(PROMPT)[0][:4]
    assert watched.said == [
        ("launch", 0), ("launch", 1), ("result", 0), ("launch", 2), ("result", 1), ("launch", 3), ("result", 2),
        ("result", 3),
    ]  # fmt: skip
    assert nothing_left(engine)


def test_on_a_cpu_steps_are_planned_ahead_where_that_is_asked_for(llama):
    for execution, ahead in ((None, False), (Execution(), False), (Execution(ahead=True), True)):
        assert Engine(llama.ours, num_blocks=9, execution=execution)._loop.ahead is ahead
    with pytest.raises(ValueError, match="execution must be an Execution, got bool"):
        Engine(llama.ours, num_blocks=9, execution=True)


def test_a_scheduler_that_knows_nothing_of_it_is_served_a_step_at_a_time(llama):
    class Plain(Scheduler):
        plans_ahead = False

    engine = made(llama, scheduler=Plain)
    watched = Watched(engine)
    engine.generate([PROMPT], params(2))
    assert watched.said == [("launch", 0), ("result", 0), ("launch", 1), ("result", 1)]


@pytest.mark.parametrize("how", ["stop token", "stop string"])
def test_after_an_end_that_only_its_token_shows_the_step_under_way_is_nobodys(llama, how):
    expected = llama.greedy(PROMPT)[0]
    end = next(i for i in range(2, 9) if expected[i] not in expected[:i])
    word = llama.ours.tokenizer.decode([expected[end]])
    stop = dict(stop_token_ids=[expected[end]]) if how == "stop token" else dict(stop=[word])
    said = {}
    for ahead in (False, True):
        engine = made(llama, ahead, events=EventLog())
        watched = Watched(engine)
        answer = engine.generate([PROMPT], params(20, logprobs=1, **stop))[0].answers[0]
        totals = engine.metrics.totals
        said[ahead] = (
            answer.tokens, answer.text, answer.logprobs, answer.reason, answer.stopped_by, answer.metrics.output_tokens,
            totals.computed_tokens, totals.output_tokens, totals.steps, len(engine.metrics.steps),
            [(type(each), each.step) for each in engine.events],
            engine.pool.match([*PROMPT, *expected]).tokens,
        )  # fmt: skip
        assert nothing_left(engine)
        steps = totals.steps
        assert watched.said.count(("launch", steps)) == ahead and ("result", steps) not in watched.said
    assert said[True] == said[False]


def test_a_step_that_cannot_be_launched_takes_nothing_from_the_one_before_it(llama):
    engine = made(llama, max_tokens_per_step=7, max_sequences=4)
    Watched(engine, launch=[2])
    first, late = engine.add(PROMPT, params(2)), engine.add(PROMPT[1:], params(5))
    with pytest.raises(RuntimeError, match="launch 2 breaks"):
        engine.step()
        engine.step()
    # Step 0 read the first prompt; step 1 said its second token, the last, and read most of the other; 2 was late's.
    assert first.answers[0].reason == "length" and first.tokens == llama.greedy(PROMPT)[0][:2]
    assert late.answers[0].reason == "error" and "launch 2 breaks" in late.answers[0].error
    assert nothing_left(engine)
    assert engine.generate([PROMPT], params(3))[0].tokens == llama.greedy(PROMPT)[0][:3] and nothing_left(engine)


def test_nothing_is_planned_behind_a_step_that_could_not_be_launched_also_where_a_listener_takes_the_next(llama):
    engine = made(llama)
    run, asked, late = llama.ours.forward, [], []

    def breaks(*args):
        asked.append(args)
        if len(asked) == 3:
            raise RuntimeError("the model breaks")
        return run(*args)

    def busy(update):
        if len(response.tokens) == 2:
            late.append(engine.add(PROMPT[1:], params(3)))
            with pytest.raises(RuntimeError, match="the model breaks"):
                engine.step()

    engine.runner.forms._large = engine.runner.forms._large._replace(forward=breaks)
    response = engine.add(PROMPT, params(9), listener=busy)
    engine.step()
    with pytest.raises(RuntimeError, match="the model breaks"):
        engine.step()
    assert response.answers[0].reason == "error" and len(response.tokens) == 2
    while engine.has_unfinished:
        engine.step()
    assert late[0].tokens == llama.greedy(PROMPT[1:])[0][:3] and nothing_left(engine)


def test_a_result_that_does_not_come_fails_its_requests_and_the_step_after_it_goes_on(llama):
    engine = made(llama, max_tokens_per_step=7, max_sequences=4)
    Watched(engine, result=[0])
    first, late = engine.add(PROMPT, params(9)), engine.add(PROMPT[1:], params(5))
    with pytest.raises(RuntimeError, match="result 0 breaks"):
        engine.step()
    assert first.answers[0].reason == "error" and not late.finished and len(engine._loop._flights) == 1
    while engine.has_unfinished:
        engine.step()
    assert late.tokens == llama.greedy(PROMPT[1:])[0][:5] and nothing_left(engine)
    assert engine.metrics.totals.failed == 1


def test_a_policy_that_raises_ahead_loses_nothing(llama):
    class Breaks:
        asked = 0

        def turns(self, running, head, budget):
            self.asked += 1
            if self.asked == 3:
                raise ZeroDivisionError
            yield from policy.turns(running, head, budget)

    policy = made(llama).scheduler.policy
    engine = made(llama, policy=Breaks())
    response = engine.add(PROMPT, params(6))
    engine.step()
    with pytest.raises(ZeroDivisionError):
        engine.step()
    assert len(response.tokens) == 2 and not response.finished, "the step under way has landed"
    while engine.has_unfinished:
        engine.step()
    assert response.tokens == llama.greedy(PROMPT)[0][:6] and nothing_left(engine)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("asked", [1, 2, 3, 4])
def test_a_plan_in_whose_middle_a_policy_raises_leaves_nothing_under_way_and_no_copy_unmade(llama, ahead, asked):
    """Also where one was admitted into it that shares a block, or guesses had slots."""

    class Breaks(Turn):
        def tokens(self, *numbers):
            nonlocal left
            left -= 1
            if not left:
                raise ZeroDivisionError
            return super().tokens(*numbers)

    class Policy:
        def turns(self, running, head, budget):
            for turn in StallFree().turns(running, head, budget):
                yield Breaks(turn.compute, turn.admit)

    several = replace(params(6, temperature=1.0, seed=4), n=3)
    left = 0
    expected = [each.tokens for each in made(llama, False).generate([PROMPT], several)[0].answers]
    for at in range(5):
        engine = made(llama, ahead, policy=Policy())
        response, greedy = engine.add(PROMPT, several), engine.add(PROMPT[1:], params(9))
        for step in range(40):
            left = asked if step == at else 0
            if step == at and greedy.id in engine.scheduler.requests:
                engine.scheduler.propose(greedy.id, [3, 4])
            with contextlib.suppress(ZeroDivisionError):
                engine.step()
        assert [each.tokens for each in response.answers] == expected
        assert greedy.tokens == llama.greedy(PROMPT[1:])[0][:9] and nothing_left(engine)


def test_a_result_that_cannot_be_fails_its_step_and_the_engine_goes_on(llama):
    for ahead in (False, True):
        engine = made(llama, ahead)
        response = engine.add(PROMPT, params(6))
        launch = engine.runner.launch

        def wrong(plan, launch=launch):
            launched = launch(plan)
            result = launched.result()
            launched.result = lambda: result if plan.step else type(result)(7, result.outputs)
            return launched

        engine.runner.launch = wrong
        with pytest.raises(ValueError, match="result must be of step 0, got one of step 7"):
            engine.step()
        assert response.answers[0].reason == "error" and nothing_left(engine)
        assert engine.generate([PROMPT], params(3))[0].tokens == llama.greedy(PROMPT)[0][:3]


def test_a_listener_may_abort_add_and_take_steps_while_one_is_under_way(llama):
    engine = made(llama)
    added = []

    def busy(update):
        if update.reason is None and not added:
            added.append(engine.add(PROMPT, params(4), id="again"))
            engine.step()
            engine.abort("other")

    mine = engine.add(PROMPT[2:], params(5), listener=busy)
    other = engine.add(PROMPT[1:], params(9), id="other")
    while engine.has_unfinished:
        engine.step()
    assert other.answers[0].reason == "abort"
    assert other.tokens == llama.greedy(PROMPT[1:])[0][: len(other.tokens)] and len(other.tokens) < 4
    assert mine.tokens == llama.greedy(PROMPT[2:])[0][:5]
    assert added[0].tokens == llama.greedy(PROMPT)[0][:4] and nothing_left(engine)


def test_an_id_may_come_again_while_a_step_of_the_one_before_is_under_way(llama):
    engine = made(llama)
    for n in range(1, 5):
        gone = engine.add(PROMPT, params(20), id="a")
        for _ in range(n):
            engine.step()
        assert engine.abort("a") and nothing_left(engine) and len(gone.tokens) == n
        again = engine.add(PROMPT[n:], params(6), id="a")
        while not again.finished:
            engine.step()
        assert again.tokens == llama.greedy(PROMPT[n:])[0][:6] and len(gone.tokens) == n


def test_each_step_has_what_happened_in_it_also_where_it_was_planned_before_the_one_before_was_done(llama):
    log = EventLog()
    engine = made(llama, events=log, num_blocks=10, max_tokens_per_step=9, max_sequences=4)
    prompts = [PROMPT, PROMPT[2:], PROMPT, PROMPT[:1]]
    engine.generate(prompts, [replace(params(n), n=m) for n, m in ((12, 1), (9, 2), (1, 1), (20, 2))])
    steps = {step.step: step for step in engine.metrics.steps}
    assert len(steps) == engine.metrics.totals.steps and engine.metrics.totals.preemptions
    for number, step in steps.items():
        its = [each for each in log if each.step == number]
        assert step.tokens == sum(each.tokens for each in its if isinstance(each, Computed))
        assert step.output_tokens == sum(isinstance(each, Token) for each in its)
        assert step.hit_tokens == sum(each.hit_tokens for each in its if isinstance(each, Admitted))
    done = [each for each in log if isinstance(each, StepDone)]
    assert all(each.seconds > 0 for each in done)
    assert sum(each.seconds for each in done) <= done[-1].time - log.records()[0]["time"], "no second is counted twice"
