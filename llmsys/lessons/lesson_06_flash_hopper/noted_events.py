"""What the first consumer of the simulated hopper kernel does, noted down in the order in which it does it.

06.consumer looks at these events: "turn", "start S", "start O", "make O", "pass on", "wait until 1 run", "softmax".
"""

from collections.abc import Callable

from llmsys.attention.hopper.simulated import gluon as engines
from llmsys.attention.hopper.simulated.forward import kernel_here


def noting(events: list[str]) -> dict[str, Callable]:
    """Functions of the kernel under their names, for `kernel_here`: each does what it always did, and what the first
    consumer does with them is appended to `events`."""
    plain = kernel_here().__globals__
    plain_softmax = plain["consume"].__globals__["softmax"]

    def note(text: str) -> None:
        warp = engines.here.warp
        if warp is not None and warp.name.startswith("consume 0"):
            events.append(text)

    def product(a, b, acc, use_acc=True, is_async=False):
        note(f"{'start' if is_async else 'make'} {'O' if use_acc else 'S'}")
        return engines.warpgroup_mma(a, b, acc, use_acc, is_async)

    def wait(pending, deps):
        note(f"wait until {pending} run")
        return engines.warpgroup_mma_wait(pending, deps)

    def softmax(*arguments):
        note("softmax")
        return plain_softmax(*arguments)

    def new_turns(consumers):
        return NotedTurns(plain["new_turns"](consumers), note)

    return {"warpgroup_mma": product, "warpgroup_mma_wait": wait, "softmax": softmax, "new_turns": new_turns}


class NotedTurns:
    """`llmsys.attention.hopper.ring.Turns`, which also notes when a turn is waited for, and when it is passed on."""

    def __init__(self, turns, note: Callable[[str], None]):
        self.turns, self.note = turns, note

    def wait(self, j: int, turn: int) -> None:
        self.note("turn")
        self.turns.wait(j, turn)

    def pass_on(self, j: int) -> None:
        self.note("pass on")
        self.turns.pass_on(j)
