"""What is remembered of each request while a simulated engine runs; of one that two engines served, together.

It is `llmsys.serving.Metrics` for who need not be told of every token, so that skipped steps may stay skipped.
"""

from dataclasses import replace

from llmsys.serving.simulator.runs import SkippedSteps
from llmsys.serving.simulator.step_times import TICKS
from llmsys.serving.telemetry.events import Admitted, Arrived, Event, EventLog, Finished, Preempted, Progress
from llmsys.serving.telemetry.metrics import RequestMetrics


class Tally:
    """Listens to simulated engines, and remembers when what happened to each request.

    Of an answer it takes the first token and the end, with which the last one comes. For the longest gap it wants to
    know of the others, too; of skipped steps that is the first one, which may have begun long after a request's last
    token, or the last one, which takes longest.

    gaps      whether it does
    """

    def __init__(self, *, gaps: bool = False):
        self.gaps = gaps
        self.requests: dict[str, RequestMetrics] = {}
        self._unsaid: set[str] = set()  # requests without a token

    def listen_to(self, events: EventLog) -> None:
        if self.gaps:
            events.listen(self.on, progress=self.on_progress_with_gaps, several=self.on_skipped)
        else:
            events.listen(self.on, progress=self.on_progress, several=False)

    def on(self, event: Event) -> None:
        kind = type(event)
        if kind is Arrived:
            self.requests[event.request] = RequestMetrics(event.prompt_tokens, event.time)
            self._unsaid.add(event.request)
        elif kind is Finished:
            one = self.requests[event.request]
            one.last_token = one.ended = event.time
            one.finished, one.output_tokens = True, event.generated
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


def joined(first: RequestMetrics, second: RequestMetrics, *, gaps: bool) -> RequestMetrics:
    """A request that one engine began and another ended: `second` has its tokens from the second one on, and arrived
    when its cache did."""
    found = replace(
        first, last_token=second.last_token, ended=second.ended, finished=second.finished,
        output_tokens=second.output_tokens, preemptions=first.preemptions + second.preemptions,
        lost_tokens=first.lost_tokens + second.lost_tokens,
    )  # fmt: skip
    if gaps and second.first_token is not None:
        found.longest_gap = second.longest_gap
        _note_gap(found, second.first_token - first.first_token)
    return found
