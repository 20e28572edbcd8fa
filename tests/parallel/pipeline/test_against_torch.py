"""torch.distributed.pipelining makes the same orders, reads our files, and writes files that we read.

Its generators are run as they are. They take stages, of which they ask only how many there are: stand-ins will do.
"""

from types import SimpleNamespace

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from llmsys.parallel.pipeline import (
    SCHEDULES,
    Schedule,
    dualpipe_v,
    from_csv,
    interleaved,
    to_csv,
    validate,
    zb_h1,
    zb_v,
)

SIZES = [(1, 2), (2, 4), (3, 6), (4, 8), (4, 9), (4, 17), (6, 12), (8, 20)]


def torch_order(generator: str, ranks: int, chunks: int, microbatches: int) -> dict[int, list]:
    """What torch's class makes for each rank, with its idle slots."""
    stages = [
        SimpleNamespace(group_size=ranks, group_rank=0, num_stages=ranks * chunks, stage_index=chunk * ranks,
                        is_first=chunk == 0, is_last=chunk == chunks - 1, submod=None, has_backward=True)
        for chunk in range(chunks)
    ]  # fmt: skip
    made = getattr(torch_schedules, generator)(stages, microbatches, loss_fn=lambda output, target: 0)
    return made.pipeline_order


def as_text(orders: dict[int, list]) -> list[list[str]]:
    return [[str(action) for action in orders[rank] if action is not None] for rank in range(len(orders))]


def ours(schedule: Schedule) -> list[list[str]]:
    return [[str(action) for action in order] for order in schedule.orders]


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize(("p", "m"), [(1, 2), (2, 4), (3, 9), (4, 2), (4, 3), (4, 7), (4, 10), (4, 12), (8, 16)])
def test_interleaved_1f1b_is_torchs(p, m, chunks):
    assert ours(interleaved(p, m, chunks)) == as_text(torch_order("ScheduleInterleaved1F1B", p, chunks, m))


@pytest.mark.parametrize(("p", "m"), [(1, 2), (2, 4), (3, 9), (4, 2), (4, 3), (4, 7), (4, 12), (8, 16)])
def test_zb_h1_is_torchs_zb1p(p, m):
    assert ours(zb_h1(p, m)) == as_text(torch_order("ScheduleInterleavedZeroBubble", p, 1, m))


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 1), (4, 5), (6, 10)])
def test_zb_v_is_torchs(p, m):
    assert ours(zb_v(p, m)) == as_text(torch_order("ScheduleZBVZeroBubble", p, 2, m))


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_dualpipe_v_is_torchs(p, m):
    assert ours(dualpipe_v(p, m)) == as_text(torch_order("ScheduleDualPipeV", p, 2, m))


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"chimera", "dualpipe"}))  # torch has no replicas
def test_torch_reads_every_cell_and_finds_the_schedule_valid(name):
    schedule = SCHEDULES[name](4, 8)
    read = {
        rank: [torch_schedules._Action.from_str(cell) for cell in row.split(",")]
        for rank, row in enumerate(to_csv(schedule).splitlines())
    }
    assert as_text(read) == ours(schedule)
    owners = torch_schedules._validate_schedule(
        read, schedule.num_ranks, schedule.num_stages, schedule.num_microbatches
    )
    assert [owners[stage] for stage in range(schedule.num_stages)] == list(schedule.placement.ranks[0])


def test_files_with_torchs_idle_slots_are_read():
    order = torch_order("ScheduleZBVZeroBubble", 3, 2, 7)
    text = "\n".join(",".join("" if action is None else str(action) for action in order[rank]) for rank in range(3))
    assert ",," in text
    assert from_csv(text + "\n", "zb-v") == zb_v(3, 7)
    assert validate(from_csv(text)).valid
