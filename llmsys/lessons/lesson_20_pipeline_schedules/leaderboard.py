"""The leaderboard of lesson 20: an uneven model on four ranks that have room for six activations.

    leaderboard(schedule)

Eight stages, the last of which has the head and takes longer; twelve microbatches; a slow wire. Which rank has which
stage, and who does what when, is the reader's: any schedule of the library's form. It must be valid, and may keep no
more than LIMIT activations (of a stage each) on any rank. The lowest makespan is best. Beside it stand the library's
own schedules. The best is kept with the learner's progress.
"""

from dataclasses import dataclass
from functools import cache

from llmsys.course import display
from llmsys.course.workspace import progress
from llmsys.parallel.pipeline.actions import Action, Kind
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dualpipe_v import dualpipe_v
from llmsys.parallel.pipeline.gpipe import gpipe
from llmsys.parallel.pipeline.interleaved import interleaved
from llmsys.parallel.pipeline.one_f_one_b import one_f_one_b
from llmsys.parallel.pipeline.placement import Placement
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.simulate import simulate
from llmsys.parallel.pipeline.v_half import v_half, v_min
from llmsys.parallel.pipeline.validate import validate
from llmsys.parallel.pipeline.zb_v import zb_v
from llmsys.parallel.pipeline.zero_bubble import zb_h1, zb_h2

RANKS, STAGES, MICROBATCHES, LIMIT = 4, 8, 12, 6
COSTS = Costs(
    F=(0.8, 1, 1, 1, 1, 1, 1, 1.8),
    I=(0.8, 1, 1, 1, 1, 1, 1, 1.8),
    W=(0.6, 1, 1, 1, 1, 1, 1, 1.4),
    transfer=0.1,
)
YOURS, BEST = "yours", "your best so far"
GAME = f"20.makespan of {MICROBATCHES} on {RANKS} with {LIMIT}"
_COLOURS = {YOURS: "#0072b2", BEST: "#56b4e9"}
_OTHERS = "#999999"


@dataclass(frozen=True)
class Entry:
    """One line: how long it takes and what it keeps at most; or no time, and in `note` why it is not ranked."""

    name: str
    makespan: float | None
    peak: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is ranked."""
        return self.makespan is not None


@dataclass(frozen=True)
class Board:
    """The entries, the fastest first; what is not ranked comes last."""

    entries: tuple[Entry, ...]
    title: str = f"{STAGES} uneven stages, {MICROBATCHES} microbatches, {RANKS} ranks with room for {LIMIT} activations"

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    def __repr__(self) -> str:
        lines = [self.title]
        for entry in self.entries:
            time = f"{entry.makespan:.1f}" if entry.ok else "not ranked"
            lines.append(f"{entry.name:18} {time:>10}   {_remark(entry)}".rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        ranked = [entry for entry in self.entries if entry.ok]
        longest = max(entry.makespan for entry in ranked)
        rows = [(e.name, f"{e.makespan:.1f}", e.makespan / longest, _COLOURS.get(e.name, _OTHERS)) for e in ranked]
        refused = [f"Not ranked: {entry.name}, {entry.note}." for entry in self.entries if not entry.ok]
        return display.bars_html(f"{self.title}: makespan, less is better", rows, " ".join(refused))


def leaderboard(schedule: Schedule) -> Board:
    """Validate and simulate a schedule of 8 stages and 12 microbatches on 4 ranks, and rank it.

    What is of another size, cannot be run, or keeps too much is not ranked, and the board says why.
    """
    yours = judged(YOURS, schedule)
    entries = [yours, *_others()]
    before = progress.load().bests.get(GAME)
    if yours.ok:
        progress.best(GAME, yours.makespan)
    if before is not None and (not yours.ok or before < yours.makespan):
        entries.append(Entry(BEST, before))
    entries.sort(key=lambda entry: (not entry.ok, entry.makespan or 0.0))
    return Board(tuple(entries))


def judged(name: str, schedule: Schedule) -> Entry:
    """The entry of one schedule."""
    if not isinstance(schedule, Schedule):
        return Entry(name, None, note=f"a Schedule is wanted, got {type(schedule).__name__}")
    size = (schedule.num_ranks, schedule.num_stages, schedule.num_microbatches, schedule.num_replicas)
    if size != (RANKS, STAGES, MICROBATCHES, 1):
        words = f"{size[0]} ranks, {size[1]} stages, {size[2]} microbatches and {size[3]} replicas"
        return Entry(name, None, note=f"it has {words}; {RANKS}, {STAGES}, {MICROBATCHES} and 1 are wanted")
    if found := validate(schedule).problems:
        return Entry(name, None, note=f"it cannot be run: {found[0]}")
    timeline = simulate(schedule, COSTS)
    peak = timeline.peak()
    if peak > LIMIT:
        rank = timeline.peaks.index(peak)
        return Entry(name, None, peak, note=f"rank {rank} keeps {peak:g}, and has room for {LIMIT}")
    return Entry(name, round(timeline.makespan, 6), peak)


def neighbours(schedule: Schedule) -> Schedule:
    """A schedule of one stage a rank, with each stage cut in two that stay on the rank: stages 2r and 2r + 1."""
    ranks = tuple(rank for rank in range(schedule.num_ranks) for _ in range(2))
    orders = []
    for order in schedule.orders:
        orders.append([])
        for action in order:
            both = (2 * action.stage, 2 * action.stage + 1)
            both = both if action.kind is Kind.F else both[::-1]
            orders[-1] += [Action(action.kind, stage, action.microbatch) for stage in both]
    return Schedule(schedule.name, Placement("neighbours", (ranks,)), schedule.num_microbatches, orders)


@cache
def _others() -> tuple[Entry, ...]:
    """What the learner's entry is ranked against."""
    one_stage = {"GPipe": gpipe, "1F1B": one_f_one_b, "ZB-H1": zb_h1, "ZB-H2": zb_h2}
    two_stages = {"interleaved": interleaved, "ZB-V": zb_v, "V-Half": v_half, "V-Min": v_min, "DualPipeV": dualpipe_v}
    made = {name: neighbours(make(RANKS, MICROBATCHES)) for name, make in one_stage.items()}
    made |= {name: make(RANKS, MICROBATCHES) for name, make in two_stages.items()}
    return tuple(judged(name, schedule) for name, schedule in made.items())


def _remark(entry: Entry) -> str:
    peak = f"keeps {entry.peak:g}" if entry.ok and entry.peak is not None else ""
    return ", ".join(filter(None, (entry.note, peak)))
