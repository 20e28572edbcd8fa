"""One SM whose warps and copies take turns at random: what runs the hopper kernels on a laptop.

Each role of `warp_specialize` is a thread, and one of them runs at a time, until it waits for a barrier or has told an
engine to do something. Who is next is drawn from those that can go on: warps that are ready, and copies that have been
started and not yet made. A kernel that is right for every draw does not rely on anyone being fast.

`gluon` is what kernels use of this. (`llmsys.hardware.mbarrier.play` draws turns in the same way, for a ring alone,
whose roles are generators.)
"""

import random
import threading
from collections.abc import Callable

from llmsys.hardware.barrier import Deadlock, Race

__all__ = ["Deadlock", "Processor", "Race", "Warp", "here", "pause"]

here = threading.local()
"""Of each thread: `.processor`, to which it belongs, and `.warp`, the warp that it is (None before roles begin)."""


class Processor:
    """One SM, which runs one program of a grid: number `program` of `programs`. `draw` decides who is next."""

    def __init__(self, program: int, programs: int, draw: random.Random):
        self.program, self.programs, self.draw = program, programs, draw
        self.warps: list[Warp] = []
        self.copies: list[Callable[[], None]] = []  # started and not yet made
        here.processor, here.warp = self, None

    def run(self, roles: dict[str, Callable[[], None]]) -> None:
        """Run these roles, name -> function, until all have ended. Raises Deadlock, or the first error of a role."""
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
    """Raised in a warp's thread to end it before its role is over."""


class Warp:
    """A role of the kernel: a warp, or a warpgroup, whose four warps are not told apart."""

    def __init__(self, processor: Processor, name: str, role: Callable[[], None]):
        self.name, self.done, self.error = name, False, None
        self.ready, self.what = lambda: True, ""  # whether it can go on, and what it waits for
        self.products = []  # products that it has started and not waited for
        self.stores = 0  # copies to memory that it has started and that are not yet made
        self.unfenced = False  # whether it has stored into shared memory since its last fence
        self._ended = False
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, args=(processor, role), daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Called in the processor's thread: let the warp run until it waits for something. Raises the role's error."""
        self._turn.release()
        self._back.acquire()
        if self.error:
            raise self.error

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Called in the warp's own thread: let others go on until `ready()` is true and this warp is drawn."""
        self.ready, self.what = ready, what
        self._back.release()
        self._turn.acquire()
        if self._ended:
            raise _End

    def end(self) -> None:
        """Called in the processor's thread: end the warp's thread, wherever it is."""
        if not self.done:
            self._ended = True
            self._turn.release()
        self._thread.join()

    def _main(self, processor: Processor, role: Callable[[], None]) -> None:
        here.processor, here.warp = processor, self
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
    """Let other warps and copies go on before this warp does."""
    if here.warp:  # before the roles begin, there is nobody else
        here.warp.wait(lambda: True, "others to let it go on")
