"""A kernel as text, so that another process can compile a kernel that was defined in this one.

A kernel in a module can be imported by name there. A kernel in a notebook is nowhere but in its cells: `source_of` puts
its text together, with that of the helpers, constants and imports that it uses.
"""

import ast
import hashlib
import importlib.util
import inspect
import math
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Constant = int | float | bool | str | None


@dataclass(frozen=True)
class Source:
    """A kernel as text: Python with all its imports and helpers, and the kernel's name in it."""

    text: str
    name: str


def source_of(kernel: Callable) -> Source:
    """The text of a kernel, with the helpers, constants and imports that it uses.

    Helpers are functions of the kernel's own module or notebook; what comes from elsewhere is imported in the text.
    Raises ValueError for what is no function, or where Python does not have the text.
    """
    function = underlying(kernel)
    imports, constants, functions = {}, {}, {}

    def visit(function: types.FunctionType) -> None:
        try:
            text = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError):
            raise ValueError(
                f"the text of {function.__name__} is not to be had (was it made with exec?); give Source(text, name)"
            ) from None
        functions[function.__name__] = ""  # a function may call itself
        names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        for name in sorted(names & function.__globals__.keys() - functions.keys()):
            value = function.__globals__[name]
            used = underlying(value)
            if isinstance(value, types.ModuleType):
                imports[name] = f"import {value.__name__} as {name}"
            elif isinstance(used, types.FunctionType) and used.__globals__ is function.__globals__:
                visit(used)
            elif type(value).__name__ == "constexpr" and isinstance(value.value, Constant):
                constants[name] = f"{name} = _constexpr({_literal(value.value)})"
            elif isinstance(value, Constant):
                constants[name] = f"{name} = {_literal(value)}"
            elif _by_its_own_name(used) is value:
                imports[name] = f"from {used.__module__} import {used.__name__} as {name}"
            elif in_triton := _name_in_triton(value):
                imports[name] = f"from triton.language import {in_triton} as {name}"
            else:  # a list, say: the compiler refuses to read it, and names it, where it is there under its name
                constants[name] = f"{name} = object()"
        functions[function.__name__] = text

    if not isinstance(function, types.FunctionType):
        raise ValueError(f"kernel must be a Triton kernel, 'package.module:name' or a Source, got {kernel!r}")
    visit(function)
    constexpr = ["from triton.language import constexpr as _constexpr"]
    # Helpers may stand in any order: names are looked up when the kernel is compiled.
    text = "\n".join([*imports.values(), *constexpr, *constants.values(), "", *functions.values()])
    return Source(text, function.__name__)


def texts_of(module: str) -> dict[str, str]:
    """Module's name -> a hash of its text: of `module`, and of what it imports from its own top-level package.

    Together they change whenever the kernel or one of its helpers does.

    Raises ValueError where there is no such module.
    """
    found, left = {}, [module]
    while left:
        name = left.pop()
        spec = _spec(name)
        if spec is None or name in found or not (spec.origin or "").endswith(".py"):
            continue
        text = Path(spec.origin).read_text(encoding="utf-8")
        found[name] = hashlib.sha256(text.encode()).hexdigest()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), spec.parent)
                names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
            else:
                continue
            left += [each for each in names if each.split(".")[0] == module.split(".")[0]]
    if not found:
        raise ValueError(f"kernel is to be in the module {module!r}, and there is no such file of Python here")
    return dict(sorted(found.items()))


def underlying(function: object) -> object:
    """The Python function under decorators (`__wrapped__`) and Triton's kernel objects (`.fn`)."""
    for _ in range(20):
        inner = getattr(function, "__wrapped__", None) or getattr(function, "fn", None)
        if inner is None or inner is function:
            break
        function = inner
    return getattr(function, "__func__", function)


def _literal(value: Constant) -> str:
    """Python's text for a constant; infinity and NaN have none of their own."""
    return f'float("{value}")' if isinstance(value, float) and not math.isfinite(value) else repr(value)


def _name_in_triton(value) -> str:
    """The name in triton.language of a type like tl.float16, which does not know it; "" for anything else."""
    names = vars(sys.modules.get("triton.language", object)).items()
    return next((name for name, known in names if known is value and not name.startswith("_")), "")


def _by_its_own_name(value):
    """What is found in the module that a function or class says it is from, under the name that it says it has."""
    return getattr(sys.modules.get(getattr(value, "__module__", None)), getattr(value, "__name__", ""), None)


def _spec(name: str):
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # its parent is no package: the name is that of a function in a module
        return None
