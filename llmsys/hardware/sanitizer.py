"""A sanitizer for Triton kernels: the interpreter, watched.

A kernel that reads or writes outside its tensors is the commonest mistake in GPU programming, and the quietest: on a
GPU the neighbouring bytes are usually there, and in the interpreter they are somebody's Python objects. While `watch`
is active, every load and store of an interpreted kernel is looked at before it happens:

    with watch(x=x) as report:
        softmax_kernel[(rows,)](x, y, …)
    print(report)

- The tensors that a launch is given, and those named in `watch`, are the only memory that may be touched. A tensor is
  its *elements*: the gaps between the rows of a slice are outside. A lane that goes astray is masked off, so that the
  process survives, and is reported with its kernel, its program, its line, and by how far it missed which tensor.
- A pointer knows its tensor. Every pointer that a kernel is given carries the number of its storage in the upper bits,
  which pointer arithmetic leaves alone (Arm's memory tagging extension does the same in hardware). So a lane that runs
  past the end of x is astray even where another tensor happens to lie next door.
- Races are reported, down to the byte: a program that stores what another one stores or loads, and two lanes of one
  store that give an address different values. One after the other, as the interpreter runs programs, they give an
  answer; on a GPU, nobody knows which. Where an order cannot be seen here, the report says so (`races`), and no longer
  that there are no races.
- The bytes that are loaded from and stored to each tensor are counted, masked lanes left out, and so are the
  multiply-adds of tl.dot, by the type in which a GPU multiplies: "tf32" for float32 without input_precision="ieee".

Block pointers and tensor descriptors come down to the same loads and stores, and are watched with them.

The interpreter's internals are touched in this file, which puts hooks in their place, and in `watched_launch`, which
is what the hooks do, and nowhere else (Triton 3.6 to 3.9). Where they look different, `available()` is false, and
`watch` watches nothing: kernels then run as they always do. What was found is told by `sanitizer_report`.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor

from llmsys.hardware.sanitizer_report import LANE_RACE, LOAD, MOST_FINDINGS, RACE, READ_RACE, STORE, Finding, Report
from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.hardware.watched_launch import Region, Watcher

__all__ = [
    "LANE_RACE", "LOAD", "MOST_FINDINGS", "RACE", "READ_RACE", "STORE", "Finding", "Report", "available", "watch",
]  # fmt: skip


def available() -> bool:
    """Whether kernels run in Triton's interpreter here, and its internals are those that this file knows."""
    return triton_installed() and interpreting() and _interpreter() is not None


@contextmanager
def watch(**tensors: Tensor) -> Iterator[Report]:
    """Watch every interpreted kernel that is launched in the block.

    Kernels may touch `tensors` as well as their own arguments. A tensor is reported under the name that it has here, or
    else under the name of the kernel's argument.

    Raises ValueError for anything but tensors, and at the launch for tensors that are not on the CPU.
    """
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    report = Report()
    if not available():
        yield report
        return
    interpreter = _interpreter()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    before = {
        (owner, name): owner.__dict__[name]
        for owner, names in (
            (builder, [*_HOOKED, *_HOOKED_IF_THERE]), (executor, ("__call__",)), (interpreter, ("_implicit_cvt",)),
        )
        for name in names
        if name not in _HOOKED_IF_THERE or name in owner.__dict__
    }
    watcher = Watcher(report, [Region(name, x) for name, x in tensors.items()], interpreter)
    try:
        for (owner, name), original in before.items():
            setattr(owner, name, watcher.hook(name, original))
        with _no_idle_overflow_checks(interpreter):
            yield report
    finally:
        for (owner, name), original in before.items():
            setattr(owner, name, original)


@contextmanager
def _no_idle_overflow_checks(interpreter) -> Iterator[None]:
    """Where its `debug` option is off, the interpreter computes for every sum and product of integers whether it
    overflows, and then looks at none of it. That is a third of a kernel's time: leave it out."""
    builder = getattr(interpreter, "interpreter_builder", None)
    options = getattr(builder, "options", None)
    idle = getattr(options, "sanitize_overflow", False) and not getattr(options, "debug", True)
    if idle:
        builder.options = replace(options, sanitize_overflow=False)
    try:
        yield
    finally:
        if idle:
            builder.options = options


_HOOKED = {  # methods of the interpreter's builder, and the first names of their parameters
    "create_masked_load": ["self", "ptrs", "mask", "other"],
    "create_masked_store": ["self", "ptrs", "value", "mask"],
    "create_atomic_rmw": ["self", "rmwOp", "ptr", "val", "mask"],
    "create_atomic_cas": ["self", "ptr", "cmp", "val"],
    "create_dot": ["self", "a", "b", "d", "input_precision"],
}


_HOOKED_IF_THERE = {"create_barrier": ["self"]}
"""The same; where there is none, a kernel with a barrier is watched as if it had none."""


def _interpreter():
    """Triton's interpreter module; None if what is hooked here does not look as in the versions that are known."""
    import triton.runtime.interpreter as interpreter

    methods = getattr(getattr(interpreter, "InterpreterBuilder", None), "__dict__", {})
    for name, parameters in _HOOKED.items():
        # A watch that is already active has put its own functions there: those are known.
        method = inspect.unwrap(methods[name]) if name in methods else None
        if method is None or list(inspect.signature(method).parameters)[: len(parameters)] != parameters:
            return None
    return interpreter if hasattr(interpreter, "GridExecutor") and hasattr(interpreter, "_implicit_cvt") else None
