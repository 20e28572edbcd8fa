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

import contextlib
import io
import linecache
import traceback
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Protocol

from torch import Tensor

from llmsys.course.checking.compare import NotPlain, copy_arguments, plain, unchanged
from llmsys.course.checking.watch import Forbidden, watch
from llmsys.hardware.kernel_source import underlying
from llmsys.hardware.memory_meters import memory_of

PRINTED_LIMIT = 2000  # characters kept of what a call prints


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
    """One thing that a kernel did outside its tensors, as the sanitizer found it."""

    kind: str
    message: str


@dataclass(frozen=True)
class Run:
    """What came of one call. Where it did not end in a value, `error` or `refused` says why."""

    value: object = None  # plain data
    reads: dict[int | str, float] = field(default_factory=dict)  # passes over each tensor argument, by its path:
    # 0 is the first positional one, "x" the keyword x, "0.1" the second within the first
    at_once: dict[int | str, int] = field(default_factory=dict)  # elements of each that one operation read at most
    alive_bytes: tuple[int, ...] = ()  # the most that was alive beside arguments and result, in each pass over them:
    # tensors, NumPy's arrays and Python's numbers
    largest_bytes: int = 0  # the largest tensor that an operation allocated
    largest_shape: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()  # by the sanitizer
    bytes_loaded: dict[str, int] = field(default_factory=dict)  # by an interpreted kernel, of each of its tensors
    bytes_stored: dict[str, int] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)  # by its tl.dot, of each type of operands
    modified: tuple[str, ...] = ()  # arguments that the function changed in place
    called: tuple[str, ...] = ()  # what is forbidden and was called
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

    `adapt` turns the learner's object (a Triton kernel, say) into an ordinary function, `forbids` is what must not be
    called meanwhile (`llmsys.course.checking.watch`), and `kernel` asks for the sanitizer.
    """

    def __init__(
        self,
        answer: object,
        *,
        adapt: str | Callable | None = None,
        forbids: Iterable[Forbidden] = (),
        kernel: bool = False,
    ):
        self.answer, self.forbids, self.kernel = answer, tuple(forbids), kernel
        self.function = resolve(adapt)(answer) if adapt else answer

    def run(self, args: tuple, kwargs: dict) -> Run:
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
                if self.kernel and _unwritten(self.answer):
                    raise NotImplementedError  # compiled, it would be an error about the statement `raise`
                with shortcuts:
                    value = metered.result = self.function(*given[0], **given[1])
            except KeyboardInterrupt:
                raise
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


def _unwritten(kernel: object) -> bool:
    """Whether a kernel is still the lesson's stub, which raises NotImplementedError."""
    return "NotImplementedError" in getattr(getattr(underlying(kernel), "__code__", None), "co_names", ())


class _Meters(contextlib.ExitStack):
    """All the instruments at once; `figures` holds the fields of `Run` that they measured, after the block. In the
    block, `result` is set to what came of the call."""

    def __init__(self, args: tuple, kwargs: dict, kernel: bool):
        super().__init__()
        self.figures: dict = {}
        self.result: object = None
        self._tensors = _tensors(args, kwargs)
        self._kernel = kernel

    def __enter__(self) -> "_Meters":
        super().__enter__()
        self.callback(self._collect)
        self._report = self._sanitizer() if self._kernel else None
        self._memory = self.enter_context(memory_of(self._tensors))
        return self

    def _sanitizer(self):
        from llmsys.hardware import sanitizer  # which loads Triton

        return self.enter_context(sanitizer.watch()) if sanitizer.available() else None

    def _collect(self) -> None:
        self.figures = {
            "reads": {path: float(meter.passes) for path, meter in self._memory.reads.items()},
            "at_once": {path: meter.at_once for path, meter in self._memory.reads.items()},
            "largest_bytes": self._memory.largest.bytes,
            "largest_shape": tuple(self._memory.largest.shape),
            "alive_bytes": self._memory.alive.beside(self.result),
        }
        if self._report is not None:
            self.figures |= {
                "findings": tuple(Finding(found.kind, str(found)) for found in self._report.findings),
                "bytes_loaded": dict(self._report.bytes_loaded),
                "bytes_stored": dict(self._report.bytes_stored),
                "multiply_adds": dict(self._report.multiply_adds),
            }


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
    code = getattr(underlying(answer), "__code__", None)
    own = code.co_filename if code else None
    line, cause = None, exception
    while cause is not None and line is None:
        lines = [number for frame, number in traceback.walk_tb(cause.__traceback__) if frame.f_code.co_filename == own]
        line = lines[-1] if lines else None
        deepest, cause = cause, cause.__cause__ or cause.__context__
    told = deepest if line is not None else exception
    source = linecache.getline(own, line).strip() if line is not None else ""
    return Raised(type(told).__name__, str(told)[:1000], line, source)
