"""Where an answer comes from: a function's text, or that of a class, in a file, a module or a notebook's cell.

Python finds a function's text by its code. A class has none, and of one that was defined in a notebook `inspect` only
says that there is no source; but its methods have code, and that knows the cell.
"""

import ast
import inspect
import linecache
import textwrap
from types import FunctionType

from llmsys.hardware.kernel_source import underlying


def function_of(answer: object) -> FunctionType | None:
    """The function under an answer; of a class a method that is written in it. None where there is none."""
    inner = underlying(answer)
    if isinstance(inner, type):
        return next(iter(_methods(inner)), None)
    return inner if isinstance(inner, FunctionType) else None


def text_of(answer: object) -> str:
    """The text of a function or class as it stands, decorators included. OSError where it is not to be had."""
    inner = underlying(answer)
    try:
        if not isinstance(inner, type):
            return textwrap.dedent(inspect.getsource(inner))
        return _text_of_class(inner)
    except (TypeError, SyntaxError):  # built in; or a file that has changed
        raise OSError(f"the source of {getattr(inner, '__name__', inner)} is not to be had") from None


def _methods(kind: type) -> list[FunctionType]:
    """Of the class itself, and with a text: what a dataclass is given has none."""
    found = []
    for value in vars(kind).values():
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        value = inspect.unwrap(value) if callable(value) else value
        if isinstance(value, FunctionType) and value.__qualname__ == f"{kind.__qualname__}.{value.__name__}":
            if linecache.getlines(value.__code__.co_filename, value.__globals__):
                found.append(value)
    return found


def _text_of_class(kind: type) -> str:
    """By one of its methods, for a cell may define two classes of one name."""
    for method in _methods(kind):
        code = method.__code__
        lines = linecache.getlines(code.co_filename, method.__globals__)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, ast.ClassDef) and node.name == kind.__name__:
                if node.lineno <= code.co_firstlineno <= node.end_lineno:
                    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                    return textwrap.dedent("".join(lines[first - 1 : node.end_lineno]))
    raise OSError(f"the source of {kind.__name__} is not to be had")
