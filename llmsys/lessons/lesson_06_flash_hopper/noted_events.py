"""What the consumers of the simulated hopper kernel do, noted down in the order in which they do it.

06.consumer asks for three kinds of notes, each a list of strings:

    events    what the first consumer does: "turn", "start S", "start O", "pass on", "wait until 1 run", "softmax" or
              "softmax with a mask"; "make S" is a product that is started and waited for at once
    turns     who has a turn, and who passes it on: "0 has the turn", "0 passes on", "1 has the turn", …; and who waits
              for another turn than his
    tiles     what is wrong with how tiles are taken and given back: [] for nothing (`unreturned` adds what is missing)
"""

from collections import Counter
from collections.abc import Callable

from llmsys.attention.hopper.simulated import gluon as engines
from llmsys.attention.hopper.simulated.forward import kernel_here

KINDS = ("events", "turns", "tiles")


def noting(notes: dict[str, list[str]], rings: list["NotedRing"]) -> dict[str, object]:
    """Functions of the kernel under their names, for `kernel_here`: each does what it always did, and what is done with
    them is appended to `notes[kind]`, for each of `KINDS`. The kernel's rings are appended to `rings`."""
    plain = kernel_here().__globals__
    plain_softmax = plain["consume"].__globals__["softmax"]
    events, inside = notes["events"], []

    def note(text: str) -> None:
        if _consumer() == 0 and not inside:
            events.append(text)

    def product(a, b, acc, use_acc=True, is_async=False):
        of_queries = isinstance(a, engines.Shared)  # and P is in registers
        note(f"{'start' if is_async else 'make'} {'S' if of_queries else 'O'}")
        return engines.warpgroup_mma(a, b, acc, use_acc, is_async)

    def wait(pending, deps):
        note(f"wait until {pending} run")
        return engines.warpgroup_mma_wait(pending, deps)

    def softmax(s, m, l, seen, key, scale_log2, MASKED):
        note("softmax with a mask" if MASKED else "softmax")
        inside.append(True)  # it does not wait: nobody else is noted meanwhile
        try:
            return plain_softmax(s, m, l, seen, key, scale_log2, MASKED)
        finally:
            inside.pop()

    class language(engines.gl):
        @staticmethod
        def exp2(x):
            if events and not events[-1].startswith("softmax"):  # one that is written out
                note("softmax")
            return engines.gl.exp2(x)

    def new_turns(consumers):
        return NotedTurns(plain["new_turns"](consumers), note, notes["turns"])

    names = iter(("queries", "keys", "values"))  # in the order in which the kernel makes them

    def new_ring(desc, slots, consumers):
        rings.append(NotedRing(plain["new_ring"](desc, slots, consumers), next(names, "tiles"), notes["tiles"]))
        return rings[-1]

    return {"warpgroup_mma": product, "warpgroup_mma_wait": wait, "softmax": softmax, "gl": language,
            "new_turns": new_turns, "new_ring": new_ring}  # fmt: skip


def _consumer() -> int | None:
    """The number of the consumer that is running."""
    name = engines.here.warp.name if engines.here.warp is not None else ""
    return int(name.split()[1]) if name.startswith("consume ") else None


class NotedTurns:
    """`llmsys.attention.hopper.ring.Turns`, which also notes when a turn is waited for, had, and passed on."""

    def __init__(self, turns, note: Callable[[str], None], notes: list[str]):
        self.turns, self.note, self.notes = turns, note, notes
        self.had = Counter()  # turns, of each consumer

    def wait(self, j: int, turn: int) -> None:
        self.note("turn")
        who, number = _consumer(), self.had[_consumer()]
        if (int(j), int(turn) % 2) != (who, number % 2):  # of a turn's number, a barrier knows the parity
            self.notes.append(f"{who} waits for turn {int(turn)} of {int(j)}, and its own is number {number}")
        self.had[who] += 1
        self.turns.wait(j, turn)
        self.notes.append(f"{who} has the turn")

    def pass_on(self, j: int) -> None:
        self.note("pass on")
        self.notes.append(f"{_consumer()} passes on")
        self.turns.pass_on(j)


class NotedRing:
    """`llmsys.attention.hopper.ring.Ring`, which also notes tiles that are given back and were not taken, or given back
    twice, or while a product of the same consumer may still read them."""

    def __init__(self, ring, name: str, notes: list[str]):
        self.ring, self.name, self.notes = ring, name, notes
        self.fill, self.taken, self.returned = ring.fill, {}, Counter()

    def take(self, i):
        self.taken[_consumer(), int(i)] = tile = self.ring.take(i)
        return tile

    def give_back(self, i) -> None:
        who = _consumer(), int(i)
        self.returned[who] += 1
        if who not in self.taken:
            self._note(who, "had not been taken")
        elif self.returned[who] > 1:
            self._note(who, "had been given back")
        elif any(self.taken[who].overlaps(x) for product in engines.here.warp.products for x in product.reads):
            self._note(who, "a product that was not waited for reads")
        self.ring.give_back(i)

    def _note(self, who: tuple[int, int], why: str) -> None:
        self.notes.append(f"consumer {who[0]} gives back tile {who[1]} of {self.name}, which {why}")

    def unreturned(self) -> list[str]:
        """The tiles that were taken and not given back, in the words of the notes."""
        kept = sorted(who for who in self.taken if not self.returned[who])
        return [f"consumer {j} does not give back tile {i} of {self.name}" for j, i in kept]
