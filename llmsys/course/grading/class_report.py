"""What grading found of a class: a CSV, a row for each learner, as they come; and JSON and JUnit XML in the end."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass

from llmsys.course.grading.report import FAILED, UNGRADED, Report, junit
from llmsys.course.manifest import Exercise


@dataclass(frozen=True)
class ClassReport:
    """The reports of a class, a learner each. `skipped` is what else lay in its directory, and why it was left."""

    reports: tuple[Report, ...]
    skipped: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 where everybody was graded: what they got is not the command's failure."""
        return 0 if self.reports else 1

    def rows(self) -> list[list[str | int]]:
        """A header and a row for each learner: name, points by exercise (of an optional one what became of it), points,
        remarks."""
        exercises = {grade.exercise.id: grade.exercise for report in self.reports for grade in report.grades}
        return [header(exercises.values()), *(row(report, exercises.values()) for report in self.reports)]

    def to_csv(self) -> str:
        return "".join(map(line, self.rows()))

    def to_json(self) -> str:
        whole = {"learners": [report.as_dict() for report in self.reports], "skipped": list(self.skipped)}
        return json.dumps(whole, ensure_ascii=False, indent=2) + "\n"

    def to_junit(self) -> str:
        return junit(self.reports)

    def table(self):
        """A table for `rich.console.Console().print`."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        header, *rows = self.rows()
        table = Table(box=box.SIMPLE)
        for name in header:
            table.add_column(name, justify="left" if name in ("learner", "remarks") else "right")
        for row in rows:
            table.add_row(*(Text(str(each)) for each in row))
        return table


def header(exercises: Iterable[Exercise]) -> list[str]:
    return ["learner", *(exercise.label for exercise in exercises), "points", "of", "remarks"]


def row(report: Report, exercises: Iterable[Exercise]) -> list[str | int]:
    """What a learner got for each of these exercises."""
    by_id = {grade.exercise.id: grade for grade in report.grades}
    cells = []
    for exercise in exercises:
        grade = by_id.get(exercise.id)
        if exercise.optional:
            cells.append(UNGRADED if grade is None else grade.status)
        else:
            cells.append(0 if grade is None else grade.points)
    return [report.learner, *cells, report.points, report.of, "; ".join(_remarks(report))]


def line(cells: list[str | int]) -> str:
    """A row as a line of the CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([_cell(x) for x in cells])
    return file.getvalue()


def _remarks(report: Report) -> list[str]:
    """What the points do not say. Lines that hold for many exercises, such as a missing notebook, come once."""
    by_line: dict[str, list[str]] = {}
    for grade in report.grades:
        said = [grade.line] if grade.status in (FAILED, UNGRADED) else []
        for line in [*said, *grade.notes]:
            by_line.setdefault(line, []).append(grade.exercise.label)
    return [f"{', '.join(ids)}: {line}" for line, ids in by_line.items()]


def _cell(value: str | int) -> str | int:
    """A text for a cell of the CSV that no spreadsheet takes for a formula: a folder's name is the learner's choice."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
