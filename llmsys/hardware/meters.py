"""Meters for memory: what a piece of PyTorch allocates, and how often it reads a tensor.

A claim like "this attention never holds a T × T buffer" or "two passes instead of three" is about what a program
*does*, not about what it returns. The meters watch torch's dispatcher, through which every operation goes, in Python
or hidden in C++:

    with largest_allocation() as allocated, reads_of(x) as reads:
        y = online_softmax(x, tile=64)
    allocated.shape, reads.passes

What one operation needs inside (a workspace in a fused kernel, say) is its own affair and is not seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Allocation:
    """The largest tensor that one operation allocated: its `bytes` and `shape`. Zero and () where there was none."""

    bytes: int = 0
    shape: tuple[int, ...] = ()


@dataclass
class Reads:
    """How many `elements` were read of a tensor that has `size` of them."""

    size: int
    elements: int = 0

    @property
    def passes(self) -> float:
        """How many times over the tensor was read."""
        return self.elements / self.size if self.size else 0.0


@contextmanager
def largest_allocation() -> Iterator[Allocation]:
    """Meter the largest tensor that an operation in the block newly allocates: views and in-place results are not."""
    largest = Allocation()
    with _LargestAllocation(largest):
        yield largest


@contextmanager
def reads_of(x: Tensor) -> Iterator[Reads]:
    """Count the elements of x's memory that operations in the block read.

    A view (a slice, a transposition) reads nothing by itself; an operation that is given a view reads as many elements
    as the view has. Writing is not reading, and neither is taking x's shape and dtype for a new tensor.
    """
    reads = Reads(size=x.numel())
    with _Reads(x.untyped_storage(), reads):
        yield reads


class Observer(TorchDispatchMode):
    """Sees every operation that goes through torch's dispatcher. For those that only look and change nothing."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would keep torch's compiler out of `__torch_dispatch__` by importing it, at the first operation seen.
        # That takes two seconds; and it imports Triton, in a mode that `load_triton` could no longer change.
        return False


class _LargestAllocation(Observer):
    def __init__(self, largest: Allocation):
        super().__init__()
        self.largest = largest

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        given = {_storage(x) for x in _tensors((args, kwargs))}
        for x in _tensors(result):
            size = x.untyped_storage().nbytes()
            if size > self.largest.bytes and _storage(x) not in given:
                self.largest.bytes, self.largest.shape = size, tuple(x.shape)
        return result


class _Reads(Observer):
    def __init__(self, storage: torch.UntypedStorage, reads: Reads):
        super().__init__()
        self.storage, self.reads = storage._cdata, reads

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not _is_view(operator) and not _only_takes_the_shape(operator):
            written = _write_only(operator)
            named = {argument.name: value for argument, value in zip(operator._schema.arguments, args, strict=False)}
            for name, value in (named | (kwargs or {})).items():
                if name not in written:
                    self.reads.elements += sum(x.numel() for x in _tensors(value) if _storage(x) == self.storage)
        return operator(*args, **(kwargs or {}))


def _tensors(value) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _is_view(operator) -> bool:
    # In its schema, a view's result aliases an argument and does not write to it: "Tensor(a) self -> Tensor(a)".
    return any(r.alias_info is not None and not r.alias_info.is_write for r in operator._schema.returns)


def _only_takes_the_shape(operator) -> bool:
    name = operator._schema.name.removeprefix("aten::")
    return name.startswith("new_") or name.endswith("_like")


def _write_only(operator) -> set[str]:
    """The arguments that the operator overwrites without looking at them: out=, and self of copy_, fill_ and zero_."""
    name = operator._schema.name.removeprefix("aten::")
    overwrites = name in ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_")
    return {
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and (overwrites or argument.is_out)
    }
