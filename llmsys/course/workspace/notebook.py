"""Notebook files, with the standard library alone: read strictly, change by cell id, write so that nothing is lost.

A notebook is JSON (nbformat 4.5): a list of cells, each with an id, a type, a source and metadata. Everything that
happens to a learner's notebook (start, update, reset, grade) goes through these functions, which need no Jupyter
package, refuse a file that is not a notebook before anything is written, and replace a file in one step, so that a
crash leaves the old file or the new one.
"""

import errno
import json
import os
import tempfile
from pathlib import Path

ROLES = ("setup", "exercise", "check", "predict", "measure", "engine", "widget")


class NotebookError(ValueError):
    """The file is missing, or it is no notebook. The message names the file, what is wrong and what to do."""


class CannotWrite(OSError):
    """A file cannot be written: the disk is full or read-only, or the place is not one for a file. What was there is as
    it was. The message is one line that names the file, the reason and what to do."""

    def __init__(self, path: str | Path, error: OSError):
        why = error.strerror or str(error) or type(error).__name__
        super().__init__(f"{path} cannot be written ({why}), and what was there is as it was: {disk_remedy(error)}")


def disk_remedy(error: OSError) -> str:
    """What helps against an error of the file system."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room on the disk, and run this again"
    return "name a place that you may write to, or make this one writable"


def read_notebook(path: str | Path) -> dict:
    """The notebook in that file. Every cell's source is one string, whichever of its two forms the file has.

    Raises NotebookError where the file is missing, not JSON, or JSON of another kind.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotebookError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise NotebookError(f"{path} is a directory: move it away, and `llmsys update` brings the notebook") from None
    except UnicodeDecodeError as error:
        raise NotebookError(_refusal(path, f"byte {error.start} is not UTF-8")) from None
    try:
        notebook = json.loads(text)
    except json.JSONDecodeError as error:
        what = f"line {error.lineno} is not JSON ({error.msg})"
        if "<<<<<<<" in text:
            what = "it holds a merge conflict of git's (<<<<<<<), which must be resolved first"
        raise NotebookError(_refusal(path, what)) from None
    except RecursionError:
        raise NotebookError(_refusal(path, "it is nested too deeply")) from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise NotebookError(_refusal(path, "it has no list of cells"))
    if notebook.get("nbformat") != 4:
        raise NotebookError(_refusal(path, f"its nbformat is {notebook.get('nbformat')!r}, expected 4"))
    if not isinstance(notebook.setdefault("metadata", {}), dict):
        raise NotebookError(_refusal(path, "its metadata is not a table"))
    for index, cell in enumerate(notebook["cells"], start=1):
        _normalise(path, index, cell)
    return notebook


def write_notebook(path: str | Path, notebook: dict) -> None:
    """Write a notebook as Jupyter does (indent 1, sorted keys), in one step: all of it, or nothing."""
    write_text(path, dumps(notebook))


def dumps(notebook: dict) -> str:
    """A notebook's file as text: the same notebook gives the same bytes."""
    cells = [cell | {"source": cell["source"].splitlines(keepends=True)} for cell in notebook["cells"]]
    return json.dumps(notebook | {"cells": cells}, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def write_text(path: str | Path, text: str) -> None:
    """Replace a file's text in one step: all of it, or nothing. Raises CannotWrite."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace a file in one step, making the directories that it needs. The temporary file is a hidden neighbour, so
    the move stays on one disk. Raises CannotWrite, and then the old file is there, or none, and nothing beside it."""
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)  # mkstemp's own is 0600
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotWrite(path, error) from None
        raise


def cells_by_id(notebook: dict) -> dict[str, dict]:
    """The notebook's cells by their ids, in order: the first of two with one id, and none that has no id."""
    found: dict[str, dict] = {}
    for cell in notebook["cells"]:
        if cell.get("id"):
            found.setdefault(cell["id"], cell)
    return found


def identify(notebook: dict, base: dict | None = None) -> list[str | None]:
    """The id of every cell, in order; None for a cell that has none, and no id twice.

    Some editors drop cell ids, or keep one on a copy. A cell without one is recognised by its nbgrader metadata, or
    by having a source that a cell of `base` has.
    """
    by_source = {cell["source"]: id for id, cell in reversed(cells_by_id(base).items())} if base else {}
    taken = {cell.get("id") for cell in notebook["cells"]}
    seen: set[str] = set()
    ids: list[str | None] = []
    for cell in notebook["cells"]:
        id = cell.get("id")
        if not id:
            id = cell["metadata"].get("nbgrader", {}).get("grade_id") or by_source.get(cell["source"])
            id = None if id in taken else id
        id = None if id in seen else id
        ids.append(id)
        seen.add(id) if id else None
    return ids


def tags(cell: dict) -> list[str]:
    """The cell's tags; roles are tags."""
    return list(cell["metadata"].get("tags", []))


def role(cell: dict) -> str | None:
    """What the cell is for, one of ROLES; None for plain text and code."""
    return next((tag for tag in tags(cell) if tag in ROLES), None)


def _normalise(path: Path, index: int, cell: object) -> None:
    """Join the source's lines, fill in what nbformat lets an editor leave out, refuse what is no cell."""
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        raise NotebookError(_refusal(path, f"cell {index} is neither code nor text"))
    source = cell.get("source")
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        raise NotebookError(_refusal(path, f"cell {index} has no source"))
    cell["source"] = source
    metadata = cell.setdefault("metadata", {})
    well_formed = isinstance(metadata, dict) and isinstance(cell.get("id", ""), str)
    well_formed = well_formed and isinstance(metadata.get("tags", []), list)
    well_formed = well_formed and isinstance(metadata.get("nbgrader", {}), dict)
    well_formed = well_formed and isinstance(cell.get("outputs", []), list)
    if not well_formed:
        raise NotebookError(_refusal(path, f"cell {index} has a malformed id, metadata or outputs"))
    if cell["cell_type"] == "code":
        cell.setdefault("outputs", [])
        cell.setdefault("execution_count", None)


def _refusal(path: Path, what: str) -> str:
    number = path.name[:2]
    remedy = f"`llmsys reset {number}` puts a fresh copy there and keeps this one" if number.isdigit() else "replace it"
    return f"{path} is not a notebook that can be read: {what}. Restore it from a backup or from git, or {remedy}"
