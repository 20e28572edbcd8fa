"""The leaderboard of lesson 10: a scheduling policy of your own, by the rate at which it keeps its promises.

    leaderboard(MyPolicy)

One seeded slice of conversations, in bursts, on the simulated engine of a recorded H200: the same on every machine. A
policy's score is the highest rate at which 90% of the requests meet the limits, by the simulator's own `leaderboard`.
Beside it stand the library's four. The best is kept with the learner's progress.
"""

from dataclasses import dataclass
from functools import cache

from llmsys.bench.goodput import recorded_times
from llmsys.course import display
from llmsys.course.workspace import progress
from llmsys.serving.goodput import Limits
from llmsys.serving.policies import POLICIES
from llmsys.serving.simulator import leaderboard as scores_of

LIMITS = Limits(ttft=0.5, tpot=0.03, gap=0.1)
BUDGET, COUNT, SEED, CV = 2048, 120, 3, 2.0
LOW, HIGH, WITHIN = 8.0, 32.0, 0.03
YOURS, BEST = "yours", "your best so far"
GAME = f"10.goodput of {COUNT} conversations, seed {SEED}, steps of {BUDGET}"
_COLOURS = {YOURS: "#0072b2", BEST: "#56b4e9"}
_OTHERS = "#999999"


@dataclass(frozen=True)
class Entry:
    """One line: the highest rate in requests a second; or none, and in `note` why."""

    name: str
    rate: float | None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is ranked."""
        return self.rate is not None


@dataclass(frozen=True)
class Board:
    """The entries, the highest rate first; what is not ranked comes last."""

    entries: tuple[Entry, ...]
    title: str = f"{COUNT} conversations in bursts, steps of {BUDGET:,}: 500 ms, 30 ms a token, no gap above 100 ms"

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    def __repr__(self) -> str:
        lines = [self.title]
        for entry in self.entries:
            rate = f"{entry.rate:.1f} a second" if entry.ok else "not ranked"
            lines.append(f"{entry.name:18} {rate:>15}   {entry.note}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        ranked = [entry for entry in self.entries if entry.ok]
        highest = max((entry.rate for entry in ranked), default=1.0)
        rows = [(e.name, f"{e.rate:.1f}", e.rate / highest, _COLOURS.get(e.name, _OTHERS)) for e in ranked]
        refused = [f"Not ranked: {entry.name}, {entry.note}." for entry in self.entries if not entry.ok]
        return display.bars_html(f"{self.title}. Requests a second, more is better", rows, " ".join(refused))


def leaderboard(policy: object) -> Board:
    """Look for the highest rate of a policy, and rank it.

    policy    what makes one: its class. Each run has a new one.

    What raises, lets nobody compute or is too late at the lowest rate is not ranked, and the board says why.
    """
    yours = judged(YOURS, policy)
    entries = [yours, *_others()]
    before = progress.load().bests.get(GAME)  # the lowest is kept as the best: so it is minus the rate
    if yours.ok:
        progress.best(GAME, -yours.rate)
    if before is not None and (not yours.ok or -before > yours.rate):
        entries.append(Entry(BEST, -before))
    entries.sort(key=lambda entry: (not entry.ok, -(entry.rate or 0.0)))
    return Board(tuple(entries))


def judged(name: str, policy: object) -> Entry:
    """The entry of one policy."""
    (score,) = scores_of(
        {name: policy}, limits=LIMITS, times=_times(), count=COUNT, seed=SEED, cv=CV, low=LOW, high=HIGH,
        within=WITHIN, max_tokens_per_step=BUDGET, num_blocks=55_680, ahead=True,
    )  # fmt: skip
    if score.error:
        return Entry(name, None, f"it fails: {score.error}")
    if not score.goodput:
        return Entry(name, None, f"at {LOW:g} a second fewer than 90% are within the limits")
    return Entry(name, round(score.goodput, 3))


@cache
def _others() -> tuple[Entry, ...]:
    """What the learner's entry is ranked against."""
    return tuple(judged(name, policy) for name, policy in POLICIES.items())


@cache
def _times():
    return recorded_times()
