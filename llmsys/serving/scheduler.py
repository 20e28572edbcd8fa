"""The scheduler: before every step, which requests compute how many tokens, in which blocks.

    scheduler = Scheduler(BlockPool(1000), max_tokens_per_step=512)
    scheduler.add(Request("a", prompt=[…]))
    while plan := scheduler.plan():
        scheduler.update(plan, runner(plan))

It has one rule, **computed catches up with known** (`request`), under two limits: tokens in a step, and requests that
run side by side. Which of them compute in a step is the policy's to say (`policies`); all else is here:

1.  Running requests go on, in the order of the policy's turn. If one needs a block and none is free, the request that
    was admitted last is **preempted**: it loses its blocks, and waits in its old place of the queue until its tokens,
    generated ones included, are computed again. The oldest is therefore never stopped by others, and reaches its end.
2.  Waiting requests are **admitted**, first come first served: if there is no room for the first, nobody passes it, so
    a wait is bounded by what those before it may still generate. Room means blocks for all its known tokens and, beside
    others, a **watermark** of free ones: otherwise it would enter, and be preempted by the next token of a neighbour.
    Nobody is admitted in a step that preempted. Alone a request may fill the pool, and always fits: one that could
    not is refused by `add`.
3.  When the result comes, tokens are appended, what was computed for rejected guesses is rolled back, and full blocks
    can be hit by others from then on: not before, for a request whose first logits are not finite must not hand on
    what it computed.

Guesses of a speculative decoder only take what is left over: no block is taken from anybody for them.

In vLLM this is Scheduler (schedule, update_from_output) with KVCacheManager.allocate_slots. There, too, an admitted
request goes to the end of the running ones, and the last is preempted.
"""

import math
import time
from bisect import insort
from collections.abc import Callable, Sequence

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import OutOfBlocks
from llmsys.models.sampling import whole_number
from llmsys.serving.admission import entrance, other_answers, take_blocks, token_limit, waits_for_parent
from llmsys.serving.events import (
    Aborted,
    Admitted,
    Arrived,
    Computed,
    EventLog,
    Failed,
    Finished,
    Preempted,
    RequestEvent,
    StepDone,
    Token,
)
from llmsys.serving.outcome import accept, check_result
from llmsys.serving.plan import Output, StepPlan, StepResult
from llmsys.serving.policies import Policy, Turn, as_policy
from llmsys.serving.request import Request, Status
from llmsys.serving.step import Step


