"""Who sends what to whom, and whether they can wait for each other in a circle.

An action's result goes to the rank that needs it: F's output to the next stage's rank, I's gradient to the one before.
`programs` writes these transfers between the actions of a schedule, as each rank will do them one after the other.

**What a blocking send is.** A send ends when its receive has begun, a rendezvous: nothing is buffered, as with large
messages in MPI. The transfers of one `Exchange` begin together (as in torch.distributed.batch_isend_irecv), and the
rank goes on when all of them have ended. If the programs come to their end that way, a schedule needs no buffers but
the tensors themselves. Four ways to place the transfers, the first three on 2 ranks with 1F1B:

    apart       rank 0   F0  →F0  F1  →F1  ←B0  B0  …           each alone: sent at once, received before it is needed
                rank 1   ←F0  F0  B0  →B0  ←F1  F1  …
    together    rank 0   F0  →F0  F1  {→F1 ←B0}  B0  …          what stands between two actions begins together
                rank 1   ←F0  F0  B0  {→B0 ←F1}  F1  …
    early       rank 0   F0  →F0  F1  {→F1 ←B0}  B0  …          together, and received as soon as it is there: in
                rank 1   ←F0  F0  ←F1  B0  →B0  F1  …           the first pause after the sender has it

    late        together, and received in the last pause before it is needed, or before something is needed that the
                same rank sends after it

Apart, 1F1B hangs: rank 0 sends F1 to rank 1, while that one sends B0's gradient to rank 0. Together, it runs, and that
is how Megatron-LM's send_forward_recv_backward does it. But a rank that receives only what it needs next makes others
wait who are further ahead: interleaved 1F1B, ZB-H2, ZB-V, V-Half and DualPipe hang. (DualPipe's own code moves some
sends by hand, for that reason.)

Early, no schedule without a circle hangs. Take the times of a run with equal costs. Say that a rank stands in the
pause before an action that starts at t in that run. A transfer that it waits for was there by t, as sent by the other
rank after an action that ended by t, or as received by it in the first pause after such an end. So if the other one
has not come to it, it stands in a pause before an action that starts earlier than t. From rank to rank t falls, so
nobody comes back to the first. (`validate` looks all the same.)

Late is for sends that do not block, as a worker's (`llmsys.parallel.execute.worker`). Then a rank waits for nothing but
results, and the schedule's own order has no circle. A receive that has begun and has nothing to receive is not free:
with NCCL it is a kernel, which occupies some of the GPU's SMs while the rank computes on the others. Late, it is the
send that waits, if one of them must, and a send that fits into buffers does not.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llmsys.parallel.pipeline.actions import Action
from llmsys.parallel.pipeline.dependencies import Rule, dependencies, where_done
from llmsys.parallel.pipeline.schedule import Schedule
from llmsys.parallel.pipeline.simulate import simulate
from llmsys.parallel.pipeline.timeline import Event, Timeline

Places = Mapping[Action, tuple[int, int]]
"""Where elementary actions are done: rank, and place in its order."""

Transfers = Literal["early", "late", "together", "apart"]
"""Where transfers stand, and whether those of a pause begin together."""


@dataclass(frozen=True, order=True)
class Transfer:
    """The result of an F or an I (`of`, an elementary action) goes from rank to rank."""

    of: Action
    source: int
    destination: int


@dataclass(frozen=True)
class Exchange:
    """Transfers of a rank that begin together; the rank goes on when all have ended."""

    transfers: tuple[Transfer, ...]


Program = tuple[Action | Exchange, ...]
"""What a rank does, transfers included."""


@dataclass(frozen=True)
class Wait:
    """A rank cannot end a transfer, because `other`, at its other end, has not come to it."""

    rank: int
    transfer: Transfer
    other: int

    def __str__(self) -> str:
        if self.rank == self.transfer.source:
            return f"rank {self.rank} waits to send {self.transfer.of} to rank {self.other}"
        return f"rank {self.rank} waits to receive {self.transfer.of} from rank {self.other}"


def programs(
    schedule: Schedule, transfers: Transfers = "early", *, dependencies: Rule = dependencies
) -> tuple[Program, ...]:
    """Each rank's actions, and the transfers in the pauses between them, sends first.

    The schedule must have every action exactly once and no circle (`validate`).
    """
    if transfers not in get_args(Transfers):
        raise ValueError(f'transfers must be "early", "late", "together" or "apart", got {transfers!r}')
    place = where_done(schedule)
    needed: dict[Transfer, int] = {}  # the place of the action that it is for
    for rank, position, action in schedule.actions():
        for before in dependencies(action, schedule.num_stages):
            if place[before][0] != rank:
                needed[Transfer(before, place[before][0], rank)] = position
    received_at = needed
    if transfers == "early":
        events = simulate(schedule, dependencies=dependencies).events
        received_at = {each: _first_pause_with(each, place, events) for each in needed}
    elif transfers == "late":
        received_at = _no_later_than_followers(needed, place)
    # sent[rank][n] and received[rank][n] are those in the pause before the rank's n-th action
    sent: list[list[list[Transfer]]] = [[[] for _ in range(len(order) + 1)] for order in schedule.orders]
    received: list[list[list[Transfer]]] = [[[] for _ in range(len(order) + 1)] for order in schedule.orders]
    for transfer, position in received_at.items():
        sent[transfer.source][place[transfer.of][1] + 1].append(transfer)
        received[transfer.destination][position].append(transfer)
    return tuple(
        tuple(_program(order, sent[rank], received[rank], transfers != "apart"))
        for rank, order in enumerate(schedule.orders)
    )


def _first_pause_with(transfer: Transfer, place: Places, events: Sequence[Sequence[Event]]) -> int:
    """Before which action of the receiver the result is there, in that run."""
    rank, position = place[transfer.of]
    there = events[rank][position].end
    return bisect_left(events[transfer.destination], there, key=lambda event: event.start)


def _no_later_than_followers(needed: Mapping[Transfer, int], place: Places) -> dict[Transfer, int]:
    """For each transfer the first place where it, or one that its sender sends to the same rank after it, is needed."""
    first: dict[tuple[int, int], int] = {}  # by source and destination, of those that came so far
    found = {}
    for each in sorted(needed, key=lambda each: (place[each.of], each), reverse=True):  # what is sent last comes first
        way = each.source, each.destination
        found[each] = first[way] = min(first.get(way, needed[each]), needed[each])
    return found


def _program(
    order: Sequence[Action], sent: list[list[Transfer]], received: list[list[Transfer]], together: bool
) -> Iterator[Action | Exchange]:
    for position, (leaving, arriving) in enumerate(zip(sent, received, strict=True)):
        pause = sorted(leaving) + sorted(arriving)
        if together and pause:
            yield Exchange(tuple(pause))
        elif not together:
            yield from (Exchange((transfer,)) for transfer in pause)
        if position < len(order):
            yield order[position]


def circle(rank_programs: Sequence[Program]) -> tuple[Wait, ...]:
    """Who waits for whom in a circle when the programs are run with blocking sends; empty if they come to their end.

    Computing is of no interest here, it always ends: a rank stands at an exchange until each of its transfers has been
    begun at the other end as well.
    """
    place = [0] * len(rank_programs)
    begun: set[tuple[Transfer, int]] = set()  # a transfer and the rank that has come to it
    ended: set[Transfer] = set()
    runnable = list(range(len(rank_programs)))
    while runnable:
        rank = runnable.pop()
        program = rank_programs[rank]
        while place[rank] < len(program):
            step = program[place[rank]]
            if isinstance(step, Exchange):
                for transfer in step.transfers:
                    if (transfer, rank) in begun:
                        continue
                    begun.add((transfer, rank))
                    other = _other(transfer, rank)
                    if (transfer, other) in begun:
                        ended.add(transfer)
                        runnable.append(other)
                if not ended.issuperset(step.transfers):
                    break
            place[rank] += 1
    waits = {}
    for rank, program in enumerate(rank_programs):
        if place[rank] < len(program):
            transfer = next(each for each in program[place[rank]].transfers if each not in ended)
            waits[rank] = Wait(rank, transfer, _other(transfer, rank))
    return _walk(waits)


def waiting_beside(
    schedule: Schedule, timeline: Timeline, transfers: Transfers, *, sends: bool = True
) -> dict[Action, float]:
    """For each action, the share of its time (0 to 1) in which a transfer of its rank waited for the other rank.

    A rank begins the transfers of a pause when the action before has ended, and computes on (unlike above, where it
    waits). A transfer waits while one rank has begun it and the other one has not: with NCCL, a kernel on the GPU that
    computes meanwhile.

    timeline    a run of `schedule`, simulated or measured, with the transfers placed as `transfers` says
    sends       False: receives alone count, as where every send fits into buffers

    Raises ValueError where the timeline has other actions, or another order.
    """
    if [[event.action for event in row] for row in timeline.events] != [list(order) for order in schedule.orders]:
        raise ValueError(f"timeline must be a run of {schedule.name}: each rank's actions in the schedule's order")
    begun: dict[tuple[Transfer, int], float] = {}
    for rank, program in enumerate(programs(schedule, transfers)):
        now, events = timeline.start, iter(timeline.events[rank])
        for step in program:
            if isinstance(step, Exchange):
                begun |= {(transfer, rank): now for transfer in step.transfers}
            else:
                now = next(events).end
    waits: list[list[tuple[float, float]]] = [[] for _ in schedule.orders]
    for (transfer, rank), at in begun.items():
        if sends or rank == transfer.destination:
            waits[rank].append((at, begun[transfer, _other(transfer, rank)]))
    shares = {}
    for rank, row in enumerate(timeline.events):
        for event in row:
            covered, until = 0.0, event.start
            for at, met in sorted(waits[rank]):
                at, met = max(at, until), min(met, event.end)
                if at < met:
                    covered, until = covered + met - at, met
            shares[event.action] = covered / event.duration if event.duration else 0.0
    return shares


def _walk(waits: dict[int, Wait]) -> tuple[Wait, ...]:
    """From any rank that waits, follow who it waits for until one comes up again."""
    if not waits:
        return ()
    path: list[int] = []
    rank = min(waits)
    while rank not in path:
        path.append(rank)
        if rank not in waits:  # it has ended without the other end of the transfer: the programs do not match
            return tuple(waits[each] for each in path[:-1])
        rank = waits[rank].other
    return tuple(waits[each] for each in path[path.index(rank) :])


def _other(transfer: Transfer, rank: int) -> int:
    return transfer.destination if rank == transfer.source else transfer.source
