"""Where a learner works: a directory of notebooks that upstream never touches.

    work/
      02_online_softmax.ipynb     the learner's copy of the lesson
      mine/                       their passed answers, an importable package
      .llmsys/progress.json       what has passed, hints taken, guesses made
      .llmsys/pristine/           the lessons as they were laid down: the base of every later update
      .llmsys/backups/            what `reset` replaced

`start` lays it out and can be run again at any time: it adds what is missing and overwrites nothing. `reset` puts one
exercise, or a whole lesson, back as it was, after keeping a copy. `restore_checks` undoes edits to check cells, so
that nbval compares them with what they should show. Needs the standard library alone.
"""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from llmsys.course import display, manifest
from llmsys.course.manifest import Lesson
from llmsys.course.workspace.notebook import (
    NotebookError,
    cells_by_id,
    read_notebook,
    role,
    tags,
    write_bytes,
    write_notebook,
    write_text,
)

MARKER = ".llmsys"

MINE = '''"""Your own library: the answers whose checks have passed, a module or two a lesson.

    from mine import merge                  # the latest lesson that has one
    from mine.lesson_02 import merge        # this one

`check` writes a module here when an answer passes. A module is imported when a name in it is first asked for.
"""

import importlib
import re
from pathlib import Path


def __getattr__(name):
    if not name.startswith("__"):
        # What is defined there, and not what is imported.
        defined = re.compile(rf"^\\s*(?:(?:async )?def|class) {name}\\b|^{name} *[:=]", re.MULTILINE)
        for path in sorted(Path(__file__).parent.glob("lesson_*.py"), reverse=True):
            if defined.search(path.read_text(encoding="utf-8")):  # so that only kernels need Triton
                module = importlib.import_module(f"{__name__}.{path.stem}")
                if name in vars(module):
                    return vars(module)[name]
    raise AttributeError(f"no answer called {name!r} has passed its check yet")
'''


class WorkspaceError(RuntimeError):
    """There is no workspace, or the directory cannot be one. The message says what to do."""


@dataclass(frozen=True)
class Started:
    """What `start` did: the notebooks that it laid down, and those that were there and stay as they are."""

    workspace: Path
    laid: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class Reset:
    """What `reset` put back, in which notebook, and where it kept the notebook as it was."""

    id: str
    notebook: Path
    backup: Path


def find(start: str | Path | None = None) -> Path | None:
    """The workspace that a directory (the current one) is in: the nearest ancestor that holds .llmsys/, or None.

    The environment variable LLMSYS_WORKSPACE names another one; empty, it says that there is none.
    """
    if (named := os.environ.get("LLMSYS_WORKSPACE")) is not None:
        return Path(named).resolve() if named else None
    here = Path(start or Path.cwd()).resolve()
    return next((each for each in (here, *here.parents) if (each / MARKER).is_dir()), None)


def require(workspace: str | Path | None = None) -> Path:
    """That workspace, or the one that the current directory is in. Raises WorkspaceError where there is none."""
    found = Path(workspace).resolve() if workspace else find()
    if found is None or not (found / MARKER).is_dir():
        where = found or Path.cwd()
        raise WorkspaceError(f"{where} is not in a workspace: go to yours, or make one with `llmsys start work`")
    return found


def start(directory: str | Path) -> Started:
    """Lay the lessons into a directory. What is there already stays as it is; run it again to add what is missing."""
    workspace = Path(directory).resolve()
    source = manifest.lessons_dir().resolve()
    if workspace == source or source in workspace.parents:
        raise WorkspaceError(f"{workspace} holds the pristine lessons, which are not to be worked in: name another one")
    if workspace.exists() and not workspace.is_dir():
        raise WorkspaceError(f"{workspace} is a file: name a directory")
    if inside := _overlaps(workspace):
        raise WorkspaceError(f"{workspace} {inside}: one workspace is not laid into another. Name a directory apart")
    available = packaged()
    if not available:
        raise WorkspaceError(f"there are no lessons in {source}: build them with `llmsys build`")
    write_if_missing(workspace / "mine" / "__init__.py", MINE)
    write_if_missing(workspace / MARKER / ".gitignore", "backups/\n")
    laid, kept = [], []
    for relative, origin in available.items():
        target = workspace / relative
        if target.exists():
            kept.append(relative)
            continue
        copy_file(origin, pristine(workspace) / relative)  # the base first: a crash between leaves nothing without one
        lay(origin, target)
        laid.append(relative)
    return Started(workspace, tuple(laid), tuple(kept))


def reset(id: str, workspace: str | Path | None = None) -> Reset:
    """Put a lesson ("02") or one exercise ("02.merge") back as it was laid down, after keeping a copy.

    A lesson comes back in its newest version, an exercise in that of the notebook it is in. Raises UnknownId,
    WorkspaceError, and NotebookError where an exercise is to be put into a file that is no notebook.
    """
    workspace = require(workspace)
    exercise = manifest.exercise(id) if "." in id and not id.endswith(".ipynb") else None
    lesson = manifest.lesson(exercise.lesson if exercise else id)
    path, base = workspace / lesson.notebook, pristine(workspace) / lesson.notebook
    if not path.exists():
        again = f"llmsys start {shlex.quote(str(workspace))}"
        raise WorkspaceError(f"{path} is not there: `{again}` lays it down, and so does `llmsys update`")
    origin = manifest.lessons_dir() / lesson.notebook
    if exercise is None:
        with backed_up(workspace, path) as kept:
            lay(origin, path)
        copy_file(origin, base)  # last: an update after a failure here finds the notebook as new as the lesson
        return Reset(lesson.number, path, kept)
    notebook = read_notebook(path)
    original = read_notebook(base if base.exists() else origin)
    put_back(notebook, original, exercise.cell_id)
    with backed_up(workspace, path) as kept:
        write_notebook(path, notebook)
    return Reset(exercise.id, path, kept)


