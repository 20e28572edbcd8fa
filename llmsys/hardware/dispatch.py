"""Watching torch's operations: every one of them goes through the dispatcher, in Python or hidden in C++.

An `Observer` is a mode whose `__torch_dispatch__(operator, types, args, kwargs)` is called for each operation in its
block; a `FunctionObserver` sees what is called in Python instead, `x.numpy()` and `x.tolist()` among it, which are no
operations. torch knows modes of one thread only. These two see threads as well that are started in the block, or were
in an earlier one (a pool's).

The functions below answer what `llmsys.hardware.meters` and `llmsys.hardware.memory` ask of an operator (an
`OpOverload` such as `torch.ops.aten.add.Tensor`) and of its arguments.
"""

import _thread
import sys
import threading
from contextlib import ExitStack
from functools import cache

import torch
from torch import Tensor, overrides
from torch.overrides import TorchFunctionMode
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode


class _InEveryThread:
    """What both observers have in common: while their blocks are open, threads forward to them what they do."""

    def __enter__(self):
        with _lock:
            if not _open:
                threading.Thread.start, _thread.start_new_thread = _start, _start_new_thread
            _open.append(self)
        return super().__enter__()

    def __exit__(self, *error):
        with _lock:
            _open.remove(self)
            if not _open:
                threading.Thread.start, _thread.start_new_thread = _threads_own
        return super().__exit__(*error)


class Observer(_InEveryThread, TorchDispatchMode):
    """A dispatch mode for instruments: they watch operations and leave their results as they are."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would keep torch's compiler out of `__torch_dispatch__` by importing it, at the first operation seen.
        # That takes two seconds; and it imports Triton, in a mode that `load_triton` could no longer change.
        return False


class FunctionObserver(_InEveryThread, TorchFunctionMode):
    """The same for `__torch_function__(function, types, args, kwargs)`: what Python calls of torch."""


_lock = threading.RLock()
_open: list[Observer | FunctionObserver | None] = []  # of all blocks that are open, the outermost first
_threads_own = threading.Thread.start, _thread.start_new_thread


def follow_threads() -> None:
    """From here on, threads show what they do to observers that are opened later, too: whoever runs code that others
    may have prepared calls this before it is prepared. It cannot be undone."""
    with _lock:
        if not _open:
            threading.Thread.start, _thread.start_new_thread = _start, _start_new_thread
        _open.append(None)
        # The names under which Python's own module has it, for whoever goes behind Thread.start.
        for name in [each for each in ("_start_new_thread", "_start_joinable_thread") if hasattr(threading, each)]:
            setattr(threading, name, _followed(getattr(threading, name)))
        _thread.start_new = _start_new_thread


def _followed(start):
    """A function of `_thread` that starts a thread, for Thread.start; for anybody else, a Thread is started."""

    def start_thread(function, *rest, **options):
        if sys._getframe(1).f_code is _threads_own[0].__code__:
            return start(function, *rest, **options)
        return _start_new_thread(function, rest[0] if rest and isinstance(rest[0], tuple) else ())

    return start_thread


def _start(thread: threading.Thread) -> None:
    """Stands in for `threading.Thread.start` while a block is open."""
    run = thread.run

    def observed() -> None:
        # Pushed and not entered: entering sets flags of the whole process, and a thread may outlive the block.
        _python_dispatch._push_mode(_ForwardOperations())
        overrides._push_mode(_ForwardFunctions())
        run()

    thread.run = observed
    _threads_own[0](thread)


def _start_new_thread(function, args: tuple, kwargs: dict | None = None) -> int:
    thread = threading.Thread(target=function, args=args, kwargs=kwargs or {}, daemon=True)
    thread.start()
    return thread.ident


class _ForwardOperations(TorchDispatchMode):
    """In a thread, shows each operation to the observers whose blocks are open by then."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as for an Observer

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        with _entered(Observer, _python_dispatch):
            return operator(*args, **(kwargs or {}))


class _ForwardFunctions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        with _entered(FunctionObserver, overrides):
            return function(*args, **(kwargs or {}))


def _entered(kind: type, stack_of_modes) -> ExitStack:
    """The open observers of that kind, on this thread's stack of modes (which torch keeps in two modules)."""
    entered = ExitStack()
    for mode in [each for each in _open if isinstance(each, kind)]:
        stack_of_modes._push_mode(mode)
        entered.callback(stack_of_modes._pop_mode)
    return entered


def tensors_in(value) -> list[Tensor]:
    """The tensors in an operator's arguments or results, which may be tuples, lists and dicts of them. Sparse ones and
    others that are not one piece of memory are left out."""
    if isinstance(value, Tensor):
        return [value] if _is_dense(value) else []
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    found = []
    for each in value:  # most are tensors and numbers: none of them is worth a call, for this runs at every operation
        if isinstance(each, Tensor):
            if _is_dense(each):
                found.append(each)
        elif isinstance(each, (tuple, list, dict)):
            found += tensors_in(each)
    return found


def _is_dense(x: Tensor, _strided=torch.strided) -> bool:
    return x.layout is _strided and not x.is_nested


def storage_id(x: Tensor) -> int:
    """A number that x's memory has as long as it is alive: views of one tensor have the same."""
    return x.untyped_storage()._cdata


is_freed = torch.UntypedStorage._expired
"""Whether the memory is gone that a `StorageWeakRef` has as its `cdata`: its own `expired`, without the calls between,
for that is asked of many at every operation."""


@cache
def is_view(operator) -> bool:
    """Whether the operator's result is a view of an argument, for which no element is read."""
    # In its schema, a view's result aliases an argument and does not write to it: "Tensor(a) self -> Tensor(a)".
    return any(r.alias_info is not None and not r.alias_info.is_write for r in operator._schema.returns)


@cache
def only_takes_the_shape(operator) -> bool:
    """Whether the operator takes no more of its argument than shape and dtype: `zeros_like`, `new_empty` and others."""
    name = operator._schema.name.removeprefix("aten::")
    return name.startswith("new_") or name.endswith("_like")


@cache
def only_moves(operator) -> bool:
    """Whether the operator copies elements from one place to another, perhaps to another dtype: it computes nothing."""
    name = operator._schema.name.removeprefix("aten::")
    return name in ("copy_", "_to_copy", "clone", "cat", "stack", "index_put_", "index_copy_", "slice_scatter")


@cache
def overwritten(operator) -> frozenset[str]:
    """Names of the arguments that the operator writes to and does not read: out=, and self of copy_, fill_, zero_."""
    name = operator._schema.name.removeprefix("aten::")
    overwrites = name in ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_")
    return frozenset(
        argument.name
        for argument in operator._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write and (overwrites or argument.is_out)
    )


@cache
def argument_names(operator) -> tuple[str, ...]:
    """The names of the operator's arguments, in order."""
    return tuple(argument.name for argument in operator._schema.arguments)
