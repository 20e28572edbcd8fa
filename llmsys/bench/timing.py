"""Time several functions so that their ratio can be trusted.

A machine's speed drifts: clocks rise and fall with the heat, neighbours come and go. So the functions take turns, A B
C A B C …, each round on the next of several sets of inputs, and the median of each is taken: what drifts hits all of
them alike. On a CPU the time is the clock's. On a GPU it is that between two events on the stream, and before the first
of them the GPU is told to wait half a millisecond: by then the function has been launched, so what is timed is the
GPU's work, and not Python's.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

HEAD_START = 1_000_000
"""Cycles that a GPU waits before it is timed: 0.5 ms at 2 GHz, twice the time of a fused stage's slowest launch."""


@dataclass(frozen=True)
class Timing:
    """The times of one function, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the 10th and the 90th percentile, as a fraction of the median."""
        ordered = sorted(self.seconds)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        return (high - low) / 2 / self.median


def interleaved(
    functions: dict[str, Callable], inputs: Sequence[tuple] = ((),), *, repeats: int = 20, warmup: int = 2
) -> dict[str, Timing]:
    """Time each function `repeats` times, in turn, called with the sets of `inputs` in rotation.

    On a GPU let the sets together be larger than the L2 cache, or it is the cache that is measured.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if not functions or not inputs:
        raise ValueError("there must be at least one function and one set of inputs (an empty tuple: no arguments)")
    on_gpu = any(isinstance(x, torch.Tensor) and x.is_cuda for arguments in inputs for x in arguments)
    for i in range(warmup):
        for function in functions.values():
            function(*inputs[i % len(inputs)])
    measure = _gpu if on_gpu else _cpu
    seconds: dict[str, list] = {name: [] for name in functions}
    for i in range(repeats):
        for name, function in functions.items():
            seconds[name].append(measure(function, inputs[i % len(inputs)]))
    if on_gpu:
        torch.cuda.synchronize()
        seconds = {name: [a.elapsed_time(b) / 1e3 for a, b in events] for name, events in seconds.items()}
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def _cpu(function: Callable, arguments: tuple) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _gpu(function: Callable, arguments: tuple) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(HEAD_START)  # no public name waits on the GPU; torch's own benchmarks use this one
    start.record()
    function(*arguments)
    end.record()
    return start, end
