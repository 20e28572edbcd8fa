"""What a step is made of: attention, the other kernels, and the time in which the GPU has nothing to do.

    split(engine, asked)      Split(ms=…, attention_ms=…, other_ms=…, idle_ms=…, tokens=…, …)

Steps of a full batch are timed by the clock, from one to the next, with nobody looking. Then the profiler looks at a
few more and says when which kernel ran. Attention is the time in which one of its kernels did, told by its name, and
the others are what is left of the time in which any did. (Where several run at once, as those do that are launched
before the one ahead of them has ended, each has an equal share of the time.) Idle is what is left of the clock's.

Where the profiler sees no kernels (CUPTI is not there), the steps are timed once more in an engine that attends to
nothing: attention is the difference, and how much of the rest is idle nobody knows.

On a CPU there are no kernels to wait for. A clock runs while attention does and, as in every step's metrics, while the
model does; idle is then what the host spends on all else: planning, making the batch, and taking tokens in.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from llmsys.attention.paged import paged_attention_reference
from llmsys.bench.serving.serve import hand_over, old_objects_left_alone
from llmsys.bench.serving.workloads import Asked
from llmsys.serving import Engine
from llmsys.serving.telemetry.metrics import PHASES

ATTENTION = re.compile(r"paged_decode_kernel|split_kernel|merge_kernel|ragged_kernel|atten[dt]|flash_fwd|fmha")
"""In the names of attention's kernels."""
PARTS_OF_A_STEP = ("attention_ms", "other_ms", "idle_ms")
"""In a record's rows; where they are known they add up to `ms`."""
LARGEST = 12
"""Kernels that are listed by name."""
Span = tuple[str, float, float]
"""A kernel's name, its start and its end, in µs."""


@dataclass(frozen=True)
class Split:
    """A decode step of a full batch, the mean of some."""

    ms: float
    attention_ms: float | None
    other_ms: float | None
    idle_ms: float | None
    sequences: int
    tokens: float
    """That are attended to, of all sequences together."""
    host_ms: dict[str, float]
    """What the host spends, by `llmsys.serving.telemetry.metrics.PHASES`."""
    launches: float | None
    """Kernels and copies of a step; None where they cannot be seen."""
    kernels: list[tuple[str, float, float]]
    """The largest: name, µs of a step, calls in a step."""
    how: str