def restore_checks(path: str | Path) -> list[str]:
    """Put the pristine check cells back into a notebook, source and expected output. Returns the ids of those edited.

    Afterwards `pytest --nbval-lax` passes where the exercises are right, and only there: copies of check cells and
    cells of the learner's are run, but what they print is not compared.
    """
    path = Path(path)
    notebook = read_notebook(path)
    original = read_notebook(manifest.lessons_dir() / _lesson_of(path, notebook).notebook)
    checks = {id: cell for id, cell in cells_by_id(original).items() if role(cell) == "check"}
    before = cells_by_id(notebook)
    edited = [id for id, cell in checks.items() if id not in before or before[id]["source"] != cell["source"]]
    for cell in notebook["cells"]:
        cell["metadata"]["tags"] = [tag for tag in tags(cell) if tag != "nbval-check-output"]
    for id in checks:
        put_back(notebook, original, id)
    workspace = find(path.parent)
    in_workspace = workspace is not None and workspace in path.resolve().parents
    with backed_up(workspace, path) if edited and in_workspace else nullcontext():
        write_notebook(path, notebook)
    return edited


def put_back(notebook: dict, original: dict, id: str) -> None:
    """Make the notebook's cell of that id the original's; a deleted one goes after the cell that it follows there."""
    wanted = cells_by_id(original)
    if id not in wanted:
        raise NotebookError(f"this version of the lesson has no cell {id}: bring it up to date with `llmsys update`")
    positions = {cell.get("id"): i for i, cell in reversed(list(enumerate(notebook["cells"])))}
    if id in positions:
        notebook["cells"][positions[id]] = wanted[id]
        return
    before = list(wanted)[: list(wanted).index(id)]
    position = next((positions[each] + 1 for each in reversed(before) if each in positions), 0)
    notebook["cells"].insert(position, wanted[id])


def packaged() -> dict[str, Path]:
    """The files that a workspace is made of, by their path in it: the manifest's lessons, and what lies beside them."""
    directory = manifest.lessons_dir()
    notebooks = {lesson.notebook for lesson in manifest.lessons()}
    found = {}
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not hidden and (path.suffix != ".ipynb" or relative.as_posix() in notebooks):
            found[relative.as_posix()] = path
    return found if any(name in notebooks for name in found) else {}


def pristine(workspace: Path) -> Path:
    """Where a workspace keeps the lessons as they were laid down."""
    return workspace / MARKER / "pristine"


def backup(workspace: Path, path: Path) -> Path:
    """Keep a copy of a file of the workspace, under the time of day. Returns where."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    directory = workspace / MARKER / "backups"
    names = [f"{path.stem}-{stamp}{path.suffix}"] + [f"{path.stem}-{stamp}-{n}{path.suffix}" for n in range(2, 1000)]
    target = next(directory / name for name in names if not (directory / name).exists())
    copy_file(path, target)
    return target


@contextmanager
def backed_up(workspace: Path, path: Path) -> Iterator[Path]:
    """Keep a copy of a file that the block replaces; where that fails, the file is as it was, and there is no copy."""
    kept = backup(workspace, path)
    try:
        yield kept
    except BaseException:
        kept.unlink(missing_ok=True)
        raise


def lay(source: Path, target: Path) -> None:
    """Copy a file to where a learner works with it; of a lesson, `announced`."""
    if target.suffix == ".ipynb":
        write_notebook(target, announced(read_notebook(source)))
    else:
        copy_file(source, target)


def announced(notebook: dict) -> dict:
    """A lesson whose check cells show what they will look for. The lesson has the output of a pass there, which nbval
    compares, and which would puzzle a learner who has not written a line. `restore_checks` puts it back."""
    for cell in notebook["cells"]:
        if role(cell) != "check":
            continue
        for output in cell["outputs"]:
            data = output.get("data", {})
            if said := display.announcement("".join(data.get("text/plain", ""))):
                output["data"] = data | said
                output["execution_count"] = cell["execution_count"] = None
    return notebook


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes, not its permissions, in one step, making the directories that it needs."""
    write_bytes(target, source.read_bytes())


def write_if_missing(path: Path, text: str) -> None:
    if not path.exists():
        write_text(path, text)


def _overlaps(workspace: Path) -> str:
    """How a directory that is to become a workspace lies in or around another one; "" where it does not. One that is a
    workspace already stays one."""
    if (workspace / MARKER).is_dir():
        return ""
    if outer := next((each for each in workspace.parents if (each / MARKER).is_dir()), None):
        return f"lies in the workspace {outer}"
    inner = next(workspace.glob(f"*/{MARKER}"), None) if workspace.is_dir() else None
    return f"holds the workspace {inner.parent}" if inner else ""


def _lesson_of(path: Path, notebook: dict) -> Lesson:
    """The lesson that a notebook is a copy of: as its metadata says, or else its file's name."""
    said = notebook["metadata"].get("llmsys")
    number = said.get("lesson") if isinstance(said, dict) else None
    try:
        return manifest.lesson(number or path.stem)
    except manifest.UnknownId:
        raise NotebookError(f"{path} is not a copy of a lesson: its name and metadata name none") from None
