"""An event log, read step by step: who computed what, who came, was preempted or ended, and what was in use.

    for step in read(engine.events):
        step.decodes, step.prompt_tokens, step.blocks_used

Nothing but the log is looked at, so the engine of a service can be drawn as well as a scheduler that was played.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from llmsys.serving.telemetry.events import (
    Aborted,
    Admitted,
    Arrived,
    Computed,
    Event,
    Failed,
    Finished,
    Preempted,
    StepDone,
    Token,
)


@dataclass(frozen=True)
class Part:
    """What a step computed of one request."""

    request: str
    start: int  #  tokens that were in the cache before
    tokens: int
    decode: bool  #  its newest token only, of those that it generated

    @property
    def end(self) -> int:
        return self.start + self.tokens


@dataclass
class Step:
    """One step. Requests are named by their ids."""

    number: int
    parts: list[Part] = field(default_factory=list)
    arrived: list[str] = field(default_factory=list)
    admitted: dict[str, int] = field(default_factory=dict)  #  with the tokens that it found in the cache
    preempted: dict[str, int] = field(default_factory=dict)  #  with the tokens that it lost
    said: list[str] = field(default_factory=list)  #  who got a token, once for each
    ended: list[str] = field(default_factory=list)
    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks: int = 0

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def decodes(self) -> int:
        return sum(part.decode for part in self.parts)

    @property
    def prompt_tokens(self) -> int:
        """Of prompts, and of what is computed again after a preemption."""
        return self.tokens - self.decodes


def read(events: Iterable[Event]) -> list[Step]:
    """The steps of a log, in order. What happened after the last one is left out.

    Where steps are planned ahead, who comes in with one is written down before the step before it is done.
    """
    steps: list[Step] = []
    begun: dict[int, Step] = {}  # by their numbers, those that are not done
    known: dict[str, int] = {}  # tokens of each request
    prompts: dict[str, int] = {}
    for event in events:
        step = begun.get(event.step) or begun.setdefault(event.step, Step(event.step))
        if isinstance(event, Arrived):
            step.arrived.append(event.request)
            known[event.request] = prompts[event.request] = event.prompt_tokens
        elif isinstance(event, Admitted):
            step.admitted[event.request] = event.hit_tokens
        elif isinstance(event, Preempted):
            step.preempted[event.request] = event.lost
        elif isinstance(event, Computed):
            total = known.get(event.request, 0)
            newest = event.tokens - event.guesses == 1 and event.start + 1 == total
            decode = newest and total > prompts.get(event.request, 0)
            step.parts.append(Part(event.request, event.start, event.tokens, decode))
        elif isinstance(event, Token):
            step.said.append(event.request)
            known[event.request] = known.get(event.request, 0) + 1
        elif isinstance(event, Finished | Failed | Aborted):
            step.ended.append(event.request)
        elif isinstance(event, StepDone):
            step = _joined([begun.pop(number) for number in sorted(begun) if number <= event.step])
            step.running, step.waiting = event.running, event.waiting
            step.blocks_used, step.blocks = event.blocks_used, event.blocks
            steps.append(step)
    return steps


def _joined(steps: list[Step]) -> Step:
    """The last one, with what happened in those before it, which were never done: nobody waited for them any more."""
    *before, last = steps
    for step in reversed(before):
        for name in ("arrived", "said", "ended"):
            setattr(last, name, getattr(step, name) + getattr(last, name))
        last.admitted, last.preempted = step.admitted | last.admitted, step.preempted | last.preempted
    return last
