"""The form of a lesson, checked, so that its authors can think about the content.

    llmsys lint            every lesson
    llmsys lint 02         one lesson

Every lesson is built alike: it opens with a picture of what will be built; the reader predicts a number; exercises
follow, each with its check; something to play with; a measurement that answers the prediction; the reader's code in the
real model or engine; what production does differently; and three questions with folded answers. Whatever the text
claims is shown by an output that the tests compare, or cites its source.

A rule is a function of the lesson and of its notebook, the source's cells with the outputs of the executed solution;
it yields what is wrong, where, and how to mend it. `RULES` lists them.
"""

import ast
import builtins
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode

from llmsys.course import manifest
from llmsys.course.authoring.alt_texts import pictures
from llmsys.course.authoring.build import MINUTES, BuildError, headings, read_source, with_outputs_of
from llmsys.course.authoring.numbers_in_prose import claims, compared_text, is_cited, is_shown, prose
from llmsys.course.manifest import Lesson
from llmsys.course.workspace.notebook import ROLES, role

ORDER = "prediction, exercises, widget, measurement, engine, production, questions"
PRODUCTION = r"^#{1,6} .*\bproduction\b"  # the heading of what production does differently
SHAPE = re.compile(r"\bshape|\([^()\n]*(?:,|\.\.\.|…)[^()\n]*\)")
NEXT = re.compile(r"^\*\*Next:\*\*(.*)", re.MULTILINE | re.DOTALL)  # the last words of a lesson
NOT_BUILT = "not built yet"
ELSEWHERE = re.compile(r"(?<![\w.:])(?:/[\w.-]+){2,}|\b0x[0-9a-f]{6,}\b")  # a path or an address, in an output


@dataclass(frozen=True)
class Finding:
    """Something that a rule found: in which file and cell, what, and what to do about it."""

    file: str
    cell: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: cell {self.cell}: {self.message}; {self.remedy}"


def lint(number: str | None = None) -> list[Finding]:
    """The findings in one lesson, or in all of them."""
    chosen = manifest.lessons() if number is None else (manifest.lesson(number),)
    return [finding for lesson in chosen for finding in lint_lesson(lesson, manifest.solutions_dir())]


def lint_lesson(lesson: Lesson, solutions: Path) -> list[Finding]:
    """The findings in the lesson whose source is in that directory. Outputs are those of its last execution."""
    file = f"{lesson.name}.py"
    try:
        notebook = read_source(lesson, solutions)
    except BuildError as error:
        return [Finding(file, "(none)", str(error), "mend that first")]
    rules = RULES
    found = []
    try:
        notebook = with_outputs_of(notebook, solutions / lesson.notebook)
    except BuildError:
        rules = tuple(rule for rule in RULES if rule not in NEED_OUTPUTS)
        remedy = f"run: llmsys build {lesson.number}"
        found.append(Finding(file, "(all)", "its executed solution is missing or stale", remedy))
    for rule in rules:
        found += [Finding(file, *each) for each in rule(lesson, notebook)]
    return found


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


