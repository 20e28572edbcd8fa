"""What is remembered of each request while simulated engines run, one of which may begin it and another end it.

It is `llmsys.serving.Metrics` for who need not be told of every token, so that skipped steps may stay skipped.
"""

from collections.abc import Callable

from llmsys.serving.simulator.runs import SkippedSteps
from llmsys.serving.simulator.step_times import TICKS
from llmsys.serving.telemetry.events import Admitted, Arrived, Event, EventLog, Finished, Preempted, Progress
from llmsys.serving.telemetry.metrics import RequestMetrics


class Tally:
    """Listens to simulated engines, and remembers when what happened to each request.

    Of an answer it takes the first token and the end, with which the last one comes. For the longest gap it wants to
    know of the others, too; of skipped steps that is the first one, which may have begun long after a request's last
    token, or the last one, which takes longest.

    Parameters
    ----------
    gaps
        Whether it does.
    goes_on
        Whether a request that an engine has done with is continued by another one.

    Attributes
    ----------
    requests : dict
        By their ids. The first engine's word is taken for when one came and was admitted, and for what it hit.
    unfinished : int
        How many of them have not ended.
    """

    def __init__(self, *, gaps: bool = False, goes_on: Callable[[str], bool] = lambda request: False):
        self.gaps, self.goes_on = gaps, goes_on
        self.requests: dict[str, RequestMetrics] = {}
        self.unfinished = 0
        self._unsaid: set[str] = set()  # requests without a token
        self._said_before: dict[str, int] = {}  # tokens, of those that began anew

    def listen_to(self, events: EventLog) -> None:
        if self.gaps:
            events.listen(self.on, progress=self.on_progress_with_gaps, several=self.on_skipped)
        else:
            events.listen(self.on, progress=self.on_progress, several=False)

    def comes(self, request: str, prompt_tokens: int, time: float) -> None:
        """A request, to an engine or to nobody yet; of one that has come before, this is not its arrival."""
        if request not in self.requests:
            self.requests[request] = RequestMetrics(prompt_tokens, time)
            self._unsaid.add(request)
            self.unfinished += 1

    def begins_anew(self, request: str, said: int, lost: int) -> None:
        """An engine has died: what it computed of the request is lost, and the tokens that were said so far are known.
        It counts as a preemption."""
        one = self.requests[request]
        one.preemptions += 1
        one.lost_tokens += lost
        self._said_before[request] = said

    def on(self, event: Event) -> None:
        kind = type(event)
        if kind is Arrived:
            self.comes(event.request, event.prompt_tokens, event.time)
        elif kind is Finished:
            if not self.goes_on(event.request):
                one = self.requests[event.request]
                one.last_token = one.ended = event.time
                one.finished, one.output_tokens = True, event.generated + self._said_before.pop(event.request, 0)
                self.unfinished -= 1
        elif kind is Admitted:
            one = self.requests[event.request]
            if one.admitted is None:
                one.admitted, one.hit_tokens = event.time, event.hit_tokens
        elif kind is Preempted:
            one = self.requests[event.request]
            one.preemptions += 1
            one.lost_tokens += event.lost

    def on_progress(self, progress: Progress) -> None:
        unsaid = self._unsaid
        if unsaid:
            for name, _, _, _, said in progress.rows:
                if said and name in unsaid:
                    self.requests[name].first_token = progress.time
                    unsaid.remove(name)

    def on_progress_with_gaps(self, progress: Progress) -> None:
        time = progress.time
        for name, _, _, _, said in progress.rows:
            if said:
                one = self.requests[name]
                if one.last_token is None:
                    one.first_token = time
                else:
                    _note_gap(one, time - one.last_token)
                one.last_token = time

    def on_skipped(self, steps: SkippedSteps) -> None:
        first, end = (steps.now + steps.first) / TICKS, steps.end / TICKS
        last = (steps.first + (steps.n - 1) * steps.growth) / TICKS if steps.n > 1 else 0.0
        for name, _, _ in steps.rows:
            one = self.requests[name]
            _note_gap(one, max(first - one.last_token, last))
            one.last_token = end


def _note_gap(request: RequestMetrics, gap: float) -> None:
    if request.longest_gap is None or gap > request.longest_gap:
        request.longest_gap = gap
