"""The three-way merge: whatever both sides did, no edited cell is lost, and a second update does nothing."""

import copy
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.course import manifest
from llmsys.course.workspace import update, workspace
from llmsys.course.workspace.notebook import NotebookError, dumps, read_notebook, role, tags, write_notebook


def cell(id, source, kind="code"):
    made = {"cell_type": kind, "metadata": {}, "source": source} | ({"id": id} if id else {})
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def notebook(*cells, version="1"):
    metadata = {"llmsys": {"lesson": "90", "version": version}}
    return {"cells": list(cells), "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def lines(merged):
    return [each["source"] for each in merged.notebook["cells"]]


BASE = notebook(cell("a", "A"), cell("b", "B"), cell("c", "C"))

# An edit script: a list of edits, each applied to the notebook that the ones before it have made.
SOURCES = st.sampled_from(["A", "B", "C", "x = 1", "x = 2", ""])
EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("edit"), st.integers(0, 20), SOURCES),
        st.tuples(st.just("delete"), st.integers(0, 20)),
        st.tuples(st.just("insert"), st.integers(0, 20), SOURCES),
        st.tuples(st.just("move"), st.integers(0, 20), st.integers(0, 20)),
        st.tuples(st.just("copy"), st.integers(0, 20), st.integers(0, 20)),  # as editors do that keep the id
        st.tuples(st.just("retype"), st.integers(0, 20)),
        st.tuples(st.just("anonymise"), st.integers(0, 20)),
    ),
    max_size=8,
)


def apply(script, original, prefix, version="1"):
    edited = copy.deepcopy(original)
    edited["metadata"]["llmsys"]["version"] = version
    cells = edited["cells"]
    for step, (kind, at, *rest) in enumerate(script):
        if kind == "insert":
            cells.insert(at % (len(cells) + 1), cell(f"{prefix}{step}", rest[0]))
        elif cells:
            target = cells[at % len(cells)]
            if kind == "edit":
                target["source"] = rest[0]
            elif kind == "delete":
                cells.remove(target)
            elif kind == "move":
                cells.remove(target)
                cells.insert(rest[0] % (len(cells) + 1), target)
            elif kind == "copy":
                cells.insert(rest[0] % (len(cells) + 1), copy.deepcopy(target))
            elif kind == "retype":
                kind = "markdown" if target["cell_type"] == "code" else "code"
                cells[cells.index(target)] = cell(target.get("id"), target["source"], kind)
            elif kind == "anonymise":
                target.pop("id", None)
    return edited


LEARNER = EDITS.map(lambda script: apply(script, BASE, "m"))


def is_upstreams(script):
    return all(kind not in ("copy", "anonymise") for kind, *_ in script)  # a built lesson has every id, once


UPSTREAM = EDITS.filter(is_upstreams).map(lambda script: apply(script, BASE, "t", version="2"))


