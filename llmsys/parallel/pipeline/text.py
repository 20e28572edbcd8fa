"""Schedules as text, for people and for files, in torch.distributed.pipelining's notation.

    1F1B on 2 ranks, 3 microbatches         0F0,0F1,0B0,0F2,0B1,0B2
    rank 0: 0F0 0F1 0B0 0F2 0B1 0B2         1F0,1B0,1F1,1B1,1F2,1B2
    rank 1: 1F0 1B0 1F1 1B1 1F2 1B2

Left `to_text`, right `to_csv`: a row a rank, an action a cell, and an empty cell is none, so torch's own files can be
read and ours can be read by torch (`PipelineScheduleMulti._load_csv`). An action is stage, kind and microbatch, "2F5";
a pair is "(2F5;1B3)OVERLAP_F_B". A second replica's actions end in "r1", which torch has no notation for.

The placement is not written: a stage is on the rank where its actions are.
"""

import csv
import io
import re
from collections.abc import Sequence

from llmsys.parallel.pipeline.actions import Action, Kind, pair
from llmsys.parallel.pipeline.placement import Placement, bidirectional, linear, looped, v_shaped
from llmsys.parallel.pipeline.schedule import Schedule

_ACTION = re.compile(r"(\d+)([FBIW])(\d+)(?:r(\d+))?")
_PAIR = re.compile(r"\((.+);(.+)\)OVERLAP_F_B")
_HEAD = re.compile(r"(.*) on (\d+) ranks?, (\d+) microbatch(?:es)?")
_RANK = re.compile(r"rank (\d+):(.*\S)")


def to_text(schedule: Schedule) -> str:
    """A line that says what it is, then a line a rank."""
    ranks, microbatches = schedule.num_ranks, schedule.num_microbatches
    head = f"{schedule.name} on {_count(ranks, 'rank', 's')}, {_count(microbatches, 'microbatch', 'es')}"
    rows = [f"rank {rank}: {' '.join(map(str, order))}" for rank, order in enumerate(schedule.orders)]
    return "\n".join([head, *rows]) + "\n"


def from_text(text: str) -> Schedule:
    """The schedule that `to_text` wrote. The first line, and the beginnings "rank 0:", may be left out.

    ValueError, with the line, where that is not so: as for `from_rows`, and where the first line or a beginning says
    something else than the rows. A microbatch that the first line counts and no row has is left to `validate`.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    head = _HEAD.fullmatch(lines[0]) if lines else None
    rows = lines[1 if head else 0 :]
    for rank, row in enumerate(rows):
        if label := _RANK.fullmatch(row):
            if int(label[1]) != rank:
                raise ValueError(f"rows must be in the ranks' order, from 0; where rank {rank} should be is {row!r}")
            rows[rank] = label[2]
    if head and int(head[2]) != len(rows):
        raise ValueError(f"there must be a row for each rank; there are {len(rows)}, and the text begins {lines[0]!r}")
    return from_rows([row.split() for row in rows], head[1] if head else "read", int(head[3]) if head else 1)


def to_csv(schedule: Schedule) -> str:
    """A row a rank, an action a cell."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([map(str, order) for order in schedule.orders])
    return file.getvalue()


def from_csv(text: str, name: str = "read") -> Schedule:
    """The schedule of a CSV file's text, written by `to_csv` or by torch; `name` is what to call it."""
    try:
        rows = list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise ValueError(f"the text is no CSV: {error}") from None
    return from_rows(rows, name)


def parse(text: str) -> Action:
    """The action that prints as `text`. ValueError for anything else."""
    text = text.strip()
    if match := _PAIR.fullmatch(text):
        return pair(parse(match[1]), parse(match[2]))
    match = _ACTION.fullmatch(text)
    if not match:
        raise ValueError(
            f"{text!r} is no action: one is stage, kind and microbatch, as in 2F5, 2B5, 2I5 or 2W5, with r1 after it "
            "for the second replica, and a pair is (2F5;1B3)OVERLAP_F_B"
        )
    stage, kind, microbatch, replica = match.groups()
    return Action(Kind(kind), int(stage), int(microbatch), int(replica or 0))


def from_rows(rows: Sequence[Sequence[str]], name: str, num_microbatches: int = 1) -> Schedule:
    """A schedule of cells, a row a rank; empty ones are left out. It has at least `num_microbatches`.

    ValueError where a cell is no action, a stage is on two ranks, or one has no action at all; and where there are
    fewer actions than microbatches.
    """
    orders: list[list[Action]] = []
    filled = [row for row in rows if any(cell.strip() for cell in row)]  # a file may end in an empty line
    for rank, row in enumerate(filled):
        orders.append([])
        for column, cell in enumerate(row):
            if cell.strip():
                try:
                    orders[-1].append(parse(cell))
                except ValueError as error:
                    raise ValueError(f"rank {rank}, cell {column + 1}: {error}") from None
    halves = [half for order in orders for action in order for half in action.halves]
    if not halves:
        raise ValueError("the text has no action; a schedule has a row for each rank, as in 0F0,0B0")
    num_microbatches = max(num_microbatches, 1 + max(half.microbatch for half in halves))
    if num_microbatches > len(halves):
        raise ValueError(f"microbatches must have actions; there are {num_microbatches}, and {len(halves)} actions")
    return Schedule(name, _placement(orders), num_microbatches, orders)


def _placement(orders: list[list[Action]]) -> Placement:
    ranks: dict[tuple[int, int], int] = {}
    for rank, order in enumerate(orders):
        for half in (half for action in order for half in action.halves):
            owner = ranks.setdefault((half.replica, half.stage), rank)
            if owner != rank:
                raise ValueError(
                    f"stage {half.stage} is on rank {owner} and, with {half}, on rank {rank}; it has one rank"
                )
    num_replicas, num_stages = 1 + max(replica for replica, _ in ranks), 1 + max(stage for _, stage in ranks)
    for replica in range(num_replicas):
        for stage in range(num_stages):
            if (replica, stage) not in ranks:
                raise ValueError(
                    f"no rank does anything for stage {stage}" + (f" of replica {replica}" if replica else "")
                )
    table = tuple(tuple(ranks[replica, stage] for stage in range(num_stages)) for replica in range(num_replicas))
    P = len(orders)
    known = [linear(P), looped(P, max(1, num_stages // P)), v_shaped(P), bidirectional(P)]
    return next((each for each in known if each.ranks == table), Placement("own", table))


def _count(number: int, what: str, plural: str) -> str:
    return f"{number} {what}{plural if number != 1 else ''}"
