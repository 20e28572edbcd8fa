"""The ring stepper of lesson 06: a producer, consumers and the copy engine at a ring of slots, action by action.

Its frames are the events that `llmsys.hardware.mbarrier.play` recorded. For each slot it shows both barriers as what
they are, counters of phases: which phases have ended, which is under way and what it still needs, and who waits for it.
"""

from collections.abc import Sequence
from dataclasses import replace

from llmsys.hardware.mbarrier import BarrierState, Deadlock, Event, Race, Ring, Trace, consumer, play
from llmsys.viz.flash_hopper.ring_frame import Step, draw
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper


def ring(trace: Trace | Deadlock | Race | None = None) -> Stepper:
    """Step through a ring of tiles: phases, parities, arrivals, and who waits for which.

    trace    what `llmsys.hardware.mbarrier.play` returned, or a Deadlock or Race that it raised, which is explained in
             the last step; if nothing is given, the right roles play, and slots, consumers and chance can be chosen
    """
    about = {"draw": draw, "title": "A ring of tiles", "describe": describe, "static": most_telling, "interval": 800}
    if trace is not None:
        error = str(trace) if isinstance(trace, Deadlock | Race) else ""
        trace = trace.trace if isinstance(trace, Deadlock | Race) else trace
        if not isinstance(trace, Trace):
            raise ValueError(f"trace must be what mbarrier.play returned, or the error that it raised; got {trace!r}")
        return Stepper(steps(trace, error), **about)
    return Stepper(
        lambda slots, consumers, seed: steps(play(consumers=[consumer] * consumers, slots=slots, tiles=5, seed=seed)),
        controls=[
            Choice("slots", "Slots", {"1": 1, "2": 2, "3": 3}, 2),
            Choice("consumers", "Consumers", {"1": 1, "2": 2}, 1),
            Choice("seed", "Who is next", {"drawn": 0, "drawn again": 1, "and again": 2}),
        ],
        **about,
    )


def steps(trace: Trace, error: str = "") -> list[Step]:
    """A step for the beginning, one for each event of a trace, and a last one for the error that ended it, if any."""
    names = [f"consumer {j}" for j in range(len(trace.reads))]
    ring = Ring(trace.slots, max(len(names), 1))
    full, empty = (
        tuple(BarrierState(each.name, each.phase, each.missing, each.nbytes) for each in barriers)
        for barriers in (ring.full, ring.empty)
    )
    nothing = (None,) * trace.slots
    begun = Event("", "every slot is empty, every barrier in phase 0", nothing, (False,) * trace.slots, full, empty, {})
    found = [Step(begun, dict.fromkeys(names, ()))]
    for event in trace.events:
        before = found[-1]
        reads = dict(before.reads)
        if event.text.startswith("read slot "):
            slot = int(event.text.rsplit(" ", 1)[1])
            reads[event.who] = (*reads[event.who], event.tiles[slot])
        started = before.started + event.text.startswith("start to copy")
        old = (*before.event.full, *before.event.empty)
        pairs = list(zip(old, (*event.full, *event.empty), strict=True))
        changed = frozenset(each.name for was, each in pairs if was != each)
        ended = next((f"phase {was.phase} of {each.name}" for was, each in pairs if was.phase < each.phase), "")
        found.append(Step(event, reads, started, changed, ended))
    if error:
        found.append(replace(found[-1], changed=frozenset(), ended="", error=error))
    return found


def most_telling(frames: Sequence[Step]) -> int:
    """The step that stands for all: the error if there is one, or else a copy under way for which somebody waits.

    It is looked for after the first third, when the ring is in full swing.
    """
    if frames[-1].error:
        return len(frames) - 1
    third = len(frames) // 3
    waiting = (n for n in range(third, len(frames)) if frames[n].event.waiting and any(frames[n].event.copying))
    return next(waiting, third)


def describe(step: Step) -> str:
    """The caption of a step: who did what, what that ended, and who waits."""
    event = step.event
    if step.error:
        return step.error[0].upper() + step.error[1:] + "."
    if not event.who:
        return f"At first {event.text}. A phase of parity 1 counts as ended."
    said = f"{event.who[0].upper()}{event.who[1:]}: {event.text}"
    if event.text.startswith("wait for"):
        said += ": the last phase that ended has it, so go on"
    if step.ended:
        said += f"; that ends {step.ended}"
    waits = [f"{who} for {what.removeprefix('wait for ')}" for who, what in event.waiting.items()]
    return f"{said}. Waiting: {'; '.join(waits)}." if waits else f"{said}."
