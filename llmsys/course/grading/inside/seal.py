"""Whether the course and torch are what they were: noted before a learner's cells run, compared after them.

Two things keep what judges out of an answer's reach:

- The modules that judge (checks, runner, meters, sanitizer) are taken out of `sys.modules` before the cells run
  (`hide`). Whoever imports one then gets another copy of it, and may change that as they like: the judge has its own.
- What cannot be had twice, torch and the library itself, is sealed: every function, class and method in every module of
  theirs is noted, with its code, and compared afterwards.

    seal = Seal(hide())
    …                       # the learner's code
    seal.broken()           # ["torch.allclose", "llmsys.course.checking.compare.compare"]

The copies are looked at as well: they change nothing, but whoever changes them has meant to.
"""

import os
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType

import torch

SEALED = {
    "llmsys", "torch", "triton", "numpy", "builtins", "threading", "_thread", "json", "struct", "contextlib", "os",
    "weakref", "gc", "inspect", "functools", "itertools", "types", "ctypes", "ast", "fnmatch", "math",
}  # fmt: skip
"""The packages that are sealed."""

UNUSED = (
    "torch.ao", "torch.compiler", "torch.cuda", "torch.distributed", "torch.distributions", "torch.export", "torch.fx",
    "torch.jit", "torch.onnx", "torch.optim", "torch.package", "torch.profiler", "torch._dynamo", "torch._inductor",
    "torch._functorch", "torch._higher_order_ops", "torch._C._distributed", "triton.language", "numpy.ma",
    "numpy.polynomial", "numpy.random", "numpy.testing",
)  # fmt: skip
"""What of them no judge uses, or what changes by itself, as triton.language does where kernels are interpreted."""

JUDGES = (
    "llmsys.course.checking", "llmsys.course.grading", "llmsys.course.attempts",
    "llmsys.hardware.dispatch", "llmsys.hardware.memory_meters", "llmsys.hardware.sanitizer",
    "llmsys.hardware.sanitizer_report", "llmsys.hardware.watched_launch", "llmsys.hardware.races",
    "llmsys.hardware.kernel_source", "llmsys.hardware.launches", "llmsys.hardware.compiler",
)  # fmt: skip
"""Modules that a judge has for itself, and those below them. (What answers and checks exchange must be the same for
both: the machines of `llmsys.hardware` that lessons play with, and what a lesson gives its reader to build on, stay as
they are, and are sealed.)"""

OF_A_LESSON = ("checks", "mistakes", "kernel_mistakes")
"""The modules of a lesson that judge."""

MOST_NAMED = 3  # of what was changed, in a remark


def hide(more: tuple[str, ...] = ()) -> dict[str, ModuleType]:
    """Take the modules that judge out of reach, and those named in `more`. Returns them by their names."""
    hidden = {}
    for name in list(sys.modules):
        if _below(name, JUDGES + more) or _judges_a_lesson(name):
            hidden[name] = sys.modules.pop(name)
            parent, _, own = name.rpartition(".")
            if vars(sys.modules.get(parent, sys)).get(own) is hidden[name]:
                delattr(sys.modules[parent], own)
    return hidden


class Seal:
    """What the sealed modules hold now; `hidden` are those of which there may be copies later."""

    def __init__(self, hidden: dict[str, ModuleType]):
        self._hidden = hidden
        self._modules = {name: each for name, each in sys.modules.items() if _is_sealed(name, each)}
        self._known = {name: dict(_parts(name, each)) for name, each in self._modules.items()}

    def broken(self) -> list[str]:
        """The names of what is another now."""
        found = []
        for name, module in self._modules.items():
            if sys.modules.get(name) is not module and name in sys.modules:
                found.append(name)
                continue
            now = dict(_parts(name, module))
            known = self._known[name]
            found += [part for part, value in known.items() if not _same(value, now.get(part))]
            # A method that a class did not have takes precedence over one that it has inherited.
            found += [part for part in now.keys() - known.keys() if part.rpartition(".")[0] in known]
        for name, original in self._hidden.items():
            copy = sys.modules.get(name)
            if copy is not None and copy is not original:
                found += self._broken_copy(name, original, copy)
        return list(dict.fromkeys(found))

    def _broken_copy(self, name: str, original: ModuleType, copy: ModuleType) -> list[str]:
        """A copy has the same functions by their code. Names that only a later import adds are not the learner's."""
        if type(copy) is not ModuleType:
            return [name]
        now = dict(_parts(name, copy))
        return [
            part
            for part, (_, code) in dict(_parts(name, original)).items()
            if code is not None and part in now and now[part][1] != code
        ]


def in_words(broken: list[str]) -> str:
    """The remark: what was changed."""
    more = f" and {len(broken) - MOST_NAMED} more" if len(broken) > MOST_NAMED else ""
    return f"it changed what judges it: {', '.join(broken[:MOST_NAMED])}{more} must stay as it is"


def _is_sealed(name: str, module: object) -> bool:
    return name.partition(".")[0] in SEALED and type(module) is ModuleType and not _below(name, UNUSED)


def _judges_a_lesson(name: str) -> bool:
    _, *inside = name.removeprefix("llmsys.lessons.").split(".")
    return name.startswith("llmsys.lessons.lesson_") and inside[:1] != [] and inside[0] in OF_A_LESSON


def _below(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in packages)


def _parts(name: str, module: ModuleType) -> Iterator[tuple[str, tuple]]:
    """What a module holds that can be called, with the code of what is Python's; of its own classes the methods, too;
    of the library its constants."""
    own = name.partition(".")[0]
    for key, value in list(vars(module).items()):
        if type(value) is FunctionType:
            yield f"{name}.{key}", (value, value.__code__)
        elif isinstance(value, type):
            yield f"{name}.{key}", (value, None)
            if vars(value).get("__module__") == name:
                yield from _methods(f"{name}.{key}", value)
        elif callable(value) and not isinstance(value, ModuleType):
            yield f"{name}.{key}", (value, None)
        elif own == "llmsys" and key.isupper() and type(value) in (int, float, str, bool, tuple, frozenset):
            yield f"{name}.{key}", (value, None)


def _methods(name: str, kind: type) -> Iterator[tuple[str, tuple]]:
    for key, value in list(vars(kind).items()):
        function = getattr(value, "__func__", value)
        function = function.fget if type(function) is property else function
        if type(function) is FunctionType:
            yield f"{name}.{key}", (value, function.__code__)
        elif callable(value) or hasattr(type(value), "__get__"):
            yield f"{name}.{key}", (value, None)


def _same(known: tuple, now: tuple | None) -> bool:
    if now is None or (known[0] is now[0] and known[1] is now[1]):
        return now is not None
    if type(now[0]) is not FunctionType or not now[1].co_filename.startswith(_TORCH):
        return False
    # torch's compiler, when it is first imported, puts wrappers of its own around a few of torch's functions.
    return vars(now[0]).get("__wrapped__") is known[0]


_TORCH = f"{os.path.dirname(torch.__file__)}{os.sep}"
