"""NCCL's queues, played: with a group for each direction between two ranks no schedule hangs."""

from dataclasses import dataclass

import pytest

from llmsys.parallel.execute.wire import in_order
from llmsys.parallel.pipeline import (
    SCHEDULES,
    Action,
    Exchange,
    Schedule,
    Transfer,
    dependencies,
    make_schedule,
    programs,
)


@dataclass
class Turn:
    """What a rank does at a time in a group: a send, a receive, or one of each. It begins when the rank has done
    `after` actions, and all turns before it in this group are over."""

    under_way: set[Transfer]
    after: int


def of_a_direction(transfer: Transfer) -> tuple[int, int]:
    return transfer.source, transfer.destination


def of_a_pair(transfer: Transfer) -> tuple[int, int]:
    return min(of_a_direction(transfer)), max(of_a_direction(transfer))


class Queues:
    """A schedule on ranks that have put all their actions and transfers into queues before anything happens.

    `group_of` says in which group a transfer goes. `buffered`: a send ends by itself, as small ones do; else with the
    receive. `transfers`: where they stand, as for `programs`.
    """

    def __init__(self, schedule: Schedule, group_of, buffered: bool, transfers: str):
        self.schedule, self.group_of, self.buffered = schedule, group_of, buffered
        self.orders: list[list[Action]] = []
        self.queues: dict[tuple[int, tuple[int, int]], list[Turn]] = {}
        self.begun_with: dict[tuple[int, Action], list[Turn]] = {}  # (rank, what it receives): all that ends with it
        self.done, self.sent = [0] * schedule.num_ranks, set()
        for rank, program in enumerate(programs(schedule, transfers)):
            program = in_order(program, schedule)
            self.orders.append([step for step in program if not isinstance(step, Exchange)])
            after = 0
            for step in program:
                if isinstance(step, Exchange):
                    self.begin(rank, step.transfers, after)
                else:
                    after += 1

    def begin(self, rank: int, transfers, after: int) -> None:
        for group in dict.fromkeys(map(self.group_of, transfers)):
            these = [each for each in transfers if self.group_of(each) == group]
            sends = [each for each in these if each.source == rank]
            receives = [each for each in these if each.source != rank]
            turns = [
                Turn({*sends[n : n + 1], *receives[n : n + 1]}, after) for n in range(max(len(sends), len(receives)))
            ]
            self.queues.setdefault((rank, group), []).extend(turns)
            for each in receives:
                self.begun_with[rank, each.of] = turns

    def under_way(self, rank: int, group: tuple[int, int]) -> set[Transfer]:
        """What this rank's turn in a group would do now."""
        queue = self.queues[rank, group]
        while queue and not queue[0].under_way:
            queue.pop(0)
        return queue[0].under_way if queue and self.done[rank] >= queue[0].after else set()

    def moved(self) -> bool:
        """Whether anything could be done."""
        before = (list(self.done), sum(len(turn.under_way) for queue in self.queues.values() for turn in queue))
        for rank, group in list(self.queues):
            for each in list(mine := self.under_way(rank, group)):
                if each.source == rank:
                    theirs = self.under_way(each.destination, group)
                    if self.buffered:
                        self.sent.add(each)
                        mine.discard(each)
                    elif each in theirs:
                        mine.discard(each), theirs.discard(each)
                elif each in self.sent:
                    mine.discard(each)
        for rank, order in enumerate(self.orders):
            while self.done[rank] < len(order) and self.can_do(rank, order[self.done[rank]]):
                self.done[rank] += 1
        return before != (self.done, sum(len(turn.under_way) for queue in self.queues.values() for turn in queue))

    def can_do(self, rank: int, action: Action) -> bool:
        needed = [self.begun_with.get((rank, each), []) for each in dependencies(action, self.schedule.num_stages)]
        return not any(turn.under_way for turns in needed for turn in turns)

    def hang(self) -> bool:
        while self.moved():
            pass
        return any(done < len(order) for done, order in zip(self.done, self.orders, strict=True))


@pytest.mark.parametrize("transfers", ["late", "early"])
@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("name", SCHEDULES)
def test_with_a_group_for_each_direction_no_schedule_hangs(name, ranks, transfers):
    schedule = make_schedule(name, ranks, 2 * ranks)
    assert not any(Queues(schedule, of_a_direction, buffered, transfers).hang() for buffered in (True, False))


def test_with_one_group_for_two_ranks_those_hang_that_did_on_gpus():
    """On four H200s DualPipe-V hung and the ten others did not; on two none did. (Transfers came early then.)"""
    hung = {
        (name, ranks)
        for name in SCHEDULES
        for ranks in (2, 4)
        if Queues(make_schedule(name, ranks, 2 * ranks), of_a_pair, buffered=True, transfers="early").hang()
    }
    assert hung == {("dualpipe-v", 4)}
