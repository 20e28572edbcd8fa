"""A scheduler whose requests may come with their keys and values: blocks first, then what belongs into them.

    start = scheduler.expect(request)         blocks for all its tokens; the first `start` are here. None: no room
    …                                         another engine computes them, and they are written into request.table
    scheduler.land(request, token)            it runs, and goes on from `token`; its full blocks can be hit

Between the two a request is **arriving**: it has blocks and is in no plan. It is not preempted either, for what is on
its way would be lost; what it waits for depends on nobody here, so it does not wait for ever. Once landed, a request is
like any other, and where it loses its blocks, its tokens are computed here again.

**Credits.** A reservation is a credit: nothing is sent for which there is no room. Two limits keep others from having
to wait for who is slow here: requests that are arriving count among `max_sequences`, and all together they have at most
`window` tokens on the way (one of them alone may have more). So what a sender must hold for this engine is bounded,
however slow this one is. And nobody passes a request that was preempted, or one that is to be computed here.
"""

from llmsys.cache.block_table import OutOfBlocks
from llmsys.models.sampling import whole_number
from llmsys.serving.admission import token_limit
from llmsys.serving.outcome import reason_to_end
from llmsys.serving.request import Request, Status
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.events import Aborted, Admitted, Arrived


class ReservingScheduler(Scheduler):
    """See above. Arguments are the scheduler's, and

    window
        Tokens that may be on their way to this engine. None: four steps of as many tokens as one may have.

    Attributes
    ----------
    arriving : dict
        By their ids, the requests that have blocks, and whose keys and values are not here yet.
    """

    def __init__(self, *args, window: int | None = None, **named):
        super().__init__(*args, **named)
        self.window = 4 * self.max_tokens_per_step if window is None else whole_number("window", window, at_least=1)
        self.arriving: dict[str, Request] = {}
        self._on_the_way: dict[str, int] = {}  # tokens, by the same ids

    @property
    def has_unfinished(self) -> bool:
        """There is something to compute, now: who waits for blocks that arriving requests have has nothing."""
        return bool(self.running) or (bool(self.waiting) and not self.arriving)

    def expect(self, request: Request) -> int | None:
        """Gives it blocks for all its tokens. How many of them are here already, at most all but one; None, and nothing
        has changed, where there is no room now.

        ValueError where it can never fit, or its id is in use.
        """
        limit = token_limit(request, self.pool, self.max_model_len)
        if request.id in self.requests or request.id in self.arriving:
            raise ValueError(f"request {request.id!r} is in use by one that has not ended: give another id")
        beside = len(self.running) + len(self.arriving)
        if self.waiting or beside >= self.max_sequences:
            return None
        hit = self.pool.match(request.tokens, salt=request.salt)
        on_the_way = len(request.tokens) - hit.tokens
        if self._on_the_way and sum(self._on_the_way.values()) + on_the_way > self.window:
            return None
        try:
            request.table = self.pool.allocate(len(request.tokens), hit, reserve=self.reserve if beside else 0)
        except OutOfBlocks:
            return None
        self._arrivals += 1
        request.order, request.limit, request.arrival = self._arrivals, limit, self.clock()
        self.arriving[request.id], self._on_the_way[request.id] = request, on_the_way
        self._note(Arrived, request, prompt_tokens=len(request.prompt), parent=None)
        self._note(Admitted, request, hit_tokens=hit.tokens, shared=False)
        return hit.tokens

    def delivered(self, request: Request) -> None:
        """All that was on the way is here: others may be sent theirs."""
        self._on_the_way.pop(request.id, None)

    def land(self, request: Request, token: int) -> bool:
        """An arriving request runs from now on: all its tokens are computed, and `token` is its next. False, and
        nothing has changed, where as many run as may.

        Where `token` is its last, it has ended, and is forgotten.
        """
        if request.id not in self.arriving:
            raise ValueError(f"request {request.id!r} must be one that is arriving: expect it first")
        if len(self.running) >= self.max_sequences:
            return False
        computed = len(request.tokens)
        self.pool.register(request.table, request.tokens, computed)
        request.tokens.append(token)
        request.computed, request.status, request.was_planned = computed, Status.RUNNING, True
        self.delivered(request)
        del self.arriving[request.id]
        self.requests[request.id] = request
        self.running.append(request)
        if reason := reason_to_end(request, self.eos_ids):
            self.finish(request.id, reason)
        return True

    def abort(self, request_id: str) -> bool:
        request = self.arriving.pop(request_id, None)
        if request is None:
            return super().abort(request_id)
        self.delivered(request)
        self.pool.free(request.table)
        request.table, request.status = None, Status.ABORTED
        self._note(Aborted, request)
        return True

    def _check_nothing_is_left(self) -> None:
        if not self.arriving:  # whose blocks the others may be waiting for
            super()._check_nothing_is_left()
