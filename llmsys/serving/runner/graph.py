"""A step that is launched as one: hundreds of launches that the host makes once, and a CUDA graph then repeats.

A graph launches the same kernels over the same addresses. So what differs from step to step lies in a buffer, which is
written over before a replay (`send`), and whatever depends on it is computed in the graph.

**On a CPU** there is nothing to capture, and `run` calls the same function over the same buffer.
"""

import gc
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from llmsys.cache import PagedCache
from llmsys.serving.runner.forms import Form
from llmsys.serving.runner.packed import Packing, Sender
from llmsys.serving.runner.rows import Rows
from llmsys.serving.runner.step import HostStep


class Graph(ABC):
    """A kind of step, of one size.

    Attributes
    ----------
    size : int
        For how many sequences or tokens there is room.
    form : Form
        Of the model's forward.
    """

    def __init__(self, size: int, form: Form, rows: Rows, cache: PagedCache, packing: Packing):
        self.size, self.form = size, form
        self._rows, self._cache, self._packing = rows, cache, packing
        self._buffer = torch.zeros(packing.bytes, dtype=torch.uint8, device=rows.device)
        self._step = packing.tensors(self._buffer)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._found: tuple[Tensor, Tensor] | None = None

    @abstractmethod
    def send(self, step: HostStep | None, sender: Sender) -> None:
        """Puts a step into the buffer, with what is new in the rows; None for one of no sequences."""

    @abstractmethod
    def _compute(self) -> tuple[Tensor, Tensor]:
        """Computes the step in the buffer."""

    def run(self) -> tuple[Tensor, Tensor]:
        """Computes the step in the buffer: rows of logits (L, V), and the tokens drawn (L,), until the next run."""
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._found

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
        self._graph = graph


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

