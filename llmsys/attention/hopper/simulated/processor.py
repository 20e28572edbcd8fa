"""An SM whose warps and engines take turns at random: what runs the hopper kernel on a laptop (`forward`).

Each role of `warp_specialize` is a thread, and one of them runs at a time, until it waits for a barrier or has told an
engine to do something. Who is next is drawn from those who could go on: warps that are ready, and copies that have been
started and not yet made. So what is right for every draw does not rest on anyone being fast.
"""

import random
import threading
from collections.abc import Callable

from llmsys.hardware.mbarrier import Deadlock, Race

__all__ = ["Deadlock", "Machine", "Race", "Warp", "here", "pause"]

here = threading.local()
"""`.machine`, the one that this thread belongs to, and `.warp`, which of its warps it is, or None."""


class Machine:
    """One SM, which runs program number `program` of so many."""

    def __init__(self, program: int, programs: int, draw: random.Random):
        self.program, self.programs, self.draw = program, programs, draw
        self.warps: list[Warp] = []
        self.copies: list[Callable[[], None]] = []  # that have been started and not yet made
        here.machine, here.warp = self, None

    def run(self, roles: dict[str, Callable[[], None]]) -> None:
        """Run these to their ends. Raises Deadlock, or the first error of one of them."""
        self.warps = [Warp(self, name, role) for name, role in roles.items()]
        try:
            while any(not warp.done for warp in self.warps) or self.copies:
                ready = [warp for warp in self.warps if not warp.done and warp.ready()] + self.copies
                if not ready:
                    waiting = (f"{warp.name} waits for {warp.what}" for warp in self.warps if not warp.done)
                    raise Deadlock("; ".join(waiting))
                choice = self.draw.choice(ready)
                if isinstance(choice, Warp):
                    choice.go_on()
                else:
                    self.copies.remove(choice)
                    choice()
        finally:
            for warp in self.warps:
                warp.end()


class _End(BaseException):
    """Unwinds the thread of a warp that is not to go on."""


class Warp:
    """A role of the kernel: a warp, or a warpgroup, whose four warps are not told apart."""

    def __init__(self, machine: Machine, name: str, role: Callable[[], None]):
        self.name, self.done, self.error = name, False, None
        self.ready, self.what = lambda: True, ""
        self.products = []  # that it has started and not waited for
        self.stores = 0  # to memory, by the copy engine, that are not made
        self.unfenced = False  # it has stored into shared memory since its last fence
        self._ended = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, args=(machine, role), daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """In the machine's thread: let it run until it waits for something."""
        self._turn.release()
        self._back.acquire()
        if self.error:
            raise self.error

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """In the warp's own thread: let others go on, until this is true and the warp is drawn."""
        self.ready, self.what = ready, what
        self._back.release()
        self._turn.acquire()
        if self._ended:
            raise _End

    def end(self) -> None:
        if not self.done:
            self._ended = True
            self._turn.release()
        self._thread.join()

    def _main(self, machine: Machine, role: Callable[[], None]) -> None:
        here.machine, here.warp = machine, self
        self._turn.acquire()
        try:
            if not self._ended:
                role()
        except _End:
            pass
        except Exception as error:
            self.error = error
        self.done = True
        self._back.release()


def pause() -> None:
    """Let others go on."""
    if here.warp:  # before the roles begin, there is nobody else
        here.warp.wait(lambda: True, "others to let it go on")
