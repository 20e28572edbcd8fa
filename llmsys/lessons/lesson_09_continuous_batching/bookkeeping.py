"""What exercises (a) and (b) have around them: a scheduler with everything but its decisions.

Requests that come and go, the plan's and the result's form, the event log: that is here. Who computes how many tokens,
who comes in, who is thrown out, and what a result means for a request is said by six methods of its subclasses:

    share_out, logits, take_in        exercise (a): `RightSteps`, or the reader's own
    make_room, preempt, admit         exercise (b): `RightAdmission`, or the reader's own

The engine takes it in place of the library's `Scheduler`, whose contract it has, but for what the lesson does without:
several answers to a prompt, salts, guesses, and other policies than the one that is written here.
"""

import math
import time
from collections.abc import Callable, Sequence

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import BlockTable
from llmsys.serving.admission import token_limit
from llmsys.serving.outcome import check_result, reason_to_end
from llmsys.serving.plan import Output, StepPlan, StepResult, Work
from llmsys.serving.policies import Policy, StallFree, as_policy
from llmsys.serving.request import Request, Status
from llmsys.serving.telemetry.events import (
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


class Bookkeeping:
    """The state of a scheduler, and what is plain about it. The arguments are those of `llmsys.serving.Scheduler`.

    Attributes
    ----------
    waiting, running : list[Request]
        In the order of arrival, and in the order of admission.
    preempted : list[Request]
        Those that this step has thrown out.
    reserve : int
        Blocks that stay free where a request is admitted beside others.
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
        if not isinstance(as_policy(policy), StallFree):
            raise ValueError(f'policy must be "stall-free", the one that is written here, got {policy!r}')
        if not 1 <= max_sequences <= max_tokens_per_step:
            raise ValueError(
                f"max_sequences must be from 1 to max_tokens_per_step = {max_tokens_per_step}, a token for each, "
                f"got {max_sequences}"
            )
        if not 0 <= watermark < 1:
            raise ValueError(f"watermark must be a share of the pool, from 0 to below 1, got {watermark}")
        self.pool, self.max_model_len = pool, max_model_len
        self.max_tokens_per_step, self.max_sequences = max_tokens_per_step, max_sequences
        self.reserve = math.ceil(watermark * (pool.num_blocks - 1))
        self.eos_ids = frozenset(eos_ids)
        self.events = EventLog() if events is None else events
        self.clock = clock
        self.requests: dict[str, Request] = {}  # those that have not ended
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preempted: list[Request] = []
        self.steps_done = 0
        self._arrivals = 0
        self._plan: StepPlan | None = None  # whose result is awaited
        self._began = 0.0
        self._ended: list[str] = []  # since the last plan

    @property
    def has_unfinished(self) -> bool:
        return bool(self.requests)

    # Requests come and go

    def add(self, request: Request) -> list[Request]:
        """Puts a new request in the queue. ValueError, and nothing has changed, where it can never fit."""
        if request.sampling.n != 1 or request.salt is not None:
            raise ValueError("request must have n = 1 and no salt here: the library's Scheduler takes others")
        if request.id in self.requests or request.order:
            raise ValueError(f"request {request.id!r} has been added before, or its id is in use: make a new one")
        request.limit = token_limit(request, self.pool, self.max_model_len)
        self._arrivals += 1
        request.order = self._arrivals
        if request.arrival is None:
            request.arrival = self.clock()
        self.requests[request.id] = request
        self.waiting.append(request)
        self._note(Arrived, request, prompt_tokens=len(request.prompt))
        return [request]

    def abort(self, request_id: str) -> bool:
        """Ends a request, whatever it is doing. False if it had ended, or never was."""
        return self._end(request_id, Status.ABORTED)

    def finish(self, request_id: str, reason: str = "stop") -> bool:
        """Ends a request that has all it needs. Else as `abort`."""
        return self._end(request_id, Status.FINISHED, reason=reason)

    # A step

    def plan(self) -> StepPlan | None:
        """The next step, as `share_out` has it. None where that is empty.

        ValueError where a plan's result has not been taken in, or a share is one that cannot be computed.
        """
        if self._plan is not None:
            raise ValueError(f"plan: the result of step {self.steps_done} has not been taken in: call update first")
        before = {each.id: (each, each.table, each.computed) for each in self.running}
        self.preempted, self._began = [], self.clock()
        shares = self.share_out()
        self._note_who_came_and_went(before)
        self._check_shares(shares)
        if not shares:
            return None
        work = tuple(self._work(request, n) for request, n in shares)
        self._plan, self._ended = StepPlan(self.steps_done, work, ended=tuple(self._ended)), []
        return self._plan

    def update(self, plan: StepPlan, result: StepResult) -> None:
        """Takes in what came of a plan. Requests that ended in the meantime are left out."""
        if self._plan is None or plan != self._plan:
            raise ValueError("plan must be the last one that was made, whose result has not been taken in yet")
        outputs = check_result(plan, result)
        for work in plan.work:
            request, output = self.requests.get(work.request), outputs.get(work.request, Output(work.request))
            if request is None or request.status is not Status.RUNNING:
                continue
            if output.error is not None:
                self._end(request.id, Status.FAILED, error=output.error)
                continue
            self._note(Computed, request, start=work.computed, tokens=len(work.tokens))
            if output.tokens:  # its blocks can be hit from now on
                self.pool.register(request.table, request.tokens, work.end)
            if output.logprobs is not None:
                request.logprobs += output.logprobs
            self.take_in(request, len(work.tokens), list(output.tokens))
            if strange := [each for each in request.tokens if not isinstance(each, int)]:
                raise ValueError(f"take_in leaves {strange[0]!r} among request.tokens, which are ints, of {request.id}")
            self._end_if_it_has_enough(request, output)
        self._plan = None
        kinds = {len(work.tokens) > 1 or not work.logits for work in plan.work}
        phase = "mixed" if len(kinds) == 2 else "prefill" if True in kinds else "decode"
        used, now = self.pool.stats.used, self.clock()
        counts = (plan.num_tokens, len(plan.work), len(self.running), len(self.waiting), used, self.pool.num_blocks - 1)
        self.events.add(StepDone(self.steps_done, now, now - self._began, phase, *counts))
        self.steps_done += 1

    # Its parts

    def _work(self, request: Request, n: int) -> Work:
        end = request.computed + n
        tokens = tuple(request.tokens[request.computed : end])
        blocks = tuple(request.table.blocks[: self.pool.blocks_for(end)])
        return Work(request.id, tokens, request.computed, blocks, int(self.logits(request, n)), request.sampling)

    def _check_shares(self, shares: object) -> None:
        pairs = isinstance(shares, list | tuple) and all(isinstance(each, list | tuple) for each in shares)
        if not pairs or any(len(each) != 2 or not isinstance(each[0], Request) for each in shares):
            raise ValueError("share_out must return a list of pairs (request, n)")
        seen: set[str] = set()
        for request, n in shares:
            gives = f"share_out gives {request.id} {n} tokens"
            if request not in self.running:
                raise ValueError(f"{gives}, which is not running")
            if request.id in seen:
                raise ValueError(f"{gives}, and has given it some before: one share a request")
            seen.add(request.id)
            known, slots = len(request.tokens), 0 if request.table is None else request.table.length
            if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= known - request.computed:
                early = isinstance(n, int) and 0 < n <= request.computed
                why = ": take_in is where they are counted, when the step is done" if early else ""
                raise ValueError(f"{gives}: {known} are known, and {request.computed} computed{why}")
            if request.computed + n > slots:
                raise ValueError(f"{gives} after {request.computed}, and it has slots for {slots}")

    def _note_who_came_and_went(self, before: dict[str, tuple[Request, BlockTable, int]]) -> None:
        """Writes down who was thrown out and who came in: those whose table is another one than before the step."""
        for request, table, computed in reversed(before.values()):  # the newest went first
            if request not in self.running or request.table is not table:
                self._note(Preempted, request, lost=computed)
        for request in self.running:
            if request.id not in before or request.table is not before[request.id][1]:
                request.status = Status.RUNNING
                self._note(Admitted, request, hit_tokens=request.computed)
        for request in self.waiting:
            if request not in self.running:
                request.status, request.table = Status.WAITING, None

    def _end_if_it_has_enough(self, request: Request, output: Output) -> None:
        for token in output.tokens:
            self._note(Token, request, token=token)
        if output.tokens and (reason := reason_to_end(request, self.eos_ids)):
            if reason == "stop":
                request.stop_token = request.tokens[-1]
            self._end(request.id, Status.FINISHED, reason=reason)

    def _end(self, request_id: str, status: Status, *, reason: str | None = None, error: str | None = None) -> bool:
        request = self.requests.pop(request_id, None)
        if request is None:
            return False
        if request in self.running:
            self.running.remove(request)
            self.pool.free(request.table)
        elif request in self.waiting:
            self.waiting.remove(request)
        request.table, request.status, request.reason, request.error = None, status, reason, error
        self._ended.append(request.id)
        if status is Status.FINISHED:
            self._note(Finished, request, reason=reason, generated=request.num_generated)
        elif status is Status.FAILED:
            self._note(Failed, request, error=error)
        else:
            self._note(Aborted, request)
        return True

    def _note(self, kind: type[RequestEvent], request: Request, **details: object) -> None:
        self.events.add(kind(self.steps_done, self.clock(), request.id, **details))
