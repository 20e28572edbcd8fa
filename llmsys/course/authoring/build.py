"""From one source to two notebooks: solutions/NN_slug.py becomes the executed solution and the learner's lesson.

    solutions/02_online_softmax.py  --read-->  cells with ids, roles and nbgrader's metadata
        --execute-->  solutions/02_online_softmax.ipynb     (read on the web, checked by nbval)
        --strip---->  lessons/02_online_softmax.ipynb       (stubs, and the output that each check should have)

The source is jupytext's py:percent with the roles as tags. Everything else is derived, so that the same source and
the same outputs give the same bytes: cell ids come from the exercise's id, or from the last heading and a count;
the notebook carries a hash of its source as its version. Stripping is nbgrader's own preprocessor.

    llmsys build               every lesson
    llmsys build 02            one lesson
    llmsys build 02 --reuse    only prose was edited: keep the outputs of the last execution
    llmsys build --check       say what is stale, change nothing (no kernel runs)

Needs the development dependencies (jupytext, nbgrader, nbclient).
"""

import ast
import copy
import hashlib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import ClearSolutions

from llmsys.course import manifest
from llmsys.course.authoring.execute import BuildError, execute_notebook
from llmsys.course.manifest import Lesson
from llmsys.course.workspace.notebook import role, tags, write_text

STUB = "# Your code here\nraise NotImplementedError"
FOUND = "# Take the next line out, and repair what is below it"
EXPECTED = "# Until you run this cell, what a right answer gets stands below: the expected output, not yours.\n"
KERNELSPEC = {"display_name": "llmsys", "language": "python", "name": "llmsys"}
MINUTES = re.compile(r"\s*\((\d+) minutes?\b[^)]*\)\s*$")  # what an exercise's heading ends in; no part of cell ids
LANGUAGE_INFO = {  # without the version of the Python that happened to build it
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}


def build(number: str | None = None, *, execute: bool = True) -> list[Path]:
    """Build one lesson, or all of them, in place. Returns the files written.

    execute=False keeps the outputs of the last execution, which is right as long as no code cell has changed.
    """
    chosen = manifest.lessons() if number is None else (manifest.lesson(number),)
    written = []
    for lesson in chosen:
        written += build_lesson(lesson, manifest.solutions_dir(), manifest.lessons_dir(), execute=execute)
    return written


def build_lesson(lesson: Lesson, solutions: Path, lessons: Path, *, execute: bool = True) -> list[Path]:
    """Build one lesson from `solutions`/name.py into `solutions`/name.ipynb and `lessons`/name.ipynb."""
    source = read_source(lesson, solutions)
    previous = solutions / lesson.notebook
    executed = execute_notebook(source) if execute else with_outputs_of(source, previous)
    outputs = [(previous, executed), (lessons / lesson.notebook, learner_form(source, executed))]
    for path, notebook in outputs:
        write_text(path, writes(notebook))
    return [path for path, _ in outputs]


def check(number: str | None = None) -> list[str]:
    """What is stale, a line each with the command that mends it; empty where every notebook follows from its source."""
    chosen = manifest.lessons() if number is None else (manifest.lesson(number),)
    found = []
    for lesson in chosen:
        found += check_lesson(lesson, manifest.solutions_dir(), manifest.lessons_dir())
    return found


def check_lesson(lesson: Lesson, solutions: Path, lessons: Path) -> list[str]:
    """The stale parts of one lesson, found without running a cell."""
    mend = f"run: llmsys build {lesson.number}"
    try:
        source = read_source(lesson, solutions)
    except BuildError as error:
        return [str(error)]
    executed_path, lesson_path = solutions / lesson.notebook, lessons / lesson.notebook
    for path in (executed_path, lesson_path):
        if not path.exists():
            return [f"{path.name} is missing from {path.parent.name}/; {mend}"]
    executed = nbformat.read(executed_path, as_version=4)
    differences = _differences(source, executed)
    for cell in executed.cells:
        if cell.cell_type == "code" and cell.execution_count is None:
            differences.append(f"cell {cell.id} has not been executed")
        elif role(cell) == "check" and not cell.outputs:
            differences.append(f"check cell {cell.id} has no output")
    found = [f"solutions/{lesson.notebook}: {each}; {mend}" for each in differences]
    if not found:
        rebuilt, present = writes(learner_form(source, executed)), lesson_path.read_text(encoding="utf-8")
        if rebuilt != present:
            where = _differences(nbformat.reads(rebuilt, 4), nbformat.reads(present, 4)) or ["its bytes differ"]
            found += [f"lessons/{lesson.notebook}: {each}; {mend}" for each in where]
    return found


