"""What keeps an engine whole: one thread at a time, and no change that is left half done.

Three things may come in the middle of the scheduler's work, in which its lists and the pool's do not agree. Another
thread is refused. An interrupt is held back (`interrupts`). And Python's garbage collector, which may run at any
moment, may find a stream that nobody holds any more, and closes it, which aborts its request: that waits, too.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llmsys.serving.interrupts import Interrupts


class Guard:
    """One engine's.

    Parameters
    ----------
    abort
        Ends a response, by its id.

    Attributes
    ----------
    thread : RLock
        Held by the thread that uses the engine.
    interrupts : Interrupts
    at_work : bool
        In the middle of a change.
    given_up : deque
        Ids to abort when it is done.
    """

    def __init__(self, abort: Callable[[str], object]):
        self.thread = threading.RLock()
        self.interrupts = Interrupts()
        self.at_work = False
        self.given_up: deque[str] = deque()
        self._abort = abort

    @contextmanager
    def alone(self) -> Iterator[None]:
        """RuntimeError where another thread uses the engine."""
        if not self.thread.acquire(blocking=False):
            raise RuntimeError(
                "this engine is in use by another thread, and one thread at a time may use it: let one thread take all "
                "steps, or use an AsyncEngine"
            )
        try:
            yield
        finally:
            self.thread.release()

    @contextmanager
    def work(self) -> Iterator[None]:
        """A change that is made as a whole. What was given up meanwhile is aborted at its end, interrupts come then."""
        with self.interrupts.later():
            before, self.at_work = self.at_work, True
            try:
                yield
            finally:
                self.at_work = before
                if not before:
                    self._abort_given_up()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """In the middle of a change, but all is as it should be: who is called here may abort, at once."""
        before, self.at_work = self.at_work, False
        try:
            yield
        finally:
            self.at_work = before

    @contextmanager
    def window(self) -> Iterator[None]:
        """A pause that takes long, as computing does: interrupts come at once, too."""
        with self.pause():
            self._abort_given_up()
            with self.interrupts.at_once():
                yield

    def _abort_given_up(self) -> None:
        while self.given_up:
            self._abort(self.given_up.popleft())
