"""The scheduler: before every step, which requests compute how many tokens, in which blocks.

    scheduler = Scheduler(BlockPool(1000), max_tokens_per_step=512)
    scheduler.add(Request("a", prompt=[…]))
    while plan := scheduler.plan():
        scheduler.update(plan, runner(plan))

It has one rule, **computed catches up with known** (`request`), under two limits: tokens in a step, and requests that
run side by side. Which of them compute in a step is the policy's to say (`policies`), how requests come and leave
stands in `roster`; all else is here:

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

**A step ahead.** While a step runs, the next one can be planned, so that the device need not wait for the host between
two. Its plan is made as if the step were done (`Request.remaining`), with place-holders for the tokens that it will
say. Certain is what does not depend on these: that a request has all its tokens by then, and is in no further plan; how
many blocks the others need. Where these would have to be taken from somebody, there is no plan ahead. What depends on
them is known a step later: after its end token, or a stop string, or an error, a request is in the step that runs by
then, and what comes of that is left out, as it is for one that is aborted. Nothing shows that it was computed: it is
written behind the request's tokens, in no block that others can hit.

In vLLM this is Scheduler (schedule, update_from_output) with KVCacheManager.allocate_slots. There, too, an admitted
request goes to the end of the running ones, and the last is preempted.
"""

import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import AnyCopy, OutOfBlocks
from llmsys.cache.host_tier import counted
from llmsys.models.sampling import whole_number
from llmsys.serving.admission import entrance, take_blocks, waits_for_parent
from llmsys.serving.outcome import accept, check_result
from llmsys.serving.plan import Output, StepPlan, StepResult
from llmsys.serving.policies import Policy, Turn, as_policy
from llmsys.serving.request import Request, Status
from llmsys.serving.roster import Roster
from llmsys.serving.step import Step
from llmsys.serving.telemetry.events import Admitted, EventLog, HostCopied, Preempted, Progress, StepDone

NOTHING = Output("")  # is said of a request that has more to compute first


