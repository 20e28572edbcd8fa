"""The loop: plan, launch, wait, take in; and that a step is planned and launched while the one before it runs.

    host      plan 0 │ launch 0 │ plan 1 │ launch 1 │ wait for 0 │ take in 0 │ plan 2 │ launch 2 │ wait for 1 │ …
    device           ├───────────────── step 0 ─────────────────┤├───────────── step 1 ──────────────┤├─ step 2 ─ …

A device that computes a step in 3 ms, and then waits for a host that takes 2 ms to say what is next, is idle for two
fifths of its time. So it is given the next step before it is done with one. A call of `step` begins a step, where that
can be planned by now, and lands the one before: its result is taken in, and told.

**What goes wrong concerns one step.** A `Flight` is a step that was planned and has not landed. One that could not be
launched, or whose result raised, lands all the same: its requests fail. The flight before it lands first, with what
came of it, and the one after it goes on.

**Nobody waits for nothing.** A flight all of whose requests have ended (the step before said their end tokens, or they
were aborted) is forgotten, and its result never asked for. So nothing is under way when the last request has ended.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmsys.serving.guard import Guard
from llmsys.serving.plan import StepPlan, StepResult
from llmsys.serving.responses.response import Update
from llmsys.serving.runner import Launched, Runner, all_failed
from llmsys.serving.scheduler import Scheduler
from llmsys.serving.telemetry.metrics import Metrics


@dataclass(eq=False)
class Flight:
    """A step from its plan until its result has been taken in."""

    plan: StepPlan
    planned_in: float  #  seconds
    launched: Launched | None = None
    error: BaseException | None = None  #  why it was not

    def result(self) -> StepResult:
        if self.launched is None:
            raise self.error or RuntimeError("this step was interrupted before it was launched")
        return self.launched.result()


class Loop:
    """Takes the steps of one engine.

    Parameters
    ----------
    take
        Brings the answers of requests up to date, by their ids, and tells what is new.
    ahead
        Whether a step is planned while one runs, by a scheduler that can (`plans_ahead`).
    """

    def __init__(
        self,
        scheduler: Scheduler,
        metrics: Metrics,
        guard: Guard,
        clock: Callable[[], float],
        take: Callable[[Iterable[str]], list[Update]],
        *,
        ahead: bool,
    ):
        self.scheduler, self.metrics = scheduler, metrics
        self.ahead = ahead and getattr(scheduler, "plans_ahead", False)
        self._guard, self._clock, self._take = guard, clock, take
        self._flights: deque[Flight] = deque()  # two at most
        self._in_step = False

    def step(self, runner: Runner) -> list[Update]:
        """Lands a step, and says what it added; [] where there is nothing to do.

        Raises what the scheduler, the runner or a listener raised, when all is as it should be. RuntimeError where
        there are requests, and the scheduler has nothing for any of them.
        """
        with self._guard.work():
            before, self._in_step = self._in_step, True  # a listener may take steps
            try:
                return self._step(runner)
            finally:
                self._in_step = before
                self.forget_ended()

    def forget_ended(self) -> None:
        """What is under way for nobody is forgotten, after requests were aborted; within a step, when that is over."""
        while self.ahead and not self._in_step and self._flights and not self.scheduler.awaits(self._flights[0].plan):
            self.scheduler.forget(self._flights.popleft().plan)

    def _step(self, runner: Runner) -> list[Update]:
        updates, raised = [], []
        try:
            self._begin(runner)
        except BaseException as error:
            raised.append(error)
        # Where the next one could not begin, both land: what comes of this one is not lost by that.
        for _ in range(len(self._flights) if raised else 1):
            try:
                if self._flights:
                    updates += self._land()
            except BaseException as error:
                raised.append(error)
        for more in raised[1:]:
            if more is not raised[0]:
                raised[0].add_note(f"And then: {more!r}")
        if raised:
            raise raised[0]
        return updates

    def _begin(self, runner: Runner) -> None:
        """Plans and launches, until as many are under way as may be. Nothing follows a step that was not launched, for
        its tokens will not come: where a listener takes a step, such a one may not have landed yet."""
        while len(self._flights) < 1 + self.ahead and all(flight.launched for flight in self._flights):
            start = self._clock()
            plan = self.scheduler.plan()
            if plan is None:
                break
            flight = Flight(plan, self._clock() - start)
            self._flights.append(flight)
            try:
                with self._guard.window():
                    flight.launched = runner.launch(plan)
            except BaseException as error:
                flight.error = error
                raise
        if not self._flights and self.scheduler.has_unfinished:
            raise RuntimeError(
                "the scheduler has unfinished requests and planned nothing: every step must compute some of one"
            )

    def _land(self) -> list[Update]:
        """The first one. Where it has no result, or one that cannot be, its requests fail, and that is raised."""
        flight = self._flights[0]
        requests = [work.request for work in flight.plan.work]
        try:
            with self._guard.window():
                result = flight.result()
            start = self._clock()
            self.scheduler.update(flight.plan, result)
        except BaseException as error:
            self._flights.popleft()
            try:
                self.scheduler.update(flight.plan, all_failed(flight.plan, error))
                self._take(requests)
            except BaseException as more:  # a listener's, or of a scheduler of one's own that is at odds with itself
                error.add_note(f"And then: {more!r}")
            raise
        self._flights.popleft()
        try:
            return self._take(requests)
        finally:  # also where a listener raised
            seconds = {"plan": flight.planned_in, **flight.launched.seconds, "update": self._clock() - start}
            self.metrics.step_took(seconds)
