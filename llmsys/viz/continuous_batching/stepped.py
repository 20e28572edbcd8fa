"""What a frame of the timeline shows: the steps so far, and in words what the last of them did."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmsys.viz.continuous_batching.timeline import Part, Step


@dataclass(frozen=True)
class Row:
    """A request as the timeline names it: tokens of its prompt, and of its answer (None: nobody knows yet)."""

    name: str
    prompt: int
    output: int | None = None


@dataclass(frozen=True)
class Frame:
    """The first `upto` of all `steps`. `budget` are tokens of a step at most, `places` the requests side by side."""

    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    upto: int
    budget: int
    places: int

    @property
    def past(self) -> tuple[Step, ...]:
        return self.steps[: self.upto]

    @property
    def now(self) -> Step:
        return self.steps[self.upto - 1]

    @property
    def computed(self) -> int:
        return sum(step.tokens for step in self.past)

    @property
    def found(self) -> int:
        return sum(sum(step.admitted.values()) for step in self.past)

    @property
    def lost(self) -> int:
        return sum(sum(step.preempted.values()) for step in self.past)

    def state(self, name: str, step: Step) -> str:
        """Of a request after this step: "" (not here), "waits", "idle" (has blocks, computed nothing) or "computes"."""
        if any(part.request == name for part in step.parts):
            return "computes"
        here, running = False, False
        for each in self.steps[: self.steps.index(step) + 1]:
            here = (here or name in each.arrived) and not (name in each.ended and each is not step)
            if name in each.preempted:
                running = False
            if name in each.admitted:
                running = True
        return "idle" if here and running else "waits" if here else ""

    @property
    def head(self) -> str:
        return f"Step {self.now.number}: {self.counts}"

    @property
    def counts(self) -> str:
        step = self.now
        who = f"{len(step.parts)} request{'s' * (len(step.parts) != 1)}"
        waiting = f", {step.waiting} wait{'s' * (step.waiting == 1)}" if step.waiting else ""
        return (
            f"{step.tokens} token{'s' * (step.tokens != 1)} for {who}{waiting}. "
            f"{step.blocks_used} of {step.blocks} blocks in use."
        )

    @property
    def tail(self) -> str:
        """At most three things, the rarest first."""
        step, said = self.now, []
        for name, lost in step.preempted.items():
            said.append(f"{name} is preempted, and loses {lost} computed tokens.")
        for name, hit in step.admitted.items():
            said.append(f"{name} comes in" + (f", with {hit} tokens found." if hit else "."))
        if step.ended:
            said.append(f"{_listed(step.ended)} {'have' if len(step.ended) > 1 else 'has'} the whole answer.")
        idle = [row.name for row in self.rows if self.state(row.name, step) == "idle"]
        if idle:
            said.append(f"{_listed(idle)} {'have' if len(idle) > 1 else 'has'} blocks and must wait.")
        pieces = [part for part in step.parts if not part.decode and part.request not in step.admitted]
        if pieces:
            said.append(f"{_listed(_piece(part) for part in pieces)}.")
        if not said:
            said.append("Everybody who runs gets a token." if step.decodes == len(step.parts) else "")
        return " ".join(said[:3])


def frames_of(rows: Sequence[Row], steps: Sequence[Step], *, budget: int, places: int) -> list[Frame]:
    """A frame for each step."""
    return [Frame(tuple(rows), tuple(steps), n, budget, places) for n in range(1, len(steps) + 1)]


def _piece(part: Part) -> str:
    return f"{part.request} computes {part.tokens} more"


def _listed(names) -> str:
    *some, last = names
    return f"{', '.join(some)} and {last}" if some else last
