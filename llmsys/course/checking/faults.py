"""What can be wrong with an answer: the kinds of faults, and when two runs are wrong alike.

A check ends in `Rejected`, with what was got, what was expected, and the means to recognise the same mistake in another
function: `same(theirs, ours)` says whether two runs are wrong alike. A wrong value is recognised by its value; a wrong
number of passes, or a buffer too large, by all that is known of the memory as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

from llmsys.course.checking.compare import compare
from llmsys.course.checking.runner import STUB, TIME_LIMIT, Raised, Run


@dataclass(frozen=True)
class Failure:
    """Why a property does not hold, in words. `kind` is one of: stub, error, forbidden, offence, modified, type,
    memory, value, reads, allocation, traffic, products, tiles, work, compile."""

    kind: str
    message: str
    got: str = ""
    expected: str = ""
    call: str = ""
    printed: str = ""


class Rejected(Exception):
    """A property does not hold. `wrong(run)`: is this run at fault, too? `same(a, b)`: are two runs wrong alike?"""

    def __init__(
        self, failure: Failure, run: Run | None, wrong: Callable[[Run], bool], same: Callable[[Run, Run], bool]
    ):
        super().__init__(failure.message)
        self.failure, self.run, self.wrong, self.same = failure, run, wrong, same


def not_compiled(said: Raised, call: str) -> Failure:
    """Why a kernel fails that passed in the interpreter: what a GPU's compiler says of it, launched by that call."""
    message = f"runs in the interpreter, a GPU's compiler refuses it: {said.message}{_where(said)}"
    return Failure("compile", message, call=call)


def same_outcome(a: Run, b: Run, *, rtol: float | None = None, atol: float | None = None) -> bool:
    """Whether two calls ended alike: in the same value, up to what the check allows for rounding, or in an error of the
    same type. Kernels that store the same value have stored as much, too: NaN may have been computed, or be what was
    there before."""
    if a.error or b.error:
        return bool(a.error and b.error) and a.error.type == b.error.type
    if a.refused or b.refused or (a.watched and b.watched and a.bytes_stored != b.bytes_stored):
        return False
    return compare(a.value, b.value, rtol=rtol, atol=atol) is None


def same_memory(a: Run, b: Run) -> bool:
    """Whether two calls ended alike, and did the same to memory: read as much, at once, in all and afterwards, and kept
    as much."""

    def near(p: float, q: float) -> bool:
        return abs(p - q) <= 0.1 * max(p, q)

    return (
        same_outcome(a, b)
        and a.reads.keys() == b.reads.keys()
        and all(abs(a.reads[path] - b.reads[path]) < 0.01 for path in a.reads)
        and a.at_once == b.at_once
        and a.largest_bytes == b.largest_bytes
        and near(a.afterwards, b.afterwards)
        and near(max(a.alive_bytes, default=0), max(b.alive_bytes, default=0))
    )


def _stub(run: Run) -> str:
    error = run.error
    if error is None or error.type != "NotImplementedError" or error.message or error.source not in ("", STUB):
        return ""  # torch raises it, too, and so may a learner: with a message
    return f"not written yet: replace `{STUB}` with your own lines"


def _forbidden(run: Run) -> str:
    return f"write this yourself: {' and '.join(run.called)} was called" if run.called else ""


def _offence(run: Run) -> str:
    return "; ".join(run.offences)


def _error(run: Run) -> str:
    if run.error is None:
        return ""
    message = run.error.message.strip()
    if run.error.type == TIME_LIMIT:
        return message + _where(run.error)
    return f"it raised {run.error.type}" + (f": {message}" if message else "") + _where(run.error)


def _where(error: Raised) -> str:
    return f"\nline {error.line} of the cell: {error.source}" if error.line is not None else ""


def _memory(run: Run) -> str:
    return "\n".join(dict.fromkeys(finding.message for finding in run.findings[:3]))


def _modified(run: Run) -> str:
    return f"it modified {' and '.join(run.modified)} in place: work on a copy, for the caller still needs it" * bool(
        run.modified
    )


def _places(run: Run) -> set[tuple[str, str]]:
    return {(finding.kind, finding.place) for finding in run.findings}


def _by(trait: Callable[[Run], object]) -> Callable[[Run, Run], bool]:
    return lambda a, b: trait(a) == trait(b)


# What may be wrong with a run, whatever value was expected of it; the most telling first. For each kind a function that
# says what is wrong ("" if nothing is), and one that says whether two runs are wrong in the same way.
FAULTS: dict[str, tuple[Callable[[Run], str], Callable[[Run, Run], bool]]] = {
    "forbidden": (_forbidden, _by(lambda run: run.called)),
    "offence": (_offence, _by(lambda run: run.offences)),
    "stub": (_stub, _by(lambda run: run)),
    "error": (_error, _by(lambda run: (run.error.type, run.error.message) if run.error else None)),
    # Kernels that touch other memory are many. What they leave behind tells them apart.
    "memory": (_memory, lambda a, b: same_outcome(a, b) and _places(a) == _places(b)),
    "modified": (_modified, _by(lambda run: run.modified)),
    "type": (lambda run: run.refused, _by(lambda run: run.refused)),
}