class Scheduler:
    """Plans steps for one runner, and takes in their results. It knows tokens and blocks, and no tensor.

    Parameters
    ----------
    pool
        The cache's blocks; nobody else takes any.
    max_tokens_per_step
        Tokens that a step computes at most, at least `max_sequences`.
    max_sequences
        Requests that run side by side at most.
    policy
        A name of `POLICIES`, or a `Policy` of your own.
    watermark
        Share of the pool that stays free when a request is admitted beside others: from 0 to below 1, rounded up to
        whole blocks.
    max_model_len
        Tokens, prompt included, that the model can have in a sequence. None: as many as the pool has room for.
    eos_ids
        The model's end tokens.
    events
        Where to write down what happens. None: a new log, which keeps all of it.
    clock
        Seconds, for the events.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        max_tokens_per_step: int = 2048,
        max_sequences: int = 256,
        policy: str | Policy = "stall-free",
        watermark: float = 0.01,
        max_model_len: int | None = None,
        eos_ids: Sequence[int] = (),
        events: EventLog | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.max_sequences = whole_number("max_sequences", max_sequences, at_least=1)
        self.max_tokens_per_step = whole_number("max_tokens_per_step", max_tokens_per_step, at_least=1)
        if max_tokens_per_step < max_sequences:
            raise ValueError(
                f"max_tokens_per_step must be at least max_sequences = {max_sequences}, a token for each, "
                f"got {max_tokens_per_step}"
            )
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark must be a share of the pool, from 0 to below 1, got {watermark}")
        if max_model_len is not None:
            whole_number("max_model_len", max_model_len, at_least=2)
        self.pool, self.policy, self.max_model_len = pool, as_policy(policy), max_model_len
        self.reserve = math.ceil(watermark * (pool.num_blocks - 1))  # blocks
        self.eos_ids = frozenset(eos_ids)
        self.events = EventLog() if events is None else events
        self.clock = clock
        self.requests: dict[str, Request] = {}  # those that have not ended
        self.waiting: list[Request] = []  # in the order of arrival
        self.running: list[Request] = []  # in the order of admission
        self.steps_done = 0  # the number of the next plan, or of the one whose result is awaited
        self._arrivals = 0
        self._planned: Step | None = None  # whose result is awaited
        self._ended: list[str] = []  # since the last plan

    @property
    def has_unfinished(self) -> bool:
        return bool(self.requests)

    # Requests come and go

    def add(self, request: Request) -> list[Request]:
        """Puts a new request in the queue. If its `sampling.n` is above 1, that becomes 1, and further requests wait
        for the other answers: "a.1", "a.2" … for "a". Returns all n.

        ValueError, and nothing has changed, where it can never fit, was added before, or an id is in use.
        """
        limit = token_limit(request, self.pool, self.max_model_len)
        if request.order:
            raise ValueError(f"request {request.id!r} has been added before: make a new one")
        answers = [request, *other_answers(request)]
        for each in answers:
            if each.id in self.requests:
                raise ValueError(f"request {each.id!r} is in use by one that has not ended: give another id")
        request.sampling = request.sampling.of_answer(0)
        for each in answers:
            self._arrivals += 1
            each.order, each.limit = self._arrivals, limit
            if each.arrival is None:
                each.arrival = self.clock()
            self.requests[each.id] = each
            self.waiting.append(each)
            self._note(Arrived, each, prompt_tokens=len(each.prompt), parent=each.parent and each.parent.id)
        return answers

    def propose(self, request_id: str, draft: Sequence[int]) -> None:
        """Guesses at a request's next tokens, for the next step: as many as it has room for are computed, none else.

        KeyError where no such request is unfinished.
        """
        self.requests[request_id].draft = tuple(whole_number("draft's tokens", token, at_least=0) for token in draft)

    def abort(self, request_id: str) -> bool:
        """Ends a request, whatever it is doing. False if it had ended, or never was."""
        return self._end(request_id, Status.ABORTED)

    def finish(self, request_id: str, reason: str = "stop") -> bool:
        """Ends a request that has all it needs, as the caller can tell: a text that was to stop it. Else as `abort`."""
        return self._end(request_id, Status.FINISHED, reason=reason)

    # Before a step

    def plan(self) -> StepPlan | None:
        """The next step, or None when all requests have ended.

        ValueError while a plan's result has not been taken in. RuntimeError where requests are left, and a policy
        of your own lets none of them compute.
        """
        if self._planned is not None:
            raise ValueError(f"plan: the result of step {self.steps_done} has not been taken in: call update first")
        step = Step(self.max_tokens_per_step, self.clock())
        head = next((each for each in self.waiting if not waits_for_parent(each)), None)
        for turn in self.policy.turns(tuple(self.running), head, self.max_tokens_per_step):
            self._go_on(turn, step)
            if turn.admit and not step.preempted:
                self._admit(turn, step)
            if step.shares:
                break
        else:
            self._check_nothing_is_left()
            return None
        ended, self._planned, self._ended = self._ended, step, []
        return step.finish(self.steps_done, self.pool, ended)

    def _go_on(self, turn: Turn, step: Step) -> None:
        for i, request in enumerate(turn.compute):
            behind = len(turn.compute) - i - 1  # each of whom must have a token
            if request.status is not Status.RUNNING:
                continue  # preempted, by one before it
            n = turn.tokens(request.remaining, step.left - behind, self.max_tokens_per_step)
            if n > 0 and self._make_room(request, step):
                step.add(request, n)
        for share in step.shares.values():
            step.guess(share, self.pool)

    def _make_room(self, request: Request, step: Step) -> bool:
        """Slots for all its known tokens, if need be from others. False if it had to be preempted itself."""
        while True:
            try:
                step.copies += self.pool.extend(request.table, len(request.tokens))
                return True
            except OutOfBlocks:
                newest = self.running[-1]
                self._preempt(newest, step)
                if newest is request:
                    return False

    def _preempt(self, request: Request, step: Step) -> None:
        step.drop(request)
        self._note(Preempted, request, lost=request.computed)
        self._release(request)
        request.computed, request.draft, request.status = 0, (), Status.WAITING
        insort(self.waiting, request, key=lambda each: each.order)

    def _admit(self, turn: Turn, step: Step) -> None:
        for request in tuple(self.waiting):
            if waits_for_parent(request):
                continue  # and keeps nobody waiting
            if step.left < 1 or len(self.running) == self.max_sequences:
                return
            found = entrance(request, self.pool)
            n = turn.tokens(len(request.tokens) - found.computed, step.left, self.max_tokens_per_step)
            try:
                if not n:
                    return
                step.copies += take_blocks(request, self.pool, found, reserve=self.reserve if self.running else 0)
            except OutOfBlocks:
                return
            self.waiting.remove(request)
            self.running.append(request)
            request.status = Status.RUNNING
            self._note(Admitted, request, hit_tokens=found.computed, shared=found.shared)
            step.add(request, n)

    def _check_nothing_is_left(self) -> None:
        if self.requests:
            raise RuntimeError(
                f"policy {type(self.policy).__name__} lets nobody compute, with {len(self.running)} requests running "
                f"and {len(self.waiting)} waiting: some turn must have what is running, or admit where nothing is"
            )

    # After a step

    def update(self, plan: StepPlan, result: StepResult) -> None:
        """Takes in what came of a plan. Requests that ended in the meantime are left out.

        ValueError, and nothing has changed, where the result is not one of this plan, or the plan is not the last one.
        """
        step = self._planned
        if step is None or plan != step.plan:
            raise ValueError("plan must be the last one that was made, whose result has not been taken in yet")
        outputs = check_result(plan, result)
        for work in plan.work:
            request, output = self.requests.get(work.request), outputs.get(work.request, Output(work.request))
            if request is None or request.status is not Status.RUNNING:
                continue  # aborted since, and perhaps come again
            request.draft = ()
            if output.error is not None:
                self._end(request.id, Status.FAILED, error=output.error)
                continue
            guesses = len(work.guesses)
            self._note(Computed, request, start=work.computed, tokens=len(work.tokens), guesses=guesses)
            if work.logits:
                self._take_in(request, output)
            else:
                request.computed = work.end
        self._planned = None
        used, blocks = self.pool.stats.used, self.pool.num_blocks - 1
        counts = (plan.num_tokens, len(plan.work), len(self.running), len(self.waiting), used, blocks)
        now = self.clock()
        self.events.add(StepDone(self.steps_done, now, now - step.began, step.phase, *counts))
        self.steps_done += 1

    def _take_in(self, request: Request, output: Output) -> None:
        """All known tokens are computed; these come next."""
        accepted, reason = accept(request, output, self.eos_ids)
        for token in accepted:
            self._note(Token, request, token=token)
        if accepted:
            self.pool.register(request.table, request.tokens, request.computed)
        if reason:
            self._end(request.id, Status.FINISHED, reason=reason)
        elif request.table.length > len(request.tokens):
            self.pool.truncate(request.table, len(request.tokens))

    # How requests leave

    def _end(self, request_id: str, status: Status, *, reason: str | None = None, error: str | None = None) -> bool:
        request = self.requests.pop(request_id, None)
        if request is None:
            return False
        if request.status is Status.RUNNING:
            self._release(request)
        else:
            self.waiting.remove(request)
        request.status, request.reason, request.error, request.draft = status, reason, error, ()
        self._ended.append(request.id)
        if status is Status.FINISHED:
            self._note(Finished, request, reason=reason, generated=request.num_generated)
        elif status is Status.FAILED:
            self._note(Failed, request, error=error)
        else:
            self._note(Aborted, request)
        return True

    def _release(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.free(request.table)
        request.table = None

    def _note(self, kind: type[RequestEvent], request: Request, **details: object) -> None:
        self.events.add(kind(self.steps_done, self.clock(), request.id, **details))
