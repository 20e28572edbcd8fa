"""Shortcuts, noticed: which forbidden functions and operators run while the learner's own code runs.

"Write the merge yourself" means nothing while `online.merge` is one import away, and refusing the import would not
help: it may have happened in the first cell, under another name. So the *calls* are watched, not the names:

- a Python function is known by its code object. `sys.setprofile` reports every call with the frame that makes it, in
  this thread and, by `threading.setprofile`, in those that start meanwhile; whatever the function was called, wrapped
  in or stored under, the code that runs is the same. A name like `"llmsys.models.sampling:greedy"` is matched with the
  module and the qualified name of the code that runs, so that nothing has to be imported to forbid it; `"module:*"`
  stands for every function of the module, and module may be a pattern.
- an operator of torch ("aten::logaddexp", "aten::*softmax*") is seen twice: in Python as it is called
  (TorchFunctionMode, before C++ takes a composite operator apart) and at the dispatcher (whatever the call was hidden
  in). Both see other threads, too (`llmsys.hardware.dispatch`).

What an exercise forbids is seldom one function: "no fused softmax" is a property, and torch has many functions that do
not have it. Such families have names here (`FUSED_SOFTMAX`, `FUSED_ATTENTION`, `DERIVATIVES`), for lessons to name.

The call is stopped with an error, and is remembered, so that swallowing the error does not help; in another thread, a
call of a Python function is remembered only. What was installed
before (a debugger, a coverage tool) is put back afterwards. Only what runs inside the block is watched: the check
itself may call anything.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from fnmatch import fnmatchcase
from types import CodeType

import torch
from torch import Tensor

from llmsys.hardware.dispatch import FunctionObserver, Observer
from llmsys.hardware.kernel_source import underlying

Forbidden = Callable | str

FUSED_SOFTMAX: tuple[Forbidden, ...] = (
    "aten::*softmax*", "aten::*logsumexp*", "aten::*logcumsumexp*", "aten::*logaddexp*", "aten::*cross_entropy*",
    "torch._refs:softmax", "torch._refs:log_softmax", "torch._refs:logsumexp", "torch._refs:logaddexp",
    "torch._refs.nn.functional:softmax", "torch._decomp.decompositions:_softmax",
)  # fmt: skip
"""What computes a softmax, or its denominator, in one call."""

FUSED_ATTENTION: tuple[Forbidden, ...] = (
    "aten::*scaled_dot_product*", "aten::*flash_attention*", "aten::*efficient_attention*", "aten::*cudnn_attention*",
    "aten::*multi_head_attention*", "aten::*transformer_encoder*", "torch.nn.attention.flex_attention:*",
    "torch.nn.functional:multi_head_attention_forward",
)  # fmt: skip
"""What computes attention in one call."""

AUTOGRAD = "autograd"
"""Forbids that anything is recorded for a backward pass: that a tensor is made that requires a gradient."""

DERIVATIVES: tuple[Forbidden, ...] = (
    AUTOGRAD, torch.autograd.grad, torch.autograd.backward, "aten::*backward*", "torch.autograd.functional:*",
    "torch.autograd.forward_ad:*", "torch._functorch.eager_transforms:*", "torch.autograd.graph:_engine_run_backward",
)  # fmt: skip
"""What takes a derivative by machine."""


class Shortcut(RuntimeError):
    """A forbidden function or operator was called."""

    def __init__(self, name: str):
        super().__init__(f"write this yourself: {name} was called")


class watch:
    """Context manager: stop calls of what is forbidden inside the block, and list them in `.called`, by name.

    `forbids` holds Python functions (wrappers and Triton kernels are looked through), dotted names
    ("package.module:function", or "package.module:*" for all of them), operators of torch ("aten::name", in which *
    matches anything), and `AUTOGRAD`.
    """

    def __init__(self, forbids: Iterable[Forbidden] = ()):
        forbids = tuple(forbids)
        self.called: list[str] = []
        self._codes: dict[int, str] = {}  # id of a code object -> the name to show
        self._dotted: dict[str, set[str]] = {}  # function name -> the modules whose function of that name is meant
        self._modules: list[str] = []  # patterns of those of which every function is meant
        self._is_meant: dict[str, bool] = {}  # of modules that were seen
        self._operators: list[str] = []
        self.autograd = AUTOGRAD in forbids  # whether it is forbidden
        self._keep: list[CodeType] = []  # an id is only good for as long as its object lives
        for item in forbids:
            if isinstance(item, str) and item.startswith("aten::"):
                self._operators.append(item.removeprefix("aten::"))
            elif isinstance(item, str) and item != AUTOGRAD:
                module, _, name = item.partition(":")
                if name == "*":
                    self._modules.append(module)
                else:
                    self._dotted.setdefault(name, set()).add(module)
            elif item == AUTOGRAD:
                continue
            else:
                for code, name in _codes_of(item):
                    self._codes[id(code)] = name
                    self._keep.append(code)
                inner = underlying(item)
                if not isinstance(inner, type):  # compiled anew, by Triton's interpreter or by another import
                    self._dotted.setdefault(inner.__qualname__, set()).add(inner.__module__)
        self._allowed = _allowed.setdefault(tuple(self._operators), set())
        self._profiles = bool(self._codes or self._dotted or self._modules)
        self.on_event = self._profiler()

    def refuses(self, function: object) -> str | None:
        """The name of the forbidden function that `function` itself is, if it is one."""
        return next(filter(None, (self._match(code, module) for code, module in _own_code(function))), None)

    def __enter__(self) -> "watch":
        self._modes = ExitStack()
        if self._profiles:
            self._before = sys.getprofile(), threading.getprofile()
            self._modes.callback(self._put_back)
            _set_watching((*_watching, self))
            threading.setprofile(_in_threads)
        if self._operators or self.autograd:
            self._modes.enter_context(_Functions(self))
            self._modes.enter_context(_Operators(self))
        if self._profiles:
            sys.setprofile(self.on_event)
        return self

    def __exit__(self, *error) -> None:
        if self._profiles:
            sys.setprofile(None)
        self._modes.close()

    def stop(self, name: str) -> None:
        if name not in self.called:
            self.called.append(name)
        raise Shortcut(name)

    def check_operator(self, name: str) -> None:
        if name in self._allowed:  # nearly every one is seen many times
            return
        bare = name.strip("_")
        for pattern in self._operators:
            if fnmatchcase(name, pattern) or fnmatchcase(bare, pattern.strip("_")):
                self.stop(f"torch's {bare}")
        self._allowed.add(name)

    def _put_back(self) -> None:
        own, threads = self._before
        _set_watching(tuple(each for each in _watching if each is not self))
        threading.setprofile(threads)
        sys.setprofile(own)

    def _profiler(self) -> Callable:
        harmless: dict[int, CodeType] = {}  # by their ids, which are good for as long as they are kept here

        def on_event(frame, event, _):  # runs several times a call of any function: one look-up is all it may cost
            if event != "call":
                return
            code = frame.f_code
            if id(code) not in harmless:
                if name := self._match(code, frame.f_globals.get("__name__", "")):
                    self.stop(name)
                harmless[id(code)] = code

        return on_event

    def _match(self, code: CodeType, module: str) -> str | None:
        if id(code) in self._codes:
            return self._codes[id(code)]
        if module not in self._is_meant:
            self._is_meant[module] = any(fnmatchcase(module or "", pattern) for pattern in self._modules)
        if self._is_meant[module] or module in self._dotted.get(code.co_qualname, ()):
            return f"{module}.{code.co_qualname}"
        return None


_allowed: dict[tuple[str, ...], set[str]] = {}  # of patterns of operators, the names that none of them matches
_watching: tuple[watch, ...] = ()


def watch_threads() -> None:
    """From here on, threads are watched by blocks that are opened later, too."""
    threading.setprofile(_in_threads)


def threads_are_watched() -> bool:
    """Whether `watch_threads` still holds."""
    return threading.getprofile() is _in_threads


def sets_profile() -> list[CodeType]:
    """The code by which a watch changes the profile function of its own thread."""
    return [function.__code__ for function in (watch.__enter__, watch.__exit__, watch._put_back)]


def _set_watching(now: tuple[watch, ...]) -> None:
    global _watching
    _watching = now  # another tuple: a thread may be in the middle of the old one


def _in_threads(frame, event, argument) -> None:
    """The profile function of other threads. A thread of a pool may outlive the block that it was started in: it is
    watched by the one that is open now."""
    if event != "call":  # asked here as well, for this runs several times a call of any function
        return
    for each in _watching:
        try:
            each.on_event(frame, event, argument)
        except Shortcut:
            pass  # it is remembered; and a profile function that raises is taken away from the thread


class _Functions(FunctionObserver):
    def __init__(self, owner: watch):
        super().__init__()
        self.owner = owner

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.owner.check_operator(getattr(function, "__name__", ""))
        result = function(*args, **(kwargs or {}))
        if self.owner.autograd and type(result) is Tensor and result.requires_grad:
            self.owner.stop("torch's autograd")
        return result


class _Operators(Observer):
    def __init__(self, owner: watch):
        super().__init__()
        self.owner = owner

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if isinstance(operator, torch._ops.OpOverload) and operator.namespace == "aten":
            self.owner.check_operator(operator._schema.name.removeprefix("aten::"))
        return operator(*args, **(kwargs or {}))


def _codes_of(function: object) -> list[tuple[CodeType, str]]:
    """The code objects that a forbidden thing runs: a function's own, or those of a class's methods."""
    if isinstance(function, type):
        name = f"{function.__module__}.{function.__qualname__}"
        methods = [underlying(value) for value in vars(function).values()]
        return [(method.__code__, name) for method in methods if hasattr(method, "__code__")]
    inner = underlying(function)
    code = getattr(inner, "__code__", None)
    if code is None:
        raise TypeError(
            f"only Python functions, dotted names and aten:: operators can be forbidden, got {function!r}; "
            "for a function of torch name its operator, as in 'aten::logaddexp'"
        )
    return [(code, f"{inner.__module__}.{inner.__qualname__}")]


def _own_code(function: object) -> list[tuple[CodeType, str]]:
    found = []
    for layer in (function, inspect.unwrap(function) if callable(function) else function, underlying(function)):
        if hasattr(layer, "__code__"):
            found.append((layer.__code__, getattr(layer, "__module__", "")))
    return found
