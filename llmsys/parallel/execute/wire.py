"""Wires: how a result gets from rank to rank.

A worker (`llmsys.parallel.execute.worker`) begins the transfers of a pause all at once, goes on computing, and waits
for a result where an action needs it. Two kinds of wire do that:

    MadeUpWire    all ranks in one process: a dictionary. What is received before it was sent is an error, not a wait
    RankWire      torch.distributed between processes: gloo on CPUs, NCCL on GPUs

Both sides of a transfer know it by the schedule alone, so nothing is negotiated. gloo matches messages by a number, the
transfer's place among all of the schedule's. NCCL has no numbers: between two ranks the n-th send meets the n-th
receive, so a pause's receives are begun in the order in which their sender computes them (`in_order`).

And with NCCL the transfers of a group are a queue at each rank: those that begin together end together, and later ones
begin when they have ended. In one group of all ranks a send to the next rank would be behind a receive from the one
before, whose sender may be later than in the run with equal costs by which `programs` places transfers. So two ranks
that have something to send each other have a group of their own. Between two ranks a queue costs nothing: the receiver
of the one transfer is the sender of the other, and busy. (torch does so itself, for sends and receives that are in no
batch.)
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmsys.parallel.pipeline import Exchange, Schedule, Transfer, where_done
from llmsys.parallel.ranks import device

Arrival = Callable[[], Tensor]
"""Call it for the tensor; it waits until that is there. (On a GPU the stream waits, not the program.)"""


class Wire(Protocol):
    """What a worker needs of one."""

    def exchange(
        self, sends: Sequence[tuple[Transfer, Tensor]], receives: Sequence[tuple[Transfer, Tensor]]
    ) -> list[Arrival]:
        """Begin these transfers together: of `sends` the tensors go away, those of `receives` are filled. For each of
        `receives` its arrival."""

    def finish(self) -> None:
        """Return when all that was sent may be changed again."""


class MadeUpWire:
    """Between ranks that share a process, one of which computes at a time."""

    def __init__(self) -> None:
        self.under_way: dict[Transfer, Tensor] = {}

    def exchange(
        self, sends: Sequence[tuple[Transfer, Tensor]], receives: Sequence[tuple[Transfer, Tensor]]
    ) -> list[Arrival]:
        self.under_way |= dict(sends)
        return [lambda transfer=transfer: self._arrive(transfer) for transfer, _ in receives]

    def _arrive(self, transfer: Transfer) -> Tensor:
        if transfer not in self.under_way:
            raise RuntimeError(f"{transfer.of} was not sent to rank {transfer.destination} yet")
        return self.under_way.pop(transfer)

    def finish(self) -> None:
        pass


class RankWire:
    """Between the ranks of a torch.distributed group. Rank r of the schedule is rank r of the group.

    All ranks make one at the same time. Raises ValueError where there are not as many as the schedule has.
    """

    def __init__(self, schedule: Schedule, transfers: Sequence[Transfer], group=None):
        import torch.distributed as dist  # here: torch builds without it can still run schedules in one process

        if dist.get_world_size(group) != schedule.num_ranks:
            raise ValueError(
                f"{schedule.name} is for {schedule.num_ranks} ranks, and there are {dist.get_world_size(group)}"
            )
        self._dist, self._rank = dist, dist.get_rank(group)
        self._tags = {transfer: tag for tag, transfer in enumerate(sorted(set(transfers)))}
        self._groups = {}  # by the rank at the other end
        self._sending: list[tuple] = []
        ranks = dist.get_process_group_ranks(group)
        for pair in sorted({tuple(sorted((each.source, each.destination))) for each in transfers}):
            both = dist.new_group([ranks[each] for each in pair])  # all ranks make all groups, in one order
            if self._rank in pair:
                self._groups[sum(pair) - self._rank] = both
                self._connect(sum(pair) - self._rank)

    def _connect(self, other: int) -> None:
        """Send something to a rank, and receive something.

        NCCL connects two ranks for a direction in the first transfers that have it. Until both have come to those, all
        that begins together with them waits, whatever its direction. In a step, the other rank may wait for just that.
        """
        dist, both = self._dist, self._groups[other]
        moves = [(way, torch.zeros(1, device=device())) for way in (dist.isend, dist.irecv)]
        works = dist.batch_isend_irecv(
            [dist.P2POp(way, x, group=both, group_peer=int(other > self._rank)) for way, x in moves]
        )
        for work in works:
            work.wait()

    def exchange(
        self, sends: Sequence[tuple[Transfer, Tensor]], receives: Sequence[tuple[Transfer, Tensor]]
    ) -> list[Arrival]:
        dist = self._dist
        begun: dict[Transfer, tuple] = {}  # the work, and the tensor
        for other, both in self._groups.items():
            out = [(dist.isend, each, x.contiguous()) for each, x in sends if each.destination == other]
            into = [(dist.irecv, each, x) for each, x in receives if each.source == other]
            if moves := out + into:
                works = dist.batch_isend_irecv(
                    [
                        dist.P2POp(way, x, group=both, tag=self._tags[each], group_peer=int(other > self._rank))
                        for way, each, x in moves
                    ]
                )
                works = works if len(works) == len(moves) else works * len(moves)  # NCCL joins what begins together
                begun |= {each: (work, x) for work, (_, each, x) in zip(works, moves, strict=True)}
        self._sending = [each for each in self._sending if not each[0].is_completed()]
        # Kept until it is sent; with gloo until `finish`, for gloo says so only to who waits.
        self._sending += [begun[each] for each, _ in sends]

        def arrival(work, x: Tensor) -> Arrival:
            def wait() -> Tensor:
                work.wait()
                return x

            return wait

        return [arrival(*begun[each]) for each, _ in receives]

    def finish(self) -> None:
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()


def in_order(program: Sequence, schedule: Schedule) -> tuple:
    """A rank's program (`llmsys.parallel.pipeline.programs`), each pause's transfers in the order of their sending."""
    place = where_done(schedule)

    def sorted_(step):
        if not isinstance(step, Exchange):
            return step
        return Exchange(tuple(sorted(step.transfers, key=lambda each: (each.source, place[each.of]))))

    return tuple(map(sorted_, program))
