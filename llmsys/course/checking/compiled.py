"""A kernel that passed in Triton's interpreter, put to a GPU's compiler.

The interpreter runs a kernel as Python. A GPU's compiler takes less: no `break`, no list, no global that is not a
tl.constexpr, no variable that changes its type in a loop, no product of two types. So what a check has found right is
compiled for Hopper as well, which needs no GPU (`llmsys.hardware.compiler`), in one or two of the ways in which the
check has launched it. The compiler works in a process of its own, about a second long; what it has compiled is kept.

Where the compiler cannot be asked, nobody is: without its assembler, without the kernel's text, where kernels are
compiled anyway.
"""

import ast
import contextlib
import inspect
import itertools
import linecache
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from llmsys.course.checking.compare import copy_arguments
from llmsys.hardware.compiler import Build, CompileError, compile_kernels
from llmsys.hardware.kernel_source import source_of, underlying
from llmsys.hardware.launches import Recorder
from llmsys.hardware.tier import interpreting

BUILDS = 2  # ways to compile a kernel, at most: a laptop takes a second for the first, and less for the next
SECONDS = 30  # for one of them; a kernel that takes longer is let pass
SENTENCE = 260  # characters of the compiler's explanation that are shown
PROBE = Build(
    "llmsys.attention.row_softmax:softmax_kernel",
    {"x_ptr": "*fp32", "y_ptr": "*fp32", "x_row_stride": "i32", "y_row_stride": "i32", "n_cols": "i32"},
    {"BLOCK": 16},
)
"""A kernel that compiles wherever kernels do."""


@dataclass(frozen=True)
class Refusal:
    """What the compiler says of a kernel, and the line of the kernel's file or cell that it means, if it is there."""

    message: str
    line: int | None
    source: str


def chosen(calls: Sequence) -> list[int]:
    """Which of a check's calls (`llmsys.course.checking.answer.Call`) are compiled, by their numbers: so few that
    between them they have every type of tensor, and every yes and no of an option."""
    options = {name for call in calls for name, value in call.kwargs.items() if type(value) is bool}

    def traits(call) -> set:
        tensors = [x for x in (*call.args, *call.kwargs.values()) if isinstance(x, Tensor)]
        return {x.dtype for x in tensors} | {(name, bool(call.kwargs.get(name))) for name in options}

    first = {frozenset(traits(call)): n for n, call in reversed(list(enumerate(calls)))}
    groups = [group for size in range(BUILDS + 1) for group in itertools.combinations(first, size)]
    best = max(groups, key=lambda group: (len(frozenset().union(*group)), -len(group)))
    return sorted(first[each] for each in best)


def can_be_asked() -> bool:
    """Whether there is a compiler here that takes a kernel."""
    return not isinstance(compile_kernels([PROBE], seconds=SECONDS)[0], CompileError)


def refusals(
    kernel: object,
    adapt: Callable,
    calls: Sequence[tuple[tuple, dict]],
    build: Callable[..., Build] | None = None,
) -> list[Refusal | None]:
    """What the compiler says of a kernel, launched as by each of these calls (args, kwargs) of `adapt(kernel)`: None
    where it compiles. Empty where the compiler cannot be asked. Where `adapt` launches no kernel, `build(kernel, *args,
    **kwargs)` says what is compiled."""
    if not interpreting() or getattr(getattr(underlying(kernel), "__code__", None), "co_freevars", ()):
        return []  # compiled already; or not to be had as text, for its names are those of a function around it
    try:
        builds = [build(kernel, *args, **kwargs) for args, kwargs in calls] if build else _builds(kernel, adapt, calls)
        results = compile_kernels(builds, seconds=SECONDS) if builds else []
        return [_refusal(kernel, each) for each in results]
    except (ImportError, ValueError, TypeError, AttributeError, OSError, RuntimeError):
        return []


def _builds(kernel: object, adapt: Callable, calls: Sequence[tuple[tuple, dict]]) -> list[Build]:
    """What each call would have Triton compile, where that is one kernel a call."""
    source, builds = source_of(kernel), []
    for args, kwargs in calls:
        recorder = Recorder(kernel)
        with contextlib.suppress(Exception):  # of results that nobody has computed
            adapt(recorder)(*copy_arguments(args), **copy_arguments(kwargs))
        builds += [replace(build, kernel=source) for build in recorder.builds[:1]]
    return builds


def _refusal(kernel: object, result: object) -> Refusal | None:
    """The compiler's complaint with the learner's line; None where there is none, or it is none of the kernel."""
    if not isinstance(result, CompileError):
        return None
    found = re.fullmatch(r"\w+ does not compile: (.*?)(?:\n    line ([^\n]*))?", str(result), re.DOTALL)
    if not found:
        return None  # its text cannot be loaded there, or the compiler was ended
    said, place = found.groups()
    if result.line is None and not can_be_asked():
        return None  # there is no assembler, say
    line = _line_of_the_cell(kernel, result)
    where = f"\nline {place}" if place and line is None else ""
    return Refusal(f"{_sentence(said)}{where}", line, result.source if line is not None else "")


def _sentence(said: str) -> str:
    """What Triton says, without the exception around it, and without all of its advice."""
    with contextlib.suppress(ValueError, SyntaxError):
        said = ast.literal_eval(re.fullmatch(r"\w+\((.*)\)", said, re.DOTALL)[1]) if re.match(r"\w+\(", said) else said
    said = str(said).strip()
    if len(said) <= SENTENCE:
        return said
    end = said.rfind(". ", 0, SENTENCE)
    return said[: end + 1] if end > 0 else f"{said[:SENTENCE]} …"


def _line_of_the_cell(kernel: object, error: CompileError) -> int | None:
    """The line's number in the file or cell of the kernel; None where it is a line of another function."""
    function = underlying(kernel)
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        return None
    head = next((n for n, line in enumerate(lines) if line.lstrip().startswith("def ")), 0)
    line = first + head + (error.line or 0) - 1
    text = linecache.getline(function.__code__.co_filename, line).strip()
    return line if error.line is not None and text == error.source else None
