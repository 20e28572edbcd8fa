"""The forms of a report: what each says, and that a learner's text stays text in all of them. And the workflow."""

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from llmsys.course.grading.report import ClassReport, Grade, Report, write_step_summary
from llmsys.course.manifest import Exercise

ROOT = Path(__file__).parents[3]
SLY = '[bold]| <script>alert(1)</script> & `code` **x** ![](http://x/y.png) @org #1\n</pre> ]]> "quoted"'
GRADES = (
    Grade(Exercise("02.a", "a", 2, 1, "", "02"), "02_x.ipynb", "passed", seconds=1.5),
    Grade(Exercise("02.b", "b", 3, 1, "", "02"), "02_x.ipynb", "failed", SLY, ("note [red]",), SLY, SLY, 0.25),
    Grade(Exercise("02.c", "c", 1, 1, "", "02"), "02_x.ipynb", "not written yet", "not written yet: replace …"),
    Grade(Exercise("03.d", "d", 4, 1, "", "03"), "03_y.ipynb", "not graded", "03_y.ipynb is not there", ("old",)),
)
REPORT = Report(GRADES, seed=7, seconds=12.0)


def shown(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_points_are_all_or_nothing():
    assert (REPORT.points, REPORT.of) == (2, 10)
    assert [bool(grade) for grade in GRADES] == [True, False, False, False]
    assert REPORT.exit_code == 1 and Report(GRADES[:1], 7).exit_code == 0
    assert Report((), 7).exit_code == 1, "nothing graded is nothing passed"


def test_the_table_shows_every_exercise_and_takes_no_markup_from_a_learner():
    text = shown(REPORT.table())
    assert all(grade.exercise.id in text for grade in GRADES)
    assert "[bold]| <script>" in text and "note: note [red]" in text and "2 of 10" in text
    assert [glyph for glyph in text if glyph in "✓✗·!"][:2] == ["✓", "✗"]


def test_json_holds_every_field():
    data = json.loads(REPORT.to_json())
    assert (data["points"], data["of"], data["seed"]) == (2, 10, 7)
    second = data["exercises"][1]
    assert (second["exercise"], second["status"], second["message"]) == ("02.b", "failed", SLY)
    assert second["notes"] == ["note [red]"] and second["output"] == SLY and second["seconds"] == 0.25


def test_junit_has_a_suite_a_notebook_and_a_case_an_exercise():
    root = ElementTree.fromstring(REPORT.to_junit())
    assert root.attrib | {"tests": "4", "failures": "1", "errors": "1", "skipped": "1"} == root.attrib
    assert [suite.get("name") for suite in root] == ["02_x", "03_y"]
    assert [case.get("name") for case in root.iter("testcase")] == ["02.a", "02.b", "02.c", "03.d"]
    (failure,) = root.iter("failure")
    assert failure.get("message") == SLY.splitlines()[0] and failure.text == SLY
    kinds = [[child.tag for child in case if child.tag != "system-out"] for case in root.iter("testcase")]
    assert kinds == [[], ["failure"], ["skipped"], ["error"]]


def test_markdown_is_a_table_in_which_nothing_of_a_learners_is_markup():
    text = REPORT.to_markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(GRADES)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows), "four columns in every row"
    for markup in ("<script", "`code`", "**x**", "![]", "@org", "#1\n", "[bold]"):
        assert markup not in text
    assert text.count("</pre>") == text.count("<pre>") == 1
    assert "2 of 10 points" in text and "`--seed 7`" in text


def test_the_step_summary_is_added_to(tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert write_step_summary(REPORT) is None
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    assert write_step_summary(REPORT) == path
    assert path.read_text() == "before\n" + REPORT.to_markdown()


def test_a_step_summary_is_never_too_long_for_github(tmp_path):
    long = Grade(GRADES[1].exercise, "02_x.ipynb", "failed", "wrong", details="é<" * 10**6)
    write_step_summary(Report((long,), 7), tmp_path / "summary.md")
    text = (tmp_path / "summary.md").read_text()
    assert len(text.encode()) < 2**20 and "02&#46;b" in text.replace("02.b", "02&#46;b") and "too long" in text


def test_the_csv_of_a_class_is_safe_to_open():
    whole = ClassReport((Report(GRADES, 7, learner="=HYPERLINK(1)"), Report(GRADES[:1], 7, learner='a, "b"')))
    header, first, second = csv.reader(io.StringIO(whole.to_csv()))
    assert header == ["learner", "02.a", "02.b", "02.c", "03.d", "points", "of", "remarks"]
    assert first[:7] == ["'=HYPERLINK(1)", "2", "0", "0", "0", "2", "10"]
    assert "03.d: 03_y.ipynb is not there" in first[7] and "\n" not in first[7] and "not written" not in first[7]
    assert second[:6] == ['a, "b"', "2", "0", "0", "0", "2"]
    assert "=HYPERLINK(1)" in shown(whole.table())


OPTIONAL = Exercise("02.e", "e", 0, 1, "", "02", optional=True)


@pytest.mark.parametrize("status", ["passed", "failed", "not written yet", "not graded"])
def test_an_optional_exercise_is_reported_as_such_and_never_counts(status):
    passed = GRADES[0]
    grade = Grade(OPTIONAL, "02_x.ipynb", status, "" if status == "passed" else "it loops")
    report = Report((passed, grade), 7, learner="ada")
    assert (report.points, report.of, report.exit_code) == (2, 2, 0)
    assert Report((GRADES[1], grade), 7).exit_code == 1
    assert re.search(r"02\.e \(optional\) +0 of 0", shown(report.table()))
    assert [each["optional"] for each in json.loads(report.to_json())["exercises"]] == [False, True]
    suites = ElementTree.fromstring(report.to_junit())
    skipped = str(int(status != "passed"))
    assert suites.attrib | {"tests": "2", "failures": "0", "errors": "0", "skipped": skipped} == suites.attrib
    case = next(each for each in suites.iter("testcase") if each.get("name") == "02.e (optional)")
    assert [child.tag for child in case] == ["skipped"] * (status != "passed")
    row = next(line for line in report.to_markdown().splitlines() if "02.e" in line)
    assert "&#40;optional&#41;" in row and "| 0 / 0 |" in row
    whole = ClassReport((report, Report((passed,), 7, learner="bob")))
    header, ada, bob = csv.reader(io.StringIO(whole.to_csv()))
    assert header == ["learner", "02.a", "02.e (optional)", "points", "of", "remarks"]
    assert ada[:5] == ["ada", "2", status, "2", "2"] and bob[:5] == ["bob", "2", "not graded", "2", "2"]
    assert ("02.e (optional): it loops" in ada[5]) == (status in ("failed", "not graded"))


@pytest.mark.parametrize("grade", GRADES, ids=lambda grade: grade.status)
def test_a_grade_can_be_printed(grade):
    text = str(grade)
    assert all(f"note: {note}" in text for note in grade.notes)
    assert grade.details in text and (grade.details or grade.exercise.id in text)
