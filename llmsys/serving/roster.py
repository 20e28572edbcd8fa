"""Who waits and who runs: how requests come, and how they leave. What they compute meanwhile is the scheduler's matter.

    add ──► waiting ──► running ──► finish, abort, or an error
               ▲           │
               └───────────┘ preempted

A request may leave at any time, also while a step computes some of it. Its blocks are free at once, and may be given to
others in the next plan: the device does steps in their order, so what the step still writes there is overwritten before
anybody reads it. Its id may come again at once, too, so what a step brings is for a `Request` and not for an id.
"""

from collections.abc import Callable, Sequence

from llmsys.cache.block_pool import BlockPool
from llmsys.models.sampling import whole_number
from llmsys.serving.admission import other_answers, token_limit
from llmsys.serving.request import Request, Status
from llmsys.serving.telemetry.events import Aborted, Arrived, EventLog, Failed, Finished, RequestEvent


class Roster:
    """The requests of a scheduler, which is one.

    Attributes
    ----------
    requests : dict
        Those that have not ended, by id.
    waiting, running : list
        In the order of arrival, and in the order of admission.
    steps_done : int
        The number of the first plan whose result is awaited; if there is none, of the next plan.
    """

    def __init__(self, pool: BlockPool, max_model_len: int | None, events: EventLog, clock: Callable[[], float]):
        self.pool, self.max_model_len, self.events, self.clock = pool, max_model_len, events, clock
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.steps_done = 0
        self._arrivals = 0
        self._ended: list[str] = []  # since the last plan, of those that were in one

    @property
    def has_unfinished(self) -> bool:
        return bool(self.requests)

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
        """Guesses at a request's next tokens: as many as a step has room for are computed with what is known.

        They follow the tokens that are known now. If a step is under way that says another one, they hold if it is the
        first of them, as one less. KeyError where no such request is unfinished.
        """
        self.requests[request_id].draft = tuple(whole_number("draft's tokens", token, at_least=0) for token in draft)

    def abort(self, request_id: str) -> bool:
        """Ends a request, whatever it is doing. False if it had ended, or never was."""
        return self._end(request_id, Status.ABORTED)

    def finish(self, request_id: str, reason: str = "stop") -> bool:
        """Ends a request that has all it needs, as the caller can tell: a text that was to stop it. Else as `abort`."""
        return self._end(request_id, Status.FINISHED, reason=reason)

    def _end(
        self,
        request_id: str,
        status: Status,
        *,
        reason: str | None = None,
        error: str | None = None,
        now: float | None = None,
    ) -> bool:
        request = self.requests.pop(request_id, None)
        if request is None:
            return False
        if request.status is Status.RUNNING:
            self._release(request)
        else:
            self.waiting.remove(request)
        request.status, request.reason, request.error, request.draft = status, reason, error, ()
        request.under_way = request.expected = 0
        if request.was_planned:
            self._ended.append(request.id)
        if status is Status.FINISHED:
            self._note(Finished, request, now=now, reason=reason, generated=request.num_generated)
        elif status is Status.FAILED:
            self._note(Failed, request, now=now, error=error)
        else:
            self._note(Aborted, request, now=now)
        return True

    def _release(self, request: Request) -> None:
        self.running.remove(request)
        self.pool.free(request.table)
        request.table = None

    def _note(
        self,
        kind: type[RequestEvent],
        request: Request,
        *,
        step: int | None = None,
        now: float | None = None,
        **details: object,
    ) -> None:
        """Writes down that it happened in a step, or else in the one that is done next; now, or at a time."""
        step = self.steps_done if step is None else step
        self.events.add(kind(step, self.clock() if now is None else now, request.id, **details))
