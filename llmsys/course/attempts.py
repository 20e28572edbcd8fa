"""What a learner calls: `check` an answer, and ask for a `hint`.

    check("02.merge", merge)
    hint("02.merge")

`check` runs the exercise's check (`llmsys.course.checking`) on inputs from one fixed seed, remembers the attempt in the
learner's progress file, and writes a passed answer to `mine/`. From the second wrong answer on it offers a hint; what
the hint says, and that it was given, is only for those who call `hint`.
"""

import ast
import hashlib
from dataclasses import dataclass, replace

from llmsys.course import display
from llmsys.course.checking.checks import Result, get_check, name_of, run_check
from llmsys.course.checking.source import text_of
from llmsys.course.checking.waiting import Waiting
from llmsys.course.grading import interpreted
from llmsys.course.workspace import mine, progress
from llmsys.hardware.kernel_source import underlying

SECONDS = 60.0  # of processor time that a check gives the learner's function; those of the course take 10 at most


@dataclass(frozen=True)
class Hint:
    """One hint, shown as a card or as text."""

    id: str
    text: str
    number: int
    of: int

    def __repr__(self) -> str:
        return display.hint_text(self)

    def _repr_html_(self) -> str:
        return display.hint_html(self)


def check(id: str, answer: object) -> Result:
    """Check your answer to an exercise, as in `check("02.merge", merge)`: your function or class itself, not a call of
    it.

    A wrong answer is a `Result` that says what is wrong, one that takes longer than SECONDS among them; errors are only
    raised for an unknown exercise or for something that is neither a function nor a class.
    """
    found = get_check(id)
    if not callable(answer) and not hasattr(answer, "fn"):
        name = name_of(id)
        kind = "class" if name[0].isupper() else "function"
        raise TypeError(
            f"check({id!r}, …) takes your {kind} itself, as in check({id!r}, {name}), without calling it; "
            f"got the {type(answer).__name__} {answer!r:.60}"
        )
    with Waiting(id) as waiting:
        result = run_check(found, found.local_runner(answer, seconds=SECONDS), report=waiting.say)
        if result and found.kernel:
            waiting.say("its memory, in the interpreter")
            result = interpreted.confirm(found, answer, result)
    if result.failure and result.failure.kind == "stub":
        return result
    record = progress.attempt(id, _fingerprint(answer), result.passed, nudge=_nudge(result, found.hints))
    if result.passed:
        mine.export_answer(id, answer, kernel=found.kernel)
        return result
    if len(record.failed) > 1 and record.hints < len(found.hints):
        result = replace(result, hint_number=record.hints + 1, hints=len(found.hints))
    return result


def hint(id: str) -> Hint:
    """The next hint for an exercise: a nudge, then the invariant to keep, then pseudocode. The last one stays. The
    first one speaks of the property that failed last."""
    hints = get_check(id).hints
    if not hints:
        return Hint(id, "This exercise has no hints.", 0, 0)
    number = progress.next_hint(id, len(hints))
    text = number == 1 and progress.load().exercises[id].nudge or hints[number - 1]
    return Hint(id, text, number, len(hints))


def _nudge(result: Result, hints: tuple[str, ...]) -> str:
    """The first hint to the property that failed: the check's own, or the exercise's with the property's name."""
    if result.failed is None:
        return ""
    return result.failed.hint or " ".join([f"What does not hold yet: {result.failed.name}.", *hints[:1]])


def _fingerprint(answer: object) -> str:
    """Names an attempt: changes with the answer's code, but not with its comments and blank lines."""
    try:
        source = ast.unparse(ast.parse(text_of(answer)))
    except (OSError, SyntaxError, ValueError):
        code = getattr(underlying(answer), "__code__", None)
        source = repr((code.co_code, code.co_consts)) if code else repr(type(underlying(answer)))
    return hashlib.sha256(source.encode()).hexdigest()[:16]