class AttentionClock:
    """Attention in plain PyTorch, which adds up its seconds."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self, *tensors: Tensor, **step) -> Tensor:
        start = time.perf_counter()
        o = paged_attention_reference(*tensors, **step)
        self.seconds += time.perf_counter() - start
        return o


def no_attention(q: Tensor, key_pages: Tensor, value_pages: Tensor, **step) -> Tensor:
    """Attends to nothing, and takes no time: q, as wide as a value."""
    return q[..., : value_pages.shape[3]]


def split(
    engine: Engine,
    asked: Sequence[Asked],
    name: str,
    *,
    steps: int = 10,
    clock: AttentionClock | None = None,
    without: Callable[[], Engine] | None = None,
) -> Split:
    """Steps in which each of these requests gets a token. All have to fit into the engine side by side, and their
    answers have to be longer than the steps that are looked at.

    clock      who attends in this engine, on a CPU
    without    makes an engine that attends to nothing, for a GPU whose kernels cannot be seen; this one is used no more
    """
    with _Full(engine, asked, name) as full, old_objects_left_alone():
        attended = full.tokens
        windows, seconds = [], []
        for _ in range(3):
            inside = clock.seconds if clock else 0.0
            windows.append(full.timed(steps))
            seconds.append(clock.seconds - inside if clock else 0.0)
        if any(response.finished for response in full.responses):
            raise RuntimeError(f"answers must be longer than the {3 * steps} steps that are timed: one has ended")
        attended = (attended + full.tokens) / 2
        host = full.host(3 * steps)
        spans = [] if clock else full.profiled(steps)
    ms = 1e3 * median(windows) / steps
    attention = other = idle = None
    if clock:
        attention, how = 1e3 * median(seconds) / steps, "clock"
        other = max(0.0, host["launch"] - attention)
        idle = max(0.0, ms - attention - other)
    elif spans:
        how = "profiler"
        busy = busy_us(spans) / 1e3 / steps
        attention = attention_us(spans) / 1e3 / steps
        other, idle = busy - attention, max(0.0, ms - busy)
    else:
        how = "difference"
        if without is not None:
            with _Full(without(), asked, name) as full:
                attention = ms - 1e3 * median(full.timed(steps) for _ in range(3)) / steps
    launches = len(spans) / steps if spans else None
    return Split(ms, attention, other, idle, len(asked), attended, host, launches, largest(spans, steps), how)


def open_profiler() -> None:
    """Let the profiler begin once, on a GPU: graphs that are captured later have kernels that it sees."""
    if torch.cuda.is_available():
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True):
            torch.ones(1, device="cuda").add_(1)
            _wait()


def busy_us(spans: Iterable[Span]) -> float:
    """The time in which at least one of these ran."""
    total, until = 0.0, float("-inf")
    for _, start, end in sorted(spans, key=lambda span: span[1]):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def attention_us(spans: Iterable[Span]) -> float:
    """The time in which attention ran; of that in which n kernels ran at once, an n-th for each of them."""
    changes = sorted(
        (moment, step, bool(ATTENTION.search(name)))
        for name, start, end in spans
        for moment, step in ((start, 1), (end, -1))
    )
    total, running, attending, before = 0.0, 0, 0, 0.0
    for moment, step, is_attention in changes:
        if attending:
            total += (moment - before) * attending / running
        running, attending, before = running + step, attending + step * is_attention, moment
    return total


def largest(spans: Sequence[Span], steps: int) -> list[tuple[str, float, float]]:
    """The kernels that take longest: name, µs of a step, calls in a step."""
    took: dict[str, list[float]] = {}
    for name, start, end in spans:
        took.setdefault(name, []).append(end - start)
    order = sorted(took.items(), key=lambda item: -sum(item[1]))[:LARGEST]
    return [(name, sum(each) / steps, len(each) / steps) for name, each in order]


class _Full:
    """An engine in which all requests decode, from `with` on; at its end they are aborted."""

    def __init__(self, engine: Engine, asked: Sequence[Asked], name: str):
        self.engine, self.asked, self.name = engine, asked, name

    def __enter__(self) -> "_Full":
        self.responses = [hand_over(self.engine, n, each, self.name) for n, each in enumerate(self.asked)]
        before, sequences = self.engine.metrics.totals.steps, 0
        while sequences < len(self.asked):
            if not self.engine.has_unfinished or any(response.finished for response in self.responses):
                raise RuntimeError(f"{len(self.asked)} requests never decoded side by side: make the cache larger")
            self.engine.step()
            if self.engine.metrics.totals.steps > before:
                done = self.engine.metrics.steps[-1]
                sequences = done.sequences if done.kind == "decode" else 0
        self.timed(3)
        return self

    def __exit__(self, *_) -> None:
        for response in self.responses:
            self.engine.abort(response.id)
        while self.engine.has_unfinished:
            self.engine.step()

    @property
    def tokens(self) -> int:
        return sum(len(response.prompt_tokens) + len(response.tokens) for response in self.responses)

    def timed(self, steps: int) -> float:
        """Seconds of so many steps, by the clock, from one result to the next: nobody waits for what is under way."""
        start = time.perf_counter()
        for _ in range(steps):
            self.engine.step()
        return time.perf_counter() - start

    def host(self, steps: int) -> dict[str, float]:
        """What the host spent in the last steps, ms of a step by phase."""
        last = list(self.engine.metrics.steps)[-steps:]
        return {phase: 1e3 * mean(step.seconds.get(phase, 0.0) for step in last) for phase in PHASES}

    def profiled(self, steps: int) -> list[Span]:
        """When each kernel (or copy) ran in so many steps. [] where the profiler sees none."""
        found: list[Span] = []
        for count in (1, steps):  # the first is for the profiler, which takes a while to begin
            _wait()  # for a step that is under way, or some of its kernels would be counted, too
            with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
                for _ in range(count):
                    self.engine.step()
                _wait()
            on_gpu = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
            found = [(event.name, event.time_range.start, event.time_range.end) for event in on_gpu]
        return found


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
