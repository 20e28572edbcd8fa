"""`mine`: the learner's own library, grown from the answers that passed.

When a check passes in a workspace, the cell that the answer came from is written to `mine/lesson_02.py`, between two
lines that name the exercise, so that passing it again replaces just that section. Kernels go to
`mine/lesson_02_kernels.py`, which alone needs Triton. A cell may lean on others, on the imports of the setup cell or on
a helper a few cells up, and so what its names mean in the notebook is written out above it: the module can be imported
wherever the library is.

Later lessons offer the learner's version and say which is in use:

    from llmsys.course import mine
    merge = mine("merge", default=online.merge)
"""

import ast
import builtins
import importlib
import inspect
import linecache
import math
import re
import symtable
import sys
import textwrap
import warnings
from collections.abc import Collection
from pathlib import Path
from types import FunctionType, ModuleType

import cloudpickle

from llmsys.course.checking.source import function_of, text_of
from llmsys.course.manifest import Exercise, UnknownId, exercise, lesson
from llmsys.course.workspace.notebook import write_text
from llmsys.course.workspace.workspace import MINE, find
from llmsys.hardware.kernel_source import underlying

_HEADER = '''"""My answers to lesson {number}: those whose checks have passed, each as it was when it passed last.

Written by `check`, a section an exercise; whatever is between the lines of a section is replaced when it passes again.
"""
'''
_BEGIN, _END = "# ── {id} ──", "# ── end of {id} ──"


def export_answer(id: str, answer: object, *, kernel: bool = False) -> Path | None:
    """Write a passed answer to the workspace's `mine/`. Returns the module's file; None outside of a workspace, or
    where the answer's source is not to be had."""
    folder = find()
    if folder is None:
        return None
    try:
        section = section_source(answer, {exercise.function for exercise in _siblings(id)})
    except (OSError, TypeError, AttributeError, SyntaxError):  # built in, or typed into a console: nothing to keep
        return None
    number = id.partition(".")[0]
    path = folder / "mine" / f"lesson_{number}{'_kernels' if kernel else ''}.py"
    try:
        package = path.with_name("__init__.py")
        if not package.exists():
            write_text(package, MINE)
        text = path.read_text(encoding="utf-8") if path.exists() else _HEADER.format(number=number)
        write_text(path, put_section(text, id, section))
    except OSError as error:
        warnings.warn(f"your answer to {id} could not be kept in {path}: {error}", stacklevel=3)
        return None
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        del sys.modules[name]  # the next `from mine import …` sees this answer
    importlib.invalidate_caches()
    return path


def mine(name: str, default: object):
    """Your own version of a function, if it has passed its check, otherwise `default`. Says which it is.

    name      of the function: the latest lesson's that has one; or an exercise's id, "11.route": that lesson's
    """
    folder, places = find(), ["mine"]
    if "." in name:
        number, name = name.partition(".")[0], exercise(name).function
        places = [f"mine.lesson_{number}", f"mine.lesson_{number}_kernels"]
    found = (_from_mine(folder, place, name) for place in places) if folder else ()
    own = next((each for each in found if each is not None), None)
    if own is not None:
        home = underlying(own).__module__  # an interpreted kernel is of a class of Triton's
        print(f"{name}: yours, from mine/{home.partition('.')[2]}.py")
        return own
    inner = underlying(default)
    print(f"{name}: the library's {getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', name)}")
    return default


def put_section(module: str, id: str, section: str) -> str:
    """The module's text with that exercise's section replaced, or added in the order of the ids in the manifest."""
    begin, end = _BEGIN.format(id=id), _END.format(id=id)
    block = f"{begin}\n{section.strip()}\n{end}\n"
    found = re.search(f"^{re.escape(begin)}$.*?^{re.escape(end)}\n", module, re.MULTILINE | re.DOTALL)
    if found:
        return module[: found.start()] + block + module[found.end() :]
    for later in _ids_after(id):
        if at := re.search(f"^{re.escape(_BEGIN.format(id=later))}$", module, re.MULTILINE):
            return f"{module[: at.start()]}{block}\n{module[at.start() :]}"
    return f"{module.rstrip()}\n\n{block}"


def section_source(answer: object, answers: Collection[str] = ()) -> str:
    """The cell that a function or class came from, as a piece of a module: what it imports and defines, without what it
    merely shows or calls, below whatever it takes from other cells. Of those, the `answers` to other exercises are only
    defined where the module does not have them in sections of their own.

    Raises OSError where the source is not to be had.
    """
    function, name = function_of(answer), getattr(underlying(answer), "__name__", "")
    if function is None:
        raise OSError(f"the source of {name or answer} is not to be had")
    source = _cell(answer, function)
    tree = ast.parse(source)
    kept = _definitions(tree, name)
    body = "\n".join(_segment(source, node) for node in kept)
    return "\n".join([*_preamble(kept, function.__globals__, {name}, answers), body])


