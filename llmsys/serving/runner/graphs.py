"""Decode steps as CUDA graphs: hundreds of launches that the host makes once, and then repeats as one.

    graphs = DecodeGraphs(rows, cache, forms, …)
    graph = graphs.take(37)       # the one for 48 sequences, captured now if it was not; None: there is none
    graph.send(step, sender)
    logits, drawn = graph.run()   # (48, V), (48,), of which the first 37 count
    logits, drawn = graph.run()   # the next step of the same sequences

A graph launches the same kernels over the same addresses. So what differs from step to step lies in one small buffer,
and whatever depends on it is computed in the graph (`begin`): place-holders are filled, block tables gathered from the
rows, the model runs, tokens are drawn, each is kept as its request's newest, and the step in the buffer becomes the one
after it.

**Buckets.** A graph is for a number of sequences, so there is one for each of some numbers (`buckets`), and a step is
filled up to the next of them. What fills it up has no keys (length 0), is kept nowhere (slot −1), and its newest token
is row 0's, which is nobody's.

**Memory.** All graphs share one pool: only one runs at a time, and what it leaves there, logits and tokens, is used
before the next begins. So the largest takes what its step needs, and each other one only what its launches take.
`budget` bounds all of it, as the driver counts: a graph that would take more is not captured, and its steps are
launched one kernel at a time.

**On a CPU** there is nothing to capture, and `run` calls the same function over the same buffers.
"""

import gc
import warnings
from bisect import bisect_left

import numpy as np
import torch
from torch import Tensor

from llmsys.cache import Batch, PagedCache
from llmsys.serving.draw import draw_tokens
from llmsys.serving.runner.begin import Buffered, begin, end
from llmsys.serving.runner.forms import Form, Forms
from llmsys.serving.runner.packed import Packing, Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.runner.step import HostStep

LARGEST = 512
SHARE = 1 / 3
"""Of the memory that is free when the first graph is captured: what graphs may take, where nobody says."""
ROUNDED = 24 * 2**20
"""Bytes: the allocator takes memory from the driver in pieces of up to 20 MiB, and so may a library."""
LAUNCHES = 8 * 2**20
"""Bytes that the launches of a graph are expected to take, until one has been seen."""


def buckets(largest: int) -> tuple[int, ...]:
    """For how many sequences there are graphs: up to `largest`, and at most LARGEST.

    Filling up costs little where a step's time is that of reading the weights, so few are enough for small steps. Later
    a row costs its part of the products. If all numbers of sequences up to 256 are as likely, 8 rows fill up for each
    100 that are sequences', with 17 graphs; with powers of two, 33, and with steps of 8, 3, with 35 graphs.
    """
    steps = [1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, *range(256, LARGEST + 1, 64)]
    return tuple(steps[: bisect_left(steps, min(largest, LARGEST)) + 1])


