"""How long a learner's function may take in a notebook, and how it is stopped.

Time is the processor's, so that a busy machine takes nothing from anybody; a function that only waits is stopped by the
clock. A signal stops it, between two steps of Python: in the main thread, on Linux and macOS. Elsewhere there is no
limit.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

CLOCK = 5  # so many times the limit by the clock, for a function that waits
AGAIN = 1.0  # seconds after which a function that went on is stopped once more


class TimeIsUp(BaseException):
    """The function was stopped. No `except Exception` of its own keeps it from that."""


class Allowance:
    """Seconds of processor time that several calls may take together."""

    def __init__(self, seconds: float):
        self.seconds, self.left, self.clock_left = seconds, seconds, CLOCK * seconds
        self._waited = False  # what stopped it was the clock

    def __str__(self) -> str:
        limit = f"{CLOCK * self.seconds:g} s by the clock" if self._waited else f"{self.seconds:g} s of processor time"
        return f"it took longer than {limit}, all calls of the check together"

    @contextmanager
    def spent(self) -> Iterator[None]:
        """Take the block's time from what is left, and raise TimeIsUp in it where nothing is left."""
        processor, clock = time.process_time(), time.monotonic()
        inside = False  # a signal that comes while the timers are set or taken away stops nothing

        def stop(number, _) -> None:
            if inside:
                self._waited = number == signal.SIGALRM
                raise TimeIsUp

        timers = _timers(self.left, self.clock_left, stop)
        try:
            with timers:
                try:
                    inside = True
                    yield
                finally:
                    inside = False
        finally:
            self.left -= time.process_time() - processor
            self.clock_left -= time.monotonic() - clock


@contextmanager
def _timers(processor: float, clock: float, stop) -> Iterator[None]:
    """Have `stop` called after so many seconds. What was set before is set again, with what is left of it."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = ((signal.ITIMER_PROF, signal.SIGPROF, processor), (signal.ITIMER_REAL, signal.SIGALRM, clock))
    handlers = {number: signal.signal(number, stop) for _, number, _ in wanted}
    began = time.process_time(), time.monotonic()
    before = {timer: signal.setitimer(timer, max(seconds, 1e-3), AGAIN) for timer, _, seconds in wanted}
    try:
        yield
    finally:
        for timer in before:
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ended = time.process_time(), time.monotonic()
        for (timer, (left, interval)), a, b in zip(before.items(), began, ended, strict=True):
            if left:
                signal.setitimer(timer, max(left - (b - a), 1e-3), interval)
