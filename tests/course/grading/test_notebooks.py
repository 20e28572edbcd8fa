"""Notebooks in a submission: known by what they say of themselves, wherever they are and whatever they are called."""

import dataclasses
import json
import os

import pytest

from llmsys.course.grading import notebooks as module
from llmsys.course.grading.notebooks import find_notebooks, lesson_of_file
from llmsys.course.grading.submission import Course, tasks_in
from llmsys.course.grading.words import shown_name
from llmsys.course.workspace.notebook import write_notebook
from tests.support.notebooks import CHECK, DOUBLE, HALVE, LESSON, RIGHT, SETUP, code, notebook

OTHER = dataclasses.replace(LESSON, number="92", slug="other")
STUB = code("91-double", "def double(x):\n    raise NotImplementedError\n", "exercise", exercise="91.double")


def lay(path, *cells, number="91"):
    written = notebook(SETUP, *cells, CHECK, HALVE)
    written["metadata"]["llmsys"]["lesson"] = number
    write_notebook(path, written)
    return path


@pytest.mark.parametrize("name", ["91_small.ipynb", "my answers.ipynb", "deep/er/Untitled1.ipynb", "92_other.ipynb"])
def test_a_notebook_is_known_by_its_metadata(tmp_path, name):
    path = lay(tmp_path / name, DOUBLE)
    found = find_notebooks(tmp_path, [LESSON, OTHER])
    assert found["91"].path == path and not found["91"].problem
    assert (found["91"].notes == ()) == (name == "91_small.ipynb")
    assert found["92"].path == tmp_path / "92_other.ipynb" or not found["92"].path.exists()
    assert lesson_of_file(path, [OTHER, LESSON]) is LESSON


def test_without_metadata_it_is_known_by_its_name(tmp_path):
    (tmp_path / "91_small.ipynb").write_text(json.dumps(notebook(DOUBLE) | {"metadata": {}}))
    assert find_notebooks(tmp_path, [LESSON])["91"].path.exists()
    (tmp_path / "92_other.ipynb").write_text("{not json")
    assert lesson_of_file(tmp_path / "92_other.ipynb", [OTHER, LESSON]) is OTHER


def test_of_two_the_one_in_its_place_counts_and_elsewhere_the_one_in_which_most_is_written(tmp_path):
    lay(tmp_path / "a/blank.ipynb", STUB)
    best = lay(tmp_path / "b/mine.ipynb", DOUBLE)
    found = find_notebooks(tmp_path, [LESSON])["91"]
    assert found.path == best and "a/blank.ipynb" in found.notes[1] and "b/mine.ipynb" in found.notes[0]
    usual = lay(tmp_path / "work/91_small.ipynb", STUB)
    assert find_notebooks(tmp_path, [LESSON])["91"].path == usual


def test_a_forks_own_lessons_and_hidden_folders_are_nobodys_work(tmp_path):
    for name in ("solutions/91_small.ipynb", "lessons/91_small.ipynb", ".git/91_small.ipynb"):
        lay(tmp_path / name, DOUBLE)
    (tmp_path / "llmsys/course").mkdir(parents=True)
    assert not find_notebooks(tmp_path, [LESSON])["91"].path.exists()


def test_links_out_of_a_submission_are_not_followed(tmp_path):
    lay(tmp_path / "ada/91_small.ipynb", DOUBLE)
    (tmp_path / "bob").mkdir()
    (tmp_path / "bob/91_small.ipynb").symlink_to("../ada/91_small.ipynb")
    found = find_notebooks(tmp_path / "bob", [LESSON])["91"]
    assert "is a link out of the submission" in found.problem
    (tmp_path / "eve").mkdir()
    (tmp_path / "eve/work").symlink_to("../ada")
    found = find_notebooks(tmp_path / "eve", [LESSON])["91"]
    assert found.problem or not found.path.exists()


def test_a_folder_that_cannot_be_read_costs_its_learner_only(tmp_path, monkeypatch):
    def refuses(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "scandir", refuses)
    tasks = tasks_in(tmp_path / "ada", [LESSON], Course((LESSON,), tmp_path), "ada")
    assert len(tasks) == 2 and all(task.problem == "ada cannot be read (Permission denied)" for task in tasks)


@pytest.mark.parametrize("above", [True, False])
def test_a_copied_stub_beside_the_answer_is_no_answer(tmp_path, above):
    course = Course((LESSON,), tmp_path / "pristine")
    lay(tmp_path / "pristine/91_small.ipynb", STUB)
    copies = [STUB | {"id": "copy"}, STUB | {"id": "older", "source": f"import math\n\n{STUB['source']}\n"}]
    cells = [*copies, DOUBLE] if above else [DOUBLE, *copies]
    lay(tmp_path / "ada/91_small.ipynb", *cells)
    double = tasks_in(tmp_path / "ada", [LESSON], course)[0]
    assert [source for _, source in double.job["cells"]] == [RIGHT]
    lay(tmp_path / "eve/91_small.ipynb", STUB, *copies)
    assert tasks_in(tmp_path / "eve", [LESSON], course)[0].status == "not written yet"


def test_names_can_be_shown_whatever_they_are():
    bad = os.fsdecode(b"a\xff\x1b[31m\n")
    assert shown_name(bad) == r"a\xff\x1b[31m\n" and shown_name("Zoë") == "Zoë"
    shown_name(bad).encode("ascii")
