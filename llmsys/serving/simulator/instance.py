"""One engine, simulated: a scheduler, and a clock in place of a device.

    instance = Instance(times, num_blocks=4096)
    instance.add(Request("a", prompt, SamplingParams(max_tokens=100)), at=0.5)
    instance.advance(2.0)              what happens until then, in instance.events
    instance.advance()                 until all is done

The scheduler is `llmsys.serving.Scheduler`, the same object that an engine has. It plans a step; the step's time is
what the model of a device says of its load (`step_times`); at its end the scheduler takes in that each request that was
due a token has got one. A request ends when it has as many as it may have (`max_tokens`), for there is no text here to
stop at.

**Steps are skipped** where nobody reads what each of them brings to whom (`EventLog.wants_several`) and the policy is
one of the four that have a name: then all that decodes is kept as one (`lockstep`), and a step, or as many as are
alike, is planned without a look at it (`stretch`). Where somebody reads, or has a policy of their own, runs of decode
steps are skipped and written down (`runs`). Either way the same happens as if each step were planned.

Time stands still while the host plans, for a step's time has that in it: it was measured from one result to the next.

**ahead**: an engine on a GPU plans a step while the one before runs. So who comes while a step runs is not in the next
one, which is planned, but at the earliest in the one after that: with `ahead` a request is handed to the scheduler when
the next step has begun. (What else planning ahead changes is left out: blocks that become free at the end of a step can
be given away in the next one here, in an engine only in the one after that.)
"""

import math
from collections import deque
from collections.abc import Sequence

from llmsys.cache.block_pool import BlockPool
from llmsys.serving.admission import token_limit
from llmsys.serving.plan import Output, StepPlan, StepResult
from llmsys.serving.policies import Policy
from llmsys.serving.request import Request, Status
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.simulator.kinds import is_known
from llmsys.serving.simulator.known_tokens import SAID
from llmsys.serving.simulator.load import StepLoad
from llmsys.serving.simulator.lockstep import Lockstep
from llmsys.serving.simulator.pool import PlainPool, SimulatedPool
from llmsys.serving.simulator.runs import Run, Steps, begin_run, last_step
from llmsys.serving.simulator.step_times import TICKS, StepTimes
from llmsys.serving.simulator.stretch import Stretch, plan_stretch, take_in
from llmsys.serving.telemetry.events import EventLog

Row = tuple[Request, int, int]
"""Who computed in a step, from which of its tokens on, and how many."""


