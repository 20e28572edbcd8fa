"""Runs of equal steps, which are skipped: the closed form of decoding.

Between two arrivals, until somebody has all tokens or blocks are short, every step is like the one before: each of the
B sequences that run gets one token. To plan such a step, to make its result and to take it in is work that grows with
B, a few µs each, and changes no decision. So it is not done: after n steps every sequence has n tokens more, and

    T(n) = n t + d n (n − 1) / 2

has passed, where t is the first step's time and d by how much each takes longer than the one before, for each sequence
attends to one more token. How many steps there are until a given time is the root of that quadratic, in whole numbers.

**A run begins** where the scheduler would plan such a step. Everything that runs decodes; nobody waits, or the first of
those who wait has no room; and the policy says that it is `steady`. **It ends** with the step in which a request gets
its last token, before the one that needs more blocks than are free, or when somebody comes. Blocks that become free at
its end may let somebody in, and free ones only become fewer until then: so who had no room at its beginning has none
before its end.

**Nothing shows that steps were skipped.** The scheduler, its requests and its pool are left as they would be, but for
which of the free blocks a request has got; and the event log has the same events (`SkippedSteps`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

from llmsys.cache.block_pool import BlockPool
from llmsys.serving.admission import entrance
from llmsys.serving.request import Request
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.simulator.known_tokens import SAID
from llmsys.serving.simulator.load import StepLoad
from llmsys.serving.simulator.step_times import TICKS, StepTimes
from llmsys.serving.telemetry.events import Computed, Event, Progress, StepDone, Token


class Steps:
    """Steps of which each takes as much longer than the one before: as many as there may be, from `now` on (in ticks).

    Attributes
    ----------
    steps : int
        How many there may be at most, at least 1.
    first : int
        How many ticks the next one takes.
    growth : int
        How many more each takes than the one before.
    """

    def __init__(self, now: int, steps: int, first: int, growth: int):
        self.now, self.steps, self.first, self.growth = now, steps, first, growth

    def ticks(self, n: int) -> int:
        """How long the next n steps take together."""
        return n * self.first + self.growth * (n * (n - 1) // 2)

    def until(self, tick: float) -> int:
        """How many of the steps end by then."""
        if tick == math.inf:
            return self.steps
        left, d = tick - self.now, self.growth
        if left < self.first:
            return 0
        if d == 0:
            return min(self.steps, left // self.first)
        b = 2 * self.first - d  # d n² + b n ≤ 2 left
        return min(self.steps, (isqrt(b * b + 8 * d * left) - b) // (2 * d))

    def pass_by(self, n: int) -> None:
        """The next n of them are done."""
        self.now += self.ticks(n)
        self.steps -= n
        self.first += n * self.growth


class Run(Steps):
    """Steps in which all `requests` decode."""

    def __init__(self, scheduler: Scheduler, times: StepTimes, requests: list[Request], now: int, steps: int):
        attended = sum([len(each.tokens) for each in requests])
        first = times.ticks(StepLoad(len(requests), len(requests), attended, attended))
        super().__init__(now, steps, first, times.growth(len(requests)))
        self.scheduler, self.requests = scheduler, requests

    def take(self, n: int) -> bool:
        """The next n steps are done, and `now` is their end. True if the last one has requests that have all their
        tokens: it is still to be written down, and they are to be ended (`last_step`)."""
        scheduler, pool = self.scheduler, self.scheduler.pool
        ends = n == self.steps and any([len(each.tokens) + n == each.limit for each in self.requests])
        if scheduler.events.wants_several and n > ends:
            self._write_down(n - ends)
        size = pool.block_size
        for each in self.requests:
            slots = len(each.tokens) + n - 1  # all but the newest token are computed
            each.tokens += [SAID + each.order] * n
            each.computed = slots
            table = each.table
            if slots <= len(table.blocks) * size:  # as `extend` would, for nobody shares the last block
                table.length = slots
            else:
                pool.extend(table, slots)
            if slots // size > len(table.prefixes):
                pool.register(table, each.tokens, slots)
        self.pass_by(n)
        return ends

    def _write_down(self, n: int) -> None:
        scheduler, pool = self.scheduler, self.scheduler.pool
        stats = pool.stats
        rows = tuple((each.id, len(each.tokens), SAID + each.order) for each in self.requests)
        others = stats.used - sum(len(each.table.blocks) for each in self.requests)
        scheduler.events.add_several(
            SkippedSteps(
                scheduler.steps_done, n, self.now, self.first, self.growth, rows, pool.block_size,
                len(scheduler.waiting), others, stats.blocks,
            )
        )  # fmt: skip


@dataclass(frozen=True)
class SkippedSteps:
    """What n steps of a run bring. The log has it as one entry, which is the events of all when somebody reads it."""

    step: int  #  the first one's number
    n: int
    now: int  #  ticks: when the first one began
    first: int  #  ticks that it took
    growth: int
    rows: tuple[tuple[str, int, int], ...]
    """(request, known tokens at the beginning, what it says each time)."""
    block_size: int
    waiting: int
    others: int
    """Blocks in use that none of these requests has; a block that two of them share is counted there as minus one."""
    blocks: int

    @property
    def end(self) -> int:
        """The tick at which the last one was done."""
        return self.now + self.n * self.first + self.growth * (self.n * (self.n - 1) // 2)

    @property
    def size(self) -> int:
        return self.n * (2 * len(self.rows) + 1)

    def events(self) -> Iterator[Event]:
        now, sequences = self.now, len(self.rows)
        for i in range(self.n):
            began, now = now, now + self.first + i * self.growth
            time, step = now / TICKS, self.step + i
            for request, known, said in self.rows:
                yield Computed(step, time, request, known + i - 1, 1, 0)
                yield Token(step, time, request, said)
            used = self.others + sum(-(-(known + i) // self.block_size) for _, known, _ in self.rows)
            seconds = time - began / TICKS
            yield StepDone(
                step, time, seconds, "decode", sequences, sequences, sequences, self.waiting, used, self.blocks
            )


def begin_run(scheduler: Scheduler, times: StepTimes, now: int) -> Run | None:
    """The run that begins with the scheduler's next step, at a tick; None where that is none, or nobody knows."""
    running, policy = scheduler.running, scheduler.policy
    if not getattr(policy, "steady", False):
        return None
    steps = None
    for each in reversed(running):  # who came last is the likeliest to have a prompt to compute
        known = len(each.tokens)
        if known - each.computed != 1 or known == len(each.prompt) or each.draft:
            return None
        left = each.limit - known
        steps = left if steps is None or left < steps else steps
    if steps is None or (scheduler.waiting and getattr(policy, "joins", True) and has_room(scheduler)):
        return None
    steps = steps_with_room(scheduler, steps)
    if not steps:
        return None
    head = scheduler.waiting[0] if scheduler.waiting else None
    # Asked as the scheduler asks, for a policy may remember it; and it may want another order.
    for turn in policy.turns(tuple(running), head, scheduler.max_tokens_per_step):
        if turn.compute:
            return Run(scheduler, times, list(turn.compute), now, steps) if len(turn.compute) == len(running) else None
    return None