class Scheduler(Roster):
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

    plans_ahead = True
    """`plan` may be called while the result of the plan before is awaited."""

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
        super().__init__(pool, max_model_len, EventLog() if events is None else events, clock)
        self.policy = as_policy(policy)
        self.reserve = math.ceil(watermark * (pool.num_blocks - 1))  # blocks
        self.eos_ids = frozenset(eos_ids)
        self._under_way: deque[Step] = deque()  # two at most, whose results are awaited
        self._last_done = -math.inf  # when
        self._copies: list[AnyCopy] = []  # that a step was to make which came to nothing
        self._block_size = pool.block_size

    # Before a step

    def plan(self) -> StepPlan | None:
        """The next step, or None when all requests have ended.

        While a result is awaited, the step after that; None where it must be known first. ValueError while two are
        awaited. RuntimeError where requests are left, and a policy of your own lets none of them compute.
        """
        ahead, number = len(self._under_way), self.steps_done + len(self._under_way)
        if ahead > 1:
            raise ValueError(f"plan: the result of step {self.steps_done} has not been taken in: call update first")
        if ahead and not self._room_for_all():
            return None
        step = Step(number, self.max_tokens_per_step, self.clock(), self.pool)
        step.copies, self._copies = self._copies, []
        try:
            self._fill(step)
        except BaseException:  # of a policy of one's own
            step.give_up()
            self._copies = step.copies
            raise
        if not step.work:
            self._copies = step.copies
            if not ahead:
                self._check_nothing_is_left()
            return None
        ended, self._ended = self._ended, []
        self._under_way.append(step)
        plan = step.make(ended)
        if self.pool.host is not None and any(moved := counted(plan.copies)):
            self.events.add(HostCopied(number, self.clock(), *moved, moved[1] * self._block_size))
        return plan

    def _fill(self, step: Step) -> None:
        """By the first of the policy's turns in which there is anything to do."""
        head = next((each for each in self.waiting if not waits_for_parent(each)), None)
        for turn in self.policy.turns(tuple(self.running), head, self.max_tokens_per_step):
            self._go_on(turn, step)
            if turn.admit and not step.preempted:
                self._admit(turn, step)
            if step.work:
                return

    def _room_for_all(self) -> bool:
        """Nobody has to be preempted for another token of each: it needs one block at most."""
        free = self.pool.free_blocks
        if len(self.running) <= free:
            return True
        known = ((each.table, len(each.tokens) + each.expected) for each in self.running if each.goes_on)
        return sum(self.pool.blocks_for(tokens) > len(table.blocks) for table, tokens in known) <= free

    def _go_on(self, turn: Turn, step: Step) -> None:
        behind, running, extend = len(turn.compute), Status.RUNNING, self.pool.extend
        for request in turn.compute:
            behind -= 1  # each of whom must have a token
            if request.status is not running or request.id in step.work:
                continue  # preempted, by one before it
            expected = request.expected
            known = len(request.tokens) + expected
            if known >= request.limit or (expected and request.draft):
                continue  # see Request.goes_on
            n = turn.tokens(known - request.computed - request.under_way, step.left - behind, self.max_tokens_per_step)
            if n > 0:
                try:
                    if copies := extend(request.table, known):
                        step.copy(copies)
                except OutOfBlocks:
                    if not self._make_room(request, known, step):
                        continue
                step.add(request, n)
        for request in [each for each in step.requests.values() if each.draft]:
            step.guess(request)

    def _make_room(self, request: Request, known: int, step: Step) -> bool:
        """Slots for so many tokens, from others. False if it had to be preempted itself."""
        while True:
            newest = self.running[-1]
            self._preempt(newest, step)
            if newest is request:
                return False
            try:
                step.copy(self.pool.extend(request.table, known))
                return True
            except OutOfBlocks:
                pass

    def _preempt(self, request: Request, step: Step) -> None:
        step.drop(request)
        self._note(Preempted, request, step=step.number, lost=request.computed)
        self._release(request)
        request.computed, request.draft, request.status = 0, (), Status.WAITING
        insort(self.waiting, request, key=lambda each: each.order)

    def _admit(self, turn: Turn, step: Step) -> None:
        place = 0  # in the queue, of which no copy is made: it may be long
        while place < len(self.waiting):
            request = self.waiting[place]
            if waits_for_parent(request):
                place += 1  # and keeps nobody waiting
                continue
            if step.left < 1 or len(self.running) == self.max_sequences:
                return
            found = entrance(request, self.pool)
            n = turn.tokens(len(request.tokens) - found.computed, step.left, self.max_tokens_per_step)
            try:
                if not n:
                    return
                step.copy(take_blocks(request, self.pool, found, reserve=self.reserve if self.running else 0))
            except OutOfBlocks:
                return
            del self.waiting[place]
            self.running.append(request)
            request.status, request.was_planned = Status.RUNNING, True
            self._note(Admitted, request, step=step.number, hit_tokens=found.computed, shared=found.shared)
            step.add(request, n)

    def _check_nothing_is_left(self) -> None:
        if self.requests:
            raise RuntimeError(
                f"policy {type(self.policy).__name__} lets nobody compute, with {len(self.running)} requests running "
                f"and {len(self.waiting)} waiting: some turn must have what is running, or admit where nothing is"
            )

    # After a step

    def awaits(self, plan: StepPlan) -> bool:
        """Whether its result is awaited by anybody: a request that has not ended since."""
        return any(step.plan is plan and step.counts for step in self._under_way)

    def forget(self, plan: StepPlan) -> None:
        """Nobody awaits its result, which is never taken in. ValueError if it is not the first one that is awaited."""
        self._first(plan)
        self._done_with_the_first()

    def update(self, plan: StepPlan, result: StepResult) -> None:
        """Takes in what came of a plan. Requests that ended in the meantime are left out.

        ValueError, and nothing has changed, where the result is not one of this plan, or a result that is awaited comes
        before it.
        """
        step = self._first(plan)
        outputs = check_result(plan, result)
        later = self._under_way[1] if len(self._under_way) > 1 else None
        number, running = step.number, Status.RUNNING
        now, rows, computed, kinds = self.clock(), [], [], set()
        for name, planned, start, _, logits, _ in plan.work:
            request = step.requests.get(name)
            if request is None or request.status is not running:
                continue  # ended since, and perhaps another one came with its id
            output, tokens, reason = outputs.get(name, NOTHING), len(planned), None
            computed.append(tokens)
            kinds.add(tokens > logits or start < len(request.prompt))
            if output.error is None:
                request.under_way -= tokens
                if logits:
                    request.expected -= 1
                    said, reason = self._take_in(request, output, later, logits - 1)
                    rows.append((name, start, tokens, logits - 1, said))
                else:
                    request.computed = start + tokens
                    rows.append((name, start, tokens, 0, ()))
            if reason is not None or output.error is not None:
                self.events.add_progress(Progress(number, now, rows))  # which was before
                rows = []
                status = Status.FINISHED if output.error is None else Status.FAILED
                self._end(name, status, reason=reason, error=output.error, now=now)
        if rows:
            self.events.add_progress(Progress(number, now, rows))
        if plan.copies and all((out := outputs.get(work.request)) and out.error is not None for work in plan.work):
            self.pool.distrust(plan.copies)
        if computed:
            self._note_done(step, sum(computed), len(computed), kinds)
        self._done_with_the_first()

    def _take_in(
        self, request: Request, output: Output, later: Step | None, guesses: int
    ) -> tuple[tuple[int, ...], str | None]:
        """All known tokens are computed; these come next: those that count, and the reason to end, if there is one."""
        said, reason = accept(request, output, self.eos_ids)
        table, known = request.table, len(request.tokens)
        if request.draft:
            held = not guesses and said == request.draft[:1]  # proposed too late for this step, and right so far
            request.draft = request.draft[1:] if held else ()
        if not said:
            if later is not None:
                later.void(request)
        elif (known - 1) // self._block_size > len(table.prefixes):  # another block is full
            self.pool.register(table, request.tokens, known - 1)
        if table.length > known and reason is None:
            self.pool.truncate(table, known)
        return said, reason

    def _note_done(self, step: Step, tokens: int, sequences: int, kinds: set[bool]) -> None:
        # A kind is whether it was a prefill: more than the newest token, or of the prompt.
        phase = "mixed" if len(kinds) == 2 else "prefill" if True in kinds else "decode"
        used, blocks = self.pool.stats.used, self.pool.num_blocks - 1
        counts = (tokens, sequences, len(self.running), len(self.waiting), used, blocks)
        now = self.clock()
        seconds = now - max(step.began, self._last_done)
        self.events.add(StepDone(step.number, now, seconds, phase, *counts))
        self._last_done = now

    def _first(self, plan: StepPlan) -> Step:
        step = self._under_way[0] if self._under_way else None
        if step is None or (plan is not step.plan and plan != step.plan):
            raise ValueError(
                "plan must be the last one that was made, or the one before it, if neither's result has been taken in"
            )
        return step

    def _done_with_the_first(self) -> None:
        self._under_way.popleft()
        self.steps_done += 1
