"""What one wants to know of a service: how long requests waited for what, and what each step did.

    engine.metrics.totals                 since the engine was made
    engine.metrics.steps[-1]              the last steps, each with its seconds by phase
    response.answers[0].metrics           one answer: queue, time to first token, time per token

    arrival      admitted        first token                              last token
       │──────────────│───────────────│─────│─────│─────│─────│─────│─────│─────│
       └─ queue_seconds ┘             └───── time_per_output_token: the mean ───┘
       └─ time_to_first_token ────────┘
       └─ end_to_end ───────────────────────────────────────────────────────────┘

All of it is read off the scheduler's events (`llmsys.serving.telemetry.events`) but the seconds of a step's phases,
which the engine adds. What belongs to a request is given away when it ends, and of steps the last ones are kept, so a
service that runs for weeks needs no more memory than one that runs for a minute.
"""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from llmsys.serving.telemetry.events import (
    Aborted,
    Admitted,
    Arrived,
    Computed,
    Event,
    Failed,
    Finished,
    HostCopied,
    Preempted,
    Progress,
    RequestEvent,
    StepDone,
    Token,
)

PHASES = ("plan", "prepare", "launch", "wait", "update")
"""Of a step: what to compute is decided; the batch is made; the model and the sampler are launched (on a CPU: run); the
tokens are waited for; they are taken in, and become text. All of it is the host's time. Where steps are planned ahead,
the device computes one meanwhile, and there is less to wait for."""


@dataclass(slots=True)
class RequestMetrics:
    """One answer. Times are on the engine's clock; what has not happened yet is None."""

    prompt_tokens: int
    arrival: float
    admitted: float | None = None  #  first
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None
    finished: bool = False  #  answered to its end, and neither failed nor aborted
    output_tokens: int = 0  #  the one that ended it included
    hit_tokens: int = 0  #  of the prompt, that were in the cache when it was first admitted
    preemptions: int = 0
    lost_tokens: int = 0  #  computed, and lost by preemption
    longest_gap: float | None = None  #  seconds from a token to the next, the longest; None before the second token

    @property
    def queue_seconds(self) -> float | None:
        return _between(self.arrival, self.admitted)

    @property
    def time_to_first_token(self) -> float | None:
        """TTFT, in seconds."""
        return _between(self.arrival, self.first_token)

    @property
    def time_per_output_token(self) -> float | None:
        """TPOT: seconds from a token to the next, the mean; None where there is one token only."""
        if self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)

    @property
    def end_to_end(self) -> float | None:
        """Seconds from arrival to the end."""
        return _between(self.arrival, self.ended)


@dataclass(frozen=True)
class StepMetrics:
    """One step."""

    step: int
    time: float  #  when it was done
    kind: str  #  "prefill", "decode" or "mixed"
    seconds: dict[str, float]  #  by PHASES
    tokens: int  #  computed
    output_tokens: int
    sequences: int  #  computed for
    running: int
    waiting: int
    blocks_used: int
    blocks: int
    hit_tokens: int  #  of requests admitted in it
    preemptions: int

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())