def has_room(scheduler: Scheduler) -> bool:
    """Whether the first of those who wait could be admitted beside what runs."""
    if len(scheduler.running) == scheduler.max_sequences:
        return False
    return blocks_needed(scheduler.waiting[0], scheduler.pool) + scheduler.reserve <= scheduler.pool.free_blocks


def blocks_needed(request: Request, pool: BlockPool) -> int:
    """How many of the free blocks a waiting request would take: cached ones that it hits, and others."""
    hit = entrance(request, pool).hit
    taken = sum(pool.references(block) == 0 for block in hit.blocks)
    return pool.blocks_for(len(request.tokens)) - len(hit.blocks) + taken


def steps_with_room(scheduler: Scheduler, steps: int) -> int:
    """How many steps, `steps` at most, everything that runs can decode with the blocks that are free."""
    pool, running = scheduler.pool, scheduler.running
    free, size = pool.free_blocks, pool.block_size
    if free >= len(running) * (steps // size + 1):
        return steps
    has = sum(len(each.table.blocks) for each in running) + free
    known = [len(each.tokens) for each in running]

    def fit(n: int) -> bool:  # in the n-th step a request needs slots for its known tokens and n − 1 more
        return sum([-(-(tokens + n - 1) // size) for tokens in known]) <= has

    low, high = 0, steps
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fit(middle) else (low, middle - 1)
    return low


def last_step(run: Run, began: int) -> None:
    """Writes down the step with which a run has just ended, and ends the requests that have all their tokens, in the
    order in which a scheduler does: what was said before a request's end stands before that."""
    scheduler, rows = run.scheduler, []
    number, time = scheduler.steps_done, run.now / TICKS
    log = scheduler.events
    told = log.wants_several
    for each in run.requests:
        if told:
            known = len(each.tokens) - 1
            rows.append((each.id, known - 1, 1, 0, (SAID + each.order,)))
        if len(each.tokens) == each.limit:
            if rows:
                log.add_progress(Progress(number, time, rows))
                rows = []
            scheduler.finish(each.id, "length")
    if rows:
        log.add_progress(Progress(number, time, rows))
    if told:
        stats, sequences = scheduler.pool.stats, len(run.requests)
        log.add(
            StepDone(
                number, time, time - began / TICKS, "decode", sequences, sequences,
                len(scheduler.running), len(scheduler.waiting), stats.used, stats.blocks,
            )
        )  # fmt: skip
