"""Notebook files: written whole or not at all, as Jupyter writes them; refused with the place and the remedy."""

import json

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.course.workspace import notebook as notebooks

CELL = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "text"}


def with_cells(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


@given(st.lists(st.text(max_size=40), max_size=5))
def test_a_written_notebook_reads_back_and_has_the_bytes_that_jupyter_writes(tmp_path_factory, sources):
    path = tmp_path_factory.getbasetemp() / "round.ipynb"
    given = with_cells(*(CELL | {"id": f"c{i}", "source": source} for i, source in enumerate(sources)))
    notebooks.write_notebook(path, given)
    assert notebooks.read_notebook(path) == given
    assert path.read_text(encoding="utf-8").rstrip("\n") == nbformat.writes(nbformat.from_dict(given)).rstrip("\n")


@pytest.mark.parametrize(
    "text, what",
    [
        ("not JSON", "line 1 is not JSON"),
        ("", "line 1 is not JSON"),
        ('{"cells": [\n<<<<<<< HEAD\n', "merge conflict"),
        ("[1, 2]", "it has no list of cells"),
        ('{"cells": {}, "nbformat": 4}', "it has no list of cells"),
        (json.dumps(with_cells() | {"nbformat": 3}), "its nbformat is 3, expected 4"),
        (json.dumps(with_cells() | {"metadata": 1}), "its metadata is not a table"),
        (json.dumps(with_cells(CELL, "cell")), "cell 2 is neither code nor text"),
        (json.dumps(with_cells(CELL, {"cell_type": "code"})), "cell 2 has no source"),
        (json.dumps(with_cells(CELL | {"source": ["a", 1]})), "cell 1 has no source"),
        (json.dumps(with_cells(CELL | {"metadata": []})), "cell 1 has a malformed"),
        (json.dumps(with_cells(CELL | {"metadata": {"tags": "check"}})), "cell 1 has a malformed"),
        ("[" * 100_000, "nested too deeply"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_notebook_is_refused_and_named(tmp_path, text, what):
    path = tmp_path / "02_online_softmax.ipynb"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(notebooks.NotebookError, match=rf"{path.name} is not a notebook.*{what}.*`llmsys reset 02`"):
        notebooks.read_notebook(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(notebooks.NotebookError, match="02.ipynb does not exist"):
        notebooks.read_notebook(tmp_path / "02.ipynb")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.ipynb"
    notebooks.write_notebook(path, with_cells(CELL))
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        notebooks.write_notebook(path, with_cells(CELL | {"source": "half of a character: \ud800"}))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_cells_are_recognised_without_their_ids():
    base = with_cells(CELL, CELL | {"id": "b", "source": "answer"}, CELL | {"id": "c", "source": "more"})
    anonymous = with_cells(
        {"cell_type": "markdown", "metadata": {}, "source": "text"},
        {"cell_type": "code", "metadata": {"nbgrader": {"grade_id": "b"}}, "source": "an edited answer"},
        CELL | {"id": "c"},
        CELL | {"id": "c", "source": "a copy that kept its id"},
        {"cell_type": "markdown", "metadata": {}, "source": "the learner's own"},
    )
    assert notebooks.identify(anonymous, base) == ["a", "b", "c", None, None]


def test_roles_are_tags():
    cell = {"metadata": {"tags": ["nbval-check-output", "check"]}}
    assert notebooks.role(cell) == "check" and notebooks.role({"metadata": {"tags": ["claim"]}}) is None