@dataclass
class Totals:
    """All that happened so far."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    hit_tokens: int = 0  #  each time that one was admitted
    computed_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    lost_tokens: int = 0
    stored_blocks: int = 0  #  that were evicted, and went to the host
    returned_blocks: int = 0  #  from there
    returned_tokens: int = 0  #  in these: among `hit_tokens`, and not computed again
    steps: int = 0  #  those that raised included
    seconds: Counter = field(default_factory=Counter)  #  by PHASES
    seconds_by_kind: Counter = field(default_factory=Counter)  #  of steps: "prefill", "decode", "mixed"


class Metrics:
    """Listens to a scheduler's events: `scheduler.events.listen(metrics.on, progress=metrics.on_progress)`.

    Attributes
    ----------
    requests : dict
        RequestMetrics by id, of those that have not been taken with `take`.
    steps : deque
        StepMetrics of the last `keep` steps, but for those that raised: of them nobody knows where the time went.
    totals : Totals
    """

    def __init__(self, *, keep: int = 1000):
        self.requests: dict[str, RequestMetrics] = {}
        self.steps: deque[StepMetrics] = deque(maxlen=keep)
        self.totals = Totals()
        self._of_steps: dict[int, Counter] = defaultdict(Counter)  # that are not done: what happened in them so far
        self._done: tuple[StepDone, Counter] | None = None  # the last step, and what happened in it

    def on(self, event: Event) -> None:
        """One event."""
        if isinstance(event, StepDone):
            self._done = event, self._happened_until(event.step)
            self.totals.steps += 1
        elif isinstance(event, Arrived):
            self.requests[event.request] = RequestMetrics(event.prompt_tokens, event.time)
            self.totals.requests += 1
            self.totals.prompt_tokens += event.prompt_tokens
        elif isinstance(event, HostCopied):
            self.totals.stored_blocks += event.stored
            self.totals.returned_blocks += event.returned
            self.totals.returned_tokens += event.returned_tokens
        elif isinstance(event, RequestEvent) and (request := self.requests.get(event.request)):
            self._of_request(event, request)

    def on_progress(self, progress: Progress) -> None:
        """What one step brought to several requests."""
        computed, said, time = 0, 0, progress.time
        for name, _, tokens, _, new in progress.rows:
            request = self.requests.get(name)
            if request is None:
                continue
            computed += tokens
            if new:
                last = request.last_token
                if last is None:
                    request.first_token = time
                elif request.longest_gap is None or time - last > request.longest_gap:
                    request.longest_gap = time - last
                request.last_token = time
                request.output_tokens += len(new)
                said += len(new)
        self.totals.computed_tokens += computed
        self.totals.output_tokens += said
        self._of_steps[progress.step]["output"] += said

    def step_took(self, seconds: dict[str, float]) -> None:
        """The step whose `StepDone` came last took so long, by phase. Nothing, if none came since."""
        if self._done is None:
            return
        (done, happened), self._done = self._done, None
        self.steps.append(
            StepMetrics(
                done.step, done.time, done.phase, seconds, done.tokens, happened["output"], done.sequences,
                done.running, done.waiting, done.blocks_used, done.blocks, happened["hit"], happened["preempted"],
            )
        )  # fmt: skip
        self.totals.seconds.update(seconds)
        self.totals.seconds_by_kind[done.phase] += sum(seconds.values())

    def take(self, request: str) -> RequestMetrics:
        """Those of a request that has ended; nothing is kept of it here."""
        return self.requests.pop(request)

    def _of_request(self, event: RequestEvent, request: RequestMetrics) -> None:
        totals = self.totals
        if isinstance(event, Computed):  # of a scheduler that writes these down one by one
            self.on_progress(Progress(event.step, event.time, [(event.request, event.start, event.tokens, 0, ())]))
        elif isinstance(event, Token):
            self.on_progress(Progress(event.step, event.time, [(event.request, 0, 0, 0, (event.token,))]))
        elif isinstance(event, Admitted):
            if request.admitted is None:
                request.admitted, request.hit_tokens = event.time, event.hit_tokens
            totals.hit_tokens += event.hit_tokens
            self._of_steps[event.step]["hit"] += event.hit_tokens
        elif isinstance(event, Preempted):
            request.preemptions += 1
            request.lost_tokens += event.lost
            totals.preemptions += 1
            totals.lost_tokens += event.lost
            self._of_steps[event.step]["preempted"] += 1
        elif isinstance(event, Finished | Failed | Aborted):
            request.ended, request.finished = event.time, isinstance(event, Finished)
            kind = {Finished: "finished", Failed: "failed", Aborted: "aborted"}[type(event)]
            setattr(totals, kind, getattr(totals, kind) + 1)

    def _happened_until(self, step: int) -> Counter:
        """In this step, and in those before it that were never done."""
        happened = Counter()
        for number in [number for number in self._of_steps if number <= step]:
            happened += self._of_steps.pop(number)
        return happened


def _between(start: float, end: float | None) -> float | None:
    return None if end is None else end - start
