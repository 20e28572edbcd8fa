"""One call of the learner's function: arguments in, a `Run` out, in whichever process holds the function.

A check never calls the learner's function itself. It asks a *runner*, any object with

    run(args: tuple, kwargs: dict) -> Run

In the notebook that is `LocalRunner`, below. The grader's runner has the same method and speaks to a worker process,
in which a `LocalRunner` makes the call. Arguments and results are plain data (`llmsys.course.checking.compare`), and so
is all of a `Run`: `to_plain` and `from_plain` turn it into dicts, tuples, numbers, strings and tensors and back, so
that it crosses a pipe without pickle.

During the call, and only then, forbidden functions are watched for, memory is metered, kernels run under the sanitizer
where they are interpreted, and what the function prints is kept from flooding the notebook.
"""

import ast
import contextlib
import functools
import inspect
import io
import linecache
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from types import FunctionType
from typing import Protocol

from torch import Tensor

from llmsys.course.checking.compare import NotPlain, copy_arguments, plain, unchanged
from llmsys.course.checking.compiled import refusals
from llmsys.course.checking.limits import Allowance, TimeIsUp
from llmsys.course.checking.source import function_of
from llmsys.course.checking.watch import Forbidden, watch
from llmsys.hardware.kernel_source import underlying
from llmsys.hardware.memory_meters import memory_of
from llmsys.hardware.tier import load_triton, triton_installed

PRINTED_LIMIT = 2000  # characters kept of what a call prints
TIME_LIMIT = "time limit"  # the type of the error that is reported of a call that was stopped
STUB = "raise NotImplementedError"  # the line of an exercise that is not written yet


@dataclass(frozen=True)
class Raised:
    """The learner's function raised: what, and where in its own source. `type` is the exception's name, or what the
    grader stopped it for ("time limit", "crash")."""

    type: str
    message: str
    line: int | None = None
    source: str = ""


@dataclass(frozen=True)
class Finding:
    """One thing that a kernel did outside its tensors, as the sanitizer found it. Two kernels that did the same have
    the same `place`: program, tensor, how many lanes, how far."""

    kind: str
    message: str
    place: str = ""


