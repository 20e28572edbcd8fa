"""Bringing in new lessons without losing a line of the learner's: a three-way merge, cell by cell.

Every cell has an id that comes from the source, so three notebooks can be laid beside each other: *base*, the lesson
as it was laid down; *mine*, what the learner has made of it; *theirs*, the lesson as it is now. For each cell:

    base → theirs    base → mine      result
    same, changed    same             theirs
    same             edited, deleted  mine
    changed          edited           mine stays, theirs is put after it, marked; reported
    changed          deleted          stays deleted; reported
    deleted          same             deleted
    deleted          edited           mine stays; reported
    new              -                theirs
    -                added            mine stays, after the cell that it followed

The order is theirs. A cell counts as edited when its source or its kind is: outputs are not worth a conflict. Base
then becomes theirs, so a second update has nothing to do. A file that has been removed comes back as it is now. All
notebooks are merged before the first is written, and one that cannot be read stops the update with nothing written.
Needs the standard library alone.
"""

import copy
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from llmsys.course.workspace import workspace as workspaces
from llmsys.course.workspace.notebook import cells_by_id, identify, read_notebook, tags, write_notebook

INCOMING = "llmsys-incoming"  # the tag of a cell that an update put beside an edited one


@dataclass
class Merge:
    """A merged notebook, and the ids of the cells that changed, by what happened to them."""

    notebook: dict
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)  # edited here and changed there: both are kept
    kept: list[str] = field(default_factory=list)  # edited or deleted here, deleted or changed there: as it is here


@dataclass(frozen=True)
class Updated:
    """What `update` did to one file. `action`: "new", "back" (it had been removed), "updated", "same" or "kept" (the
    learner's)."""

    name: str
    action: str
    merge: Merge | None = None

    def __str__(self) -> str:
        if self.merge is None:
            return f"{self.name}: {self.action}"
        counts = [
            f"{len(ids)} {word}"
            for word in ("added", "changed", "removed", "conflicts", "kept")
            if (ids := getattr(self.merge, word))
        ]
        lines = [f"{self.name}: {self.action}" + (f" ({', '.join(counts)})" if counts else "")]
        position = {cell.get("id"): i for i, cell in enumerate(self.merge.notebook["cells"], start=1)}
        for id in self.merge.conflicts:
            lines.append(f"  cell {position[id]} ({id}): you edited it and the lesson changed it; below is the new one")
        for id in self.merge.kept:
            if id in position:
                lines.append(f"  cell {position[id]} ({id}): you edited it and the lesson dropped it; yours stays")
            else:
                lines.append(f"  ({id}): you deleted it and the lesson changed it; it stays deleted")
        return "\n".join(lines)


def update(workspace: str | Path | None = None) -> list[Updated]:
    """Bring the lessons of a workspace up to date. Returns what happened to each file; `str` of it is for people.

    Raises WorkspaceError where there is no workspace, NotebookError where a notebook cannot be read: then nothing
    has been written.
    """
    workspace = workspaces.require(workspace)
    available = workspaces.packaged()
    if not available:
        raise workspaces.WorkspaceError("this installation has no lessons: build them, or reinstall llmsys")
    planned = [(name, origin, _plan(workspace, name, origin)) for name, origin in available.items()]
    for name, origin, result in planned:
        target, base = workspace / name, workspaces.pristine(workspace) / name
        if result.merge is not None:
            write_notebook(target, result.merge.notebook)
        elif result.action in ("new", "back", "updated"):
            workspaces.lay(origin, target)
        if result.action != "same":
            workspaces.copy_file(origin, base)  # last: if this is cut off, the next update finds the same again
    return [result for _, _, result in planned]


