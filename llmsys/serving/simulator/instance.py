"""One engine, simulated: a scheduler, and a clock in place of a device.

    instance = Instance(times, num_blocks=4096)
    instance.add(Request("a", prompt, SamplingParams(max_tokens=100)), at=0.5)
    instance.advance(2.0)              what happens until then, in instance.events
    instance.advance()                 until all is done

The scheduler is `llmsys.serving.Scheduler`, the same object that an engine has. It plans a step; the step's time is
what the model of a device says of its load (`step_times`); at its end the scheduler takes in that each request that was
due a token has got one. A request ends when it has as many as it may have (`max_tokens`), for there is no text here to
stop at.

Time stands still while the host plans, for a step's time has that in it: it was measured from one result to the next.

**ahead**: an engine on a GPU plans a step while the one before runs. So who comes while a step runs is not in the next
one, which is planned, but at the earliest in the one after that: with `ahead` a request is handed to the scheduler when
the next step has begun. (What else planning ahead changes is left out: blocks that become free at the end of a step can
be given away in the next one here, in an engine only in the one after that.)
"""

import math
from collections import deque

from llmsys.cache.block_pool import BlockPool
from llmsys.serving.admission import token_limit
from llmsys.serving.plan import Output, StepPlan, StepResult
from llmsys.serving.policies import Policy
from llmsys.serving.request import Request
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.simulator.load import StepLoad
from llmsys.serving.simulator.pool import PlainPool
from llmsys.serving.simulator.runs import SAID, Run, begin_run, last_step
from llmsys.serving.simulator.step_times import TICKS, StepTimes
from llmsys.serving.telemetry.events import EventLog


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
        Whether runs of equal steps are skipped. False: every step is planned; the same happens, in more time.
    events
        Where to write down what happens. None: a new log, which keeps all of it.

    Attributes
    ----------
    scheduler : Scheduler
    now : int
        The end of the last step that is done, or when a request came and nothing ran, in ticks (TICKS a second).
    steps, planned : int
        Steps that were done, and those of them that were planned one by one.
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
        self.now = self._clock = 0
        self.steps = self.planned = self.computed = 0
        self._plan: StepPlan | None = None  # of the step that runs
        self._load: StepLoad | None = None
        self._run: Run | None = None  # or the steps of which the first one does
        self._end = 0  # of that step
        self._came = False  # somebody, since the run began
        self._coming: deque[tuple[int, Request]] = deque()  # who is handed over when the next step has begun

    @property
    def busy(self) -> bool:
        """Whether a step runs."""
        return self._plan is not None or self._run is not None

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
            raise ValueError(
                f"at must be at least {self.now / TICKS:g} s, for so far it is done, got {tick / TICKS:g}"
            )
        self.advance_to(tick)
        if self.busy and self.ahead:
            token_limit(request, self.scheduler.pool, self.scheduler.max_model_len)  # refused now, if it is
            self._coming.append((tick, request))
        else:
            if not self.busy:
                self.now = tick
            self._hand_over(tick, request)

    def advance(self, until: float = math.inf) -> None:
        """Do every step that ends by then; one that begins before then runs. (One that would begin just then does not,
        for who comes at that time may be in it.) Without a time: until all requests have ended.

        RuntimeError where the policy, one of your own, lets nobody compute.
        """
        self.advance_to(math.inf if until == math.inf else round(until * TICKS))

    def advance_to(self, tick: float) -> None:
        """The same, until a time in ticks."""
        while (end := self.next_end(tick)) <= tick and end < math.inf:
            if self._plan is not None:
                self._land()
            else:
                self._land_run(tick)

    def next_end(self, tick: float) -> float:
        """When the step ends that runs, or else one that begins before a time, both in ticks; infinity if none does."""
        return self._end if self.busy or (self.now < tick and self._begin(tick)) else math.inf

    def _make_pool(self, num_blocks: int, block_size: int, prefixes: bool) -> BlockPool:
        return (BlockPool if prefixes else PlainPool)(num_blocks, block_size)

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
        run = begin_run(scheduler, self.times, self.now) if self.skip else None
        if run is not None:
            self._run, self._came, self._end = run, False, self.now + run.first
        else:
            self._plan = plan = scheduler.plan()
            self._load = StepLoad.of_plan(plan)
            self._end = self.now + self.times.ticks(self._load)
        self._take_in_coming()
        return True

    def _take_in_coming(self) -> None:
        while self._coming:
            self._hand_over(*self._coming.popleft())

    def _land(self) -> None:
        """The step that was planned is done."""
        plan, requests = self._plan, self.scheduler.requests
        self.now = self._clock = self._end
        said = tuple(
            [Output(work.request, (SAID + requests[work.request].order,)) for work in plan.work if work.logits]
        )
        self.scheduler.update(plan, StepResult(plan.step, said))
        self.steps += 1
        self.planned += 1
        self.computed += self._load.tokens
        self._plan = None

    def _land_run(self, tick: float) -> None:
        """As many steps of the run as end by then: one, if somebody has come since it began."""
        run, scheduler = self._run, self.scheduler
        cut = self._came or bool(self._coming)
        n = 1 if cut else run.steps if tick == math.inf else run.until(tick)
        self.steps += n
        self.computed += n * len(run.requests)
        began = run.now + run.ticks(n - 1)
        self._clock = run.now + run.ticks(n)
        ends = run.take(n)
        scheduler.steps_done += n - ends
        self.now = run.now
        if ends:
            last_step(run, began)
            scheduler.steps_done += 1
        if cut or run.steps == 0 or self.now == tick:
            self._run = None
        else:
            self._end = self.now + run.first
