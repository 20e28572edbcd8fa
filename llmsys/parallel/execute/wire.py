"""Wires: how a result gets from rank to rank.

A worker (`llmsys.parallel.execute.worker`) begins the transfers of a pause all at once, goes on computing, and waits
for a result where an action needs it. Two kinds of wire do that:

    MadeUpWire    all ranks in one process: a dictionary. What is received before it was sent is an error, not a wait
    RankWire      torch.distributed between processes: gloo on CPUs, NCCL on GPUs

Both sides of a transfer know it by the schedule alone, so nothing is negotiated. gloo matches messages by a number, the
transfer's place among all of the schedule's. NCCL has no numbers: between two ranks the n-th send meets the n-th
receive, so a pause's receives are begun in the order in which their sender computes them (`in_order`).

And with NCCL the transfers of a group are a queue at each rank: those that begin together end together, and later ones
begin when they have ended. Even those that begin together come in turn, a send and a receive at a time: of two sends
and a receive, the second send begins when the receive has ended. If what is received was made of that send, both wait
for ever. (So it went with one group for both directions: DualPipe-V on four ranks, and by the same rule DualPipe, too,
on eight. `tests/parallel/execute/test_queues.py` plays it.) So each direction between two ranks has a group of its own,
in which one of them only sends and the other only receives, in the order of the sender's work.

A transfer that waits is a kernel that waits, and its blocks take some of the GPU's SMs from what is computed beside it.
A send that fits into NCCL's buffers does not wait for its receive, but a receive always waits for its data: it begins
only when they are needed (*late* in `programs`; `python -m llmsys.bench transfers` measures both).
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
        self._groups: dict[tuple[int, int], object] = {}  # by source and destination
        self._sending: list[tuple] = []
        ranks = dist.get_process_group_ranks(group)
        for way in sorted({(each.source, each.destination) for each in transfers}):
            both = dist.new_group([ranks[each] for each in way])  # all ranks make all groups, in one order
            if self._rank in way:
                self._groups[way] = both
                self._connect(way)

    def _connect(self, way: tuple[int, int]) -> None:
        """Send something this way, or receive it. NCCL connects two ranks in their first transfer, and whoever comes to
        that first waits for the other: in a step it may be the one that the other waits for."""
        self._begin(way, [(torch.zeros(1, device=device()), 0)])[0].wait()

    def _begin(self, way: tuple[int, int], moves: Sequence[tuple[Tensor, int]]) -> list:
        """Begin to send or receive tensors, by their tags, together; a work for each."""
        dist, (source, destination) = self._dist, way
        operation, other = (dist.isend, destination) if source == self._rank else (dist.irecv, source)
        place = sorted(way).index(other)  # in the group
        works = dist.batch_isend_irecv(
            [dist.P2POp(operation, x, group=self._groups[way], tag=tag, group_peer=place) for x, tag in moves]
        )
        return works if len(works) == len(moves) else works * len(moves)  # NCCL joins what begins together

    def exchange(
        self, sends: Sequence[tuple[Transfer, Tensor]], receives: Sequence[tuple[Transfer, Tensor]]
    ) -> list[Arrival]:
        moves = [(each, x.contiguous()) for each, x in sends] + list(receives)
        begun: dict[Transfer, tuple] = {}  # the work, and the tensor
        for way in dict.fromkeys((each.source, each.destination) for each, _ in moves):  # those of sends first
            these = [(each, x) for each, x in moves if (each.source, each.destination) == way]
            works = self._begin(way, [(x, self._tags[each]) for each, x in these])
            begun |= {each: (work, x) for work, (each, x) in zip(works, these, strict=True)}
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
