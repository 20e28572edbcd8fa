"""Ctrl-C at a good moment: what must not be left half done is ended first, and then the interrupt comes.

A step is interrupted often, for in a notebook that is how one ends what takes too long. While the model computes that
does no harm. But Python raises KeyboardInterrupt between any two instructions, and a scheduler that was stopped while
it wrote down its plan would wait for that plan's result for ever.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupted_later() -> Iterator[None]:
    """An interrupt that comes in this block is delivered at its end; a second one at once, so that no block can hang.

    Signals are the main thread's; in any other there are none, and nothing is done.
    """
    deliver = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(deliver):
        yield
        return
    came = []

    def keep(number, frame):
        came.append((number, frame))
        if len(came) > 1:
            deliver(number, frame)

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, deliver)
        if len(came) == 1:
            deliver(*came[0])
