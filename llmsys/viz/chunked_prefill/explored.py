"""What a frame of the goodput explorer shows: the moments around the longest stall, up to one of them, and all waits.

Everything is read off one simulated run (`Service.witnessed`); nothing is drawn here.
"""

from dataclasses import dataclass

from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Result
from llmsys.viz.chunked_prefill.witness import Gap, Moment, Witness

BEFORE = 0.08
"""Seconds of the window ahead of the stall."""
WINDOWS = (0.6, 1.2, 2.4, 4.8, 9.6)
"""Seconds that a window may have: the first is wide enough for nearly every run, so that runs can be compared."""
READERS, OTHERS = 3, 2
"""Rows of those whose prompts are read meanwhile, and of others who are answering."""


@dataclass(frozen=True)
class Row:
    """A request of the window. `prompt` is in tokens, `why` it is shown: "stalled", "reads" or "answers"."""

    name: str
    prompt: int
    why: str


@dataclass(frozen=True)
class Latencies:
    """All requests of a run: seconds, of those that have such a thing, and the share that is within all limits."""

    ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    gap: tuple[float, ...]
    met: float


@dataclass(frozen=True)
class Frame:
    """The steps of the window up to number `index`, and the run that they are from."""

    policy: str
    budget: int
    rate: float
    limits: Limits
    start: float
    """When the window begins, in seconds, and `seconds` how long it is."""
    seconds: float
    moments: tuple[Moment, ...]
    index: int
    gap: Gap | None
    rows: tuple[Row, ...]
    latencies: Latencies

    @property
    def past(self) -> tuple[Moment, ...]:
        return self.moments[: self.index + 1]

    @property
    def now(self) -> Moment:
        return self.moments[self.index]


def frames_of(
    result: Result, witness: Witness, *, policy: str, budget: int, rate: float, limits: Limits
) -> list[Frame]:
    """A frame for each step of the window around the run's longest stall."""
    gap = witness.longest_gap()
    if gap is None:
        raise ValueError("the run has no request with two tokens, so nobody can have stalled: ask for longer answers")
    seconds = next((each for each in WINDOWS if gap.seconds + BEFORE < each), 1.2 * gap.seconds + BEFORE)
    start = max(0.0, gap.start - BEFORE)
    moments = tuple(each for each in witness.between(start, start + seconds) if each.end <= start + seconds)
    requests = result.requests
    latencies = Latencies(
        tuple(each.time_to_first_token for each in requests),
        tuple(each.time_per_output_token for each in requests if each.time_per_output_token is not None),
        tuple(each.longest_gap for each in requests if each.longest_gap is not None),
        result.attainment(limits),
    )
    rows = rows_of(moments, gap, witness)
    return [
        Frame(policy, budget, rate, limits, start, seconds, moments, index, gap, rows, latencies)
        for index in range(len(moments))
    ]


def rows_of(moments: tuple[Moment, ...], gap: Gap, witness: Witness) -> tuple[Row, ...]:
    """Who is shown: whoever stalls, those whose prompts are read meanwhile, the longest pieces first, and others."""
    during = [each for each in moments if each.start < gap.end and each.end > gap.start + 1e-9]
    read: dict[str, int] = {}
    for each in during:
        for name, n in each.pieces.items():
            read[name] = read.get(name, 0) + n
    readers = sorted(sorted(read, key=lambda name: -read[name])[:READERS], key=int)
    answering = sorted({name for each in moments for name in each.decodes} - {gap.request, *readers}, key=int)
    shown = [(gap.request, "stalled"), *((name, "answers") for name in answering[:OTHERS])]
    shown += [(name, "reads") for name in readers]
    return tuple(Row(name, witness.prompts[name], why) for name, why in shown)
