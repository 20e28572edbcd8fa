"""The form of a lesson, checked, so that its authors can think about the content.

    llmsys lint            every lesson
    llmsys lint 02         one lesson

Every lesson is built alike: it opens with a picture of what will be built; the reader predicts a number; exercises
follow, each with its check; something to play with; a measurement that answers the prediction; the reader's code in the
real model or engine; what production does differently; and three questions with folded answers. Whatever the text
claims is shown by an output that the tests compare, or cites its source.

A rule is a function of the lesson and of its notebook, the source's cells with the outputs of the executed solution;
it yields what is wrong, where, and how to mend it. `RULES` lists them: those about the exercises are in
`llmsys.course.authoring.exercise_rules`, and those about the text and what it shows in `text_rules`.
"""

from dataclasses import dataclass
from pathlib import Path

from llmsys.course import manifest
from llmsys.course.authoring.build import BuildError, read_source, with_outputs_of
from llmsys.course.authoring.exercise_rules import (
    answers_are_self_contained,
    every_role_is_there,
    exercises_are_whole,
    headings_say_the_minutes,
    headings_say_what_is_optional,
    predictions_are_measured,
)
from llmsys.course.authoring.text_rules import (
    comments_begin_no_line,
    ends_with_the_next_lesson,
    equations_resolve,
    numbers_are_shown_or_cited,
    opens_with_a_picture,
    outputs_are_clean,
    pictures_have_alt_text,
    sections_are_in_order,
    three_questions_with_folded_answers,
)
from llmsys.course.manifest import Lesson

RULES = (
    every_role_is_there,
    exercises_are_whole,
    headings_say_the_minutes,
    headings_say_what_is_optional,
    answers_are_self_contained,
    predictions_are_measured,
    sections_are_in_order,
    opens_with_a_picture,
    pictures_have_alt_text,
    comments_begin_no_line,
    three_questions_with_folded_answers,
    ends_with_the_next_lesson,
    equations_resolve,
    numbers_are_shown_or_cited,
    outputs_are_clean,
)
NEED_OUTPUTS = (opens_with_a_picture, numbers_are_shown_or_cited, outputs_are_clean)


@dataclass(frozen=True)
class Finding:
    """Something that a rule found: in which file and cell, what, and what to do about it."""

    file: str
    cell: str
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: cell {self.cell}: {self.message}; {self.remedy}"


def lint(number: str | None = None) -> list[Finding]:
    """The findings in one lesson, or in all of them."""
    chosen = manifest.lessons() if number is None else (manifest.lesson(number),)
    return [finding for lesson in chosen for finding in lint_lesson(lesson, manifest.solutions_dir())]


def lint_lesson(lesson: Lesson, solutions: Path) -> list[Finding]:
    """The findings in the lesson whose source is in that directory. Outputs are those of its last execution."""
    file = f"{lesson.name}.py"
    try:
        notebook = read_source(lesson, solutions)
    except BuildError as error:
        return [Finding(file, "(none)", str(error), "mend that first")]
    rules = RULES
    found = []
    try:
        notebook = with_outputs_of(notebook, solutions / lesson.notebook)
    except BuildError:
        rules = tuple(rule for rule in RULES if rule not in NEED_OUTPUTS)
        remedy = f"run: llmsys build {lesson.number}"
        found.append(Finding(file, "(all)", "its executed solution is missing or stale", remedy))
    for rule in rules:
        found += [Finding(file, *each) for each in rule(lesson, notebook)]
    return found