class Instance:
    """A simulated engine.

    Parameters
    ----------
    times
        How long steps take.
    num_blocks, block_size
        The cache's.
    max_tokens_per_step, max_sequences, policy, watermark, max_model_len
        The scheduler's.
    prefixes
        Whether cached prefixes are found. Where no two prompts begin alike, False says the same in less time.
    ahead
        Whether steps are planned while others run.
    skip
        Whether steps are skipped. False: every step is planned; the same happens, in more time.
    events
        Where to write down what happens. None: a new log, which keeps all of it.

    Attributes
    ----------
    scheduler : Scheduler
    now : int
        The end of the last step that is done, or when a request came and nothing ran, in ticks (TICKS a second).
    steps, planned : int
        Steps that were done, and those of them that the scheduler planned one by one.
    computed : int
        Tokens.
    """

    def __init__(
        self,
        times: StepTimes,
        *,
        num_blocks: int,
        block_size: int = 16,
        max_tokens_per_step: int = 2048,
        max_sequences: int = 256,
        policy: str | Policy = "stall-free",
        watermark: float = 0.01,
        max_model_len: int | None = None,
        prefixes: bool = True,
        ahead: bool = False,
        skip: bool = True,
        events: EventLog | None = None,
    ):
        if not isinstance(times, StepTimes):
            raise ValueError(f"times must be StepTimes, as `fit` makes them, got {type(times).__name__}")
        self.times, self.ahead, self.skip = times, ahead, skip
        self.events = EventLog() if events is None else events
        self.scheduler = Scheduler(
            self._make_pool(num_blocks, block_size, prefixes), max_tokens_per_step=max_tokens_per_step,
            max_sequences=max_sequences, policy=policy, watermark=watermark, max_model_len=max_model_len,
            events=self.events, clock=lambda: self._clock / TICKS,
        )  # fmt: skip
        self.scheduler.waiting = deque()  # which may become long, and whose first is taken
        self.lockstep = Lockstep(self.scheduler.pool)
        self.now = self._clock = 0
        self.steps = self.planned = self.computed = 0
        self._plan: StepPlan | None = None  # of the step that runs
        self._load: StepLoad | None = None
        self._working: list[Request] = []
        self._run: Run | None = None  # or the steps of which the first one does, written down or not
        self._stretch: Stretch | None = None
        self._prompts: list[Request] | None = None  # who runs and is not in `lockstep`; None: it has to be looked up
        self._end = 0  # of that step
        self._came = False  # somebody, since the run began
        self._coming: deque[tuple[int, Request]] = deque()  # who is handed over when the next step has begun

    @property
    def busy(self) -> bool:
        """Whether a step runs."""
        return not (self._plan is self._run is self._stretch)  # all None

    def add(self, request: Request, at: float) -> None:
        """A request comes, at a time in seconds; what happens until then is done first.

        ValueError for a time before the last step's end, several answers to one prompt, or a request that the scheduler
        refuses.
        """
        self.add_at(request, round(at * TICKS))

    def add_at(self, request: Request, tick: int) -> None:
        """The same, at a time in ticks."""
        if request.sampling.n > 1:
            raise ValueError(f"sampling.n must be 1 here, got {request.sampling.n}: let each answer be a request")
        if tick < self.now:
            raise ValueError(f"at must be at least {self.now / TICKS:g} s, for so far it is done, got {tick / TICKS:g}")
        self.advance_to(tick)
        if self.busy and self.ahead:
            token_limit(request, self.scheduler.pool, self.scheduler.max_model_len)  # refused now, if it is
            self._coming.append((tick, request))
        else:
            if not self.busy:
                self.now = tick
            self._hand_over(tick, request)

    def abort(self, name: str) -> int:
        """A request ends at once, whatever it is doing; what happened until then has been done. How many of its tokens
        were computed in vain: those that the step computes that runs, too. KeyError where there is none."""
        for i, (_, request) in enumerate(self._coming):
            if request.id == name:
                del self._coming[i]
                return 0
        request = self.scheduler.requests[name]
        rows = self._stretch.rows if self._stretch is not None else []
        running = [tokens for each, _, tokens in rows if each is request]
        lost = request.computed + request.under_way + sum(running)
        if request in (self._prompts or ()):
            self._prompts.remove(request)
        elif self._prompts is not None and request.status is Status.RUNNING and not running:
            raise ValueError(f"{name!r} decodes: only a request whose prompt is not computed yet can be aborted")
        self.scheduler.abort(name)
        return lost

    def unfinished(self) -> list[Request]:
        """The requests that have come and not ended, as far as they have come, in their order."""
        self.lockstep.sync()
        return [*self.scheduler.requests.values(), *(request for _, request in self._coming)]

    def has(self, request: Request) -> int:
        """How many of a request's tokens need not be computed any more."""
        return request.computed

    def advance(self, until: float = math.inf) -> None:
        """Do every step that ends by then; one that begins before then runs. (One that would begin just then does not,
        for who comes at that time may be in it.) Without a time: until all requests have ended.

        RuntimeError where the policy, one of your own, lets nobody compute.
        """
        self.advance_to(math.inf if until == math.inf else round(until * TICKS))
        self.lockstep.sync()

    def advance_to(self, tick: float) -> None:
        """The same, until a time in ticks; what decodes may be up to date in `lockstep` only."""
        while (end := self.next_end(tick)) <= tick and end < math.inf:
            if self._plan is not None:
                self._land()
            elif self._run is not None:
                self._land_run(tick)
            else:
                self._land_stretch(tick)

    def next_end(self, tick: float) -> float:
        """When the step ends that runs, or else one that begins before a time, both in ticks; infinity if none does."""
        return self._end if self.busy or (self.now < tick and self._begin(tick)) else math.inf

    def next_change(self, tick: float) -> float:
        """The same of the first step whose end others can notice: somebody has a first token then, or the last one."""
        end, steps = self.next_end(tick), self._run or self._stretch
        return end if steps is None or self._is_cut() else steps.now + steps.ticks(steps.steps)

    @property
    def wakes(self) -> float:
        """When the next step begins, if none runs; infinity if there is nothing to do."""
        return self.now if self.scheduler.requests or self._coming else math.inf

    def _make_pool(self, num_blocks: int, block_size: int, prefixes: bool) -> BlockPool:
        return (SimulatedPool if prefixes else PlainPool)(num_blocks, block_size)

    def _hand_over(self, tick: int, request: Request) -> None:
        self._clock = tick
        self.scheduler.add(request)
        self._came = True

    def _begin(self, until: float) -> bool:
        """The next step begins, before a time. False where there is none."""
        self._clock = self.now
        scheduler = self.scheduler
        if not scheduler.requests:
            self._take_in_coming()  # nothing was planned for when they came
            self._clock = self.now
        if not scheduler.requests:
            return False
        if not (self._begin_stretch() or self._begin_run()):
            self._plan = plan = scheduler.plan()
            self._load = StepLoad.of_plan(plan)
            self._working = [scheduler.requests[work.request] for work in plan.work]
            self._end = self.now + self.times.ticks(self._load)
        self._take_in_coming()
        return True

    def _begin_stretch(self) -> bool:
        scheduler, lockstep = self.scheduler, self.lockstep
        if self.skip and not self.events.wants_several and is_known(scheduler.policy):
            if self._prompts is None:
                for each in scheduler.running:
                    if not each.in_prefill:
                        lockstep.join(each)
                self._prompts = [each for each in scheduler.running if each.in_prefill]
            several = not self._sends_pieces
            self._stretch = plan_stretch(scheduler, lockstep, self._prompts, self.times, self.now, several=several)
        if self._stretch is None:
            lockstep.dissolve()
            self._prompts = None
            return False
        self._came, self._end = False, self.now + self._stretch.first
        return True

    def _begin_run(self) -> bool:
        run = begin_run(self.scheduler, self.times, self.now) if self.skip else None
        if run is None:
            return False
        self._run, self._came, self._end = run, False, self.now + run.first
        return True

    def _take_in_coming(self) -> None:
        while self._coming:
            self._hand_over(*self._coming.popleft())

    def _land(self) -> None:
        """The step that was planned is done."""
        plan, began = self._plan, self.now
        self.now = self._clock = self._end
        working = list(zip(self._working, plan.work, strict=True))
        said = [Output(work.request, (SAID + each.order,)) for each, work in working if work.logits]
        self.scheduler.update(plan, StepResult(plan.step, tuple(said)))
        self.steps += 1
        self.planned += 1
        self.computed += self._load.tokens
        self._plan = None
        self._landed(began, [(each, work.computed, len(work.tokens)) for each, work in working])

    def _is_cut(self) -> bool:
        """Whether the steps that run come to an end with the first of them, because somebody has come."""
        return (self._came or bool(self._coming)) and (self._stretch is None or self._stretch.open)

    def _how_many(self, steps: Steps, tick: float) -> int:
        """Of steps that are alike, those that are done by then; `now` and `_clock` are their end from here on."""
        n = 1 if self._is_cut() else steps.until(tick)
        self.now = self._clock = steps.now + steps.ticks(n)
        self.steps += n
        return n

    def _land_run(self, tick: float) -> None:
        run, scheduler = self._run, self.scheduler
        cut, n = self._is_cut(), self._how_many(run, tick)
        self.computed += n * len(run.requests)
        began = run.now + run.ticks(n - 1)
        ends = run.take(n)
        scheduler.steps_done += n - ends
        if ends:
            last_step(run, began)
            scheduler.steps_done += 1
        if cut or run.steps == 0 or self.now == tick:
            self._run = None
        else:
            self._end = self.now + run.first

    def _land_stretch(self, tick: float) -> None:
        stretch, scheduler = self._stretch, self.scheduler
        cut, n = self._is_cut(), self._how_many(stretch, tick)
        began = stretch.now + stretch.ticks(n - 1)
        stretch.pass_by(n)
        self.computed += n * stretch.tokens
        scheduler.steps_done += n - 1
        ended: list[Request] = []

        def end(request: Request) -> None:
            ended.append(request)
            scheduler.finish(request.id, "length")

        over: deque[Request] = deque()  # of those who decode, in the order in which they end
        if stretch.turn.decodes:
            self.lockstep.go_on(n)
            over.extend(sorted(self.lockstep.ended(), key=scheduler.running.index))
        rows = stretch.rows
        if rows:
            first = stretch.turn.decodes_first or not over
            place = {} if first else {each.id: i for i, each in enumerate(scheduler.running)}

            def before(row: Request) -> None:
                while over and (first or place[over[0].id] < place[row.id]):
                    end(over.popleft())

            take_in(stretch, n, scheduler, lockstep=self.lockstep, prompts=self._prompts, before=before, end=end)
        for each in over:
            end(each)
        scheduler._ended.clear()  # which is for a runner
        scheduler.steps_done += 1
        if cut or stretch.steps == 0 or self.now == tick or ended:
            self._stretch = None
        else:
            self._end = self.now + stretch.first
        while self._coming and self._coming[0][0] < began:  # a step has begun since
            self._hand_over(*self._coming.popleft())
        self._clock = self.now
        if rows:
            self._landed(began, rows)

    _sends_pieces = False
    """Whether `_landed` is to be told of every piece of a prompt."""

    def _landed(self, began: int, rows: Sequence[Row]) -> None:
        """A step is done that began then: for a kind of engine that has more to do. Rows may be of requests that were
        aborted since; of those that decode in lockstep there are none."""
