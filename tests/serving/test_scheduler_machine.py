"""Any schedule gives the same tokens: the scheduler through lives that hypothesis draws, on a runner that is made up.

Requests arrive (some share prompts, some want several answers), are aborted, stop, are guessed ahead of, fail, and
preempt each other in a pool that is too small for them, with or without main memory for what it evicts; results bring
anything from no token to all that were guessed; a step may break before its copies, or after some of them.
Some steps are planned while the one before them is under way, and requests come and go then, too. After every step the
machine looks at what must always be true, and in the end at what each request got.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmsys.cache import BlockPool, CopyIn, CopyOut
from llmsys.serving.plan import PLACEHOLDER, StepPlan
from llmsys.serving.policies import POLICIES
from llmsys.serving.request import Request, Status
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import (
    Aborted,
    Admitted,
    Arrived,
    Computed,
    Failed,
    Finished,
    HostCopied,
    Preempted,
    StepDone,
    Token,
)  # fmt: skip
from tests.support.made_up_runner import EOS, MadeUpRunner, expected_tokens, next_token
from tests.support.pools import assert_consistent, content
from tests.support.size import sized

PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)  # two tokens: prefixes are shared often
SAMPLING = st.builds(
    SamplingParams,
    max_tokens=st.sampled_from([9, 1, 2, 5, 20, None]),
    seed=st.sampled_from([None, 0, 5]),
    stop_token_ids=st.sampled_from([(), (), (3,), (4, 5)]),
    ignore_eos=st.sampled_from([True, True, False]),
    logprobs=st.sampled_from([None, 0]),
    n=st.sampled_from([1, 1, 1, 2, 3]),
)


@dataclass
class UnderWay:
    """A plan whose result is awaited."""

    plan: StepPlan
    requests: dict[str, Request]  #  that it was made for
    void: set[str] = field(default_factory=set)  #  of these, those whose place-holder stands for no token

    def work_of(self, request):
        """What still counts."""
        if request.ended or self.requests.get(request.id) is not request or request.id in self.void:
            return None
        return next(work for work in self.plan.work if work.request == request.id)


class Schedules(RuleBasedStateMachine):
    policy = "stall-free"
    seen: Counter

    @initialize(
        blocks=st.integers(1, 3) | st.integers(6, 16),
        block_size=st.integers(1, 4),
        sequences=st.integers(1, 6),
        more_budget=st.sampled_from([30, 0, 1, 2, 5, 9]),
        watermark=st.sampled_from([0, 0.01, 0.3]),
        max_model_len=st.sampled_from([None, None, 11]),
        host_blocks=st.sampled_from([50, 0, 1, 3, 8, 50]),
        returns=st.sampled_from([1, 1, 1, 1, 2]),
    )
    def make(self, blocks, block_size, sequences, more_budget, watermark, max_model_len, host_blocks, returns):
        def takes_back(offer):
            assert 0 <= offer.start < offer.end < offer.known
            assert offer.start % block_size == offer.end % block_size == 0
            assert 1 <= offer.blocks <= (offer.end - offer.start) // block_size
            return (offer.end + offer.known) % returns == 0

        self.pool = BlockPool(blocks + 1, block_size, host_blocks=host_blocks, takes_back=takes_back)
        self.room = min(blocks * block_size + 1, max_model_len or 10**9)
        self.sequences, self.budget = sequences, sequences + more_budget
        self.scheduler = Scheduler(
            self.pool, max_tokens_per_step=self.budget, max_sequences=sequences, policy=self.policy,
            watermark=watermark, max_model_len=max_model_len, eos_ids=[EOS], clock=lambda: 0.0,
        )  # fmt: skip
        self.salts: dict[str, str] = {}
        self.takes: list[int] = []  # how many tokens the next results bring less than they could
        self.runner = MadeUpRunner(blocks + 1, block_size, self.salts, self.fewer)
        self.everyone: list[Request] = []
        self.under_way: deque[UnderWay] = deque()
        self.steps = self.gifts = 0  # steps taken; results that brought less than a token
        self.names = 0

    def fewer(self, work, right):
        less = self.takes.pop() if self.takes else 0
        self.gifts += right <= less
        return max(0, right - less)

    def alive(self):
        return [each for each in self.everyone if not each.ended]

    # Requests come and go, between steps and while one runs

    @rule(prompt=PROMPTS, sampling=SAMPLING, salt=st.sampled_from([None, None, None, "adapter"]))
    def arrive(self, prompt, sampling, salt):
        if len(self.alive()) >= 8:
            return
        self.names += 1
        request = Request(f"r{self.names}", prompt, sampling, salt=salt)
        before = (len(self.scheduler.events), len(self.scheduler.waiting), set(self.scheduler.requests))
        if len(prompt) + (sampling.max_tokens or 1) > self.room:
            with pytest.raises(ValueError, match="prompt must have|max_tokens must be"):
                self.scheduler.add(request)
            assert before == (len(self.scheduler.events), len(self.scheduler.waiting), set(self.scheduler.requests))
            return
        answers = self.scheduler.add(request)
        assert len(answers) == sampling.n and answers[0] is request
        if salt:
            self.salts.update({each.id: salt for each in answers})
        self.everyone += answers

    @rule(prompts=st.lists(PROMPTS, min_size=2, max_size=5), max_tokens=st.sampled_from([9, 5, 14]))
    def several_arrive(self, prompts, max_tokens):
        for prompt in prompts:
            self.arrive(prompt, SamplingParams(max_tokens, ignore_eos=True), None)

    @rule(data=st.data(), more=st.lists(st.integers(0, 1), max_size=5), sampling=SAMPLING)
    def arrive_with_the_tokens_of_another(self, data, more, sampling):
        if self.everyone:
            other = data.draw(st.sampled_from(self.everyone[-6:]))
            self.arrive([*other.tokens, *more], sampling, other.salt)

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), how=st.sampled_from(["abort", "finish"]))
    def leave(self, data, how):
        request = data.draw(st.sampled_from(self.alive()))
        assert getattr(self.scheduler, how)(request.id)
        assert request.status is (Status.ABORTED if how == "abort" else Status.FINISHED)
        assert not self.scheduler.abort(request.id), "it has ended already"

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), right=st.integers(0, 4), wrong=st.integers(0, 2))
    def guess(self, data, right, wrong):
        self.propose(data.draw(st.sampled_from(self.alive())), right, wrong)

    def propose(self, request, right, wrong):
        draft = []
        for i in range(right + wrong):
            token = next_token((*request.tokens, *draft), request.sampling.seed)
            draft.append(token if i < right else (token + 1) % 8)
        self.scheduler.propose(request.id, draft)

    # Steps

    @precondition(lambda self: len(self.under_way) < 2)
    @rule()
    def plan_a_step(self):
        scheduler, ahead = self.scheduler, len(self.under_way)
        was_running = list(scheduler.running)
        before = {each.id: self.planned(each) for each in [*scheduler.running, *scheduler.waiting]}
        going_on = [each for each in was_running if self.goes_on(each)]
        slots = [each.table.length for each in was_running]
        seen = len(scheduler.events)
        plan = scheduler.plan()
        events = list(scheduler.events)[seen:]
        moved = [each for each in events if isinstance(each, HostCopied)]
        events = [each for each in events if not isinstance(each, HostCopied)]
        if plan is None:
            assert ahead or not scheduler.has_unfinished
            assert not moved, "copies are in a plan"
            assert not events and slots == [each.table.length for each in scheduler.running], "nothing has changed"
            self.seen["none ahead"] += ahead
            return
        self.under_way.append(UnderWay(plan, {each.request: scheduler.requests[each.request] for each in plan.work}))
        self.seen["ahead"] += ahead
        self.check_copies(plan, moved)
        if ahead:
            with pytest.raises(ValueError, match="has not been taken in"):
                scheduler.plan()
        assert plan.step == self.steps + ahead
        admitted = [each for each in events if isinstance(each, Admitted)]
        preempted = [each.request for each in events if isinstance(each, Preempted)]
        assert len(events) == len(admitted) + len(preempted) and {each.step for each in events} <= {plan.step}
        assert not (ahead and preempted), "a plan ahead preempts nobody"
        self.check_work(plan, before, admitted)
        self.check_who_enters_and_who_goes(was_running, admitted, preempted)
        self.check_policy(plan, before, was_running, going_on, admitted, preempted)

    def planned(self, request):
        """(known, computed) when all that is under way is done."""
        works = [work for each in self.under_way if (work := each.work_of(request))]
        known = len(request.tokens) + sum(work.logits > 0 for work in works)
        return known, request.computed + sum(len(work.tokens) for work in works)

    def goes_on(self, request):
        """What it computes next is certain, but for the token."""
        works = [work for each in self.under_way if (work := each.work_of(request)) and work.logits]
        known, _ = self.planned(request)
        return known < request.limit and not any(work.guesses for work in works) and not (works and request.draft)

    def check_work(self, plan, before, admitted):
        work = {each.request: each for each in plan.work}
        assert sum(len(each.tokens) for each in plan.work) == plan.num_tokens <= self.budget
        assert len(self.scheduler.running) <= self.sequences
        entered = {each.request: each.hit_tokens for each in admitted}
        for each in plan.work:
            request = self.scheduler.requests[each.request]
            known, computed = before[each.request]
            computed = entered.get(each.request, computed)
            assert request.status is Status.RUNNING and each.computed == computed
            end = each.end - len(each.guesses)
            assert computed < end <= known < request.limit, "no work beyond tokens that will be known"
            if computed == len(request.tokens):
                assert each.tokens == (PLACEHOLDER,)
            else:
                assert each.tokens == (*request.tokens[computed:end], *each.guesses)
            assert each.logits == (1 + len(each.guesses) if end == known else 0)
            assert each.guesses == request.draft[: len(each.guesses)]
            assert list(each.blocks) == request.table.blocks[: self.pool.blocks_for(each.end)]
        for event in admitted:
            request = self.scheduler.requests[event.request]
            assert 0 <= event.hit_tokens == request.computed < len(request.tokens), "a full hit computes one token"
            assert event.request in work, "who is admitted computes at once"
            if event.hit_tokens == len(request.tokens) - 1:
                assert len(work[event.request].tokens) == 1

    def check_copies(self, plan, moved):
        outwards, back = ([each for each in plan.copies if isinstance(each, kind)] for kind in (CopyOut, CopyIn))
        self.seen["stored"] += len(outwards)
        self.seen["returned"] += len(back)
        assert bool(moved) == bool(outwards or back)
        if moved:
            (event,) = moved
            assert (event.stored, event.returned) == (len(outwards), len(back)) and event.step == plan.step
            assert event.returned_tokens == len(back) * self.pool.block_size

    def check_who_enters_and_who_goes(self, was_running, admitted, preempted):
        assert not (admitted and preempted), "nobody is admitted in a step that preempted"
        newest_first = [each.id for each in reversed(was_running)]
        assert preempted == newest_first[: len(preempted)], "the newest goes first"
        assert self.scheduler.running[: len(was_running) - len(preempted)] == [
            each for each in was_running if each.id not in preempted
        ]
        if admitted:
            last = max(self.scheduler.requests[each.request].order for each in admitted)
            for each in self.scheduler.waiting:
                first_answer = each.parent is not None and not each.parent.ended and not each.parent.num_generated
                assert each.order > last or first_answer, "first come, first served"
        assert not was_running or len(preempted) < len(was_running), "the oldest is never preempted"

    def check_policy(self, plan, before, was_running, going_on, admitted, preempted):
        entered = {each.request for each in admitted}
        if self.policy == "static":
            assert not (admitted and was_running), "nobody joins a batch"
        if self.policy in ("static", "orca"):
            for each in plan.work:
                assert each.logits or len(each.tokens) == self.budget, "only what is longer than a step is cut"
        if self.policy == "alternating":
            kinds = set()
            for each in plan.work:
                (known, computed), prompt = before[each.request], len(self.scheduler.requests[each.request].prompt)
                kinds.add(known - computed > 1 or known == prompt or each.request in entered)
            assert len(kinds) == 1, "a step of one kind"
        if self.policy == "stall-free":
            left_out = {each.id for each in going_on} - {each.request for each in plan.work}
            assert left_out == set(preempted), "no decode is left out"

    @precondition(lambda self: self.under_way)
    @rule(
        takes=st.lists(st.sampled_from([0, 0, 0, 1, 2]), max_size=4),
        fault=st.integers(0, 15),
        forget=st.booleans(),
        broken=st.sampled_from([None, None, None, None, None, 0, 1, 3, 99]),
    )
    def run_it(self, takes, fault, forget, broken=None):
        self.takes = takes
        first, scheduler = self.under_way[0], self.scheduler
        plan, later = first.plan, self.under_way[1] if len(self.under_way) > 1 else None
        poison = plan.work[fault].request if fault < len(plan.work) else None
        if broken is not None and later is None:  # nothing follows a step that was not launched
            result, forget = self.runner.break_down(plan, broken), False
            self.seen["broken with copies"] += bool(plan.copies)
        else:
            result = self.runner(plan, poison)
        seen = len(scheduler.events)
        computing = {each.id: work for each in scheduler.running if (work := first.work_of(each))}
        assert scheduler.awaits(plan) == bool(computing)
        self.seen["left out"] += len(plan.work) - len(computing)
        if later is not None:
            for refused in (lambda: scheduler.update(later.plan, result), lambda: scheduler.forget(later.plan)):
                with pytest.raises(ValueError, match="or the one before it"):
                    refused()
        if not computing and forget:
            scheduler.forget(plan)
            self.seen["forgotten"] += 1
        else:
            scheduler.update(plan, result)
        events = list(scheduler.events)[seen:]
        if computing:
            *events, done = events
            assert isinstance(done, StepDone) and done.step == self.steps == plan.step
            assert done.tokens == sum(len(work.tokens) for work in computing.values())
            assert done.blocks_used == self.pool.stats.used and done.sequences == len(computing)
        assert {each.request for each in events if isinstance(each, Computed | Failed)} == set(computing)
        assert all(each.step == plan.step for each in events)
        for output in result.outputs:
            if later is not None and output.request in computing and not output.tokens and output.error is None:
                later.void.add(output.request)
                self.seen["void"] += output.request in later.requests
        with pytest.raises(ValueError, match="the last one"):
            scheduler.update(plan, result)
        self.under_way.popleft()
        self.steps += 1

    @rule(
        steps=st.integers(1, 9),
        right=st.integers(0, 3),
        wrong=st.integers(0, 2),
        takes=st.sampled_from([0, 0, 1]),
        ahead=st.sampled_from([True, True, False]),
        breaks=st.sampled_from([None, None, None, 0, 1, 2]),
    )
    def go_on(self, steps, right, wrong, takes, ahead, breaks):
        for step in range(steps):
            for request in self.scheduler.running:
                if not ahead or request.order % 3 == 0:  # with guesses nothing can be planned ahead
                    self.propose(request, right, wrong)
            while len(self.under_way) <= ahead:
                before = len(self.under_way)
                self.plan_a_step()
                if len(self.under_way) == before:
                    break
            if self.under_way:
                broken = breaks if step == 4 or self.under_way[0].plan.copies else None
                self.run_it([takes] * len(self.under_way[0].plan.work), 99, True, broken)
            self.nothing_is_out_of_order()

    # What is always true

    @invariant()
    def nothing_is_out_of_order(self):
        scheduler = self.scheduler
        assert_consistent(self.pool, [each.table for each in scheduler.running])
        assert all(each.table is None for each in scheduler.waiting)
        assert all(each.computed == each.under_way == each.expected == 0 for each in scheduler.waiting)
        assert [each.order for each in scheduler.waiting] == sorted(each.order for each in scheduler.waiting)
        assert {each.id for each in self.alive()} == set(scheduler.requests)
        assert sorted(scheduler.requests) == sorted(each.id for each in [*scheduler.running, *scheduler.waiting])
        for each in scheduler.running:
            known, planned = self.planned(each)
            assert (len(each.tokens) + each.expected, each.computed + each.under_way) == (known, planned)
            assert each.remaining == known - planned and each.computed <= each.table.length
            assert each.table.length <= len(each.tokens) or self.under_way, "what was rejected has no slots"
            assert len(each.tokens) < each.limit and (self.under_way or each.remaining >= 1)

    def teardown(self):
        """All of them end, within a bound of steps, with the tokens that each would have had alone."""
        if not hasattr(self, "pool"):
            return
        # The oldest of the running goes on in every step, except that prompts may come first, one for each place: and
        # it needs a step for each of its tokens at the most, and one more where a result brought it nothing; and where
        # steps are planned ahead, one more before each.
        bound = 2 * (self.sequences + 2) * (sum(each.limit + 1 for each in self.everyone) + self.gifts + 1)
        for step in range(bound):
            while len(self.under_way) <= step % 2:
                before = len(self.under_way)
                self.plan_a_step()
                if len(self.under_way) == before:
                    break
            if not self.under_way:
                break
            self.run_it([], 99, True)
        assert not self.scheduler.has_unfinished
        for request in self.everyone:
            self.check_end(request)
        self.check_events()
        assert self.pool.stats.used == 0 and not self.scheduler.running and not self.scheduler.waiting
        whole = self.pool.allocate((self.pool.num_blocks - 1) * self.pool.block_size)
        assert sorted(whole.blocks) == list(range(1, self.pool.num_blocks)), "nothing leaks"
        if self.pool.host is not None:
            self.runner.copy([*self.scheduler._copies, *self.pool.host.copies()])
            for slot, prefix in self.pool.host.contents().items():
                held = self.runner.on_host[slot][-1]
                assert held == content(prefix), "the host holds what it is believed to hold"

    def check_end(self, request):
        tokens, reason = expected_tokens(request, self.room)
        assert request.ended and request.table is None and request.computed < len(request.tokens)
        assert request.tokens == tokens[: len(request.tokens)]
        if request.status is Status.FAILED:
            assert request.id in self.runner.poisoned and request.error == "the logits are not finite"
        elif request.status is Status.FINISHED and request.tokens == tokens and not request.reason == "stop":
            assert reason == "length"
        if request.stop_token is not None:
            assert (request.reason, reason, request.tokens) == ("stop", "stop", tokens)
        if request.status is Status.FINISHED and request.reason == "length":
            assert request.tokens == tokens
        if request.sampling.logprobs is not None:
            assert [each.logprob for each in request.logprobs] == [-token for token in request.generated]

    def check_events(self):
        """The log alone says what every request got."""
        for request in self.everyone:
            own = [each for each in self.scheduler.events if getattr(each, "request", None) == request.id]
            assert [each.token for each in own if isinstance(each, Token)] == request.generated
            kinds = [type(each) for each in own]
            assert kinds[0] is Arrived and kinds.count(Arrived) == 1
            assert kinds[-1] is {"finished": Finished, "failed": Failed, "aborted": Aborted}[request.status.value]
            inside = [each for each in kinds if each in (Admitted, Preempted)]
            assert all(each is (Preempted if i % 2 else Admitted) for i, each in enumerate(inside))


EXAMPLES = sized(short=40, full=1000)


@pytest.mark.parametrize("policy", POLICIES)
def test_any_schedule_gives_the_same_tokens(policy):
    seen = Counter()
    machine = type(f"Schedules_{policy}", (Schedules,), {"policy": policy, "seen": seen})
    case = machine.TestCase
    case.settings = settings(case.settings, max_examples=EXAMPLES, stateful_step_count=30, deadline=None)
    case("runTest").runTest()
    rare = ("left out", "forgotten", "void", "stored", "returned", "broken with copies")
    happens = ("ahead", "none ahead", *sized(short=(), full=rare))
    assert all(seen[what] for what in happens), f"the schedules had not everything in them: {seen}"
