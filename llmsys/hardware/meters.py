"""Meters: what a piece of PyTorch allocates, keeps, reads, computes and moves.

A claim like "this attention never holds a T × T buffer" or "two passes instead of three" is about what a program
*does*, not about what it returns. The meters watch every operation that goes through torch's dispatcher
(`llmsys.hardware.dispatch`), whether Python called it or torch's own C++, in this thread or in one that it started:

    with largest_allocation() as allocated, reads_of(x) as reads:
        y = online_softmax(x, tile=64)
    allocated.shape, reads.passes

What an operation needs inside while it runs (a workspace of a fused kernel, say) is not seen. How much is alive
at once, in NumPy's arrays and Python's lists, too, is metered by `llmsys.hardware.memory_meters`.
"""

import math
import warnings
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from llmsys.hardware.arithmetic import count, name_of
from llmsys.hardware.dispatch import Observer, argument_names, is_view, only_takes_the_shape, overwritten, tensors_in
from llmsys.hardware.memory_meters import Allocation, Reads, memory_of


@contextmanager
def largest_allocation() -> Iterator[Allocation]:
    """Meter the largest tensor that an operation in the block allocates. Views and results in place do not count."""
    with memory_of({}) as memory:
        yield memory.largest


@contextmanager
def reads_of(x: Tensor) -> Iterator[Reads]:
    """Count the elements of x's memory that operations in the block read.

    A view (a slice, a transposition) reads nothing by itself; an operation that is given a view reads as many elements
    as the view has, and so do x.numpy() and x.tolist(). Writing is not reading, and neither is taking x's shape and
    dtype for a new tensor.
    """
    with reads_of_each({"x": x}) as reads:
        yield reads["x"]


@contextmanager
def reads_of_each(tensors: Mapping[Hashable, Tensor]) -> Iterator[dict[Hashable, Reads]]:
    """`reads_of` for several tensors at once, under the keys of `tensors`. It takes hardly longer than for one."""
    with memory_of(tensors) as memory:
        yield memory.reads


@dataclass
class Saved:
    """What autograd keeps: `bytes` in all, and the `shapes` of the tensors, in the order in which they were kept."""

    bytes: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()


@contextmanager
def saved_for_backward(*given: Tensor) -> Iterator[Saved]:
    """Meter what operations in the block keep for their backward pass.

    Tensors that are there anyway (inputs, weights) are `given` and do not count; memory that several operations keep
    counts once. Works on torch's meta device, too.
    """
    saved = Saved()
    known = [x.untyped_storage() for x in given]  # kept alive, so that no other memory gets the same name

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in {each._cdata for each in known}:
            known.append(storage)
            saved.bytes += storage.nbytes()
            saved.shapes += (tuple(x.shape),)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield saved


@dataclass
class Work:
    """What operations did.

    matmul_flops   operations of matrix products; a multiply-add is two
    other_flops    all others: one for each element that an elementwise operation makes or a reduction takes
    exponentials   how many of the other operations were exponentials
    bytes_read, bytes_written   to and from memory
    not_counted    operations of torch that are not known here, by name, and how many there were: only their bytes count
    """

    matmul_flops: int = 0
    other_flops: int = 0
    exponentials: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    not_counted: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes read and written together."""
        return self.bytes_read + self.bytes_written


@contextmanager
def work() -> Iterator[Work]:
    """Count what the operations in the block compute and move.

    Each operation counts by itself: its operands come from memory, and its results go back there, as when one kernel
    runs after another and no cache helps.

    A softmax is five operations an element (maximum, difference, exponential, sum, quotient), and of a fused attention
    every score counts, masked or not: two products forward, five backward, where the scores are made again. Making,
    comparing, converting, masking and copying tensors computes nothing; a view does not even move a byte, and an
    expanded one is as large as what it repeats. (`llmsys.hardware.arithmetic` has the formulas.)

    Of an operation that is not known (a Fourier transform, somebody's own operator) only the bytes are counted:
    `not_counted` names it, and so does a warning at the end of the block. A kernel that is launched by no operator of
    torch, as Triton's are, is not seen at all.
    """
    done = Work()
    with _Work(done):
        yield done
    if done.not_counted:
        names = ", ".join(f"{name} ({n}×)" for name, n in done.not_counted.items())
        warnings.warn(f"work() does not know what these compute, and counted their bytes alone: {names}", stacklevel=3)


class _Work(Observer):
    def __init__(self, done: Work):
        super().__init__()
        self.done = done

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # Where no gradient can be asked for (torch.inference_mode), composite operations such as `linear` get here
        # whole: take them apart.
        with self:
            result = operator.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        read = self._read(operator, args, kwargs)  # before: an operation in place may change what decides it
        result = operator(*args, **kwargs)
        if _moves(operator):
            self.done.bytes_read += read
            self.done.bytes_written += self._written(operator, args, result)
            computed = count(operator, args, kwargs, result)
            if computed is None:
                names = self.done.not_counted
                names[operator._schema.name] = names.get(operator._schema.name, 0) + 1
            else:
                self.done.matmul_flops += computed.matmul
                self.done.other_flops += computed.other
                self.done.exponentials += computed.exponentials
        return result

    def _read(self, operator, args, kwargs) -> int:
        if only_takes_the_shape(operator):
            return 0
        not_read = overwritten(operator)
        named = dict(zip(argument_names(operator), args, strict=False)) | kwargs
        given = [x for key, value in named.items() if key not in not_read for x in tensors_in(value)]
        if name_of(operator) in _PICKS or operator._schema.name in _PUTS:
            given = given[1:]  # not the whole table: `_written` knows how much is picked of it
        return sum(map(_bytes, given))

    def _written(self, operator, args, result) -> int:
        name = name_of(operator)
        if "empty" in name:
            return 0
        if operator._schema.name in _PUTS:
            with _disable_current_modes():  # what is asked here is not the block's work, for another meter neither
                places = torch.ops.aten.index(args[0], args[1]) if name == "index_put" else args[3]
            return places.numel() * args[0].element_size()
        changed = result if operator._schema.returns else _changed(operator, args)
        size = sum(map(_bytes, tensors_in(changed)))
        self.done.bytes_read += size if name in _PICKS else 0
        return size


_PICKS = ("embedding", "index", "index_select", "gather", "take", "masked_select")  # they read some of a table
_PUTS = ("aten::index_put_", "aten::index_copy_")  # they write to some places of a tensor


def _changed(operator, args) -> list:
    """The arguments that an operator writes to, where it returns nothing, as those over lists of tensors."""
    pairs = zip(operator._schema.arguments, args, strict=False)
    return [value for argument, value in pairs if argument.alias_info is not None and argument.alias_info.is_write]


def _moves(operator) -> bool:
    """Whether the operator moves bytes: views, and what torch has beside them, do not."""
    return not is_view(operator) and name_of(operator) not in ("_unsafe_view", "detach")


def _bytes(x: Tensor) -> int:
    """Bytes of the elements that x really has: those that `expand` repeats count once."""
    distinct = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size)
    return distinct * x.element_size()
