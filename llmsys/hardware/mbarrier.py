"""mbarrier: how warps of an SM wait for each other and for the copy engine, as a simulation to play with.

A barrier in shared memory counts. Its *phase* ends when as many warps have arrived as it expects, and all bytes that
were announced to it have been copied; then it counts from the beginning, for the next phase. Whoever waits names a
*parity*, 0 or 1, and goes on if the last phase that ended has that parity:

    barrier = Barrier(count=2)
    barrier.wait(0)                     # False: phase 0 has not ended
    barrier.arrive(); barrier.arrive()
    barrier.wait(0), barrier.wait(1)    # True, False: phase 0 has ended, phase 1 is under way

The barrier does not know how many phases a warp has seen. One that is two phases behind finds the parity of its own
phase again, and waits, perhaps for ever, or goes on too early: that is the price of a barrier of 8 bytes.

A `Ring` is a few slots for tiles, each with two barriers: `full`, for which the consumers wait, and `empty`, for which
the producer does. `play` runs a producer and consumers over it, one action at a time, and draws who is next. Roles are
generator functions that yield their actions:

    def consumer(ring, tiles):
        for i in range(tiles):
            slot, parity = i % ring.slots, i // ring.slots % 2
            yield Wait(ring.full[slot], parity)
            yield Read(slot)
            yield Arrive(ring.empty[slot])

Roles that are right for every seed do not rely on anyone being fast. Two mistakes are named: `Deadlock`, nobody can go
on; `Race`, a tile is overwritten before all consumers have read it, or read before it is there.

(PTX, "mbarrier", https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-
instructions-mbarrier: `try_wait.parity`, `arrive.expect_tx`, `complete_tx`. The ring of a real kernel is
`llmsys.attention.hopper.ring`; `llmsys.attention.hopper.simulated` runs all of that kernel over these barriers.)

The barrier, the ring and the actions are in `llmsys.hardware.barrier`; all of it can be imported from here.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from llmsys.hardware.barrier import Action, Arrive, Barrier, Copy, Deadlock, Expect, Race, Read, Ring, Wait

__all__ = [
    "Action", "Arrive", "Barrier", "BarrierState", "Copy", "Deadlock", "Event", "Expect", "Race", "Read", "Ring",
    "Role", "Trace", "Wait", "consumer", "play", "producer", "warp",
]  # fmt: skip

Role = Callable[[Ring, int], Iterator[Action]]
"""`role(ring, tiles)`: a generator of the actions of one warp."""


def producer(ring: Ring, tiles: int) -> Iterator[Action]:
    """Copy tiles 0, 1, … into the slots in turn, each as soon as its slot is empty.

    Slots begin empty: the first round waits with parity 1, that of the phase before the first.
    """
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        yield Wait(ring.empty[slot], (use + 1) % 2)
        yield Expect(ring.full[slot], ring.tile_bytes)
        yield Copy(i, slot)


def consumer(ring: Ring, tiles: int) -> Iterator[Action]:
    """Read every tile, and give its slot back."""
    for i in range(tiles):
        slot, use = i % ring.slots, i // ring.slots
        yield Wait(ring.full[slot], use % 2)
        yield Read(slot)
        yield Arrive(ring.empty[slot])


def warp(role: str, ring: Ring, tiles: int) -> Iterator[Action]:
    """Both roles in one function: `role` is "producer" or "consumer"."""
    return (producer if role == "producer" else consumer)(ring, tiles)


# Running roles over a ring


@dataclass(frozen=True)
class BarrierState:
    """A barrier at one moment; the fields are those of `Barrier`."""

    name: str
    phase: int
    missing: int
    nbytes: int


@dataclass(frozen=True)
class Event:
    """One action, and how things stand after it.

    who      "producer", "consumer 0", …, or "copy engine"
    text     what was done, in words
    tiles    what each slot holds: a tile's number, or None
    copying  for each slot, whether that tile is still being copied
    waiting  who cannot go on, and the wait: {"consumer 0": "wait for parity 0 of full[0]"}
    """

    who: str
    text: str
    tiles: tuple[int | None, ...]
    copying: tuple[bool, ...]
    full: tuple[BarrierState, ...]
    empty: tuple[BarrierState, ...]
    waiting: dict[str, str]


@dataclass
class Trace:
    """All events of a `play`, in order. `reads` lists, for each consumer, the tiles that it found, in order."""

    slots: int
    tiles: int
    events: list[Event] = field(default_factory=list)
    reads: list[list[int]] = field(default_factory=list)


def play(
    producer: Role = producer, consumers: Sequence[Role] = (consumer,), slots: int = 2, tiles: int = 8, seed: int = 0
) -> Trace:
    """Run a producer and consumers over a new ring, one action at a time; `seed` draws who is next.

    A copy ends at a moment of its own, in no order with other copies.

    Raises
    ------
    Deadlock
        Nobody can go on; says who waits for which parity of which barrier, and why it cannot come.
    Race
        A slot is overwritten or read too early, a barrier gets too many arrivals, or a consumer does not read all.
    ValueError
        A role yields something that is not an action, or one that is not of this ring.
    """
    return _Game(producer, consumers, slots, tiles, random.Random(seed)).play()


class _Warp:
    """A role that is being played: its generator, and the action that it wants to do next, None at its end."""

    def __init__(self, name: str, role: Role, ring: Ring, tiles: int):
        self.name, self.actions, self.reads = name, role(ring, tiles), []
        if not hasattr(self.actions, "send"):
            raise ValueError(f"{name} must be a generator function, which yields actions; it returned {self.actions!r}")
        self.next = None
        self.advance(None)

    def advance(self, answer) -> None:
        try:
            self.next = self.actions.send(answer)
        except StopIteration:
            self.next = None
            return
        if not isinstance(self.next, Action):
            raise ValueError(f"{self.name} must yield Wait, Arrive, Expect, Copy or Read, and yielded {self.next!r}")

    def ready(self) -> bool:
        return self.next is not None and not self.waits()

    def waits(self) -> bool:
        return isinstance(self.next, Wait) and not self.next.barrier.wait(self.next.parity)


class _Game:
    """A run of roles over a ring: who can go on, which copies are under way, and the events so far."""

    def __init__(self, producer: Role, consumers: Sequence[Role], slots: int, tiles: int, draw: random.Random):
        self.ring = ring = Ring(slots, len(consumers))
        self.tiles, self.draw = tiles, draw
        self.holds: list[int | None] = [None] * slots
        self.copies: list[Copy] = []  # those under way
        self.producer = _Warp("producer", producer, ring, tiles)
        self.consumers = [_Warp(f"consumer {j}", role, ring, tiles) for j, role in enumerate(consumers)]
        self.warps = [self.producer, *self.consumers]
        self.trace = Trace(slots, tiles, [], [warp.reads for warp in self.consumers])

    def play(self) -> Trace:
        try:
            while any(warp.next for warp in self.warps) or self.copies:
                choices = [warp for warp in self.warps if warp.ready()] + self.copies
                if not choices:
                    raise Deadlock(self._deadlock())
                choice = self.draw.choice(choices)
                if isinstance(choice, Copy):
                    self._land(choice)
                else:
                    action = choice.next
                    choice.advance(self._do(choice, action))
                    self._note(choice.name, str(action))
            for warp in self.consumers:
                if len(warp.reads) < self.tiles:
                    raise Race(f"{warp.name} has ended after {len(warp.reads)} of {self.tiles} tiles")
        except (Race, Deadlock) as error:
            error.trace = self.trace
            raise
        return self.trace

    def _do(self, warp: _Warp, action: Action) -> int | None:
        slot = getattr(action, "slot", 0)
        if not 0 <= slot < self.ring.slots:
            raise ValueError(f"{warp.name}: there is no slot {slot}; slots are 0 to {self.ring.slots - 1}")
        match action:
            case Arrive():
                action.barrier.arrive()
            case Expect():
                action.barrier.expect_bytes(action.nbytes)
            case Copy():
                self._start(warp, action)
            case Read():
                return self._read(warp, slot)
        return None

    def _start(self, warp: _Warp, copy: Copy) -> None:
        there = self.holds[copy.slot]
        if any(each.slot == copy.slot for each in self.copies):
            raise Race(f"{warp.name} copies tile {copy.tile} into slot {copy.slot}, while tile {there} is being copied")
        for each in self.consumers:
            if there is not None and len(each.reads) <= there:
                raise Race(
                    f"{warp.name} copies tile {copy.tile} into slot {copy.slot}, and {each.name} has not read "
                    f"tile {there}, which is there"
                )
        self.holds[copy.slot] = copy.tile
        self.copies.append(copy)

    def _land(self, copy: Copy) -> None:
        self.copies.remove(copy)
        self.ring.full[copy.slot].copied(self.ring.tile_bytes)
        self._note("copy engine", f"tile {copy.tile} is in slot {copy.slot}")

    def _read(self, warp: _Warp, slot: int) -> int:
        wanted, found = len(warp.reads), self.holds[slot]
        if found != wanted or any(each.slot == slot for each in self.copies):
            what = "nothing" if found is None else f"tile {found}"
            if any(each.slot == slot for each in self.copies):
                what = f"tile {found}, which is still being copied"
            raise Race(f"{warp.name} reads slot {slot}, wants tile {wanted}, and finds {what}")
        warp.reads.append(found)
        return found

    def _note(self, who: str, text: str) -> None:
        copying = {copy.slot for copy in self.copies}
        full, empty = (
            tuple(BarrierState(each.name, each.phase, each.missing, each.nbytes) for each in barriers)
            for barriers in (self.ring.full, self.ring.empty)
        )
        self.trace.events.append(
            Event(
                who, text, tuple(self.holds), tuple(slot in copying for slot in range(self.ring.slots)), full, empty,
                {warp.name: str(warp.next) for warp in self.warps if warp.waits()},
            )
        )  # fmt: skip

    def _deadlock(self) -> str:
        return "; ".join(f"{warp.name} waits for {self._why(warp.next)}" for warp in self.warps if warp.next)

    def _why(self, wait: Wait) -> str:
        barrier = wait.barrier
        needs = []
        if barrier.missing:
            needs.append(f"{barrier.missing} of {barrier.count} arrivals")
        if barrier.nbytes > 0:
            needs.append(f"{barrier.nbytes} bytes, of which no copy is under way")
        elif barrier.nbytes:
            needs.append(f"somebody to announce {-barrier.nbytes} bytes that have been copied")
        said = (
            f"parity {wait.parity} of {barrier.name}, which is in phase {barrier.phase}, of the same parity: "
            f"to end, it needs {' and '.join(needs)}"
        )
        if not barrier.missing:
            return said
        if barrier in self.ring.empty and self.holds[self.ring.empty.index(barrier)] is None:
            return f"{said}, and no tile has been in the slot that a consumer could give back"
        others = [self.producer] if barrier in self.ring.full else self.consumers
        stuck = (f"{each.name} {'waits' if each.next else 'has ended'}" for each in others)
        return f"{said}, and {', '.join(stuck)}"