class DecodeGraph:
    """The decode step of `bucket` sequences.

    Attributes
    ----------
    form : Form
        Of the model's forward.
    """

    def __init__(self, bucket: int, form: Form, rows: Rows, cache: PagedCache):
        self.bucket, self.form = bucket, form
        self._rows, self._cache = rows, cache
        self.graph: torch.cuda.CUDAGraph | None = None
        self._found: tuple[Tensor, Tensor] | None = None
        B = bucket
        self._packing = Packing(
            row=(np.int64, B), seed=(np.int64, B), temperature=(np.float64, B), computed=(np.int32, B),
            tokens=(np.int32, B), query_start_loc=(np.int32, B + 1), columns=(np.int32, B), entries=(np.int32, B),
        )  # fmt: skip
        self._buffer = torch.zeros(self._packing.bytes, dtype=torch.uint8, device=rows.device)
        self._step = self._packing.tensors(self._buffer)
        self._buffered = Buffered(*(self._step[name] for name in Buffered._fields))
        # The last two parts are also sent by themselves.
        self._new = Packing(columns=(np.int32, B), entries=(np.int32, B))
        self._buffer_of_new = self._buffer[self._packing.bytes - self._new.bytes :]
        self._starts = np.arange(B + 1)
        self._place = np.zeros(len(rows.host), np.int64)  # of a row in the step

    def send(self, step: HostStep | None, sender: Sender) -> None:
        """Puts a step into the buffer, with what is new in the rows; None for one of no sequences."""
        none = np.zeros(0, np.int64)
        if step is None:
            values = dict.fromkeys(self._step, none) | dict(columns=(none, -1))
        else:
            row, n = step.row, len(step.row)
            values = dict(
                row=row, seed=self._rows.seed[row].view(np.int64), temperature=step.temperature, computed=step.computed,
                tokens=step.tokens, query_start_loc=(self._starts[: n + 1], n), **self._new_blocks(row, sender),
            )  # fmt: skip
        sender.send(self._packing, values, self._buffer)

    def send_blocks(self, row: np.ndarray, sender: Sender) -> None:
        """Of a step that is in the buffer because the one before it ended: the blocks that are new."""
        sender.send(self._new, self._new_blocks(row, sender), self._buffer_of_new)

    def _new_blocks(self, row: np.ndarray, sender: Sender) -> dict[str, np.ndarray | tuple]:
        """Of each row the column and the id of a block that is new, −1 for none. Where one has several, as when it was
        preempted and is back, all are sent by themselves."""
        columns, entries = np.full(len(row), -1), np.zeros(len(row), np.int64)
        cells, new = self._rows.changes()
        if len(cells):
            changed, column = np.divmod(cells, self._rows.width)
            if len(cells) == 1 or len(np.unique(changed)) == len(changed):
                self._place[row] = np.arange(len(row))
                columns[self._place[changed]], entries[self._place[changed]] = column, new
            else:
                self._rows.send(cells, new, sender)
        return dict(columns=(columns, -1), entries=entries)

    def run(self) -> tuple[Tensor, Tensor]:
        """Computes the step in the buffer: logits (bucket, V), and the tokens drawn (bucket,), until the next run."""
        if self.graph is None:
            return self._compute()
        self.graph.replay()
        return self._found

    def _compute(self) -> tuple[Tensor, Tensor]:
        begun = begin(self._rows, self._buffered, self._cache.block_size)
        batch = Batch(
            positions=begun.positions, tokens=begun.tokens[None], query_start_loc=self._step["query_start_loc"],
            seq_lens=begun.seq_lens, slot_mapping=begun.slots, block_table=begun.table,
            block_size=self._cache.block_size, max_query_len=1, max_seq_len=self._rows.width * self._cache.block_size,
        )  # fmt: skip
        logits = self.form.forward(batch.tokens, self._cache, batch)[0]
        drawn = draw_tokens(logits, self._step["temperature"], begun.u)
        end(self._rows, self._buffered, drawn)
        return logits, drawn

    def warm_up(self) -> int:
        """Runs it twice: kernels are compiled, and libraries make their workspaces. The bytes that a run takes."""
        device = self._rows.device
        self._compute()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self._compute()
        return torch.cuda.max_memory_allocated(device) - before

    def capture(self, pool: tuple[int, int]) -> None:
        graph = torch.cuda.CUDAGraph()
        collecting = gc.isenabled()
        gc.disable()  # what is freed while something is captured may be part of another graph
        try:
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                logits, drawn = self._compute()
            finally:
                graph.capture_end()
        finally:
            if collecting:
                gc.enable()
        # Views that do not own the memory: the pool may give it to the graphs that are captured after this one.
        self._found = _borrowed(logits), _borrowed(drawn)
        self.graph = graph


