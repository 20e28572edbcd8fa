"""What grading found, and the forms in which it is wanted: a table, JSON, JUnit XML, a GitHub step summary.

    report = grade_workspace("work")
    Console().print(report.table())
    Path("grade.xml").write_text(report.to_junit())
    write_step_summary(report)                  # where GitHub Actions asks for one

An exercise's points are all or nothing. An optional exercise is graded and reported as the others are, counts for 0 of
0, and fails nothing: neither the exit code nor, in JUnit XML, the suite. Texts that came from a learner's process have
been cleaned of control characters on arrival (`llmsys.course.grading.remote.clean`); here each form escapes what would
mean something to its reader.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

from llmsys.course.grading.words import clean
from llmsys.course.manifest import Exercise

PASSED, FAILED, STUB, UNGRADED = "passed", "failed", "not written yet", "not graded"
_GLYPHS = {PASSED: "✓", FAILED: "✗", STUB: "·", UNGRADED: "!"}
_SUMMARY_LIMIT = 900_000  # bytes; GitHub refuses a step's summary of more than 1 MiB


@dataclass(frozen=True)
class Grade:
    """What became of one exercise. True where it passed; `str` of it is the check's own card, as text.

    status      passed, failed, not written yet, or not graded (there was nothing to run)
    message     why it did not pass, beginning with one clear line
    notes       what else the learner or the instructor should know, such as a check cell that was edited
    details     the card: every property, got and expected, the misconception
    output      the end of what the process printed
    """

    exercise: Exercise
    notebook: str
    status: str
    message: str = ""
    notes: tuple[str, ...] = ()
    details: str = ""
    output: str = ""
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return self.status == PASSED

    def __str__(self) -> str:
        card = self.details or f"{_GLYPHS[self.status]} {self.exercise.label}: {self.message}"
        return "\n".join([card, *(f"  note: {note}" for note in self.notes)])

    @property
    def points(self) -> int:
        return self.exercise.points if self else 0

    @property
    def line(self) -> str:
        """Why it did not pass, in one line."""
        return self.message.partition("\n")[0]


@dataclass(frozen=True)
class Report:
    """The grades of one learner, in course order. With the same `seed` the checks draw the same inputs again.
    `isolated` where each exercise ran in a jail (`llmsys.course.grading.jail`)."""

    grades: tuple[Grade, ...]
    seed: int
    seconds: float = 0.0
    learner: str = ""
    isolated: bool = False

    @property
    def points(self) -> int:
        return sum(grade.points for grade in self.grades)

    @property
    def of(self) -> int:
        return sum(grade.exercise.points for grade in self.grades)

    @property
    def place(self) -> str:
        """Where the exercises ran, in words."""
        return "in bubblewrap" if self.isolated else "without bubblewrap"

    @property
    def exit_code(self) -> int:
        """0 where every exercise passed that is not optional, otherwise 1."""
        return 0 if self.grades and all(grade or grade.exercise.optional for grade in self.grades) else 1

    def table(self):
        """A table for `rich.console.Console().print`."""
        from rich import box
        from rich.table import Table
        from rich.text import Text  # and not markup: a learner's brackets are brackets

        table = Table(box=box.SIMPLE, title=self.learner or None, title_justify="left")
        for name in ("", "exercise", "points", "what"):
            table.add_column(name, justify="right" if name == "points" else "left", no_wrap=name != "what")
        for grade in self.grades:
            what = [] if grade else [grade.line if grade.status != STUB else STUB]
            cells = (_GLYPHS[grade.status], grade.exercise.label, f"{grade.points} of {grade.exercise.points}")
            table.add_row(*map(Text, cells), Text("\n".join([*what, *(f"note: {note}" for note in grade.notes)])))
        table.add_section()
        how = f"{self.seconds:.0f} s, seed {self.seed}, {self.place}"
        table.add_row("", "in all", f"{self.points} of {self.of}", how)
        return table

    def to_json(self) -> str:
        return json.dumps(self.as_dict(), ensure_ascii=False, indent=2) + "\n"

    def as_dict(self) -> dict:
        """What the JSON says."""
        exercises = [
            {
                "exercise": grade.exercise.id,
                "optional": grade.exercise.optional,
                "notebook": grade.notebook,
                "status": grade.status,
                "points": grade.points,
                "of": grade.exercise.points,
                "message": grade.message,
                "notes": list(grade.notes),
                "output": grade.output,
                "seconds": round(grade.seconds, 3),
            }
            for grade in self.grades
        ]
        head = {"grader": grader_version(), "learner": self.learner, "seed": self.seed, "isolated": self.isolated}
        head["seconds"] = round(self.seconds, 3)
        return {**head, "points": self.points, "of": self.of, "exercises": exercises}

    def to_junit(self) -> str:
        """JUnit XML: a suite for each notebook, a case for each exercise. What is not written yet is skipped, and so is
        what is optional and has not passed: a failure would fail the whole run."""
        return junit([self])

    def to_markdown(self) -> str:
        """What a GitHub step summary shows: a table, and below it each exercise that did not pass."""
        lines = [
            f"## llmsys: {self.points} of {self.of} points" + (f" · {_inert(self.learner)}" if self.learner else ""),
            "",
            "| | exercise | points | |",
            "|---|---|---:|---|",
        ]
        for grade in self.grades:
            what = [] if grade else [grade.line if grade.status != STUB else STUB]
            remarks = "<br>".join(map(_inert, [*what, *(f"note: {note}" for note in grade.notes)]))
            points = f"{grade.points} / {grade.exercise.points}"
            lines.append(f"| {_GLYPHS[grade.status]} | {_inert(grade.exercise.label)} | {points} | {remarks} |")
        for grade in self.grades:
            if grade.status == FAILED:
                body = "\n".join(map(_inert, (grade.details or grade.message).split("\n")))
                lines += ["", f"<details><summary>{_inert(grade.exercise.label)}</summary>", "", f"<pre>{body}</pre>"]
                lines += ["", "</details>"]
        by = f"Graded by llmsys {grader_version()}, {self.place}"
        lines += ["", f"{by}; `--seed {self.seed}` draws the same inputs again."]
        return "\n".join(lines) + "\n"


def junit(reports: Sequence[Report]) -> str:
    """JUnit XML of these reports: a suite for each notebook, of each learner where they have names."""
    grades = [grade for report in reports for grade in report.grades]
    root = ElementTree.Element("testsuites", name="llmsys", **_counts(grades))
    for report in reports:
        for notebook in dict.fromkeys(grade.notebook for grade in report.grades):
            own = [grade for grade in report.grades if grade.notebook == notebook]
            lesson = notebook.removesuffix(".ipynb")
            name = clean(f"{report.learner}: {lesson}" if report.learner else lesson)
            suite = ElementTree.SubElement(root, "testsuite", name=name, **_counts(own))
            for grade in own:
                where = {"classname": name, "name": grade.exercise.label, "time": f"{grade.seconds:.3f}"}
                case = ElementTree.SubElement(suite, "testcase", **where)
                if kind := _junit_kind(grade):
                    problem = ElementTree.SubElement(case, kind, message=grade.line)
                    problem.text = grade.details or grade.message
                if printed := "\n".join([*(f"note: {note}" for note in grade.notes), grade.output]).strip():
                    ElementTree.SubElement(case, "system-out").text = printed
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_step_summary(report: Report, path: str | Path | None = None) -> Path | None:
    """Append the report to GitHub's step summary, $GITHUB_STEP_SUMMARY unless `path` names a file. Returns the file;
    None where there is none to write to, as outside of GitHub Actions."""
    path = path or os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return None
    text = report.to_markdown()
    if len(text.encode()) > _SUMMARY_LIMIT:
        text = text.partition("\n<details>")[0] + "\n(The details are too long for a summary.)\n"
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
    return Path(path)


def _counts(grades: Sequence[Grade]) -> dict[str, str]:
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    found = {name: str(sum(_junit_kind(grade) == kind for grade in grades)) for name, kind in counted.items()}
    return {"tests": str(len(grades)), **found, "time": f"{sum(grade.seconds for grade in grades):.3f}"}


def _junit_kind(grade: Grade) -> str | None:
    """The element of JUnit XML that says why an exercise did not pass."""
    if grade.exercise.optional and not grade:
        return "skipped"
    return {FAILED: "failure", UNGRADED: "error", STUB: "skipped"}.get(grade.status)


def _inert(text: str) -> str:
    """Text in which nothing is Markdown or HTML: all but letters, digits and harmless punctuation become entities."""
    return "".join(c if c.isalnum() or c in " .,;=%…✓✗·−∞→\n" else f"&#{ord(c)};" for c in text).replace("\n", "<br>")


def grader_version() -> str:
    try:
        return version("llmsys")
    except PackageNotFoundError:  # a checkout that is not installed
        return "(not installed)"


def __getattr__(name: str):
    if name == "ClassReport":  # which was here before, and builds on what is here
        return import_module("llmsys.course.grading.class_report").ClassReport
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
