"""Misconceptions, recognised: which plausible wrong answer is the learner's?

A misconception is a function with the contract of the exercise that is wrong in one way that people are:

    @misconception("02.merge", "You added the sums without rescaling them.", why="Each l was taken under its own m.")
    def no_rescaling(a, b): ...

Where a property fails, every misconception of the exercise is run on the arguments of that property's calls. One that
is wrong in the same way on all of them (the same value; the same number of passes, where that was the failure) is what
the learner's answer looks like, and its message is worth more than "expected 3.0".
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmsys.course.checking.answer import Call
from llmsys.course.checking.faults import Rejected, same_outcome
from llmsys.course.checking.runner import TIME_LIMIT, LocalRunner, Run
from llmsys.course.checking.wire import pack
from llmsys.course.manifest import load_content
from llmsys.hardware.kernel_source import underlying


@dataclass(frozen=True)
class Misconception:
    """A wrong answer with a name. `function` is an answer to the exercise: a function, or a Triton kernel."""

    exercise: str
    message: str
    why: str
    function: object

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


_registry: dict[str, list[Misconception]] = {}


def misconception(exercise: str, message: str, *, why: str = "") -> Callable:
    """Register the decorated function as a wrong answer to `exercise`. `message` says to the learner, in a sentence,
    what they did; `why` says why it does not work."""

    def register(function):
        known = _registry.setdefault(exercise, [])
        if any(each.message == message for each in known):
            raise ValueError(f"{exercise} has two misconceptions with the message {message!r}")
        known.append(Misconception(exercise, message, why, function))
        return function

    return register


def misconceptions_of(exercise: str, *, kernel: bool = False) -> list[Misconception]:
    """The misconceptions of an exercise, in the order in which they were written. Those that are Triton kernels live in
    a module of their own, which is only imported for a `kernel` exercise."""
    for module in ("mistakes", "kernel_mistakes") if kernel else ("mistakes",):
        load_content(exercise.partition(".")[0], module)
    return list(_registry.get(exercise, ()))


def arguments_of(check) -> frozenset[str]:
    """The names of the arguments that a learner's function has: those of the exercise's misconceptions, which have its
    contract. Empty where it has none."""
    known = misconceptions_of(check.id, kernel=check.kernel)[:1]
    return frozenset(name for each in known for name in inspect.signature(underlying(each.function)).parameters)


def diagnose(check, calls: Sequence[Call], rejected: Rejected, earlier: Sequence[Call] = ()) -> Misconception | None:
    """The misconception of `check` that explains why `rejected`, if one does.

    `calls` are those of the failed property, `earlier` those of the properties that passed: a misconception must agree
    with the answer in all of them.
    """
    if rejected.failure.kind in ("stub", "forbidden", "offence") or not calls:
        return None
    if rejected.run is not None and rejected.run.error and rejected.run.error.type == TIME_LIMIT:
        return None  # what was going on when it was stopped, no other function can be compared with
    asked = [(call, _digest(call.args, call.kwargs)) for call in (*calls, *earlier)]
    asked.sort(key=lambda each: each[0].run is not rejected.run)  # the call that failed tells most of them apart
    for each in misconceptions_of(check.id, kernel=check.kernel):
        known_first = sorted(asked, key=lambda call_and_digest: (each, call_and_digest[1]) not in _runs)
        if all(_alike(call, _run(check, each, call.args, call.kwargs, key), rejected) for call, key in known_first):
            return each
    return None


class MisconceptionRunner:
    """Runs a misconception as a learner's answer is run, but for what is forbidden. Its runs are kept, and `diagnose`
    finds them again: a self-test, which asks about every misconception, runs each but once on the same arguments."""

    def __init__(self, check, known: Misconception):
        self.check, self.known = check, known

    def run(self, args: tuple, kwargs: dict) -> Run:
        return _run(self.check, self.known, args, kwargs, _digest(args, kwargs))


def _alike(call: Call, run: Run, rejected: Rejected) -> bool:
    if call.run is rejected.run:
        return rejected.same(call.run, run) and rejected.wrong(run)
    alike = same_outcome(call.run, run, rtol=call.rtol, atol=call.atol)
    return alike and bool(call.run.findings) == bool(run.findings)


def _digest(args: tuple, kwargs: dict) -> bytes:
    return hashlib.sha256(pack([list(args), kwargs])).digest()


def _run(check, known: Misconception, args: tuple, kwargs: dict, digest: bytes) -> Run:
    """What the misconception makes of these arguments, of which `digest` is the digest."""
    key = known, digest
    if key not in _runs:
        if len(_runs) >= RUNS:
            _runs.pop(next(iter(_runs)))  # the oldest
        _runs[key] = LocalRunner(known.function, adapt=check.adapt, kernel=check.kernel).run(args, kwargs)
    return _runs[key]


RUNS = 2000
_runs: dict[tuple[Misconception, bytes], Run] = {}
