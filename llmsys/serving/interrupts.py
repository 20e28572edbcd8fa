"""Ctrl-C at a good moment: what must not be left half done is ended first, and then the interrupt comes.

A step is interrupted often, for in a notebook that is how one ends what takes too long. While the model computes that
does no harm. But Python raises KeyboardInterrupt between any two instructions, and a scheduler that was stopped while
it wrote down its plan would wait for that plan's result for ever. So in a step interrupts are held back, but for
windows in which they may come (`Interrupts.at_once`).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupts:
    """One engine's. Signals are the main thread's; in any other there are none, and nothing is done."""

    def __init__(self):
        self._deliver = None  # what handles interrupts outside of `later`; None: it is outside
        self._came: list[tuple] = []
        self._open = False

    @contextmanager
    def later(self) -> Iterator[None]:
        """An interrupt that comes in this block is delivered at its end; a second one at once, so that no block can
        hang. In a block within such a block, it waits for the end of that one, or of the window that it is in."""
        deliver = None if self._deliver is not None else signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(deliver or self._deliver):
            yield
            return
        if deliver is None:
            with self._set(False):
                yield
            if self._open:
                self._deliver_one(self._deliver)
            return
        self._deliver, self._came, self._open = deliver, [], False
        signal.signal(signal.SIGINT, self._keep)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, deliver)
            self._deliver = None
            self._deliver_one(deliver)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A window in `later`: what came before comes now, and what comes in this block comes as it does."""
        with self._set(True):
            if self._came:
                self._deliver_one(self._deliver)
            yield

    @contextmanager
    def _set(self, open: bool) -> Iterator[None]:
        before, self._open = self._open, open
        try:
            yield
        finally:
            self._open = before

    def _keep(self, number, frame) -> None:
        if not self._open:
            self._came.append((number, frame))
        if self._open or len(self._came) > 1:
            self._deliver(number, frame)

    def _deliver_one(self, deliver) -> None:
        came, self._came = self._came, []
        if len(came) == 1:
            deliver(*came[0])


def interrupted_later():
    """`Interrupts.later` of what is no engine."""
    return Interrupts().later()
