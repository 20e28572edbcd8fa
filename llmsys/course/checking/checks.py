"""How an exercise's check is written, found and run.

    @exercise_check(
        "02.merge",
        reference="llmsys.attention.online:merge",
        forbids=("aten::logaddexp", "aten::logsumexp"),
        hints=("a nudge", "the invariant", "pseudocode"),
    )
    def merge(answer):
        with answer.property("two pieces merged are summarised as the whole is", why="Where to cut is our choice."):
            answer.matches(expected, a, b)

A check is an ordinary function of an `Answer` (`llmsys.course.checking.answer`). It names each property as it goes and
stops at the first that fails; `run_check` runs it through any runner (this process's, or the grader's), and on a
failure looks for the misconception that fails alike. Checks live with their lessons, in `llmsys.lessons`; `get_check`
finds one by the lesson's name in the manifest.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from llmsys.course import display
from llmsys.course.checking.answer import Answer, PropertyResult
from llmsys.course.checking.compiled import can_be_asked, chosen
from llmsys.course.checking.diagnosis import Misconception, arguments_of, diagnose
from llmsys.course.checking.faults import Failure, Rejected, not_compiled
from llmsys.course.checking.kernel_work import idle, work_of
from llmsys.course.checking.runner import LocalRunner, Runner, resolve
from llmsys.course.checking.watch import Forbidden
from llmsys.course.manifest import UnknownId, lessons, load_content


@dataclass(frozen=True)
class Check:
    """An exercise's check. `reference` is the library's own function, which is forbidden along with `forbids`; `adapt`
    makes an ordinary function of the learner's object; both may be dotted names ("package.module:function").
    `equivalent` lists mutations of the solution that are no mistakes, with the reason
    (`llmsys.course.authoring.self_test`). `build(answer, *args, **kwargs)` is what a GPU's compiler is given for a
    call, where `adapt` launches no kernel (`llmsys.course.checking.compiled`)."""

    id: str
    function: Callable[[Answer], None]
    reference: Forbidden | None = None
    forbids: tuple[Forbidden, ...] = ()
    hints: tuple[str, ...] = ()
    adapt: str | Callable | None = None
    kernel: bool = False
    equivalent: Mapping[str, str] = field(default_factory=dict)
    build: str | Callable | None = None

    @property
    def all_forbidden(self) -> tuple[Forbidden, ...]:
        return (*([self.reference] if self.reference is not None else []), *self.forbids)

    def local_runner(self, answer: object, *, seconds: float | None = None) -> LocalRunner:
        """The runner for this exercise in the process that holds `answer`: adapted, watched, sanitized, and for no
        longer than `seconds`."""
        return LocalRunner(
            answer, adapt=self.adapt, forbids=self.all_forbidden, kernel=self.kernel, seconds=seconds, build=self.build
        )

    def reference_function(self) -> Callable | None:
        """The reference as an ordinary function: imported and adapted when it is first called."""
        if self.reference is None:
            return None

        def call(*args, **kwargs):
            function = resolve(self.reference)
            return (resolve(self.adapt)(function) if self.adapt else function)(*args, **kwargs)

        return call


@dataclass(frozen=True)
class Result:
    """What a check found: true where the answer passed. JupyterLab shows it as a card, a terminal as text."""

    id: str
    passed: bool
    properties: tuple[PropertyResult, ...]
    failure: Failure | None = None
    misconception: Misconception | None = None
    hint_number: int = 0  # of the hint that is offered; 0 where none is
    hints: int = 0  # how many there are

    @property
    def failed(self) -> PropertyResult | None:
        """The property that does not hold."""
        return next((each for each in self.properties if not each.passed), None)

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return display.result_text(self)

    def _repr_html_(self) -> str:
        return display.result_html(self)


_registry: dict[str, Check] = {}


def exercise_check(
    id: str,
    *,
    reference: Forbidden | None = None,
    forbids: tuple[Forbidden, ...] = (),
    hints: tuple[str, ...] = (),
    adapt: str | Callable | None = None,
    kernel: bool | None = None,
    equivalent: Mapping[str, str] | None = None,
    build: str | Callable | None = None,
) -> Callable[[Callable[[Answer], None]], Check]:
    """Register the decorated function as the check of an exercise. The arguments are the fields of `Check`; whether the
    answer is a kernel is the manifest's to say."""

    def register(function: Callable[[Answer], None]) -> Check:
        if id in _registry and _registry[id].function.__code__ != function.__code__:
            raise ValueError(f"{id} has two checks")
        kernels = {exercise.id for lesson in lessons() for exercise in lesson.exercises if exercise.kernel}
        is_kernel = id in kernels if kernel is None else kernel
        _registry[id] = Check(id, function, reference, forbids, hints, adapt, is_kernel, equivalent or {}, build)
        return _registry[id]

    return register


