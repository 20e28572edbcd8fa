"""Meters: what a piece of PyTorch allocates, keeps for its backward pass, reads, computes and moves.

A claim like "this attention never holds a T × T buffer" or "two passes instead of three" is about what a program
*does*, not about what it returns. The meters watch torch's dispatcher, through which every operation goes, in Python
or hidden in C++:

    with largest_allocation() as allocated, reads_of(x) as reads:
        y = online_softmax(x, tile=64)
    allocated.shape, reads.passes

What one operation needs inside (a workspace in a fused kernel, say) is its own affair and is not seen.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
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
    with reads_of_each({"x": x}) as reads:
        yield reads["x"]


@contextmanager
def reads_of_each(tensors: Mapping[Hashable, Tensor]) -> Iterator[dict[Hashable, Reads]]:
    """`reads_of` for several tensors at once, under the keys of `tensors`. It takes hardly longer than for one."""
    reads = {key: Reads(size=x.numel()) for key, x in tensors.items()}
    if not reads:
        yield reads
        return
    with _Reads([(x.untyped_storage(), reads[key]) for key, x in tensors.items()]):
        yield reads


@dataclass
class Saved:
    """What autograd keeps: `bytes` in all, and the `shapes` that it kept them in, in order."""

    bytes: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()


@contextmanager
def saved_for_backward(*given: Tensor) -> Iterator[Saved]:
    """Meter what operations in the block keep for their backward pass, beside tensors that are `given` anyway (inputs,
    weights). What several operations keep of one memory counts once. Works on torch's meta device, too."""
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
    """What operations do. A multiply-add in a matrix product is two `matmul_flops`; everything else is `other_flops`,
    one for each element that an elementwise operation makes or a reduction takes, `exponentials` among them."""

    matmul_flops: int = 0
    other_flops: int = 0
    exponentials: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    @property
    def bytes(self) -> int:
        """Read and written."""
        return self.bytes_read + self.bytes_written


@contextmanager
def work() -> Iterator[Work]:
    """Count what the operations in the block compute and move, each by itself: its operands come from memory, and its
    results go back there. So it is when they run one kernel after another and no cache helps.

    A softmax is five operations an element (maximum, difference, exponential, sum, quotient), and of a fused attention
    every score counts, masked or not. Making, comparing, converting, masking and copying tensors computes nothing;
    a view does not even move a byte, and an expanded one is as large as what it repeats. Of an operation that is not
    known here (a convolution, somebody's own kernel) only the bytes are counted.
    """
    done = Work()
    with _Work(done):
        yield done


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
    def __init__(self, tensors: list[tuple[torch.UntypedStorage, Reads]]):
        super().__init__()
        self.reads: dict[int, list[Reads]] = {}  # of each storage: several tensors may share one
        for storage, reads in tensors:
            self.reads.setdefault(storage._cdata, []).append(reads)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if not _is_view(operator) and not _only_takes_the_shape(operator):
            written = _write_only(operator)
            named = {argument.name: value for argument, value in zip(operator._schema.arguments, args, strict=False)}
            for name, value in (named | (kwargs or {})).items():
                if name not in written:
                    for x in _tensors(value):
                        for reads in self.reads.get(_storage(x), ()):
                            reads.elements += x.numel()
        return operator(*args, **(kwargs or {}))


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
        if _only_takes_the_shape(operator):
            return 0
        overwritten = _write_only(operator)
        named = {argument.name: value for argument, value in zip(operator._schema.arguments, args, strict=False)}
        given = [x for key, value in (named | kwargs).items() if key not in overwritten for x in _tensors(value)]
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
        size = sum(map(_bytes, _tensors(result)))
        self.done.bytes_read += size if name in _PICKS else 0
        return size

    def _compute(self, operator, args, result) -> None:
        done, name = self.done, _name(operator)
        given = _tensors(args)
        made = sum(x.numel() for x in _tensors(result))
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
            done.other_flops += sum(x.numel() for x in _tensors(result) if x.is_floating_point() or x.is_complex())
        if name in _EXPONENTIALS:
            done.exponentials += given[0].numel()


_PRODUCTS = {  # which argument the product's left side is: 1 where the first is added to the product
    "mm": 0, "bmm": 0, "mv": 0, "dot": 0, "vdot": 0, "_scaled_mm": 0, "_int_mm": 0, "_grouped_mm": 0,
    "addmm": 1, "baddbmm": 1, "addmv": 1,
}  # fmt: skip
_ATTENTION = "_scaled_dot_product"
_REDUCTIONS = {  # operations for each element taken
    "sum": 1, "mean": 1, "prod": 1, "max": 1, "min": 1, "amax": 1, "amin": 1, "argmax": 1, "argmin": 1,
    "cumsum": 1, "cumprod": 1, "linalg_vector_norm": 2, "var": 4, "std": 4, "logsumexp": 4,
    "_softmax": 5, "_log_softmax": 5, "_softmax_backward_data": 4,
}  # fmt: skip
_NORMS = {"native_layer_norm": 5, "_fused_rms_norm": 3}  # operations an element; the weight and the bias are one more
_EXPONENTIALS = (
    "exp", "exp2", "expm1", "sigmoid", "tanh", "silu", "gelu", "_softmax", "_log_softmax", "logsumexp",
)  # fmt: skip
_ONLY_MOVE = ("clone", "copy", "_to_copy", "where", "masked_fill", "fill")
_PICKS = ("embedding", "index", "index_select", "gather", "take", "masked_select")
_PUTS = ("aten::index_put_", "aten::index_copy_")  # they write to the places picked


def _name(operator) -> str:
    """Its name, the same for what works in place: "add" for aten::add.out and aten::add_, too."""
    return operator._schema.name.removeprefix("aten::").removesuffix("_")


def _moves(operator) -> bool:
    return not _is_view(operator) and _name(operator) not in ("_unsafe_view", "detach")


def _bytes(x: Tensor) -> int:
    """Of the elements that are there: those that `expand` repeats count once."""
    distinct = math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride or not size)
    return distinct * x.element_size()


def _tensors(value) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


@cache
def _is_view(operator) -> bool:
    # In its schema, a view's result aliases an argument and does not write to it: "Tensor(a) self -> Tensor(a)".
    return any(r.alias_info is not None and not r.alias_info.is_write for r in operator._schema.returns)


@cache
def _only_takes_the_shape(operator) -> bool:
    name = operator._schema.name.removeprefix("aten::")
    return name.startswith("new_") or name.endswith("_like")


@cache
def _write_only(operator) -> set[str]:
    """The arguments that the operator overwrites without looking at them: out=, and self of copy_, fill_ and zero_."""
    name = operator._schema.name.removeprefix("aten::")
    overwrites = name in ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_")
    return {
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and (overwrites or argument.is_out)
    }