@dataclass(frozen=True)
class Run:
    """What came of one call. Where it did not end in a value, `error` or `refused` says why."""

    value: object = None  # plain data
    reads: dict[int | str, float] = field(default_factory=dict)  # passes over each tensor argument, by its path:
    # 0 is the first positional one, "x" the keyword x, "0.1" the second within the first
    at_once: dict[int | str, int] = field(default_factory=dict)  # elements of each that one operation read at most
    alive_bytes: tuple[int, ...] = ()  # the most that was alive beside arguments and result, in each pass over them:
    # tensors, NumPy's arrays and Python's numbers
    afterwards: int = 0  # elements that torch computed with after the arguments were last read
    largest_bytes: int = 0  # the largest tensor that an operation allocated
    largest_shape: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()  # by the sanitizer
    bytes_loaded: dict[str, int] = field(default_factory=dict)  # by an interpreted kernel, of each of its tensors
    bytes_stored: dict[str, int] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)  # by its tl.dot, of each type of operands
    operations: dict[str, int] = field(default_factory=dict)  # how many tiles it took: "load", "store", "dot"
    watched: bool = False  # whether the sanitizer was there to count: not where kernels are compiled
    modified: tuple[str, ...] = ()  # arguments that the function changed in place
    called: tuple[str, ...] = ()  # what is forbidden and was called
    offences: tuple[str, ...] = ()  # in the grader's process: what else no answer may do, in words
    left: tuple[str, ...] = ()  # how data left torch, where no meter can follow it
    refused: str = ""  # why the result is not plain data
    error: Raised | None = None
    printed: str = ""  # the beginning of what the call printed

    def to_plain(self) -> dict:
        """This run as nested dicts and tuples of plain data."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["findings"] = tuple(asdict(finding) for finding in self.findings)
        fields["error"] = asdict(self.error) if self.error else None
        return fields

    @classmethod
    def from_plain(cls, fields: dict) -> "Run":
        """The run that `to_plain` gave."""
        findings = tuple(Finding(**finding) for finding in fields["findings"])
        error = Raised(**fields["error"]) if fields["error"] else None
        return cls(**{**fields, "findings": findings, "error": error})


class Runner(Protocol):
    def run(self, args: tuple, kwargs: dict) -> Run: ...


def resolve(name: object) -> object:
    """The object of a dotted name, "package.module:attribute"; anything but a string is handed back."""
    if not isinstance(name, str):
        return name
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


class LocalRunner:
    """Runs a function of this process.

    `adapt` turns the learner's object (a Triton kernel, a class) into an ordinary function, `forbids` is what must not
    be called meanwhile (`llmsys.course.checking.watch`), `kernel` asks for the sanitizer, and `seconds` are what all
    calls together may take (`llmsys.course.checking.limits`): after that, every call ends at once in the same error.
    `build` is what `compile` compiles, where it is not what `adapt` launches.
    """

    def __init__(
        self,
        answer: object,
        *,
        adapt: str | Callable | None = None,
        forbids: Iterable[Forbidden] = (),
        kernel: bool = False,
        seconds: float | None = None,
        build: str | Callable | None = None,
    ):
        self.answer = answer = _fresh_kernel(answer) if kernel else answer
        self.forbids, self.kernel = tuple(forbids), kernel
        self.adapt, self.build = resolve(adapt) if adapt else lambda function: function, build
        self.function = self.adapt(answer)
        self.allowance = Allowance(seconds) if seconds is not None else None
        self._stopped: Raised | None = None

    def compile(self, calls: Sequence[tuple[tuple, dict]]) -> list[Raised | None]:
        """What a GPU's compiler says of the kernel in each of these calls, None for nothing
        (`llmsys.course.checking.compiled`). Empty where it cannot be asked."""
        said = refusals(self.answer, self.adapt, calls, resolve(self.build))
        return [each and Raised("CompileError", each.message, each.line, each.source) for each in said]

    def run(self, args: tuple, kwargs: dict) -> Run:
        if self._stopped:
            return Run(error=self._stopped)
        before = copy_arguments(args), copy_arguments(kwargs)
        given = copy_arguments(args), copy_arguments(kwargs)
        value, error, printed = None, None, _Bounded(PRINTED_LIMIT)
        shortcuts, metered = watch(self.forbids), _Meters(*given, self.kernel)
        quietly = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
        with quietly[0], quietly[1], warnings.catch_warnings(), metered:
            # Of -inf - -inf, or of an exponential that overflows before it is masked, Triton's interpreter lets NumPy
            # warn. A GPU says nothing.
            warnings.filterwarnings("ignore", "(invalid value|overflow) encountered", RuntimeWarning, "triton")
            try:
                if self.kernel and (problem := _no_kernel(self.answer)):
                    raise problem
                with shortcuts, self.allowance.spent() if self.allowance else contextlib.nullcontext():
                    value = metered.result = self.function(*given[0], **given[1])
            except KeyboardInterrupt:
                raise
            except TimeIsUp as stop:
                found = _raised(stop, self.answer)
                error = self._stopped = replace(found, type=TIME_LIMIT, message=str(self.allowance))
            except BaseException as exception:  # sys.exit() in an answer must not end the notebook's kernel
                error = _raised(exception, self.answer)
        refused = ""
        try:
            value = plain(value) if error is None else None
        except NotPlain as problem:
            value, refused = None, str(problem)
        itself = shortcuts.refuses(self.answer)
        return Run(
            value=value,
            modified=tuple(_names_of_changed(before, given)),
            called=tuple(dict.fromkeys(([itself] if itself else []) + shortcuts.called)),
            refused=refused,
            error=error,
            printed=str(printed),
            **metered.figures,
        )


def _no_kernel(answer: object) -> Exception | None:
    """What is wrong with an answer that has to be a Triton kernel, and can be seen before it is launched."""
    kind, function = type(answer), underlying(answer)
    if isinstance(answer, FunctionType):
        return TypeError(f"{answer.__name__} is no kernel: @triton.jit is missing above it")
    if kind not in _kernel_types() or not isinstance(function, FunctionType):
        return TypeError(f"it is a {kind.__name__}, and no kernel: write a function under @triton.jit")
    if is_stub(function):
        return NotImplementedError()  # compiled, it would be an error about the statement `raise`
    return None


def _fresh_kernel(answer: object) -> object:
    """The kernel as @triton.jit makes it of its function: what was put into the object, or into what the interpreter
    has made of the function before, is not the function's. Anything else is handed back."""
    if not triton_installed() or type(answer) not in _kernel_types() or not hasattr(answer, "rewriter"):
        return answer
    kind = type(answer)
    getattr(kind, "rewritten_fn", {}).pop(answer.fn, None)
    return kind(answer.fn, **answer.kwargs)


@functools.cache
def _kernel_types() -> frozenset[type]:
    """What @triton.jit makes, and @gluon.jit: in this process, compiled or interpreted."""
    load_triton()
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    found = {InterpretedFunction, JITFunction}
    with contextlib.suppress(ImportError):
        from triton.experimental.gluon._runtime import GluonJITFunction

        found.add(GluonJITFunction)
    return frozenset(found)


