"""A barrier in shared memory, a ring of slots with two of them each, and the actions of whoever uses it.

What they are for, and how a program goes on when it has to wait: `llmsys.hardware.mbarrier`, which plays them.
"""

from dataclasses import dataclass


class Race(RuntimeError):
    """Something is read or overwritten that somebody else may not have finished with. `.trace`: what led to it."""


class Deadlock(RuntimeError):
    """Every role waits or has ended, and no copy is under way. `.trace`: what led to it."""


class Barrier:
    """An mbarrier whose phases end after `count` arrivals.

    phase     number of the phase that is under way, from 0; its parity is phase % 2
    missing   arrivals that this phase still needs
    nbytes    bytes that were announced in this phase and have not been copied
    """

    def __init__(self, count: int, name: str = "barrier"):
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.count, self.name = count, name
        self.phase, self.missing, self.nbytes = 0, count, 0

    def arrive(self, count: int = 1) -> None:
        """Arrive `count` times. Raises Race where the phase needs fewer arrivals: PTX leaves open what happens then."""
        self._change(count, 0)

    def expect_bytes(self, nbytes: int) -> None:
        """One arrival that announces bytes: the phase cannot end before they have been copied."""
        self._change(1, nbytes)

    def copied(self, nbytes: int) -> None:
        """The copy engine reports that it has written `nbytes`."""
        self._change(0, -nbytes)

    def wait(self, parity: int) -> bool:
        """Whether a warp that waits for this parity may go on: the phase before the present one has this parity.

        Before phase 0 there is, as it were, a phase of parity 1 that has ended.
        """
        if parity not in (0, 1):
            raise ValueError(f"parity must be 0 or 1, got {parity!r}")
        return self.phase % 2 != parity

    def _change(self, arrivals: int, nbytes: int) -> None:
        if arrivals > self.missing:
            raise Race(
                f"{self.name}: more arrivals in phase {self.phase} than the {self.count} that it counts; "
                "somebody arrives twice, or a phase too early"
            )
        self.missing -= arrivals
        self.nbytes += nbytes
        if self.missing == 0 and self.nbytes == 0:
            self.phase, self.missing = self.phase + 1, self.count


# The actions that a role may yield


@dataclass(frozen=True)
class Wait:
    """Go on when the barrier's last phase that ended has this parity."""

    barrier: Barrier
    parity: int

    def __str__(self):
        return f"wait for parity {self.parity} of {self.barrier.name}"


@dataclass(frozen=True)
class Arrive:
    """Arrive at a barrier."""

    barrier: Barrier

    def __str__(self):
        return f"arrive at {self.barrier.name}"


@dataclass(frozen=True)
class Expect:
    """Arrive at a barrier and announce bytes that will be copied."""

    barrier: Barrier
    nbytes: int

    def __str__(self):
        return f"arrive at {self.barrier.name} and announce {self.nbytes} bytes"


@dataclass(frozen=True)
class Copy:
    """Tell the copy engine to bring a tile into a slot. It reports the tile's bytes to the slot's full barrier."""

    tile: int
    slot: int

    def __str__(self):
        return f"start to copy tile {self.tile} into slot {self.slot}"


@dataclass(frozen=True)
class Read:
    """Use the tile in a slot. A consumer's n-th Read is meant to find tile number n; `yield` returns its number."""

    slot: int

    def __str__(self):
        return f"read slot {self.slot}"


Action = Wait | Arrive | Expect | Copy | Read


class Ring:
    """Slots for tiles of `tile_bytes`, with a barrier `full[slot]` and a barrier `empty[slot]` each.

    full    expects one arrival, the producer's, and the tile's bytes
    empty   expects one arrival of each consumer
    """

    def __init__(self, slots: int, consumers: int = 1, tile_bytes: int = 16_384):
        for name, value in {"slots": slots, "consumers": consumers, "tile_bytes": tile_bytes}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.slots, self.consumers, self.tile_bytes = slots, consumers, tile_bytes
        self.full = [Barrier(1, f"full[{slot}]") for slot in range(slots)]
        self.empty = [Barrier(consumers, f"empty[{slot}]") for slot in range(slots)]
