"""What a check holds of the learner's answer: call it, name properties, say what was expected.

A check is an ordinary function of an `Answer`:

    with answer.property("merging two tiles gives what one pass over both gives", why="The split is arbitrary."):
        run = answer(a, b)                      # calls the learner's function, watched
        answer.equal(run, expected)

Every method that can fail ends the check by raising `Rejected`, with what was got, what was expected, and the means to
recognise the same mistake in another function: `Rejected.same(theirs, ours)` says whether two runs are wrong alike. A
wrong value is recognised by its value; a wrong number of passes, or a buffer too large, by all that is known of the
memory as well.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmsys.course.checking.compare import compare, plain, show, show_call
from llmsys.course.checking.runner import STUB, TIME_LIMIT, Finding, LocalRunner, Raised, Run, Runner

__all__ = [
    "Answer",
    "Call",
    "Failure",
    "Finding",
    "LocalRunner",
    "PropertyResult",
    "Raised",
    "Rejected",
    "Run",
    "Runner",
]


@dataclass(frozen=True)
class Failure:
    """Why a property does not hold, in words. `kind` is one of: stub, error, forbidden, modified, type, memory, value,
    reads, allocation, traffic, products, tiles, compile."""

    kind: str
    message: str
    got: str = ""
    expected: str = ""
    call: str = ""
    printed: str = ""


@dataclass(frozen=True)
class PropertyResult:
    """One property, as the check named it. `hint` is what a learner who asks is told first where it does not hold."""

    name: str
    passed: bool
    why: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Call:
    """One call that a check made: what went in and what came out, and for which property."""

    args: tuple
    kwargs: dict
    run: Run
    property: str = ""


class Rejected(Exception):
    """A property does not hold. `wrong(run)`: is this run at fault, too? `same(a, b)`: are two runs wrong alike?"""

    def __init__(
        self, failure: Failure, run: Run | None, wrong: Callable[[Run], bool], same: Callable[[Run, Run], bool]
    ):
        super().__init__(failure.message)
        self.failure, self.run, self.wrong, self.same = failure, run, wrong, same


class Answer:
    """The learner's answer, to be called and judged. `generator` draws what the check needs: fresh inputs for each
    seed, the same for the same seed. `report` is told each property's name as it begins."""

    def __init__(
        self,
        runner: Runner,
        *,
        name: str = "answer",
        reference: Callable | None = None,
        seed: int = 0,
        report: Callable[[str], None] = lambda name: None,
    ):
        self.properties: list[PropertyResult] = []
        self.calls: list[Call] = []  # of every property
        self.first_call = 0  # where the calls of the current property begin
        self.generator = torch.Generator().manual_seed(seed)
        self._runner, self._name, self._reference, self._report = runner, name, reference, report
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
        self._expect_value(run, _FAULTS)
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
        self._expect_value(run, ("forbidden", "stub"))
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

    # Judgements

    def equal(self, run: Run, expected, *, rtol: float | None = None, atol: float | None = None) -> None:
        """The run's value is `expected`: same types, shapes and dtypes, values up to a tolerance that suits the dtype
        (`llmsys.course.checking.compare`)."""
        expected = plain(expected)
        if difference := compare(run.value, expected, rtol=rtol, atol=atol):
            self._reject(
                "value",
                difference.message,
                run,
                got=difference.got,
                expected=difference.expected,
                wrong=lambda r: compare(r.value, expected, rtol=rtol, atol=atol) is not None,
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

    def reads(
        self, run: Run, at_most: float, of: int | str = 0, *, at_least: float = 0.0, otherwise: str = ""
    ) -> None:
        """The call read its argument `of` (a position, a keyword, or a path like "0.1") at most so many times over, and
        at least so many; `otherwise` says what a smaller number must mean."""

        def passes(r: Run) -> float:
            return r.reads.get(of, 0.0)

        def wrong(r: Run) -> bool:
            return passes(r) > at_most + 1e-6 or passes(r) < at_least - 1e-6

        if wrong(run):
            found = f"{passes(run):.3g} pass{'es' * (abs(passes(run) - 1) > 1e-6)}"
            if passes(run) > at_most:
                message = f"it read its argument {passes(run):.3g} times over, where {at_most:.3g} passes are enough"
            elif passes(run) == 0:
                message = "no operation was seen that reads its argument: use torch, on what the function was given"
            else:
                message = f"it read its argument {passes(run):.3g} times over, which cannot be: {otherwise}"
            bounds = f"at most {at_most:.3g}" if at_least == 0 else f"{at_least:.3g} to {at_most:.3g}"
            self._reject(
                "reads", message, run, got=found, expected=f"{bounds} passes", wrong=wrong, same=same_memory
            )

    def reads_at_once(self, run: Run, at_most: int, of: int | str = 0, what: str = "a tile") -> None:
        """No operation read more than `at_most` elements of the argument `of`; `what` says of what that is the size."""

        def wrong(r: Run) -> bool:
            return r.at_once.get(of, 0) > at_most

        if wrong(run):
            self._reject(
                "reads",
                f"one operation read {run.at_once[of]:,} elements of its argument, where {what} has {at_most:,}",
                run,
                got=f"{run.at_once[of]:,} elements at once",
                expected=f"at most {at_most:,}",
                wrong=wrong,
                same=same_memory,
            )

    def allocates(self, run: Run, at_most: int, what: str = "") -> None:
        """No operation in the call allocated a tensor of more than `at_most` bytes. `what` says where that bound comes
        from ("one tile of each row")."""
        if run.largest_bytes > at_most:
            bound = f"{at_most:,} bytes" + (f" ({what})" if what else "")
            largest = f"{run.largest_bytes:,} bytes, shape {run.largest_shape}"
            self._reject(
                "allocation",
                f"it allocated a tensor of {largest}, where {bound} is enough",
                run,
                got=largest,
                expected=f"at most {bound}",
                wrong=lambda r: r.largest_bytes > at_most,
                same=same_memory,
            )

    def keeps(self, run: Run, at_most: int, what: str = "", *, passes: int | None = None) -> None:
        """Beside arguments and result, never more than `at_most` bytes were alive at once: tensors, lists of them,
        NumPy's arrays, Python's numbers. `passes` asks only about the first ones over the arguments. `what` says where
        the bound comes from ("a few tiles")."""

        def alive(r: Run) -> int:
            return max(r.alive_bytes[:passes], default=0)

        if alive(run) > at_most:
            bound = f"{at_most:,} bytes" + (f" ({what})" if what else "")
            self._reject(
                "allocation",
                f"it kept {alive(run):,} bytes at once beside its result, where {bound} are enough",
                run,
                got=f"{alive(run):,} bytes",
                expected=f"at most {bound}",
                wrong=lambda r: alive(r) > at_most,
                same=same_memory,
            )

    def traffic(self, run: Run, loaded: int, stored: int) -> None:
        """The call's kernels loaded at most so many bytes and stored exactly so many, of all their tensors together.
        The sanitizer counts them: where kernels are compiled, there is nothing to hold against the bounds."""

        def moved(r: Run) -> tuple[int, int]:
            return sum(r.bytes_loaded.values()), sum(r.bytes_stored.values())

        def by_tensor(r: Run) -> tuple[dict, dict]:  # who loads k twice is not who loads v twice
            return r.bytes_loaded, r.bytes_stored

        def wrong(r: Run) -> bool:
            return r.watched and (moved(r)[0] > loaded or moved(r)[1] != stored)

        if wrong(run):
            loads, stores = moved(run)
            enough = f"it loaded {loads:,} bytes, where {loaded:,} are enough"
            self._reject(
                "traffic",
                enough if loads > loaded else f"it stored {stores:,} bytes, where the result has {stored:,}",
                run,
                got=f"{loads:,} bytes loaded, {stores:,} stored",
                expected=f"at most {loaded:,} bytes loaded, {stored:,} stored",
                wrong=wrong,
                same=lambda a, b: same_outcome(a, b) and by_tensor(a) == by_tensor(b),
            )

    def products(self, run: Run, needed: int, dtype: str) -> None:
        """The call's kernels made so many multiply-adds with tl.dot, all of operands of that type ("fp16"). With fewer,
        something was multiplied in another way. Counted as `traffic` is."""

        def wrong(r: Run) -> bool:
            return r.watched and (sum(r.multiply_adds.values()) != needed or bool(set(r.multiply_adds) - {dtype}))

        def work(r: Run) -> tuple:  # who loads more than the answer does wastes for another reason
            return r.multiply_adds, r.bytes_loaded, r.bytes_stored

        if wrong(run):
            made = ", ".join(f"{n:,} in {name}" for name, n in sorted(run.multiply_adds.items())) or "no"
            message = f"its products took {made} multiply-adds, where {needed:,} in {dtype} are enough"
            if sum(run.multiply_adds.values()) < needed:
                message = f"tl.dot made {made} multiply-adds of {needed:,}: what else is multiplied and summed is slow"
            self._reject(
                "products",
                message,
                run,
                got=f"{made} multiply-adds",
                expected=f"{needed:,} multiply-adds, in {dtype}",
                wrong=wrong,
                same=lambda a, b: same_outcome(a, b) and work(a) == work(b),
            )

    def tiles(self, run: Run, *, loads: int | None = None, dots: int | None = None) -> None:
        """The call's kernels took at most so many tiles with tl.load, and so many products with tl.dot. To be asked
        after `traffic` and `products`: who took more without moving or multiplying more has smaller tiles. Counted as
        `traffic` is."""
        allowed = {name: n for name, n in (("load", loads), ("dot", dots)) if n is not None}

        def took(r: Run) -> dict[str, int]:
            return {name: r.operations.get(name, 0) for name in allowed}

        def wrong(r: Run) -> bool:
            return r.watched and any(n > allowed[name] for name, n in took(r).items())

        def shown(counts: dict[str, int]) -> str:
            return " and ".join(f"{n} × tl.{name}" for name, n in counts.items())

        if wrong(run):
            self._reject(
                "tiles",
                f"it took {shown(took(run))}, where {shown(allowed)} are enough: its tiles are smaller than asked",
                run,
                got=shown(took(run)),
                expected=f"at most {shown(allowed)}",
                wrong=wrong,
                same=lambda a, b: same_outcome(a, b) and took(a) == took(b),
            )

    def _call(self, args: tuple, kwargs: dict) -> Run:
        if self._current is None:
            raise RuntimeError("a check calls the answer inside `with answer.property(...)`")
        run = self._runner.run(args, kwargs)
        self.calls.append(Call(args, kwargs, run, self._current))
        return run

    def _expect_value(self, run: Run, kinds: Iterable[str]) -> None:
        for kind in kinds:
            describe, same = _FAULTS[kind]
            if kind == "stub" and len(self.calls) > 1:  # an answer to some calls is written, though not for all of them
                continue
            if found := describe(run):
                self._reject(kind, found, run, wrong=lambda r, describe=describe: bool(describe(r)), same=same)

    def _reject(self, kind: str, message: str, run: Run, *, got="", expected="", wrong, same=None) -> None:
        call = next((c for c in reversed(self.calls) if c.run is run), None)
        shown = show_call(self._name, call.args, call.kwargs) if call else ""
        raise Rejected(Failure(kind, message, got, expected, shown, run.printed), run, wrong, same or same_outcome)


def not_compiled(said: Raised, call: str) -> Failure:
    """Why a kernel fails that passed in the interpreter: what a GPU's compiler says of it, launched by that call."""
    message = f"runs in the interpreter, a GPU's compiler refuses it: {said.message}{_where(said)}"
    return Failure("compile", message, call=call)


def same_outcome(a: Run, b: Run) -> bool:
    """Whether two calls ended alike: in the same value, or in an error of the same type. Kernels that store the same
    value have stored as much, too: NaN may have been computed, or be what was there before."""
    if a.error or b.error:
        return bool(a.error and b.error) and a.error.type == b.error.type
    if a.refused or b.refused or (a.watched and b.watched and a.bytes_stored != b.bytes_stored):
        return False
    return compare(a.value, b.value) is None


def same_memory(a: Run, b: Run) -> bool:
    """Whether two calls ended alike, and did the same to memory: read as much, at once and in all, and kept as much."""

    def near(p: float, q: float) -> bool:
        return abs(p - q) <= 0.1 * max(p, q)

    return (
        same_outcome(a, b)
        and a.reads.keys() == b.reads.keys()
        and all(abs(a.reads[path] - b.reads[path]) < 0.01 for path in a.reads)
        and a.at_once == b.at_once
        and a.largest_bytes == b.largest_bytes
        and near(max(a.alive_bytes, default=0), max(b.alive_bytes, default=0))
    )


def _stub(run: Run) -> str:
    error = run.error
    if error is None or error.type != "NotImplementedError" or error.message or error.source not in ("", STUB):
        return ""  # torch raises it, too, and so may a learner: with a message
    return f"not written yet: replace `{STUB}` with your own lines"


def _forbidden(run: Run) -> str:
    return f"write this yourself: {' and '.join(run.called)} was called" if run.called else ""


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
_FAULTS: dict[str, tuple[Callable[[Run], str], Callable[[Run, Run], bool]]] = {
    "forbidden": (_forbidden, _by(lambda run: run.called)),
    "stub": (_stub, _by(lambda run: run)),
    "error": (_error, _by(lambda run: (run.error.type, run.error.message) if run.error else None)),
    # Kernels that touch other memory are many. What they leave behind tells them apart.
    "memory": (_memory, lambda a, b: same_outcome(a, b) and _places(a) == _places(b)),
    "modified": (_modified, _by(lambda run: run.modified)),
    "type": (lambda run: run.refused, _by(lambda run: run.refused)),
}