def get_check(id: str) -> Check:
    """The check of that exercise; imports the module of its lesson's checks.

    Raises
    ------
    KeyError
        No exercise has that id; the message names the nearest.
    """
    if id not in _registry:
        load_content(str(id).partition(".")[0], "checks")
    if id not in _registry:
        known = sorted({e.id for lesson in lessons() for e in lesson.exercises} | set(_registry))
        near = difflib.get_close_matches(str(id), known, n=3, cutoff=0.5)
        remedy = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        raise UnknownId(f"no exercise {id!r} has a check: {remedy}")
    return _registry[id]


def run_check(
    check: Check,
    runner: Runner,
    *,
    seed: int = 0,
    name_mistakes: bool = True,
    compile_kernels: bool = True,
    report: Callable[[str], None] = lambda doing: None,
) -> Result:
    """Run a check through a runner. The same seed draws the same inputs. Looking for the misconception that a wrong
    answer shows takes longer than finding it wrong: name_mistakes=False does without. A kernel that passes is compiled
    for a GPU, where the runner can have that done, unless compile_kernels=False. `report` is told what is being done,
    in a few words."""
    answer = Answer(
        runner,
        name=name_of(check.id),
        reference=check.reference_function(),
        seed=_seed(check.id, seed),
        report=report,
        arguments=(lambda: arguments_of(check)) if check.adapt else None,
    )
    try:
        check.function(answer)
    except Rejected as rejected:
        report("which mistake is it?")
        calls, earlier = answer.calls[answer.first_call :], answer.calls[: answer.first_call]
        named = diagnose(check, calls, rejected, earlier) if name_mistakes else None
        return Result(check.id, False, tuple(answer.properties), rejected.failure, named)
    if not answer.properties:
        raise RuntimeError(f"the check of {check.id} shows no property")
    if check.kernel and (found := idle(work_of(check.reference), answer.calls, answer.shown)):
        call, failure = found
        properties = (replace(each, passed=each.name != call.property) for each in answer.properties)
        return Result(check.id, False, tuple(properties), failure)
    if check.kernel and compile_kernels and hasattr(runner, "compile"):
        report("a GPU's compiler")
        if (refused := _refused(check, runner, answer)) is not None:  # a result that has not passed is false
            return refused
    return Result(check.id, True, tuple(answer.properties))


def _refused(check: Check, runner, answer: Answer) -> Result | None:
    """The result of a kernel that passed everything, and that a GPU's compiler refuses as one of the calls launched it:
    the property that the call belongs to does not hold."""
    calls = [answer.calls[n] for n in chosen(answer.calls)]
    compiled = runner.compile([(call.args, call.kwargs) for call in calls])
    if not compiled and calls and getattr(runner, "must_compile", False) and can_be_asked():
        properties = (replace(each, passed=each.name != calls[0].property) for each in answer.properties)
        failure = Failure("compile", "its text is not to be had, or it launches nothing: no compiler can be given it")
        return Result(check.id, False, tuple(properties), failure)
    for call, said in zip(calls, compiled, strict=False):
        if said:
            properties = (replace(each, passed=each.name != call.property) for each in answer.properties)
            failure = not_compiled(said, answer.shown(call))
            return Result(check.id, False, tuple(properties), failure)
    return None


def name_of(id: str) -> str:
    """What the manifest calls the learner's function, or class; a part of the id, where it is in no manifest."""
    known = (exercise for lesson in lessons() for exercise in lesson.exercises)
    return next((exercise.function for exercise in known if exercise.id == id), id.partition(".")[2])


def _seed(id: str, seed: int) -> int:
    """The seed of one exercise's inputs, another one for each exercise. (Python's own hash of a string will not do: it
    changes from run to run.)"""
    return int.from_bytes(hashlib.sha256(f"{id} {seed}".encode()).digest()[:7], "big")