def read_source(lesson: Lesson, solutions: Path) -> NotebookNode:
    """The lesson's source as a notebook: cell ids, roles, nbgrader's metadata, the version; no outputs."""
    path = solutions / f"{lesson.name}.py"
    if not path.exists():
        raise BuildError(f"lesson {lesson.number} has no source: write {path}, or take it out of lessons.toml")
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": KERNELSPEC,
            "language_info": LANGUAGE_INFO,
            "llmsys": {"lesson": lesson.number, "version": version},
        }
    )
    _name_cells(lesson, notebook, path)
    for cell in notebook.cells:
        _annotate(lesson, cell, path)
    return notebook


def learner_form(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The lesson: nbgrader's stubs for the solutions, no outputs but those that the checks should have, marked as that.

    An exercise's cell with begins_with="name" begins with the body of that function, which an earlier cell shows: to be
    repaired. Cells tagged `claim` are compared in the solution only: a learner who changes a size there is exploring,
    and has not failed.
    """
    notebook = copy.deepcopy(source)
    strip = ClearSolutions(code_stub={"python": STUB})
    expected = {cell.id: cell for cell in executed.cells if role(cell) == "check"}
    for index, cell in enumerate(notebook.cells):
        try:
            notebook.cells[index], _ = strip.preprocess_cell(cell, {"language": "python"}, index)
        except RuntimeError as error:
            raise BuildError(f"lesson {source.metadata.llmsys.lesson}, cell {cell.id}: {error}") from None
        if name := cell.metadata.get("begins_with"):
            stub = cell.source.replace(STUB.partition("\n")[0], FOUND)
            cell.source = f"{stub.rstrip()}\n{_body_of(name, notebook.cells[:index], cell.id)}"
        if cell.id in expected:  # with its count: nbval takes a cell without one for one that was never run
            answer = expected[cell.id]
            cell.outputs, cell.execution_count = copy.deepcopy(answer.outputs), answer.execution_count
            cell.source = EXPECTED + cell.source
        if "claim" in tags(cell):
            cell.metadata.tags = [tag.replace("nbval-check", "nbval-ignore") for tag in cell.metadata.tags]
    return notebook


def _body_of(name: str, cells: Sequence[NotebookNode], id: str) -> str:
    """The lines of a function's body, without a docstring, from the cell that defines it. Raises BuildError."""
    for cell in cells:
        if cell.cell_type == "code" and re.search(rf"^def {re.escape(name)}\(", cell.source, re.MULTILINE):
            tree = ast.parse(cell.source)
            (function,) = (each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == name)
            told = function.body[1:] if ast.get_docstring(function) is not None else function.body
            return "\n".join(cell.source.splitlines()[told[0].lineno - 1 : told[-1].end_lineno])
    raise BuildError(f"cell {id} begins with the body of {name}, and no cell above it defines {name}")


def with_outputs_of(source: NotebookNode, path: Path) -> NotebookNode:
    """The source with the outputs of an earlier execution. Raises BuildError where any code has changed since."""
    earlier = nbformat.read(path, as_version=4) if path.exists() else nbformat.v4.new_notebook()
    notebook = copy.deepcopy(source)
    ours = [cell for cell in notebook.cells if cell.cell_type == "code"]
    theirs = [cell for cell in earlier.cells if cell.cell_type == "code"]
    if [(cell.source, role(cell)) for cell in ours] != [(cell.source, role(cell)) for cell in theirs]:
        raise BuildError(f"{path.name}: code cells have changed since it was executed; build it without --reuse")
    for cell, before in zip(ours, theirs, strict=True):
        cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return notebook


def writes(notebook: NotebookNode) -> str:
    """A notebook's file: nbformat's own layout (indent 1, sorted keys), validated, with a newline at its end."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def slug(heading: str) -> str:
    """A heading as a part of a cell id: lower case, ASCII letters and digits, hyphens; at most 40 characters."""
    letters = "".join(c for c in unicodedata.normalize("NFKD", heading) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9]+", "-", letters.lower()).strip("-")[:40].strip("-") or "text"


def headings(markdown: str) -> list[tuple[int, str]]:
    """The headings of a Markdown cell as (level, text), in order; `#` inside fenced code is not one."""
    prose = re.sub(r"^(```|~~~).*?^\1", "", markdown, flags=re.MULTILINE | re.DOTALL)
    return [(len(marks), text.strip()) for marks, text in re.findall(r"^(#{1,6})\s+(.+?)\s*#*$", prose, re.MULTILINE)]


def _name_cells(lesson: Lesson, notebook: NotebookNode, path: Path) -> None:
    """Give every cell the id that its place in the text implies, so that a rebuild gives it again."""
    place, counts = "start", {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (found := headings(cell.source)):
            place = slug(MINUTES.sub("", found[-1][1].removeprefix(lesson.number)))
        if role(cell) in ("exercise", "check"):
            exercise = _exercise_of(lesson, cell, path)
            cell.id = exercise.cell_id if role(cell) == "exercise" else exercise.check_cell_id
        else:
            counts[place] = counts.get(place, 0) + 1
            cell.id = f"{lesson.number}-{place}-{counts[place]}"
    ids = [cell.id for cell in notebook.cells]
    if repeated := sorted({id for id in ids if ids.count(id) > 1}):
        twice = ", ".join(repeated)
        raise BuildError(f"{path.name}: an exercise has one exercise cell and one check cell; repeated: {twice}")


def _annotate(lesson: Lesson, cell: NotebookNode, path: Path) -> None:
    """Add what nbval and nbgrader read to the cell's metadata, next to the author's own tags."""
    if cell.cell_type != "code":
        return
    compared = role(cell) == "check" or "claim" in tags(cell)
    cell.metadata["tags"] = [*tags(cell), "nbval-check-output" if compared else "nbval-ignore-output"]
    if role(cell) in ("exercise", "check"):
        exercise = _exercise_of(lesson, cell, path)
        grading = {"schema_version": 3, "grade_id": cell.id, "task": False, "cell_type": "code"}
        if role(cell) == "exercise":
            grading |= {"solution": True, "grade": False, "locked": False}
        else:
            grading |= {"solution": False, "grade": True, "locked": True, "points": exercise.points}
        cell.metadata["nbgrader"] = grading


def _exercise_of(lesson: Lesson, cell: NotebookNode, path: Path) -> manifest.Exercise:
    line = next(iter(cell.source.splitlines()), "")
    id = cell.metadata.get("exercise")
    if id is None:
        raise BuildError(f'{path.name}: the {role(cell)} cell "{line}" does not say exercise="{lesson.number}.…"')
    try:
        return lesson.exercise(id)
    except manifest.UnknownId as error:
        raise BuildError(f'{path.name}: the {role(cell)} cell "{line}": {error}') from None


def _differences(expected: NotebookNode, found: NotebookNode) -> list[str]:
    """How two notebooks differ in ids, sources and metadata: the first difference, in words."""
    ours, theirs = [cell.id for cell in expected.cells], [cell.get("id") for cell in found.cells]
    if ours != theirs:
        first = next((a or b for a, b in zip(ours + [None], theirs + [None], strict=False) if a != b), "its end")
        return [f"its cells are not those of the source, from cell {first}"]
    for mine, other in zip(expected.cells, found.cells, strict=True):
        for part in ("cell_type", "source", "metadata"):
            if mine[part] != other[part]:
                return [f"the {part.replace('_', ' ')} of cell {mine.id} is not that of the source"]
    return [] if expected.metadata == found.metadata else ["its version or its metadata is not that of the source"]
