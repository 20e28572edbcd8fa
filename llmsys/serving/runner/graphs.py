"""All graphs of a runner: which there are, which is for a step, and how much memory they may take.

    graphs = Graphs(rows, cache, forms, sender, sequences=256, tokens=2048)
    graph = graphs.take(step)       # captured now if it was not; None: there is none for this step
    graph.send(step, sender)
    logits, drawn = graph.run()

**Buckets.** A graph is for a number of sequences that decode, or of tokens of any kind of step. So there is one for
each of some numbers, and a step is filled up to the next of them.

**Memory.** All graphs share one pool: only one runs at a time, and what it leaves there, logits and tokens, is used
before the next begins. So the largest takes what its step needs, and each other one only what its launches take.
`budget` bounds all of it, as the driver counts: a graph that would take more is not captured, and its steps are
launched one kernel at a time.
"""

import threading
import warnings
from bisect import bisect_left
from functools import lru_cache

import torch

from llmsys.cache import PagedCache
from llmsys.serving.runner.decode import DecodeGraph
from llmsys.serving.runner.forms import Forms
from llmsys.serving.runner.graph import Graph
from llmsys.serving.runner.mixed import MixedGraph
from llmsys.serving.runner.packed import Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.runner.step import HostStep

LARGEST = 512
LARGEST_TOKENS = 16384
SHARE = 1 / 3
"""Of the memory that is free when the first graph is captured: what graphs may take, where nobody says."""
ROUNDED = 24 * 2**20
"""Bytes: the allocator takes memory from the driver in pieces of up to 20 MiB, and so may a library."""
LAUNCHES = 8 * 2**20
"""Bytes that the launches of a graph are expected to take, until one has been seen."""
MOST_LAUNCHES = 64 * 2**20
"""Bytes that they are never taken to have taken: what the driver has less of may be another process's."""


def buckets(largest: int) -> tuple[int, ...]:
    """For how many decoding sequences there are graphs: up to `largest`, and at most LARGEST.

    Filling up costs little where a step's time is that of reading the weights, so few are enough for small steps. Later
    a row costs its part of the products. If all numbers of sequences up to 256 are as likely, 8 rows fill up for each
    100 that are sequences', with 17 graphs; with powers of two, 33, and with steps of 8, 3, with 35 graphs.
    """
    steps = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, *range(256, LARGEST + 1, 64)]
    return tuple(steps[: bisect_left(steps, min(largest, LARGEST)) + 1])