def is_stub(function: object) -> bool:
    """Whether a function still has the line that stands for the reader's own, a bare `raise NotImplementedError` that
    no `if` decides about."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(underlying(function)))).body
    except (OSError, TypeError, ValueError, SyntaxError):
        return False
    return any(isinstance(each, ast.Raise) and ast.unparse(each) == STUB for each in getattr(tree, "body", ()))


class _Meters(contextlib.ExitStack):
    """All the instruments at once; `figures` holds the fields of `Run` that they measured, after the block. In the
    block, `result` is set to what came of the call."""

    def __init__(self, args: tuple, kwargs: dict, kernel: bool):
        super().__init__()
        self.figures: dict = {}
        self.result: object = None
        self._tensors = _tensors(args, kwargs)
        self._kernel, self._memory = kernel, None

    def __enter__(self) -> "_Meters":
        super().__enter__()
        try:
            self.callback(self._collect)
            self._report = self._sanitizer() if self._kernel else None
            self._memory = self.enter_context(memory_of(self._tensors))
        except BaseException:  # Ctrl-C between two of them: what is installed is taken away again
            self.pop_all().close()
            raise
        return self

    def _sanitizer(self):
        sanitizer = _sanitizer_module()
        return self.enter_context(sanitizer.watch()) if sanitizer.available() else None

    def _collect(self) -> None:
        if self._memory is None:  # they were not all installed
            return
        self.figures = {
            "reads": {path: float(meter.passes) for path, meter in self._memory.reads.items()},
            "at_once": {path: meter.at_once for path, meter in self._memory.reads.items()},
            "afterwards": self._memory.afterwards,
            "largest_bytes": self._memory.largest.bytes,
            "largest_shape": tuple(self._memory.largest.shape),
            "alive_bytes": self._memory.alive.beside(self.result),
            "left": tuple(self._memory.left),
        }
        if self._report is not None:
            self.figures |= {
                "watched": True,
                "operations": dict(self._report.operations),
                "findings": tuple(Finding(found.kind, str(found), _place(found)) for found in self._report.findings),
                "bytes_loaded": dict(self._report.bytes_loaded),
                "bytes_stored": dict(self._report.bytes_stored),
                "multiply_adds": dict(self._report.multiply_adds),
            }


@functools.cache
def _sanitizer_module():
    """The same one from the first call on, whatever is imported under its name later. It loads Triton."""
    from llmsys.hardware import sanitizer

    return sanitizer


def _place(found) -> str:
    """Where one of the sanitizer's findings was: what another kernel that did the same has in common with it."""
    first = f" from {found.lanes[0]}" if "two programs" in found.kind else ""
    return f"{found.program} {found.tensor}: {len(found.lanes)} lanes{first}, {found.where}"


class _Bounded(io.TextIOBase):
    """A text stream that keeps the beginning, and counts the rest."""

    def __init__(self, limit: int):
        self._parts: list[str] = []
        self._room, self._lost = limit, 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._room > 0:
            self._parts.append(text[: self._room])
        self._lost += max(len(text) - self._room, 0)
        self._room = max(self._room - len(text), 0)
        return len(text)

    def __str__(self) -> str:
        more = f"\n… and {self._lost:,} characters more" if self._lost else ""
        return "".join(self._parts) + more


def _tensors(args: tuple, kwargs: dict) -> dict[int | str, Tensor]:
    """Every tensor among the arguments, by its path (`Run.reads`)."""
    found: dict[int | str, Tensor] = {}

    def visit(value, path: int | str) -> None:
        if isinstance(value, Tensor):
            found[path] = value
        elif isinstance(value, (tuple, list)):
            for index, x in enumerate(value):
                visit(x, f"{path}.{index}")

    for path, value in [*enumerate(args), *kwargs.items()]:
        visit(value, path)
    return found


def _names_of_changed(before: tuple, given: tuple):
    for index, (a, b) in enumerate(zip(before[0], given[0], strict=True)):
        if not unchanged(a, b):
            yield f"its argument number {index + 1}"
    for key in before[1]:
        if not unchanged(before[1][key], given[1][key]):
            yield f"its argument {key}"


def _raised(exception: BaseException, answer: object) -> Raised:
    """What to report of an exception: with the last line of the learner's own file that led to it, and the exception of
    that line where another one (of Triton's interpreter, say) was raised on top of it."""
    function = function_of(answer)
    own = function.__code__.co_filename if function else None
    line, cause = None, exception
    while cause is not None and line is None:
        lines = [number for frame, number in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_filename == own]
        line = lines[-1] if lines else None
        deepest, cause = cause, cause.__cause__ or cause.__context__
    told = deepest if line is not None else exception
    source = linecache.getline(own, line).strip() if line is not None else ""
    return Raised(type(told).__name__, str(told)[:1000], line, source)