def _cell(answer: object, function: FunctionType) -> str:
    """The whole cell, as IPython keeps it; of what is in a file, the file's imports and the answer itself."""
    code = inspect.unwrap(function).__code__
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not lines:
        raise OSError(f"the source of {function.__name__} is not to be had")
    source = "".join(lines)
    if not Path(code.co_filename).exists():
        return source
    imports = [node for node in ast.parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return "\n".join([*(ast.unparse(node) for node in imports), text_of(answer)])


def _definitions(tree: ast.Module, name: str) -> list[ast.stmt]:
    """The statements worth keeping: imports, functions, classes, and the assignments that those use."""
    lasting = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try, ast.If)
    kept = [node for node in tree.body if isinstance(node, lasting)]
    assignments = [node for node in tree.body if isinstance(node, (ast.Assign, ast.AnnAssign))]
    grown = True
    while grown:  # an assignment may use another
        used = _loaded(kept)
        more = [node for node in assignments if node not in kept and _bound([node]) & used]
        kept, grown = kept + more, bool(more)
    return sorted(kept, key=lambda node: node.lineno)


def _preamble(nodes: list[ast.stmt], namespace: dict, seen: set[str], answers: Collection[str]) -> list[str]:
    """Lines that define what `nodes` use and do not define: an import, a constant, a helper from another cell."""
    lines = []
    for name in sorted(_loaded(nodes) - _bound(nodes) - set(dir(builtins)) - seen):
        if name not in namespace:
            continue  # a local variable, or a mistake on a path that the check does not take
        seen.add(name)
        value = namespace[name]
        home = getattr(value, "__module__", None)
        if isinstance(value, ModuleType):
            lines.append(f"import {value.__name__} as {name}")
        elif isinstance(value, (bool, int, float, str, type(None))):
            special = isinstance(value, float) and not math.isfinite(value)
            lines.append(f'{name} = float("{value}")' if special else f"{name} = {value!r}")
        elif home not in (None, "__main__", namespace.get("__name__")) and _importable(home, value):
            lines.append(f"from {home} import {_importable(home, value)} as {name}")
        elif (function := function_of(value)) is not None and function.__globals__ is namespace:
            helper = ast.parse(text_of(value))
            source = ast.unparse(helper)
            its = getattr(helper.body[0], "name", name)  # another one where a cell says `Base = Pool`
            if its in answers:
                source = f"if {its!r} not in globals():\n{textwrap.indent(source, '    ')}"
            if its == name or its not in seen or its in _bound(nodes):  # the cell's own one comes further down
                seen.add(its)
                lines += [*_preamble(helper.body, namespace, seen, answers), source]
            if its != name:
                lines.append(f"{name} = {its}")
    return [re.sub(r"^((?:from \S+ )?import (\S+)) as \2$", r"\1", line) for line in lines]


def _importable(module: str, value: object) -> str:
    """The name under which this object can be imported from that module; "" where it cannot."""
    name = getattr(value, "__name__", "")
    held = getattr(sys.modules.get(module), name, None) if name.isidentifier() else None
    return name if held is value else ""


def _loaded(nodes: list[ast.stmt]) -> set[str]:
    """The names that these statements look up in their module: what a function calls its own variables is none."""
    scopes = [symtable.symtable(ast.unparse(ast.Module(nodes, [])), "<cell>", "exec")]
    names: set[str] = set()
    for scope in scopes:  # grows as it is gone through
        scopes += scope.get_children()
        local = scope.get_type() == "function"  # a class's names are the module's until its body has bound them
        for each in scope.get_symbols():
            if each.is_referenced() and (each.is_global() or not (local or each.is_free())):
                names.add(each.get_name())
    return names


def _bound(nodes: list[ast.stmt]) -> set[str]:
    """What these statements define at the top of a module."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Try):
            handlers = [statement for handler in node.handlers for statement in handler.body]
            names |= _bound([*node.body, *handlers, *node.orelse, *node.finalbody])
        elif isinstance(node, ast.If):
            names |= _bound([*node.body, *node.orelse])
        else:
            stored = (each for each in ast.walk(node) if isinstance(each, ast.Name))
            names |= {each.id for each in stored if isinstance(each.ctx, ast.Store)}
    return names


def _segment(source: str, node: ast.stmt) -> str:
    """The node's own text: its decorators, its comments, and those right above it."""
    lines = source.splitlines()
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]) - 1
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    text = "\n".join(lines[first : node.end_lineno])
    definition = isinstance(node, (ast.FunctionDef, ast.ClassDef))
    return f"\n\n{text}\n" if definition else text


def _siblings(id: str) -> tuple[Exercise, ...]:
    """The exercises of the same lesson, in order."""
    try:
        return lesson(id.partition(".")[0]).exercises
    except UnknownId:
        return ()


def _ids_after(id: str) -> list[str]:
    ids = [exercise.id for exercise in _siblings(id)]
    return ids[ids.index(id) + 1 :] if id in ids else []


def _from_mine(folder: Path, place: str, name: str):
    added = str(folder) not in sys.path
    if added:
        sys.path.insert(0, str(folder))
    try:
        cloudpickle.register_pickle_by_value(importlib.import_module("mine"))  # a rank need not find the workspace
        own = getattr(importlib.import_module(place), name, None)
        # In a workspace of before, the package also gives what an answer merely imports from the library.
        return None if str(getattr(underlying(own), "__module__", "")).startswith("llmsys.") else own
    except ImportError:
        return None
    finally:
        if added:
            sys.path.remove(str(folder))
