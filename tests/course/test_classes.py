"""Classes as answers: they are found in their cells, edited, kept, told apart, mutated and graded as functions are."""

import inspect
import subprocess
import sys

import pytest

from llmsys.course import attempts
from llmsys.course.authoring.mutations import mutations
from llmsys.course.authoring.self_test import stub
from llmsys.course.checking.checks import Check, run_check
from llmsys.course.checking.mistakes import edited
from llmsys.course.checking.runner import LocalRunner
from llmsys.course.checking.source import function_of, text_of
from llmsys.course.grading.grade import Course, grade_notebook
from llmsys.course.manifest import Exercise, Lesson
from llmsys.course.workspace.mine import export_answer, mine
from llmsys.course.workspace.notebook import write_notebook
from tests.support.cells import Cells
from tests.support.notebooks import code, notebook

CELL = '''
LIMIT = 3

@trace
class Stack(Base):
    """A stack of at most LIMIT, (n,)."""

    def __init__(self):
        super().__init__()
        ### BEGIN SOLUTION
        self.items = []
        ### END SOLUTION

    @property
    def size(self):
        """How many, (0 … LIMIT)."""
        ### BEGIN SOLUTION
        return len(self.items)
        ### END SOLUTION

    def push(self, item):
        ### BEGIN SOLUTION
        if self.size >= LIMIT:
            raise IndexError("full")
        self.items.append(item)
        ### END SOLUTION
'''
HELPERS = """
from collections import deque

def trace(kind):
    return kind

class Base(object):
    def __init__(self):
        self.log = deque()

class Nothing:
    pass
"""


@pytest.fixture
def cells():
    cells = Cells()
    cells.run(HELPERS)
    cells.run(CELL)
    return cells


def pushed(make):
    """An adapter: plain data in and out."""

    def run(*items):
        stack = make()
        for item in items:
            stack.push(item)
        return stack.size

    return run


def test_the_text_of_a_class_is_found_in_its_cell(cells):
    text = text_of(cells["Stack"])
    assert text.startswith("@trace\nclass Stack(Base):") and text.endswith("self.items.append(item)\n")
    assert function_of(cells["Stack"]).__globals__ is cells.namespace
    assert text_of(LocalRunner).startswith("class LocalRunner:")
    for without in (cells["Nothing"], int, len, 7):
        with pytest.raises(OSError, match="is not to be had"):
            text_of(without)


def test_of_two_classes_of_one_name_in_a_cell_the_text_is_of_the_one_that_is_there():
    cells = Cells()
    cells.run("class A:\n    def f(self):\n        return 1\n\nclass A:\n    def f(self):\n        return 2\n")
    assert "return 2" in text_of(cells["A"])


def test_an_edited_class_has_the_changed_text_under_its_own_name(cells):
    wrong = edited(cells["Stack"], "one_more", ("self.size >= LIMIT", "self.size > LIMIT"))
    assert wrong.__name__ == "one_more" and pushed(wrong)(1, 2, 3, 4) == 4
    assert "self.size > LIMIT" in text_of(edited(wrong, "again", ("IndexError", "ValueError")))
    with pytest.raises(ValueError, match="must be in Stack once, it is 0 times"):
        edited(cells["Stack"], "unchanged", ("no such text", ""))


def test_an_error_in_a_method_is_shown_with_its_line(cells):
    run = LocalRunner(cells["Stack"], adapt=pushed).run((1, 2, 3, 4), {})
    assert (run.error.type, run.error.source) == ("IndexError", 'raise IndexError("full")')


def check_of_stacks(answer):
    with answer.property("holds what was pushed"):
        answer.matches(0)
        answer.matches(2, 5, 6)


def test_a_class_that_is_not_written_yet_is_known_and_so_is_the_method_that_is_missing(cells):
    check = Check("91.stack", check_of_stacks, adapt=pushed)
    assert run_check(check, check.local_runner(cells["Stack"]))
    cells.run(stub(CELL))
    assert run_check(check, check.local_runner(cells["Stack"])).failure.kind == "stub"
    written = CELL.replace("        if self.size >= LIMIT:\n            raise IndexError(\"full\")\n", "")
    cells.run(written.replace("self.items.append(item)", "raise NotImplementedError"))
    failure = run_check(check, check.local_runner(cells["Stack"])).failure
    assert failure.kind == "error" and failure.message.startswith("it raised NotImplementedError\nline ")
    assert failure.message.endswith("raise NotImplementedError")


def test_an_object_in_place_of_its_class_is_refused_with_the_call_to_make():
    with pytest.raises(TypeError, match=r"takes your class itself, as in check\('08.block_pool', Pool\), without"):
        attempts.check("08.block_pool", object())


def test_attempts_with_a_class_are_told_apart_and_comments_make_no_difference(cells):
    first = attempts._fingerprint(cells["Stack"])
    cells.run(CELL.replace("LIMIT:", "LIMIT:  # full"))
    assert attempts._fingerprint(cells["Stack"]) == first
    cells.run(CELL.replace(">= LIMIT", "> LIMIT"))
    assert attempts._fingerprint(cells["Stack"]) != first


def test_a_class_is_kept_with_the_classes_that_it_leans_on(cells, work, capsys):
    path = export_answer("08.block_pool", cells["Stack"])
    text = path.read_text()
    assert "class Base" in text and "def trace" in text and "LIMIT = 3" in text and "class Nothing" not in text
    program = "from mine import Stack; s = Stack(); s.push(1); print(s.size, len(s.log))"
    done = subprocess.run([sys.executable, "-c", program], cwd=work, capture_output=True, text=True)
    assert done.stdout.strip() == "1 0", done.stderr
    assert pushed(mine("Stack", default=list))(1) == 1
    assert capsys.readouterr().out == "Stack: yours, from mine/lesson_08.py\n"


def test_a_class_of_a_file_is_kept_with_the_files_imports(work):
    text = export_answer("08.block_pool", Cells).read_text()
    assert "import linecache" in text and "class Cells:" in text


def test_each_methods_solution_is_mutated_and_what_is_given_is_not():
    texts = {each.text for each in mutations(CELL)}
    assert {"self.items = [] → left out", "self.size >= LIMIT → self.size > LIMIT"} <= texts
    assert not any("super" in text or "3 → 4" in text for text in texts)


CHECKS = f"""
from llmsys.course.checking.checks import exercise_check

{inspect.getsource(pushed)}

@exercise_check("91.stack", adapt=pushed)
def stack(answer):
    with answer.property("holds what was pushed"):
        answer.matches(2, 5, 6)
"""


def test_a_class_is_graded_in_a_process_of_its_own(tmp_path, monkeypatch):
    exercise = Exercise("91.stack", "Stack", 2, 5, "A stack.", "91")
    lesson = Lesson("91", "stacks", "Stacks", 5, "Test", "", exercises=(exercise,))
    (tmp_path / "checks_of_stacks.py").write_text(CHECKS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    setup = code("91-setup", HELPERS, "setup")

    def with_cell(text):
        return notebook(setup, code("91-stack", text, "exercise", exercise="91.stack"))

    write_notebook(tmp_path / "pristine" / lesson.notebook, with_cell(stub(CELL)))
    course = Course((lesson,), tmp_path / "pristine", "checks_of_stacks", [tmp_path, *sys.path])
    forgets = CELL.replace("append(item)", "append")
    for text, status in ((CELL, "passed"), (forgets, "failed"), (stub(CELL), "not written yet")):
        path = tmp_path / status / lesson.notebook
        write_notebook(path, with_cell(text))
        (grade,) = grade_notebook(path, course=course).grades
        assert grade.status == status, grade
