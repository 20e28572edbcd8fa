"""Actions: what a rank of a pipeline does, one after the other.

A model is cut into stages, a batch into microbatches. What is to be done for one microbatch at one stage is

    F   forward
    I   backward for the input: the gradient that the stage before waits for
    W   backward for the weights: nobody waits for it, until the optimiser's step

These three are *elementary*. Two more are several of them in one go:

    B   I and W together, an ordinary backward
    FB  the forward of one microbatch and the backward of another, overlapped: one computes while the other communicates

An action is a value, so it can be compared, sorted, kept in a set and printed: `str(Action(Kind.F, 2, 5))` is "2F5", in
torch.distributed.pipelining's notation stage, kind, microbatch. Where a second replica of the model runs through the
same ranks, its actions have a suffix: "2F5r1". A pair is printed as "(2F5;1B3)OVERLAP_F_B", as torch prints it.
"""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """F, I, W; B = I + W; FB, an overlapped pair of an F and a B."""

    F = "F"
    B = "B"
    I = "I"  # noqa: E741 - the field's letter
    W = "W"
    FB = "FB"
    __hash__ = str.__hash__  # an Enum's own hash is a call into Python, and actions are looked up all the time


@dataclass(frozen=True, order=True, slots=True)
class Action:
    """One thing that a rank does.

    `stage`, `microbatch` and `replica` count from 0. Microbatches are numbered through the whole batch, replicas or
    not. Of a pair they are its forward's, and `backward` is the other half, an action of kind B: make pairs with
    `pair`.
    """

    kind: Kind
    stage: int
    microbatch: int
    replica: int = 0
    backward: "Action | None" = None

    @property
    def parts(self) -> tuple["Action", ...]:
        """The elementary actions in it, in the order in which they are done: B is I and W, FB is F, I and W."""
        if self.kind is Kind.B:
            return (self._as(Kind.I), self._as(Kind.W))
        if self.kind is Kind.FB:
            return (self.forward, *self.backward.parts)
        return (self,)

    @property
    def halves(self) -> tuple["Action", ...]:
        """A pair's F and B; any other action alone."""
        return (self.forward, self.backward) if self.kind is Kind.FB else (self,)

    @property
    def forward(self) -> "Action":
        """The F of this stage and microbatch; of a pair, its first half."""
        return self._as(Kind.F)

    def _as(self, kind: Kind) -> "Action":
        return Action(kind, self.stage, self.microbatch, self.replica)

    def __str__(self) -> str:
        if self.kind is Kind.FB:
            return f"({self.forward};{self.backward})OVERLAP_F_B"
        return f"{self.stage}{self.kind}{self.microbatch}" + (f"r{self.replica}" if self.replica else "")


def F(stage: int, microbatch: int, replica: int = 0) -> Action:
    """The forward of a microbatch at a stage."""
    return Action(Kind.F, stage, microbatch, replica)


def B(stage: int, microbatch: int, replica: int = 0) -> Action:
    """The whole backward of a microbatch at a stage."""
    return Action(Kind.B, stage, microbatch, replica)


def I(stage: int, microbatch: int, replica: int = 0) -> Action:  # noqa: E743 - the field's letter
    """The backward for the input."""
    return Action(Kind.I, stage, microbatch, replica)


def W(stage: int, microbatch: int, replica: int = 0) -> Action:
    """The backward for the weights."""
    return Action(Kind.W, stage, microbatch, replica)


def pair(forward: Action, backward: Action) -> Action:
    """A forward and a backward, overlapped. ValueError unless they are an F and a B."""
    if (forward.kind, backward.kind) != (Kind.F, Kind.B):
        raise ValueError(f"a pair is an F and a B, in this order; got {forward} and {backward}")
    return Action(Kind.FB, forward.stage, forward.microbatch, forward.replica, backward)
