"""A class: what is kept when it is interrupted, what is skipped and said, and the forms of its report."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import pytest
import torch

from llmsys.course.checking.checks import Check, run_check
from llmsys.course.grading.class_report import ClassReport
from llmsys.course.grading.grade import Course, grade_class, grade_workspace
from llmsys.course.grading.journal import NAME, Journal
from llmsys.course.workspace.notebook import write_notebook
from tests.support.notebooks import CHECK, DOUBLE, LESSON, SETUP, code, forget_lesson_91, notebook

CHECKS = """
from llmsys.course.checking.checks import exercise_check

@exercise_check("91.double")
def double(answer):
    with answer.property("doubles"):
        x = answer.randn(3)
        answer.matches(2 * x, x)

@exercise_check("91.halve")
def halve(answer):
    with answer.property("halves"):
        x = answer.randn(3)
        answer.matches(x / 2, x)
"""
HALVES = code("91-halve", "def halve(x):\n    return x / 2\n", "exercise", exercise="91.halve")


@pytest.fixture
def course(tmp_path, monkeypatch):
    forget_lesson_91(monkeypatch, "checks_of_a_class")
    (tmp_path / "checks_of_a_class.py").write_text(CHECKS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    write_notebook(tmp_path / "pristine" / LESSON.notebook, notebook(SETUP, CHECK))
    return Course((LESSON,), tmp_path / "pristine", "checks_of_a_class", [tmp_path])


def learner(place, name, *cells):
    write_notebook(place / name / LESSON.notebook, notebook(*cells))


def test_an_interrupted_class_keeps_its_grades_and_goes_on(course, tmp_path):
    place = tmp_path / "class"
    for name in ("ada", "bob", "eve"):
        learner(place, name, SETUP, DOUBLE, CHECK)
    (place / "notes.txt").touch()
    (place / "link").symlink_to("ada")

    def interrupt(name, grade):
        if name == "bob" and grade:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade_class(place, course=course, seed=7, jobs=1, progress=interrupt)
    kept = [json.loads(line) for line in (place / NAME).read_text().splitlines()[1:]]
    assert [each["learner"] for each in kept][:2] == ["ada", "bob"]
    learner(place, "eve", SETUP, code("91-double", "def double(x): return x", "exercise", exercise="91.double"))
    kept[0]["message"] = "as it was kept"  # so that it is seen where it comes from
    lines = [(place / NAME).read_text().splitlines()[0], *map(json.dumps, kept), '{"half a li']
    (place / NAME).write_text("\n".join(lines))
    report = grade_class(place, course=course)
    assert [each.points for each in report.reports] == [2, 2, 0] and report.reports[0].seed == 7
    assert report.reports[0].grades[0].message == "as it was kept"
    assert report.skipped == ("link: a link", "notes.txt: no directory") and not (place / NAME).exists()
    rows = list(csv.reader(io.StringIO(report.to_csv())))
    assert [row[0] for row in rows] == ["learner", "ada", "bob", "eve"]
    whole = json.loads(report.to_json())
    assert [each["learner"] for each in whole["learners"]] == ["ada", "bob", "eve"] and len(whole["skipped"]) == 2
    suites = ElementTree.fromstring(report.to_junit()).findall("testsuite")
    assert [suite.get("name") for suite in suites] == [f"{name}: 91_small" for name in ("ada", "bob", "eve")]


def test_what_is_no_journal_is_written_over(tmp_path):
    for text in ("", "{}", "no json", '{"seed": "x"}', '{"seed": 3}\n[]\n{"key": 1}'):
        (tmp_path / NAME).write_text(text)
        journal = Journal(tmp_path, {})
        assert journal.count == 0 and journal.seed == (3 if '"seed": 3' in text else None)
    journal.begin(5)
    assert Journal(tmp_path, {}).seed == 5
    nowhere = Journal(tmp_path / "nowhere", {})
    nowhere.begin(1)
    assert "cannot be written (No such file or directory): an interrupted run begins anew" in nowhere.problem


ENDLESS = code("91-start-1", "while True:\n    pass\n", "setup")


def test_an_endless_setup_cell_is_named_once_and_gives_way_to_the_original(course, tmp_path):
    learner(tmp_path / "class", "ada", ENDLESS, DOUBLE, HALVES, CHECK)
    (report,) = grade_class(tmp_path / "class", course=course, time_limit=1, jobs=1).reports
    assert [grade.status for grade in report.grades] == ["passed", "passed"]
    note = "the cell 91-start-1: it took longer than 1 s; the original was run instead"
    assert all(note in grade.notes for grade in report.grades)
    rows = ClassReport((report,)).rows()
    assert rows[1][-1].count("took longer than") == 1 and rows[1][-1].startswith("91.double, 91.halve: the cell")


def test_a_setup_cell_of_the_learners_own_that_never_ends_costs_its_time_once(course, tmp_path):
    mine = code("mine", "while True:\n    pass\n", "setup")
    learner(tmp_path, "ada", SETUP, mine, DOUBLE, HALVES, CHECK)
    report = grade_workspace(tmp_path / "ada", course=course, time_limit=1, jobs=1)
    assert {grade.line for grade in report.grades} == {"the cell mine: it took longer than 1 s"}
    assert report.grades[0].seconds > 0 and report.grades[1].seconds == 0


ODD = {
    "x.to_sparse()": "torch.sparse_coo tensor",
    "torch.eye(3).to_sparse_csr()": "torch.sparse_csr tensor",
    "torch.empty(3, device='meta')": "tensor on meta",
    "torch.nested.nested_tensor([x, x[:1]])": "a nested tensor",
    "x.to_mkldnn()": "torch._mkldnn tensor",
    "torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)": "a quantized tensor",
    "x.to(torch.complex64).conj()": "the dtype is complex64",
    "x.to(torch.uint16)": "the dtype is uint16",
    "iter([x])": "a stray `yield`",
}


@pytest.mark.parametrize("result", ODD)
@pytest.mark.filterwarnings("ignore")  # torch's, about what is a prototype
def test_an_odd_result_gets_a_remark(result):
    """In this process, where nothing is hostile."""

    def check(answer):
        with answer.property("doubles"):
            x = answer.randn(3)
            answer.matches(2 * x, x)

    made = Check("91.double", check)
    answer = eval(f"lambda x: {result}", {"torch": torch})
    found = run_check(made, made.local_runner(answer), name_mistakes=False)
    assert not found and ODD[result] in found.failure.message, found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_signal_ends_the_grading_from_outside_and_leaves_no_process(course, tmp_path):
    """The command itself, ended by its user: what it had graded is kept, its processes are gone."""
    place = tmp_path / "class"
    slow = code("91-double", "import time\ntime.sleep(500)\ndef double(x): ...", "exercise", exercise="91.double")
    learner(place, "ada", SETUP, DOUBLE, CHECK)
    learner(place, "bob", SETUP, slow, CHECK)
    program = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from pathlib import Path
from llmsys.course.grading.grade import Course, grade_class
from tests.support.notebooks import LESSON
course = Course((LESSON,), Path({str(tmp_path / "pristine")!r}), "checks_of_a_class", [{str(tmp_path)!r}])
grade_class({str(place)!r}, course=course, jobs=2)
"""
    grader = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and "ada" not in _read(place / NAME):
            time.sleep(0.2)
        from llmsys.course.grading.sandbox import _descendants

        family = _descendants(grader.pid)
        assert len(family) > 1
        grader.send_signal(signal.SIGTERM)
        grader.wait(30)
        while time.monotonic() < deadline and any(len(_descendants(pid)) and _alive(pid) for pid in family):
            time.sleep(0.2)
        assert not any(map(_alive, family)) and "ada" in _read(place / NAME)
    finally:
        grader.kill()


def _read(path):
    return path.read_text() if path.exists() else ""


def _alive(pid):
    from llmsys.course.grading.sandbox import _status_of

    fields = _status_of(pid)
    return bool(fields) and fields[0] not in "ZX"
