"""Wrong answers, written as edits of a right one.

Most mistakes are one line of an answer that is otherwise right, and that is how they are written down here:

    wrong = Mistakes("03.attend_one_query", attend_one_query)      # a right answer: a function, or a Triton kernel
    wrong("no_scale", "You leave out the scale 1/√Dk.", ("/ math.sqrt(Dk)", ""), why="The scores are q · k / √Dk.")

Each call registers a misconception (`llmsys.course.checking.diagnosis`): the right answer's text, in which each first
text of a pair reads as the second. An answer that goes wrong from the first line on is written out, as a function under
`@misconception`.
"""

import inspect
import linecache
import textwrap

from llmsys.course.checking.diagnosis import misconception
from llmsys.hardware.kernel_source import underlying


class Mistakes:
    """What people get wrong in one exercise, as edits of `right`, an answer that passes."""

    def __init__(self, exercise: str, right: object):
        self.exercise, self.right = exercise, right

    def __call__(self, name: str, message: str, *changes: tuple[str, str], why: str = "", of: object = None) -> object:
        """Register a mistake, and return it. `changes` are made in the right answer, or in another one, `of`; what
        `message` and `why` say is shown to the learner."""
        wrong = edited(self.right if of is None else of, name, *changes)
        return misconception(self.exercise, message, why=why)(wrong)


def edited(function: object, name: str, *changes: tuple[str, str]) -> object:
    """`function`, or a Triton kernel, under another name, with each first text of `changes` replaced by its second.

    It sees the globals of `function`. Raises ValueError where a text does not occur in it, or more than once.
    """
    inner = underlying(function)
    text = textwrap.dedent(inspect.getsource(inner))
    for before, after in [(f"def {inner.__name__}(", f"def {name}("), *changes]:
        if text.count(before) != 1:
            raise ValueError(f"{name}: {before!r} must be in {inner.__name__} once, it is {text.count(before)} times")
        text = text.replace(before, after)
    file = f"<mistake {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # where Triton looks for it
    namespace = dict(inner.__globals__)
    exec(compile(text, file, "exec"), namespace)
    return namespace[name]
