"""What a check says to a learner names only what the learner's own function has.

A launcher around a kernel has options of its own, and so has the library's function. A learner who reads "`columns`",
or "report=", looks for an argument that is not there. So a name in backticks, or before an equals sign, has to stand in
the exercise's cell; but a call of something else, "amax(dim=-1, keepdim=True)", may name its own arguments.
"""

import ast
import inspect
import keyword
import re
import textwrap
from collections.abc import Iterable, Iterator

from llmsys.course.checking.checks import Check
from llmsys.course.checking.diagnosis import Misconception

NAME = re.compile(r"[A-Za-z_]\w*")
NAMED = re.compile(r"`([A-Za-z_]\w*)`|(?<![\w.])([A-Za-z_]\w*)=(?![=>])")
CALL = re.compile(r"(?<!\w)([A-Za-z_][\w.]*)\([^()]*\)")


def strange_names(cell: str, function: str, texts: Iterable[str]) -> list[str]:
    """The names in these texts that the exercise's cell does not have, each with the text: "`columns` in …"."""
    known = {*NAME.findall(cell), *keyword.kwlist}
    found = {}
    for text in texts:
        own = CALL.sub(lambda call: call[0] if call[1] == function else call[1], text)
        for match in NAMED.finditer(own):
            name = match[1] or match[2]
            if name not in known:
                found[name] = f"`{name}` in {text!r:.90}"
    return list(found.values())


def texts_of(check: Check, known: Iterable[Misconception]) -> Iterator[str]:
    """What a check may say: the texts in its function, its hints, and those of the misconceptions."""
    yield from check.hints
    for each in known:
        yield from (each.message, each.why)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(check.function)))
    except (OSError, TypeError, SyntaxError):
        return  # made in a test, or in a cell: its text is not to be had
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # those no learner reads
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