def merge(base: dict, mine: dict, theirs: dict) -> Merge:
    """Merge two notebooks that come from one, cell by cell. The arguments are left as they are."""
    before, upstream = cells_by_id(base), cells_by_id(theirs)
    result = Merge({})
    names = identify(mine, base)
    ours = {id: cell for id, cell in zip(names, mine["cells"], strict=True) if id is not None}
    chosen: dict[str, list[dict]] = {}  # what stands in the place of each of the lesson's cells
    for id, cell in upstream.items():
        chosen[id] = _choose(id, before.get(id), ours.get(id), cell, set(ours), result)
    # The learner's own cells follow the cell that they followed, or the nearest one before it that is left.
    after: dict[str | None, list[dict]] = {None: []}
    anchor = None
    for id, cell in zip(names, mine["cells"], strict=True):
        if id in upstream:
            anchor = id
            continue
        if id in before:
            if _same(cell, before[id]):
                result.removed.append(id)
                continue
            result.kept.append(id)
        after.setdefault(anchor, []).append(copy.deepcopy(cell) | {"id": id})
    cells = list(after[None])
    for id in upstream:
        cells += chosen[id] + after.get(id, [])
    metadata = copy.deepcopy(mine["metadata"] | {"llmsys": theirs["metadata"].get("llmsys", {})})
    for cell in cells:
        cell["id"] = cell["id"] or _fresh_id(cell, cells)
    result.notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return result


def _choose(id: str, base: dict | None, mine: dict | None, theirs: dict, ours: set[str], result: Merge) -> list[dict]:
    """The cells that the merged notebook has in the place of one of the lesson's; what was done is noted in `result`.
    `ours` are the ids of the learner's cells."""
    changed = base is None or not _same(base, theirs)
    if mine is None:
        if base is None:
            result.added.append(id)
            return [copy.deepcopy(theirs)]
        if changed:
            result.kept.append(id)
        return []
    mine = copy.deepcopy(mine) | {"id": id}
    if _same(mine, theirs):  # not edited, or edited to what it has become: theirs, with the outputs that are here
        return [copy.deepcopy(theirs) | {key: mine[key] for key in ("outputs", "execution_count") if key in mine}]
    if base is not None and _same(mine, base):
        result.changed.append(id)
        return [copy.deepcopy(theirs)]
    if not changed:
        return [mine]
    result.conflicts.append(id)
    marked = _incoming(id, theirs)
    return [mine] + [cell for cell in marked if cell["id"] not in ours]  # there already after an update cut off


def _incoming(id: str, theirs: dict) -> list[dict]:
    """A line that says what follows, and the lesson's new cell, under ids of their own that its source decides."""
    digest = hashlib.sha256((theirs["cell_type"] + theirs["source"]).encode()).hexdigest()[:6]
    kind = "code" if theirs["cell_type"] == "code" else "text"
    note = {
        "cell_type": "markdown",
        "id": f"{id[:50]}-note-{digest}",
        "metadata": {"tags": [INCOMING]},
        "source": f"**The lesson has changed here.** Above is your {kind}, below is the new one: keep what you need.",
    }
    cell = copy.deepcopy(theirs) | {"id": f"{id[:50]}-new-{digest}"}
    cell["metadata"].pop("nbgrader", None)  # two cells may not be graded under one id
    kept = [tag for tag in tags(theirs) if tag.startswith("nbval-ignore")]
    cell["metadata"] |= {"tags": [*kept, INCOMING]}
    cell["metadata"].pop("exercise", None)
    return [note, cell]


def _same(one: dict, other: dict) -> bool:
    return one["source"] == other["source"] and one["cell_type"] == other["cell_type"]


def _fresh_id(cell: dict, cells: list[dict]) -> str:
    """An id for a cell that has none, or that of the cell it was copied from: from its source, and a count."""
    taken = {each["id"] for each in cells}
    digest = hashlib.sha256(cell["source"].encode()).hexdigest()[:8]
    return next(id for n in range(1, len(cells) + 2) if (id := f"mine-{digest}-{n}") not in taken)


def _plan(workspace: Path, name: str, origin: Path) -> Updated:
    """What to do about one file, with nothing written yet."""
    target, base = workspace / name, workspaces.pristine(workspace) / name
    if not target.exists():
        return Updated(name, "back" if base.exists() else "new")
    if base.exists() and base.read_bytes() == origin.read_bytes():
        if target.suffix == ".ipynb":
            read_notebook(target)  # a notebook that cannot be read is said even where there is nothing to bring in
        return Updated(name, "same")
    if target.suffix != ".ipynb":
        unedited = target.read_bytes() in (base.read_bytes() if base.exists() else None, origin.read_bytes())
        return Updated(name, "updated" if unedited else "kept")
    nothing = {"cells": [], "metadata": {}}
    theirs = workspaces.announced(read_notebook(origin))
    merged = merge(read_notebook(base) if base.exists() else nothing, read_notebook(target), theirs)
    return Updated(name, "updated", merged)
