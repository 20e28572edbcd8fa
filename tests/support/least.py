"""What a call costs at its best: a bound that a busy or slow machine does not break.

    assert least_reference_seconds(lambda: simulate(schedule)) < 0.9

One call's time is that of whatever else ran then (the garbage of a thousand tests before it, a neighbour on the same
core). The least of a few, in seconds of the reference machine, is the call's own.
"""

import time
from collections.abc import Callable

from llmsys.course.authoring.reference_time import calibrate, reference_seconds


def least_reference_seconds(call: Callable[[], object], times: int = 3) -> float:
    """The least processor time of this thread for one call, in seconds of the reference machine. The calibration loop
    runs beside each."""
    found = []
    for _ in range(times):
        loop = calibrate()
        start = time.thread_time()
        call()
        found.append(reference_seconds(time.thread_time() - start, loop))
    return min(found)
