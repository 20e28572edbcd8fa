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
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

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
    """

    matmul_flops: int = 0
    other_flops: int = 0
    exponentials: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

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
    every score counts, masked or not. Making, comparing, converting, masking and copying tensors computes nothing;
    a view does not even move a byte, and an expanded one is as large as what it repeats. Of an operation that is not
    known here (a convolution, somebody's own kernel) only the bytes are counted.
    """
    done = Work()
    with _Work(done):
        yield done


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
            self._compute(operator, args, result)
        return result

    def _read(self, operator, args, kwargs) -> int:
        if only_takes_the_shape(operator):
            return 0
        not_read = overwritten(operator)
        named = dict(zip(argument_names(operator), args, strict=False)) | kwargs
        given = [x for key, value in named.items() if key not in not_read for x in tensors_in(value)]
        if _name(operator) in _PICKS or operator._schema.name in _PUTS:
            given = given[1:]  # not the whole table: `_written` knows how much is picked of it
        return sum(map(_bytes, given))

    def _written(self, operator, args, result) -> int:
        name = _name(operator)
        if "empty" in name:
            return 0
        if operator._schema.name in _PUTS:
            with _disable_current_modes():  # what is asked here is not the block's work, for another meter neither
                places = torch.ops.aten.index(args[0], args[1]) if name == "index_put" else args[3]
            return places.numel() * args[0].element_size()
        size = sum(map(_bytes, tensors_in(result)))
        self.done.bytes_read += size if name in _PICKS else 0
        return size

    def _compute(self, operator, args, result) -> None:
        done, name = self.done, _name(operator)
        given = tensors_in(args)
        made = sum(x.numel() for x in tensors_in(result))
        if name in _PRODUCTS:
            done.matmul_flops += 2 * made * given[_PRODUCTS[name]].shape[-1]
            done.other_flops += made * _PRODUCTS[name]  # what is added to the product
        elif name.startswith(_ATTENTION) and not name.endswith("backward"):
            q, k, v = given[:3]
            scores = q.shape[:-1].numel() * k.shape[-2]
            done.matmul_flops += 2 * scores * (q.shape[-1] + v.shape[-1])
            done.other_flops += 6 * scores  # the scale, and a softmax
            done.exponentials += scores
        elif name in _REDUCTIONS:
            done.other_flops += _REDUCTIONS[name] * given[0].numel()
        elif name in _NORMS:
            rows = given[0].numel() // math.prod(args[1])
            done.other_flops += (_NORMS[name] + len(given) - 1) * given[0].numel() + 2 * rows
        elif torch.Tag.pointwise in operator.tags and name not in _ONLY_MOVE:
            done.other_flops += sum(x.numel() for x in tensors_in(result) if x.is_floating_point() or x.is_complex())
        if name in _EXPONENTIALS:
            done.exponentials += given[0].numel()


_PRODUCTS = {  # name -> the position of the product's left operand: 1 where the first argument is added to the product
    "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "_scaled_mm": 0, "_int_mm": 0, "_grouped_mm": 0,
    "addmm": 1, "baddbmm": 1, "addmv": 1,
}  # fmt: skip
_ATTENTION = "_scaled_dot_product"
_REDUCTIONS = {  # name -> operations for each element of the input
    "sum": 1, "mean": 1, "prod": 1, "max": 1, "min": 1, "amax": 1, "amin": 1, "argmax": 1, "argmin": 1,
    "cumsum": 1, "cumprod": 1, "linalg_vector_norm": 2, "var": 4, "std": 4, "logsumexp": 4,
    "_softmax": 5, "_log_softmax": 5, "_softmax_backward_data": 4,
}  # fmt: skip
_NORMS = {"native_layer_norm": 5, "_fused_rms_norm": 3}  # operations an element; weight and bias are one more each
_EXPONENTIALS = (
    "exp", "exp2", "expm1", "sigmoid", "tanh", "silu", "gelu", "_softmax", "_log_softmax", "logsumexp",
)  # fmt: skip
_ONLY_MOVE = ("clone", "copy", "_to_copy", "where", "masked_fill", "fill")
_PICKS = ("embedding", "index", "index_select", "gather", "take", "masked_select")  # they read some of a table
_PUTS = ("aten::index_put_", "aten::index_copy_")  # they write to some places of a tensor


def _name(operator) -> str:
    """The operator's name without its variant: "add" for aten::add, aten::add_ and aten::add.out."""
    return operator._schema.name.removeprefix("aten::").removesuffix("_")


def _moves(operator) -> bool:
    """Whether the operator moves bytes: views, and what torch has beside them, do not."""
    return not is_view(operator) and _name(operator) not in ("_unsafe_view", "detach")


def _bytes(x: Tensor) -> int:
    """Bytes of the elements that x really has: those that `expand` repeats count once."""
    distinct = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size)
    return distinct * x.element_size()
