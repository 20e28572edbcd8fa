"""What actions cost: time for each kind, each stage and each transfer, and the memory of what a forward keeps.

    Costs()                                 F = I = W = 1, B = 2, transfers free: the unit that papers count in
    Costs(F=1, I=1.2, W=0.8)                B is I + W, an overlapped pair F + B
    Costs(F=2, I=2, W=2, FB=5)              the pair is faster than its halves one after the other
    Costs(F=(1, 1, 1, 3))                   stage 3 has the head
    Costs(transfer=0.1)                     between any two ranks; or a table [from][to]

Any unit will do, if it is the same for all. Costs are per stage: a rank with v stages has that many smaller ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.schedule import Schedule

PerStage = float | Sequence[float]
"""One number for all stages, or a number for each."""


@dataclass(frozen=True)
class Costs:
    """Times in any unit, memory in any other.

    Attributes
    ----------
    F, I, W
        Time of each; a number, or one a stage.
    B
        Time of a whole backward, I + W if None: one kernel for both may be faster, as a split may reload what it needs.
    FB
        Time of an overlapped pair, F + B if None; one a stage goes by the forward's stage.
    transfer
        Time from the end of an action until its result is at another rank: a number, or a table [from][to]. The sender
        goes on meanwhile.
    activation
        What a forward keeps until the backward; a number, or one a stage. In units of one stage by default.
    activation_for_w
        The part of it that an I leaves for its W; all of it if None.
    """

    F: PerStage = 1
    I: PerStage = 1
    W: PerStage = 1
    B: PerStage | None = None
    FB: PerStage | None = None
    transfer: float | Sequence[Sequence[float]] = 0
    activation: PerStage = 1
    activation_for_w: PerStage | None = None

    def __post_init__(self):
        for name in ("F", "I", "W", "B", "FB", "activation", "activation_for_w"):
            value = getattr(self, name)
            if value is not None or name in ("F", "I", "W", "activation"):
                _check_all(name, [value] if _is_number(value) else value)
        rows = [[self.transfer]] if _is_number(self.transfer) else self.transfer
        for row in rows:
            if _is_number(row):
                raise ValueError(f"transfer must be one number, or a table: for each rank a row; got {self.transfer!r}")
            _check_all("transfer", row)

    def check(self, schedule: Schedule) -> None:
        """ValueError where there are not as many numbers as the schedule has stages, or ranks."""
        for name in ("F", "I", "W", "B", "FB", "activation", "activation_for_w"):
            value = getattr(self, name)
            if value is not None and not _is_number(value) and len(value) != schedule.num_stages:
                raise ValueError(
                    f"{name} must be one number, or one for each of the {schedule.num_stages} stages; got {len(value)}"
                )
        if not _is_number(self.transfer):
            sizes = [len(row) for row in self.transfer]
            if sizes != [schedule.num_ranks] * schedule.num_ranks:
                raise ValueError(
                    f"transfer must be one number, or a table of {schedule.num_ranks} × {schedule.num_ranks} ranks; "
                    f"got rows of {sizes}"
                )

    def time(self, action: Action) -> float:
        """How long an action takes."""
        match action.kind:
            case Kind.F:
                return _at(self.F, action.stage)
            case Kind.I:
                return _at(self.I, action.stage)
            case Kind.W:
                return _at(self.W, action.stage)
            case Kind.B if self.B is None:
                return _at(self.I, action.stage) + _at(self.W, action.stage)
            case Kind.B:
                return _at(self.B, action.stage)
            case Kind.FB if self.FB is None:
                return self.time(action.forward) + self.time(action.backward)
        return _at(self.FB, action.stage)

    def transfer_time(self, source: int, destination: int) -> float:
        """How long a result takes from rank to rank; nothing within one."""
        if source == destination:
            return 0
        return self.transfer if _is_number(self.transfer) else self.transfer[source][destination]

    def kept(self, action: Action) -> float:
        """What an action adds to the kept activations at its start, if positive, or gives back at its end, if negative.

        A pair does both: the sum of its halves is what it changes in all.
        """
        if action.kind is Kind.FB:
            return self.kept(action.forward) + self.kept(action.backward)
        whole = _at(self.activation, action.stage)
        for_w = whole if self.activation_for_w is None else _at(self.activation_for_w, action.stage)
        return {Kind.F: whole, Kind.B: -whole, Kind.I: for_w - whole, Kind.W: -for_w}[action.kind]


def _is_number(value) -> bool:
    return not hasattr(value, "__len__") or getattr(value, "shape", None) == ()


def _at(value: PerStage, stage: int) -> float:
    return value if _is_number(value) else value[stage]


def _check_all(name: str, values) -> None:
    for value in values:
        if getattr(value, "shape", None) == ():
            value = value.item()
        if not (isinstance(value, Real) and 0 <= value < float("inf")):
            raise ValueError(f"{name} must be finite and not negative, got {value!r}")