@settings(max_examples=400)
@given(mine=LEARNER, theirs=UPSTREAM)
def test_no_edited_cell_is_lost_and_the_second_update_does_nothing(mine, theirs):
    arguments = copy.deepcopy((mine, theirs))
    merged = update.merge(BASE, mine, theirs)
    assert (mine, theirs) == arguments
    original = {(each["cell_type"], each["source"]) for each in BASE["cells"]}
    kept = Counter((each["cell_type"], each["source"]) for each in merged.notebook["cells"])
    written = Counter((each["cell_type"], each["source"]) for each in mine["cells"])
    for what in written.keys() - original:
        assert kept[what] >= written[what]
    ids = [each["id"] for each in merged.notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(ids)
    # Again, as a second update would (base is theirs now), and as one would after the first was cut off before it
    # could write the base.
    for base in (theirs, BASE):
        assert dumps(update.merge(base, merged.notebook, theirs).notebook) == dumps(merged.notebook)


@given(theirs=UPSTREAM)
def test_an_unedited_lesson_becomes_the_new_one(theirs):
    assert update.merge(BASE, BASE, theirs).notebook["cells"] == theirs["cells"]


@given(mine=LEARNER.filter(lambda n: [c.get("id") for c in n["cells"]] == ["a", "b", "c"]))
def test_an_unchanged_lesson_leaves_edits_alone(mine):
    merged = update.merge(BASE, mine, BASE)
    assert merged.notebook == mine and not merged.conflicts


def test_edits_of_different_cells_on_both_sides_are_merged():
    mine = notebook(cell("a", "A"), cell("b", "my B"), cell("c", "C"))
    theirs = notebook(cell("a", "new A"), cell("b", "B"), cell("c", "C"), cell("d", "D"), version="2")
    merged = update.merge(BASE, mine, theirs)
    assert lines(merged) == ["new A", "my B", "C", "D"]
    assert (merged.changed, merged.added, merged.conflicts) == (["a"], ["d"], [])
    assert merged.notebook["metadata"]["llmsys"]["version"] == "2"


def test_a_conflict_keeps_both_marks_the_incoming_one_and_says_where():
    mine = notebook(cell("a", "A"), cell("b", "my B"), cell("mine", "note"), cell("c", "C"))
    theirs = notebook(cell("a", "A"), cell("b", "new B"), cell("c", "C"))
    theirs["cells"][1]["metadata"] = {"tags": ["exercise"], "nbgrader": {"grade_id": "b"}, "exercise": "90.b"}
    merged = update.merge(BASE, mine, theirs)
    a, b, line, incoming, own, c = merged.notebook["cells"]
    assert (b["source"], incoming["source"], own["source"]) == ("my B", "new B", "note")
    assert b["id"] == "b" and line["cell_type"] == "markdown" and "changed here" in line["source"]
    assert tags(line) == tags(incoming) == [update.INCOMING]
    assert "nbgrader" not in incoming["metadata"] and role(incoming) is None  # there is one answer to grade
    assert "cell 2 (b): you edited it and the lesson changed it" in str(update.Updated("90.ipynb", "updated", merged))


def test_the_learners_cells_stay_where_they_were():
    own = cell("m1", "first"), cell("m2", "2"), cell("m3", "3")
    mine = notebook(own[0], cell("a", "A"), own[1], own[2], cell("b", "B"), cell("c", "C"))
    theirs = notebook(cell("c", "C"), cell("a", "A"))
    assert lines(update.merge(BASE, mine, theirs)) == ["first", "C", "A", "2", "3"]


@pytest.mark.parametrize(
    "mine, theirs, result, kept",
    [
        (["A", "C"], ["A", "B", "C"], ["A", "C"], []),  # deleted by the learner
        (["A", "C"], ["A", "new B", "C"], ["A", "C"], ["b"]),  # and changed upstream
        (["A", "B", "C"], ["A", "C"], ["A", "C"], []),  # deleted upstream
        (["A", "my B", "C"], ["A", "C"], ["A", "my B", "C"], ["b"]),  # and edited by the learner
        (["A", "new B", "C"], ["A", "new B", "C"], ["A", "new B", "C"], []),  # both made the same edit
    ],
)
def test_a_deleted_cell_stays_deleted_and_equal_edits_are_no_conflict(mine, theirs, result, kept):
    def of(sources):
        return notebook(*(cell(source[-1].lower(), source) for source in sources))

    merged = update.merge(BASE, of(mine), of(theirs))
    assert (lines(merged), merged.kept, merged.conflicts) == (result, kept, [])
    assert all(id in str(update.Updated("90.ipynb", "updated", merged)) for id in kept)


def test_outputs_stay_with_an_unchanged_cell_and_go_with_a_changed_one():
    ran = [{"output_type": "stream", "name": "stdout", "text": ["4"]}]
    mine = notebook(cell("a", "A") | {"outputs": ran}, cell("b", "B") | {"outputs": ran}, cell("c", "C"))
    theirs = notebook(cell("a", "A"), cell("b", "new B"), cell("c", "C"))
    assert [each["outputs"] for each in update.merge(BASE, mine, theirs).notebook["cells"]] == [ran, [], []]


def upstream_edit(course, old, new):
    """A new version of the lesson, as a build would write it."""
    path = course.lessons / course.lesson.notebook
    lesson = read_notebook(path)
    touched = [each for each in lesson["cells"] if old in each["source"]]
    for each in touched:
        each["source"] = each["source"].replace(old, new)
    lesson["metadata"]["llmsys"]["version"] += "+"
    write_notebook(path, lesson)
    assert touched


def test_a_workspace_is_brought_up_to_date(built_course, tmp_path):
    work = workspace.start(tmp_path / "work").workspace
    path = work / built_course.lesson.notebook
    assert [each.action for each in update.update(work)] == ["same"]
    mine = read_notebook(path)
    answer = next(each for each in mine["cells"] if each["id"] == "90-double")
    answer["source"] = answer["source"].replace("raise NotImplementedError", "return x + x")
    write_notebook(path, mine)
    upstream_edit(built_course, "It shifts.", "It shifts left.")
    upstream_edit(built_course, "Double x, of shape (...).", "Double x, of any shape (...).")
    (result,) = update.update(work)
    assert result.action == "updated" and result.merge.conflicts == ["90-double"]
    text = path.read_text(encoding="utf-8")
    assert "return x + x" in text and "It shifts left." in text and "of any shape" in text
    assert [each.action for each in update.update(work)] == ["same"]
    assert path.read_text(encoding="utf-8") == text


def test_new_files_are_laid_deleted_ones_come_back_and_edited_texts_are_kept(built_course, tmp_path):
    (built_course.lessons / "notation.md").write_text("m, l", encoding="utf-8")
    work = workspace.start(tmp_path / "work").workspace
    (built_course.lessons / "notation.md").write_text("m, ℓ", encoding="utf-8")
    (built_course.lessons / "new.md").write_text("new", encoding="utf-8")
    (work / built_course.lesson.notebook).unlink()
    assert {each.name: each.action for each in update.update(work)} == {
        "90_tiny.ipynb": "back",
        "new.md": "new",
        "notation.md": "updated",
    }
    back = read_notebook(work / built_course.lesson.notebook)
    assert back == workspace.announced(read_notebook(built_course.lessons / built_course.lesson.notebook))
    assert {each.action for each in update.update(work)} == {"same"}
    (work / "notation.md").write_text("my notes", encoding="utf-8")
    (built_course.lessons / "notation.md").write_text("m, ℓ, o", encoding="utf-8")
    assert "kept" in [each.action for each in update.update(work)]
    assert (work / "notation.md").read_text(encoding="utf-8") == "my notes"


def test_a_notebook_that_cannot_be_read_stops_the_update_before_anything_is_written(built_course, tmp_path):
    work = workspace.start(tmp_path / "work").workspace
    path = work / built_course.lesson.notebook
    path.write_text('{"cells": [', encoding="utf-8")
    (built_course.lessons / "a_new_file.md").write_text("new", encoding="utf-8")
    upstream_edit(built_course, "It shifts.", "It adds.")
    with pytest.raises(NotebookError, match="90_tiny.ipynb is not a notebook.*`llmsys reset 90`"):
        update.update(work)
    assert path.read_text(encoding="utf-8") == '{"cells": [' and not (work / "a_new_file.md").exists()
    workspace.reset("90", work)
    assert "It adds." in path.read_text(encoding="utf-8")
    assert {each.action for each in update.update(work)} == {"new", "same"}


def test_an_update_without_built_lessons_says_how_to_build_them(built_course, tmp_path, monkeypatch):
    work = workspace.start(tmp_path / "work").workspace
    monkeypatch.setattr(manifest, "lessons_dir", lambda: tmp_path / "nothing")
    with pytest.raises(workspace.WorkspaceError, match="no lessons"):
        update.update(work)
