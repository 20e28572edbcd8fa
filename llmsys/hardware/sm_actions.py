"""What `llmsys.hardware.sm` is written in: the actions of a warpgroup's program, what each of them costs, and the
`Timeline` that comes of running programs.
"""

from dataclasses import dataclass, field

ENGINES = ("tensor", "exp", "copy")
CLOCK = 1.83e9  # Hz: the clock at which 132 SMs have the 989 TFLOP/s of the H100's data sheet


@dataclass(frozen=True)
class Costs:
    """The cycles that each kind of work takes when nobody shares the engine.

    load      copy a tile of K or V, for all warpgroups
    scores    S = Q Kᵀ of one warpgroup
    softmax   P out of S, with m, l and the rescaling of O, of one warpgroup
    output    O += P V of one warpgroup
    """

    load: float
    scores: float
    softmax: float
    output: float


# Actions


@dataclass(frozen=True)
class Load:
    """Start to copy tile i of "K" or "V" into shared memory, for all warpgroups, as soon as there is a slot for it."""

    tile: str
    i: int


@dataclass(frozen=True)
class Scores:
    """Start S_i = Q K_iᵀ."""

    i: int


@dataclass(frozen=True)
class Softmax:
    """Compute P_i out of S_i, and rescale O; the warpgroup does nothing else meanwhile."""

    i: int


@dataclass(frozen=True)
class Output:
    """Start O += P_i V_i."""

    i: int


@dataclass(frozen=True)
class Wait:
    """Wait for tile i of "K" or "V", or for this warpgroup's product "S" or "O" number i."""

    what: str
    i: int


@dataclass(frozen=True)
class Turn:
    """Wait for the turn. It goes round the programs that have turns; the first of them has it first."""


@dataclass(frozen=True)
class Pass:
    """Pass the turn on."""


Action = Load | Scores | Softmax | Output | Wait | Turn | Pass
Programs = list[list[Action]]


# What comes out


@dataclass(frozen=True)
class Span:
    """Something that an engine did for a program between two cycles; or, with the engine "wait", a program's wait."""

    engine: str
    warpgroup: int
    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What happened in a `run`.

    spans    work of the engines, by its start: "K0", "V0" copied, "S0" and "O0" products, "P0" a softmax. Spans of
             two warpgroups on one engine may overlap: then they share it.
    waits    when a program could not go on, and for what
    names    of the programs: "warpgroup 0", …, and "producer"
    cycles   from the beginning to the end
    busy     for each engine, the cycles in which it did something
    """

    spans: tuple[Span, ...]
    waits: tuple[Span, ...]
    names: tuple[str, ...]
    cycles: float
    busy: dict[str, float] = field(repr=False)

    @property
    def seconds(self) -> float:
        """The time of all cycles, at the clock `CLOCK`."""
        return self.cycles / CLOCK

    def utilisation(self, engine: str) -> float:
        """The part of all cycles in which an engine, "tensor", "exp" or "copy", did something."""
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        return self.busy[engine] / self.cycles if self.cycles else 0.0
