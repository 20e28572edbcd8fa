"""A worker: one rank's part in a step, action by action.

    worker = Worker(schedule, rank, stages, wire)
    worker.begin(microbatches)
    while worker.advance(): ...          # an action, when its input is there; then the transfers after it begin
    losses = worker.finish()
    events = worker.events()             # when each action was done

It follows the rank's program (`llmsys.parallel.pipeline.programs`), in which a result is received in the last pause
before it is needed (*late*). A worker waits for results alone, where an action needs them, and for its sends at the
end. So no worker hangs where the schedule has no circle: what it waits for comes before the waiting action, by the
rule or by the order of a rank, and so does what is sent ahead of it.

What overlaps with a rank's arithmetic are its sends. A pair's halves are done one after the other: one stream of a
device computes one thing at a time.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from llmsys.parallel.execute.stage import Key, Stage
from llmsys.parallel.execute.wire import Arrival, Wire, in_order
from llmsys.parallel.pipeline import Action, Event, Exchange, F, I, Kind, Schedule, dependencies, programs


class Worker:
    """What one rank does.

    Parameters
    ----------
    schedule
        Valid (`llmsys.parallel.pipeline.validate`, with the same `gradients`).
    stages
        This rank's stages, by (replica, stage). Anything with `Stage`'s methods.
    clock
        What makes a step's clock, with which the time of an action's start and end is taken: `Clock`, the host's, or on
        a GPU, which the host is ahead of, `GpuClock`.
    gradients
        False runs schedules of forwards alone, and keeps nothing.

    Raises ValueError where `stages` are not those that the placement gives this rank.
    """

    def __init__(
        self,
        schedule: Schedule,
        rank: int,
        stages: Mapping[Key, Stage],
        wire: Wire,
        *,
        program: Sequence[Action | Exchange] | None = None,
        clock: "Callable[[], Clock] | None" = None,
        gradients: bool = True,
    ):
        wanted = schedule.placement.stages(rank)
        if set(stages) != set(wanted):
            raise ValueError(
                f"stages must be those of rank {rank}, {wanted}, by (replica, stage); got {sorted(stages)}"
            )
        self.schedule, self.rank, self.stages, self.wire = schedule, rank, stages, wire
        self._make_clock = clock or Clock
        self._program = in_order(programs(schedule, "late")[rank] if program is None else program, schedule)
        self._gradients = gradients
        self._marks: list[tuple[Action, object, object]] = []
        self._last = schedule.num_stages - 1

    def begin(self, microbatches: Sequence[Tensor]) -> None:
        """Take a step's microbatches: (B, T + 1) token ids each, on the stages' device, the same on all ranks.

        Their sizes may differ: the loss is the mean over all tokens of the step. ValueError where there are not as many
        as the schedule has, or fewer than two tokens in a row; then nothing has begun. What this rank has left of a
        step that failed is dropped.
        """
        if len(microbatches) != self.schedule.num_microbatches:
            raise ValueError(
                f"microbatches must be {self.schedule.num_microbatches}, as {self.schedule.name} was made for; got "
                f"{len(microbatches)}"
            )
        for m, tokens in enumerate(microbatches):
            if tokens.dim() != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
                raise ValueError(
                    f"microbatches must be (B, T + 1), B and T at least 1; microbatch {m} is of shape "
                    f"{tuple(tokens.shape)}"
                )
        counts = [tokens.shape[0] * (tokens.shape[1] - 1) for tokens in microbatches]
        self._divisors = [sum(counts) / count for count in counts]  # the number of microbatches, if they are equal
        for stage in self.stages.values():
            stage.forget()
        self._microbatches = microbatches
        self._place = 0
        self._results: dict[Action, Tensor] = {}  # of this rank, until they are used here or sent
        self._arriving: dict[Action, Arrival] = {}  # of other ranks, until they are used
        self._losses: dict[int, Tensor] = {}
        self._marks = []
        # Before the first transfers begin, for a GPU's clock waits until it has nothing to do: for those receives, too.
        self.clock = self._make_clock()
        self._pause()

    def advance(self) -> Action | None:
        """Do the next action, and begin the transfers of the pause after it. None where all are done."""
        if self._place == len(self._program):
            return None
        action = self._program[self._place]
        self._place += 1
        for before in dependencies(action, self.schedule.num_stages):
            if before in self._arriving:
                self._results[before] = self._arriving.pop(before)()
        start = self.clock.mark()
        with torch.set_grad_enabled(self._gradients):
            for part in action.parts:
                self._do(part)
        self._marks.append((action, start, self.clock.mark()))
        self._pause()
        return action

    def finish(self) -> dict[int, Tensor]:
        """The losses of the microbatches whose last stage is here, each divided so that their sum over the step is the
        mean. The results may still be under way on the device."""
        self.wire.finish()
        losses, self._losses = self._losses, {}
        return losses

    def events(self) -> list[Event]:
        """When each action was done, in seconds of `time.perf_counter`. On a GPU it waits until they are."""
        return [
            Event(self.rank, action, self.clock.seconds(start), self.clock.seconds(end))
            for action, start, end in self._marks
        ]

    def _pause(self) -> None:
        """Begin the transfers before the next action."""
        while self._place < len(self._program) and isinstance(self._program[self._place], Exchange):
            self._exchange(self._program[self._place])
            self._place += 1

    def _exchange(self, pause: Exchange) -> None:
        sends = [(each, self._results.pop(each.of)) for each in pause.transfers if each.source == self.rank]
        receives = [
            (each, self._stage_of(each.of).boundary(self._microbatches[each.of.microbatch]))
            for each in pause.transfers
            if each.destination == self.rank
        ]
        arrivals = self.wire.exchange(sends, receives)
        for (each, _), arrival in zip(receives, arrivals, strict=True):
            self._arriving[each.of] = arrival

    def _stage_of(self, received: Action) -> Stage:
        """The stage here that will use another rank's result."""
        return self.stages[received.replica, received.stage + (1 if received.kind is Kind.F else -1)]

    def _do(self, action: Action) -> None:
        """An elementary action."""
        stage, m, replica = action.stage, action.microbatch, action.replica
        here = self.stages[replica, stage]
        match action.kind:
            case Kind.F:
                x = self._results.pop(F(stage - 1, m, replica)) if stage > 0 else None
                y = here.forward(m, x, self._microbatches[m], self._divisors[m])
                if stage == self._last:
                    self._losses[m] = y
                else:
                    self._results[action] = y
            case Kind.I:
                dy = self._results.pop(I(stage + 1, m, replica)) if stage < self._last else None
                dx = here.backward_input(m, dy)
                if stage > 0:
                    self._results[action] = dx
            case Kind.W:
                here.backward_weight(m)


class Clock:
    """Marks in time on a CPU. All processes of a machine share one clock."""

    def mark(self) -> object:
        return time.perf_counter()

    def seconds(self, mark) -> float:
        """When that was, in seconds of `time.perf_counter`."""
        return mark


class GpuClock(Clock):
    """Marks in the stream of a GPU, which the program is ahead of: read when the step is over.

    Make it anew for each step, when the GPU has nothing to do: the beginning joins its time to the host's.
    """

    def __init__(self) -> None:
        torch.cuda.synchronize()
        self._began, self._zero = time.perf_counter(), self.mark()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, mark: torch.cuda.Event) -> float:
        mark.synchronize()
        return self._began + self._zero.elapsed_time(mark) / 1000