def sections_are_in_order(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """The sections come in the order that `ORDER` names; where the questions are, another rule sees to."""
    roles = [role(cell) for cell in notebook.cells]
    last = {each: len(roles) - 1 - roles[::-1].index(each) for each in ROLES if each in roles}
    first = {each: roles.index(each) for each in ROLES if each in roles}
    if "setup" in first and any(cell.cell_type == "code" for cell in notebook.cells[: first["setup"]]):
        yield notebook.cells[first["setup"]].id, "code runs before the setup cell", "move the setup cell up"
    production = _position(notebook, PRODUCTION)
    landmarks = [
        ("the first prediction", (first["predict"], 0) if "predict" in first else None),
        ("the first exercise", (first["exercise"], 0) if "exercise" in first else None),
        ("the widget", (last["widget"], 0) if "widget" in last else None),
        ("the last measurement", (last["measure"], 0) if "measure" in last else None),
        ("the learner's code in the engine", (last["engine"], 0) if "engine" in last else None),
        ("what production does differently", production),
    ]
    if production is None:
        yield "(none)", "no section says what production does differently", 'give one a heading with "production" in it'
    there = [(name, position) for name, position in landmarks if position is not None]
    for (before, one), (after, other) in zip(there, there[1:], strict=False):
        if one >= other:
            yield notebook.cells[one[0]].id, f"{before} comes after {after}", f"move it up: {ORDER}"


def opens_with_a_picture(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """What you will build is shown, before anything is asked."""
    for cell in notebook.cells:
        if role(cell) in ("predict", "exercise"):
            yield cell.id, "nothing is shown before this cell", "open with a picture of what is built"
            return
        if any(pictures(cell)):
            return


def pictures_have_alt_text(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """Every image and figure says in words what it shows."""
    for cell in notebook.cells:
        for what, alt in pictures(cell):
            if not alt.strip():
                yield cell.id, f"{what} has no alt text", "say in words what it shows"


def comments_begin_no_line(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """No text follows a comment that begins a line: from there to the next empty line, Markdown takes all for HTML."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for comment in re.finditer(r"^ {0,3}<!--.*?-->[ \t]*\S", cell.source, re.MULTILINE | re.DOTALL):
                yield cell.id, f"{comment.group()[:40]!r} begins a line, and hides Markdown", "let it end one"


def three_questions_with_folded_answers(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """After what production does, three questions, each a <details> whose <summary> asks; earlier ones do not count."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    text = re.split(PRODUCTION, text, maxsplit=1, flags=re.MULTILINE | re.IGNORECASE)[-1]
    folded = re.findall(r"<details[^>]*>(.*?)</details>", text, re.DOTALL)
    if len(folded) != 3:
        yield "(end)", f"it has {len(folded)} folded answers", "ask three questions, each in a <details>"
    for answer in folded:
        question = re.match(r"\s*<summary>(.+?)</summary>(.*)", answer, re.DOTALL)
        if question is None or not question[2].strip():
            yield "(end)", "a folded answer without a question, or without an answer", "<details><summary>…</summary>…"


def ends_with_the_next_lesson(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """The last cell says what comes next: the next lesson of the manifest; or, where there is none after this one, that
    a lesson it names is not built yet."""
    end = notebook.cells[-1]
    said = NEXT.search(end.source) if end.cell_type == "markdown" else None
    words = " ".join(said[1].split()) if said else ""
    named = re.findall(r"\blesson (\d\d)\b", words, re.IGNORECASE)
    following = next((each for each in manifest.lessons() if each.number > lesson.number), None)
    if following is not None:
        if named[:1] != [following.number] or NOT_BUILT in words:
            remedy = f'end it in "**Next:** lesson {following.number}, …"'
            yield end.id, f"its end does not send the reader on to lesson {following.number}, {following.title}", remedy
    elif named and NOT_BUILT not in words:
        yield end.id, f"its end sends the reader to lesson {named[0]}, which there is not", f'say "{NOT_BUILT}"'


def equations_resolve(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    r"""A \tag has a number of its own, and a number in the text is some equation's."""
    texts = {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown"}
    tagged = [(id, number) for id, text in texts.items() for number in re.findall(r"\\tag\{(\w+)\}", text)]
    numbers = [number for _, number in tagged]
    for id, number in tagged:
        if numbers.count(number) > 1:
            yield id, f"there are {numbers.count(number)} equations ({number})", "number each once"
    for id, text in texts.items():
        plain = re.sub(r"\$[^$]*\$", " ", prose(text))
        named = re.findall(r"\b[Ee]q(?:uations?|s?\.)\s*\(?(\d+)\)?(?!\)?\s+(?:of|in)\s)", plain)
        bare = re.findall(r"(?<=[a-z,;:]\s)\((\d{1,2})\)", plain)
        for number in sorted({*named, *bare} - set(numbers)):
            yield id, f"it refers to equation ({number}), which there is not", rf"number one with \tag{{{number}}}"


def numbers_are_shown_or_cited(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """A number that the prose claims stands in a compared output, or its cell says where it is from."""
    shown = compared_text(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and not is_cited(cell.source):
            for claim in dict.fromkeys(claims(cell.source)):
                if not is_shown(claim, shown):
                    remedy = "print it in a cell tagged claim, or cite: <!-- source: … -->"
                    yield cell.id, f"nothing shows {claim}", remedy


def outputs_are_clean(lesson: Lesson, notebook: NotebookNode) -> Complaints:
    """No warnings; a static frame of every widget; nothing of one machine in an output that is compared."""
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                first = output.text.strip().splitlines()[:1]
                yield cell.id, f"it writes to stderr: {' '.join(first)}", "mend what warns"
        if role(cell) == "widget" and not any(set(output.get("data", {})) - {"text/plain"} for output in cell.outputs):
            yield cell.id, "the widget leaves nothing on a web page", "show a static frame of it beside it"
        if foreign := ELSEWHERE.search(compared_text([cell])):
            yield cell.id, f"its compared output depends on the machine: {foreign.group()}", "print something else"


RULES = (
    every_role_is_there,
    exercises_are_whole,
    headings_say_the_minutes,
    answers_are_self_contained,
    predictions_are_measured,
    sections_are_in_order,
    opens_with_a_picture,
    pictures_have_alt_text,
    comments_begin_no_line,
    three_questions_with_folded_answers,
    ends_with_the_next_lesson,
    equations_resolve,
    numbers_are_shown_or_cited,
    outputs_are_clean,
)
NEED_OUTPUTS = (opens_with_a_picture, numbers_are_shown_or_cited, outputs_are_clean)


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


def _position(notebook: NotebookNode, pattern: str) -> tuple[int, int] | None:
    """Where a pattern first matches in the text: (cell, character)."""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown" and (match := re.search(pattern, cell.source, re.MULTILINE | re.IGNORECASE)):
            return index, match.start()
    return None
