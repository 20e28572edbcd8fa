"""What a step has to do, in four numbers, and how steps that a device did are written down with their times.

    recorder = StepRecorder(engine.events)
    engine.generate(prompts)
    recorder.steps[-1]     TimedStep(load=StepLoad(tokens=3, sequences=3, attended=1210, pairs=1210), seconds=0.0047)

A step computes n new tokens of a sequence of which s are in the cache. Every matrix multiplies the **tokens**, Σ n;
each of the **sequences** has one row of logits and one draw. Attention reads the keys and values of s + n tokens, those
**attended** to: what bounds decoding. And it multiplies each query with the keys before it, n·s + n(n + 1)/2 **pairs**:
what bounds a long prompt. In a step that decodes n is 1, and both are s + 1.
"""

from collections.abc import Iterable
from typing import NamedTuple

from llmsys.serving.plan import StepPlan
from llmsys.serving.telemetry.events import Event, EventLog, Progress, StepDone


class StepLoad(NamedTuple):
    """What one step computes."""

    tokens: int  #  new ones, of all sequences
    sequences: int
    attended: int  #  tokens of context, the new ones included: whose keys and values are read
    pairs: int  #  a query and a key that it sees

    @classmethod
    def of(cls, work: Iterable[tuple[int, int]]) -> "StepLoad":
        """Of sequences with (tokens in the cache, new tokens) each."""
        tokens = sequences = attended = pairs = 0
        for start, n in work:
            tokens += n
            sequences += 1
            attended += start + n
            pairs += n * start + n * (n + 1) // 2
        return cls(tokens, sequences, attended, pairs)

    @classmethod
    def of_plan(cls, plan: StepPlan) -> "StepLoad":
        return cls.of((work.computed, len(work.tokens)) for work in plan.work)

    def after(self, steps: int) -> "StepLoad":
        """Of a step in which all decode: the load so many steps later, if the same sequences go on."""
        more = steps * self.sequences
        return self._replace(attended=self.attended + more, pairs=self.pairs + more)


class TimedStep(NamedTuple):
    """A step that was done, and the seconds that it took, from the end of the one before where that was later than its
    beginning."""

    load: StepLoad
    seconds: float


class StepRecorder:
    """Listens to an engine's events, and keeps steps with their times.

    Of a step from which no token comes (a piece of a prompt, and nothing beside it) nobody waits for anything, so the
    host does not know when it ended: it is left out, and so is the one after it, which seems to take as long as both.

    Attributes
    ----------
    steps : list of TimedStep
    """

    def __init__(self, events: EventLog):
        self.steps: list[TimedStep] = []
        self._work: dict[int, list[tuple[int, int]]] = {}  # of steps that are not done
        self._said: set[int] = set()  # steps from which a token came
        self._after_silence = False
        events.listen(self._on, progress=self._on_progress)

    def _on_progress(self, progress: Progress) -> None:
        if any(row[4] for row in progress.rows):
            self._said.add(progress.step)
        self._work.setdefault(progress.step, []).extend((start, tokens) for _, start, tokens, _, _ in progress.rows)

    def _on(self, event: Event) -> None:
        if isinstance(event, StepDone) and (work := self._work.pop(event.step, None)):
            silent = event.step not in self._said
            if not silent and not self._after_silence:
                self.steps.append(TimedStep(StepLoad.of(work), event.seconds))
            self._after_silence = silent
            self._said.discard(event.step)