class DecodeGraphs:
    """The graphs of a runner.

    Parameters
    ----------
    largest
        Sequences of a step at most.
    budget
        Bytes; None: SHARE of what is free when the first is captured.
    required
        Graphs were asked for: where one cannot be captured that is an error. Else there are none from then on.

    Attributes
    ----------
    bytes : int
        What those captured take.
    """

    def __init__(
        self, rows: Rows, cache: PagedCache, forms: Forms, sender: Sender, *,
        largest: int, budget: int | None = None, required: bool = False,
    ):  # fmt: skip
        self._rows, self._cache, self._forms, self._sender = rows, cache, forms, sender
        self.budget, self._required = budget, required
        self.buckets = buckets(largest)
        self._forget()

    def _forget(self) -> None:
        self._graphs: dict[int, DecodeGraph | None] = {}
        self._version = self._rows.version
        self.bytes = self._pool_bytes = 0
        self._each = LAUNCHES
        self._pool = self._aside = None

    @property
    def captured(self) -> list[int]:
        """The buckets that have a graph."""
        return sorted(bucket for bucket, graph in self._graphs.items() if graph is not None)

    def take(self, sequences: int) -> DecodeGraph | None:
        """The graph for so many sequences, captured if it has not been. None: there are more than the largest is for,
        or no memory is left for it."""
        if self._version != self._rows.version:  # their tensors are others
            if self._aside is not None:
                torch.cuda.synchronize(self._rows.device)  # none of them is running
            self._forget()
        i = bisect_left(self.buckets, sequences)
        if i == len(self.buckets):
            return None
        bucket = self.buckets[i]
        if bucket not in self._graphs:
            self._graphs[bucket] = self._made(bucket)
        return self._graphs[bucket]

    def has(self, sequences: int) -> bool:
        """Whether `take` would capture nothing."""
        i = bisect_left(self.buckets, sequences)
        return i == len(self.buckets) or self._version == self._rows.version and self.buckets[i] in self._graphs

    def capture_all(self) -> None:
        """Captures all, the largest first, so that the others find memory that it has taken."""
        for bucket in reversed(self.buckets):
            self.take(bucket)
        if self._aside is not None:
            torch.cuda.empty_cache()  # what was needed to warm up belongs to a stream that nobody else uses

    @torch.inference_mode()
    def _made(self, bucket: int) -> DecodeGraph | None:
        graph = DecodeGraph(bucket, self._forms.of(bucket), self._rows, self._cache)
        device = self._rows.device
        if device.type != "cuda":
            return graph
        try:
            return self._captured(graph, device)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError as error:
            if self._required:
                raise RuntimeError(
                    "the decode step cannot be captured in a graph; perhaps the model or the attention, if that is "
                    "your own, waits for the GPU: Execution(graphs=False) does without graphs"
                ) from error
            warnings.warn(f"decode steps are launched one kernel at a time: no graph can be captured: {error}",
                          stacklevel=2)  # fmt: skip
            self.buckets = ()
            return None

    def _captured(self, graph: DecodeGraph, device: torch.device) -> DecodeGraph | None:
        if self._aside is None:
            self._aside = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()
        self._aside.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(self._aside):
                graph.send(None, self._sender)
                needed = graph.warm_up() + ROUNDED
                torch.cuda.synchronize(device)
                free = torch.cuda.mem_get_info(device)[0]
                if self.budget is None:  # not before the warm-up, which makes the cache's pages if nobody has
                    self.budget = int(SHARE * free)
                more = max(0, needed - self._pool_bytes) + self._each
                if self.bytes + more > self.budget:
                    return None
                graph.capture(self._pool)
                graph.run()  # of no sequences; what the driver makes at the first run is made
                torch.cuda.synchronize(device)
        finally:
            torch.cuda.current_stream(device).wait_stream(self._aside)
        taken = max(0, free - torch.cuda.mem_get_info(device)[0])
        self.bytes += taken
        if needed > self._pool_bytes:
            self._pool_bytes = needed
        else:
            self._each = max(taken, 2**20)
        return graph


class _Memory:
    """A piece of the device's memory, by its address."""

    def __init__(self, tensor: Tensor, typestr: str):
        self.__cuda_array_interface__ = dict(
            shape=tuple(tensor.shape), strides=None, typestr=typestr, data=(tensor.data_ptr(), False), version=3
        )


def _borrowed(tensor: Tensor) -> Tensor:
    """The same memory, as a tensor that does not keep it."""
    width = tensor.element_size()
    flat = tensor.contiguous()
    if flat.data_ptr() != tensor.data_ptr():
        raise RuntimeError("a graph's results must lie in one piece")
    whole = torch.as_tensor(_Memory(flat.view(_WHOLE[width]), f"<i{width}"), device=tensor.device)
    return whole.view(tensor.dtype)


_WHOLE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

