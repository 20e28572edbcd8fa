"""Wrong answers, written as edits of a right one.

Most mistakes are one line of an answer that is otherwise right, and that is how they are written down here:

    wrong = Mistakes("03.attend_one_query", attend_one_query)      # a right answer: a function, a kernel, a class
    wrong("no_scale", "You leave out the scale 1/√Dk.", ("/ math.sqrt(Dk)", ""), why="The scores are q · k / √Dk.")

Each call registers a misconception (`llmsys.course.checking.diagnosis`): the right answer's text, in which each first
text of a change reads as the second. The right answer is the library's own function where that reads as a solution
does, and a short one in the lesson's mistakes otherwise. An answer that goes wrong from the first line on, because it
is another algorithm, is written out as a function under `@misconception`.

The order in which mistakes are registered matters: where an answer could be two of them, the first is named.
"""

import itertools
import linecache

from llmsys.course.checking.diagnosis import misconception
from llmsys.course.checking.source import function_of, text_of
from llmsys.hardware.kernel_source import underlying

MODULE = "llmsys mistakes"
"""What edited answers call their module. It is no real one, so none of them is taken for a function of the library that
an exercise forbids by its dotted name (`llmsys.course.checking.watch`)."""

Change = tuple[str, str] | tuple[str, str, int]
"""A text, what it reads instead, and how many times it is there, if not once."""


class Mistakes:
    """What people get wrong in one exercise, as edits of `right`, an answer that passes."""

    def __init__(self, exercise: str, right: object):
        self.exercise, self.right = exercise, right

    def __call__(self, name: str, message: str, *changes: Change, why: str = "", of: object = None) -> object:
        """Register a mistake, and return it. `changes` are made in the right answer, or in another one, `of`; what
        `message` and `why` say is shown to the learner."""
        wrong = edited(self.right if of is None else of, name, *changes)
        return misconception(self.exercise, message, why=why)(wrong)


def edited(function: object, name: str, *changes: Change) -> object:
    """`function`, or a Triton kernel, or a class, under another name, with each first text of `changes` replaced by its
    second, one change after the other.

    It sees the globals that `function` sees now. Its text can be looked up, as Triton does. Raises ValueError where a
    text is not in it as often as the change says, which is once if it does not say.
    """
    inner, text = underlying(function), text_of(function)
    word = "class" if isinstance(inner, type) else "def"
    head = f"{word} {inner.__name__}" + ("(" if f"{word} {inner.__name__}(" in text else ":")
    for before, after, *times in [(head, head.replace(inner.__name__, name)), *changes]:
        expected, found = times[0] if times else 1, text.count(before)
        if found != expected:
            raise ValueError(f"{name}: {before!r} must be in {inner.__name__} {_often(expected)}, it is {found} times")
        text = text.replace(before, after)
    file = f"<mistake {name} {next(_numbers)}>"  # lessons have mistakes of the same name
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace = {**function_of(function).__globals__, "__name__": MODULE}
    exec(compile(text, file, "exec", dont_inherit=True), namespace)
    return namespace[name]


_numbers = itertools.count()


def _often(times: int) -> str:
    return "once" if times == 1 else f"{times} times"
