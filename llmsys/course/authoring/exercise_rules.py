"""The rules of `llmsys.course.authoring.lint` about what the reader does: roles, exercises, checks, predictions."""

import ast
import builtins
import re
import symtable
from collections.abc import Iterator

from nbformat import NotebookNode

from llmsys.course import manifest
from llmsys.course.authoring.build import MINUTES, headings
from llmsys.course.manifest import Lesson
from llmsys.course.workspace.notebook import ROLES, role

SHAPE = re.compile(r"\bshape|\([^()\n]*(?:,|\.\.\.|…)[^()\n]*\)")

Complaints = Iterator[tuple[str, str, str]]  # the id of a cell, what is wrong with it, what to do about it


def every_role_is_there(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """Each role has a cell: setup, exercise, check, predict, measure, engine, widget."""
    present = {role(cell) for cell in notebook.cells}
    for each in ROLES:
        if each not in present:
            yield "(none)", f"no cell has the role {each}", f'tag one with tags=["{each}"]'


def exercises_are_whole(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """Each exercise of the manifest has one cell with one marked solution, and its check next, in the same order."""
    cells = {cell.id: cell for cell in notebook.cells}
    order = [cell.id for cell in notebook.cells if cell.id in {e.cell_id for e in lesson.exercises}]
    if order != [e.cell_id for e in lesson.exercises if e.cell_id in cells]:
        yield order[0], "the exercises are not in the manifest's order", "reorder them here or in lessons.toml"
    for exercise in lesson.exercises:
        if exercise.cell_id not in cells:
            yield exercise.cell_id, "the manifest's exercise has no cell", f'mark one: exercise="{exercise.id}"'
            continue
        cell = cells[exercise.cell_id]
        marks = [cell.source.count(f"### {mark} SOLUTION") for mark in ("BEGIN", "END")]
        if marks != [1, 1] and not (_defines_a_class(exercise, cell) and marks[0] == marks[1] > 1):
            remedy = "put it between ### BEGIN SOLUTION and ### END SOLUTION; a class may have one in each method"
            yield cell.id, "it has not one solution", remedy
        yield from _stub(exercise, cell)
        following = notebook.cells[notebook.cells.index(cell) + 1 :]
        if not following or following[0].id != exercise.check_cell_id:
            yield cell.id, "its check cell does not follow it", f'put one there: check("{exercise.id}", …)'
        elif not _ends_in_check(following[0].source, exercise):
            wanted = f'check("{exercise.id}", {exercise.function})'
            yield following[0].id, "it does not end in its check", f"make its last line {wanted}"


def headings_say_the_minutes(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """The heading above an exercise ends in the minutes that the manifest gives it: (15 minutes), (5 minutes each)."""
    minutes = {exercise.cell_id: exercise.minutes for exercise in lesson.exercises}
    said = None
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := headings(cell.source)):
            match = MINUTES.search(found[-1][1])
            said = int(match[1]) if match else None
        elif cell.id in minutes and said != minutes[cell.id]:
            wanted = f"({minutes[cell.id]} minute{'s' * (minutes[cell.id] != 1)})"
            yield cell.id, f"the heading above says {said or 'no'} minutes", f"end it in {wanted}, or mend lessons.toml"


def headings_say_what_is_optional(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """The heading above an exercise says "optional" where the manifest does, and nowhere else."""
    optional = {exercise.cell_id: exercise.optional for exercise in lesson.exercises}
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := headings(cell.source)):
            heading = found[-1][1]
        elif cell.id in optional and optional[cell.id] != ("optional" in heading.lower()):
            if optional[cell.id]:
                remedy = "write (optional) into it, or give the exercise points in lessons.toml"
                yield cell.id, "it is optional, and the heading above does not say so", remedy
            else:
                remedy = "take the word out, or mark the exercise optional = true in lessons.toml"
                yield cell.id, "the heading above says optional, and it has points", remedy


def answers_are_self_contained(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """An exercise's cell uses only what it defines or imports, so that it can be graded and exported by itself."""
    for cell in notebook.cells:
        if role(cell) == "exercise":
            try:
                missing = free_names(cell.source)
            except SyntaxError as error:
                yield cell.id, f"it is not Python ({error.msg}, line {error.lineno})", "keep magics out of exercises"
                continue
            if missing:
                yield cell.id, f"it uses {', '.join(sorted(missing))} of other cells", "import or define it in this one"


def predictions_are_measured(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """Each `predict` has an id of its own and a `measured` below it, and each `measured` a `predict` above it."""
    asked: dict[str, str] = {}
    answered: dict[str, str] = {}
    for cell in notebook.cells:
        for function, id in _calls(cell, ("predict", "measured")):
            if not id.startswith(f"{lesson.number}."):
                yield cell.id, f"{id!r} is not an id of this lesson's", f'call it "{lesson.number}.…"'
            if function == "predict":
                if id in asked:
                    yield cell.id, f"{id!r} is asked a second time", "give each prediction an id of its own"
                asked[id] = cell.id
            else:
                if id not in asked:
                    yield cell.id, f"{id!r} is measured and was not predicted above", "ask with predict(…) first"
                answered[id] = cell.id
        if role(cell) == "predict" and not list(_calls(cell, ("predict",))):
            yield cell.id, "a predict cell that asks nothing", "call predict(id, None, unit) in it, or drop the tag"
    for id in asked.keys() - answered.keys():
        yield asked[id], f"{id!r} is predicted and never measured", f'show it with measured("{id}", value, unit)'


def free_names(source: str) -> set[str]:
    """The names that a cell uses and neither defines, imports nor finds among Python's own."""
    top = symtable.symtable(source, "cell", "exec")
    bound = {each.get_name() for each in top.get_symbols() if each.is_assigned() or each.is_imported()}

    def used(table: symtable.SymbolTable) -> Iterator[str]:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (table is top or symbol.is_global()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from used(child)

    return {name for name in used(top) if name not in bound and not hasattr(builtins, name)}


def _stub(exercise: manifest.Exercise, cell: NotebookNode) -> Complaints:
    """An exercise's cell defines the function or class that the manifest names, with a docstring that says shapes."""
    try:
        functions = _definitions(exercise, cell)
    except SyntaxError:
        return  # answers_are_self_contained says so
    if not functions:
        yield cell.id, f"it defines no function {exercise.function}", "name it as the manifest does"
    elif not SHAPE.search(ast.get_docstring(functions[0]) or ""):
        yield cell.id, f"the docstring of {exercise.function} says no shapes", "give every tensor its shape"


def _definitions(exercise: manifest.Exercise, cell: NotebookNode) -> list[ast.FunctionDef | ast.ClassDef]:
    """Of the exercise's name, in its cell. Raises SyntaxError."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [each for each in ast.parse(cell.source).body if isinstance(each, kinds) and each.name == exercise.function]


def _defines_a_class(exercise: manifest.Exercise, cell: NotebookNode) -> bool:
    try:
        return any(isinstance(each, ast.ClassDef) for each in _definitions(exercise, cell))
    except SyntaxError:
        return False


def _ends_in_check(source: str, exercise: manifest.Exercise) -> bool:
    try:
        last = ast.parse(source).body[-1]
    except (SyntaxError, IndexError):
        return False
    wanted = ast.parse(f'check("{exercise.id}", {exercise.function})', mode="eval").body
    return isinstance(last, ast.Expr) and ast.dump(last.value) == ast.dump(wanted)


def _calls(cell: NotebookNode, functions: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The calls of those functions in a cell whose first argument is a string: (function, string), in order."""
    if cell.cell_type != "code":
        return
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:
        return  # a cell with magics
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    for call in sorted(calls, key=lambda node: (node.lineno, node.col_offset)):
        if call.func.id in functions and call.args and isinstance(call.args[0], ast.Constant):
            yield call.func.id, str(call.args[0].value)