def token_buckets(largest: int) -> tuple[int, ...]:
    """For how many tokens there are graphs of any kind of step: powers of two from 16 on, from 128 on also half-way
    between them, and `largest`, at most LARGEST_TOKENS."""
    largest = min(largest, LARGEST_TOKENS)
    powers = [16 << i for i in range(16)]
    found = sorted([*powers, *(3 * power // 2 for power in powers if power >= 128)])
    return (*(each for each in found if each < largest), largest)


class Graphs:
    """The graphs of a runner.

    Parameters
    ----------
    sequences, tokens
        Of a step at most. tokens 0: there are graphs of decode steps alone.
    budget
        Bytes; None: SHARE of what is free when the first is captured.
    required
        Graphs were asked for: where one of a decode step cannot be captured that is an error. Else there are none from
        then on. (One of another step is done without in any case.)

    Attributes
    ----------
    bytes : int
        What those captured take.
    """

    def __init__(
        self, rows: Rows, cache: PagedCache, forms: Forms, sender: Sender, *,
        sequences: int, tokens: int = 0, budget: int | None = None, required: bool = False,
    ):  # fmt: skip
        self._rows, self._cache, self._forms, self._sender = rows, cache, forms, sender
        self.budget, self._required = budget, required
        self.buckets = buckets(sequences)
        self.token_buckets = token_buckets(tokens) if tokens else ()
        self._forget()

    def _forget(self) -> None:
        self._graphs: dict[tuple[type, int], Graph | None] = {}
        self._version = self._rows.version
        self.bytes = self._pool_bytes = 0
        self._each = LAUNCHES
        self._pool = self._aside = None

    @property
    def captured(self) -> list[int]:
        """The numbers of sequences for which there is a graph of a decode step."""
        return self._captured_of(DecodeGraph)

    @property
    def captured_tokens(self) -> list[int]:
        """The numbers of tokens for which there is a graph of any kind of step."""
        return self._captured_of(MixedGraph)

    def take(self, step: HostStep) -> Graph | None:
        """The graph for a step, captured if it has not been. None: it is larger than any, or no memory is left."""
        if self._version != self._rows.version:  # their tensors are others
            if self._aside is not None:
                torch.cuda.synchronize(self._rows.device)  # none of them is running
            self._forget()
        key = self._key(step)
        if key is None:
            return None
        if key not in self._graphs:
            self._graphs[key] = self._made(*key)
        return self._graphs[key]

    def has(self, step: HostStep) -> bool:
        """Whether `take` would capture nothing."""
        key = self._key(step)
        return key is None or self._version == self._rows.version and key in self._graphs

    def capture_all(self) -> None:
        """Captures all, the largest first, so that the others find memory that it has taken."""
        for kind, sizes in ((MixedGraph, self.token_buckets), (DecodeGraph, self.buckets)):
            for size in reversed(sizes):
                if (kind, size) not in self._graphs:
                    self._graphs[kind, size] = self._made(kind, size)

    def _key(self, step: HostStep) -> tuple[type, int] | None:
        if not self.buckets:  # they cannot be captured
            return None
        if step.decode:
            kind, sizes, n = DecodeGraph, self.buckets, len(step.row)
        else:
            kind, sizes, n = MixedGraph, self.token_buckets, len(step.tokens)
            if max(len(step.row), step.logits) > self.buckets[-1]:
                return None
        i = bisect_left(sizes, n)
        return None if i == len(sizes) else (kind, sizes[i])

    def _captured_of(self, kind: type) -> list[int]:
        return sorted(size for (each, size), graph in self._graphs.items() if each is kind and graph is not None)

    @torch.inference_mode()
    def _made(self, kind: type, size: int) -> Graph | None:
        if kind is DecodeGraph:
            graph = DecodeGraph(size, self._forms.of(size), self._rows, self._cache)
        else:
            graph = MixedGraph(size, self.buckets[-1], self._forms.of(0), self._rows, self._cache)
        device = self._rows.device
        if device.type != "cuda":
            return graph
        try:
            return self._captured(graph, device)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if kind is MixedGraph:
                warnings.warn(f"only decode steps are graphs: no other can be captured: {error}", stacklevel=2)
                self.token_buckets = ()
                return None
            if self._required:
                raise RuntimeError(
                    "the step cannot be captured in a graph; perhaps the model or the attention, if that is your own, "
                    "waits for the GPU: Execution(graphs=False) does without graphs"
                ) from error
            warnings.warn(f"steps are launched one kernel at a time: no graph can be captured: {error}", stacklevel=2)
            self.buckets = self.token_buckets = ()
            return None

    def _captured(self, graph: Graph, device: torch.device) -> Graph | None:
        with _ALONE:
            return self._capture(graph, device)

    def _capture(self, graph: Graph, device: torch.device) -> Graph | None:
        if self._aside is None:
            self._aside = _stream_aside(device)
            self._pool = torch.cuda.graph_pool_handle()
        self._aside.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(self._aside):
                graph.send(None, self._sender)
                needed = graph.warm_up() + ROUNDED
                torch.cuda.synchronize(device)
                torch.cuda.empty_cache()  # what was needed to warm up is of a stream that nobody else uses
                before = _in_use(device)
                if self.budget is None:  # not before the warm-up, which makes the cache's pages if nobody has
                    self.budget = int(SHARE * torch.cuda.mem_get_info(device)[0])
                more = max(0, needed - self._pool_bytes) + self._each
                if self.bytes + more > self.budget:
                    return None
                graph.capture(self._pool)
                graph.run()  # of no sequences; what the driver makes at the first run is made
                torch.cuda.synchronize(device)
        finally:
            torch.cuda.current_stream(device).wait_stream(self._aside)
        pools, driver = (now - then for now, then in zip(_in_use(device), before, strict=True))
        launches = min(max(0, driver - pools), MOST_LAUNCHES)
        self.bytes += pools + launches
        self._pool_bytes = max(self._pool_bytes, needed)
        self._each = max(launches, 2**20)
        return graph


_ALONE = threading.Lock()
"""Held by who captures: what another engine's thread launched meanwhile on the stream of all would be in the graph."""


@lru_cache
def _stream_aside(device: torch.device) -> torch.cuda.Stream:
    """One for all runners: libraries keep a workspace for each stream that they have been called on."""
    return torch.cuda.Stream(device)


def _in_use(device: torch.device) -> tuple[int, int]:
    """Bytes that torch has taken from the driver, and those that the driver has given away, to whomever."""
    free, total = torch.cuda.mem_get_info(device)
    return torch.cuda.memory_reserved(device), total - free
