"""What a check holds of the learner's answer: call it, name properties, say what was expected.

A check is an ordinary function of an `Answer`:

    with answer.property("merging two tiles gives what one pass over both gives", why="The split is arbitrary."):
        run = answer(a, b)                      # calls the learner's function, watched
        answer.equal(run, expected)

Every method that can fail ends the check by raising `Rejected` (`llmsys.course.checking.faults`). What can be asked of
memory and of a kernel's work is in `llmsys.course.checking.metered`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmsys.course.checking.compare import compare, plain, show, show_call
from llmsys.course.checking.faults import FAULTS, Failure, Rejected, same_outcome
from llmsys.course.checking.metered import Metered
from llmsys.course.checking.runner import Run, Runner


@dataclass(frozen=True)
class PropertyResult:
    """One property, as the check named it. `hint` is what a learner who asks is told first where it does not hold."""

    name: str
    passed: bool
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Call:
    """One call that a check made: what went in and what came out, and for which property. `rtol` and `atol` are those
    by which the check judged its value, None for those of its dtype."""

    args: tuple
    kwargs: dict
    run: Run
    property: str = ""
    rtol: float | None = None
    atol: float | None = None


class Answer(Metered):
    """The learner's answer, to be called and judged. `generator` draws what the check needs: fresh inputs for each
    seed, the same for the same seed. `report` is told each property's name as it begins. `arguments` gives the names of
    the arguments of the learner's own function, where what is called is an adapter around it."""

    def __init__(
        self,
        runner: Runner,
        *,
        name: str = "answer",
        reference: Callable | None = None,
        seed: int = 0,
        report: Callable[[str], None] = lambda name: None,
        arguments: Callable[[], Collection[str]] | None = None,
    ):
        self.properties: list[PropertyResult] = []
        self.calls: list[Call] = []  # of every property
        self.first_call = 0  # where the calls of the current property begin
        self.generator = torch.Generator().manual_seed(seed)
        self._runner, self._name, self._reference, self._report = runner, name, reference, report
        self._arguments = arguments
        self._current: str | None = None

    @contextmanager
    def property(self, name: str, *, why: str = "", hint: str = "") -> Iterator[None]:
        """Name what the block shows. It passes where the block ends, and fails where a method of `answer` rejects. Then
        `hint` takes the place of the exercise's first hint, for who asks for one."""
        if self._current is not None:
            raise RuntimeError(f"the property {name!r} begins inside {self._current!r}: end that one first")
        self._current, self.first_call = name, len(self.calls)
        self._report(name)
        try:
            yield
        except Rejected:
            self.properties.append(PropertyResult(name, False, why, hint))
            raise
        else:
            if len(self.calls) == self.first_call:
                raise RuntimeError(f"the property {name!r} never called the answer")
            self.properties.append(PropertyResult(name, True, why, hint))
        finally:
            self._current = None

    # Inputs

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """A tensor of normal numbers with this deviation, from the check's generator."""
        return (torch.randn(shape, generator=self.generator) * scale).to(dtype)

    def randint(self, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """An int64 tensor of numbers in [low, high); for one Python number, `int(answer.randint(1, 9))`."""
        return torch.randint(low, high, shape, generator=self.generator)

    def spread(self, x: Tensor) -> Tensor:
        """The same tensor with gaps of NaN between its elements, and its dimensions in another order in memory: a
        function that looks at shape and elements only cannot tell."""
        backwards = tuple(reversed(range(x.dim())))
        nobodys = float("nan") if x.is_floating_point() else 99
        wide = torch.full((*reversed(x.shape), 2), nobodys, dtype=x.dtype)
        wide[..., 0] = x.permute(backwards)
        return wide[..., 0].permute(backwards)

    def reference(self, *args, **kwargs):
        """What the library's own function gives, as plain data."""
        if self._reference is None:
            raise RuntimeError(f"the check of {self._name} has no reference")
        return plain(self._reference(*args, **kwargs))

    # Calls

    def __call__(self, *args, **kwargs) -> Run:
        """Call the learner's function with copies of these arguments.

        Rejects a function that raises, calls what is forbidden, modifies its arguments, returns anything but plain
        data, or whose kernel touches memory outside its tensors.
        """
        run = self._call(args, kwargs)
        self._expect_value(run, FAULTS)
        return run

    def matches(self, expected, *args, rtol: float | None = None, atol: float | None = None, **kwargs) -> Run:
        """Call the answer and compare: `equal(answer(*args, **kwargs), expected)`."""
        run = self(*args, **kwargs)
        self.equal(run, expected, rtol=rtol, atol=atol)
        return run

    def agrees(self, *args, rtol: float | None = None, atol: float | None = None, **kwargs) -> Run:
        """Call the answer and compare it with the reference on the same arguments."""
        return self.matches(self.reference(*args, **kwargs), *args, rtol=rtol, atol=atol, **kwargs)

    def raises(self, exception: type[Exception], *args, **kwargs) -> Run:
        """Call the answer with arguments that it must refuse, with that exception."""
        run = self._call(args, kwargs)
        self._expect_value(run, ("forbidden", "offence", "stub"))
        got = run.error.type if run.error else "no error"
        if got != exception.__name__:
            self._reject(
                "error",
                f"expected {exception.__name__} for these arguments, got {got}",
                run,
                got=run.error.message if run.error else show(run.value),
                wrong=lambda r: not r.error or r.error.type != exception.__name__,
                same=lambda a, b: (a.error and a.error.type) == (b.error and b.error.type),
            )
        return run

    def shown(self, call: Call) -> str:
        """A call, for the learner to read."""
        return show_call(self._name, call.args, call.kwargs, self._arguments and self._arguments())

    # Judgements

    def equal(self, run: Run, expected, *, rtol: float | None = None, atol: float | None = None) -> None:
        """The run's value is `expected`: same types, shapes and dtypes, values up to a tolerance that suits the dtype
        (`llmsys.course.checking.compare`)."""
        expected = plain(expected)
        self.calls = [replace(call, rtol=rtol, atol=atol) if call.run is run else call for call in self.calls]
        if difference := compare(run.value, expected, rtol=rtol, atol=atol):
            self._reject(
                "value",
                difference.message,
                run,
                got=difference.got,
                expected=difference.expected,
                wrong=lambda r: compare(r.value, expected, rtol=rtol, atol=atol) is not None,
                same=lambda a, b: same_outcome(a, b, rtol=rtol, atol=atol),
            )

    def form(self, run: Run, expected) -> None:
        """The run's value has the types, shapes and dtypes of `expected`, whatever its values."""
        expected = plain(expected)
        if difference := compare(run.value, expected, values=False):
            self._reject(
                "value",
                difference.message,
                run,
                got=difference.got,
                wrong=lambda r: compare(r.value, expected, values=False) is not None,
            )

    def accurate(self, run: Run, exact: Tensor, naive: Tensor, *, factor: float = 2.0, tiny: float = 1e-6) -> None:
        """The low-precision rule: the error against `exact` (computed in fp64 or fp32) is at most `factor` times that
        of `naive` (the plain computation in the answer's own precision), plus `tiny`."""
        self.form(run, naive)

        def error(x: Tensor) -> float:
            return (x.double() - exact.double()).abs().max().item() if x.numel() else 0.0

        allowed = factor * error(naive) + tiny
        if not error(run.value) <= allowed:  # written so that NaN is rejected
            self._reject(
                "value",
                f"the largest error is {error(run.value):.3g}, where {allowed:.3g} can be had in {naive.dtype}",
                run,
                got=show(run.value),
                expected=show(exact),
                wrong=lambda r: not error(r.value) <= allowed,
            )

    def that(
        self,
        run: Run,
        holds: Callable[[Run], bool],
        expected: str,
        got: str | Callable[[Run], object] = "",
        by: Callable[[Run], object] | None = None,
    ) -> None:
        """Anything else about a run: `holds(run)` is true. `expected` says what that means, `got` shows what was. Where
        it is not about the value, `by(run)` is by what another run that is wrong alike is known."""
        if not holds(run):
            found = got if isinstance(got, str) else got(run)
            shown = found if isinstance(found, str) else show(found)
            self._reject(
                "value",
                f"expected {expected}",
                run,
                got=shown or show(run.value),
                wrong=lambda r: not holds(r),
                same=by and (lambda a, b: same_outcome(a, b) and by(a) == by(b)),
            )

    # Its machinery

    def _call(self, args: tuple, kwargs: dict) -> Run:
        if self._current is None:
            raise RuntimeError("a check calls the answer inside `with answer.property(...)`")
        run = self._runner.run(args, kwargs)
        self.calls.append(Call(args, kwargs, run, self._current))
        return run

    def _expect_value(self, run: Run, kinds: Iterable[str]) -> None:
        for kind in kinds:
            describe, same = FAULTS[kind]
            if kind == "stub" and len(self.calls) > 1:  # an answer to some calls is written, though not for all of them
                continue
            if found := describe(run):
                self._reject(kind, found, run, wrong=lambda r, describe=describe: bool(describe(r)), same=same)

    def _reject(self, kind: str, message: str, run: Run, *, got="", expected="", wrong, same=None) -> None:
        call = next((c for c in reversed(self.calls) if c.run is run), None)
        shown = self.shown(call) if call else ""
        raise Rejected(Failure(kind, message, got, expected, shown, run.printed), run, wrong, same or same_outcome)
