"""Processor time in seconds of a reference machine, so that a figure means the same on a slow or a busy one.

A budget in seconds says little: a laptop, a CI runner and a machine with other work on it differ by a factor of three.
So a fixed piece of work, the calibration loop, is run beside what is measured, and its processor time tells how fast
this machine is just now:

    machine = calibrate()          # processor seconds that the loop takes here
    reference_seconds(spent, machine)

A second of the reference machine is the time in which it runs the calibration loop 1 / LOOP_SECONDS times. It is one
core of a virtual x86 server (AMD EPYC), with CPython 3.11 and NumPy 2, on which the loop takes LOOP_SECONDS. The loop
is what the tests are made of: Python's own statements, NumPy on small arrays (as Triton's interpreter does), and NumPy
on arrays that fit a cache. It needs neither torch nor a second thread.
"""

import time

import numpy as np

LOOP_SECONDS = 0.2  # processor seconds of one calibration loop on the reference machine


def calibrate() -> float:
    """Run the calibration loop once. Returns the processor seconds that it took in this thread."""
    start = time.thread_time()
    _loop()
    return time.thread_time() - start


def reference_seconds(seconds: float, loop: float) -> float:
    """`seconds` of processor time where the loop takes `loop` seconds, as seconds of the reference machine."""
    return seconds * LOOP_SECONDS / loop


def _loop() -> float:
    counts: dict[int, int] = {}
    for i in range(1_000_000):
        key = i * 7919 % 101
        counts[key] = counts.get(key, 0) + (i & 3)
    tile = np.linspace(0.0, 1.0, 256, dtype=np.float32).reshape(16, 16)
    for _ in range(18_000):
        tile = np.where(tile > 0.5, tile * 0.5, np.exp(-tile) + tile.max())
    row = np.linspace(-1.0, 1.0, 32_768)
    for _ in range(420):
        row = np.exp(-np.abs(row)) - 0.5
    return sum(counts.values()) + float(tile.sum()) + float(row.sum())
