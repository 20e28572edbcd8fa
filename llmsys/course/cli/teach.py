"""What instructors and authors do: grade notebooks and hand a lesson to nbgrader; make a lesson, build it, lint it."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from llmsys.course import manifest
from llmsys.course.cli.errors import Refused
from llmsys.course.cli.learn import here
from llmsys.course.workspace import workspace as workspaces
from llmsys.course.workspace.notebook import NotebookError, write_text

Lesson = Annotated[str, typer.Argument(metavar="LESSON", help='A lesson\'s number, like "02".')]


def grade(
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where the notebooks are; your workspace if left out.")
    ] = None,
    lesson: Annotated[list[str] | None, typer.Option(metavar="NN", help="Only this lesson; may be repeated.")] = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="First put the original check cells back into the notebooks.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JUnit XML.")] = None,
    summary: Annotated[bool, typer.Option("--summary", help="Add the report to GitHub's step summary.")] = False,
    classroom: Annotated[
        Path | None, typer.Option("--class", metavar="DIR", help="A directory for each learner in it; prints a CSV.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Draw the inputs of the report with this seed again.")] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds of processor time for an exercise.")] = 60.0,
    jobs: Annotated[int, typer.Option(min=1, help="Exercises at a time.")] = 2,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Demand bubblewrap, which is otherwise used where it runs.")
    ] = False,
) -> None:
    """Grade notebooks: each exercise in a process of its own, by the original checks, on inputs drawn anew.

    Of a class, results are printed and kept as they come: after an interruption, the same command goes on from there.
    """
    from rich.console import Console

    numbers = [manifest.lesson(each).number for each in lesson] if lesson else None
    if classroom and (directory or restore or summary):
        raise typer.BadParameter("a class gets a CSV, JSON and JUnit XML", param_hint="--class")
    place = classroom or directory or here()
    if restore:
        _restore(place, numbers)
    from llmsys.course.grading.grade import grade_class, grade_workspace
    from llmsys.course.grading.report import write_step_summary

    how = {"jobs": jobs, "time_limit": time_limit, "seed": seed, "isolate": isolate or None}
    with Console(stderr=True).status("grading") as status:
        how["progress"] = lambda learner, grade: status.update(f"graded {learner} {grade.exercise.id}: {grade.status}")
        if classroom:
            report = grade_class(place, numbers, finished=_row_by_row(numbers), **how)
        else:
            report = grade_workspace(place, numbers, **how)
    if not classroom:
        Console(highlight=False).print(report.table())
    for path, text in ((json, report.to_json), (junit, report.to_junit)):
        if path:
            write_text(path, text())
    if classroom:
        for each in report.skipped:
            typer.secho(f"skipped {each}", err=True)
        raise typer.Exit(report.exit_code)
    try:
        written = write_step_summary(report) if summary else None
    except OSError as error:
        raise Refused(f"the step summary cannot be written: {error}") from None
    if summary and written is None:
        raise Refused("there is no step summary here: --summary is for GitHub Actions, which sets GITHUB_STEP_SUMMARY")
    raise typer.Exit(report.exit_code)


def _row_by_row(numbers: list[str] | None):
    """Prints a class's CSV, each row as soon as it is known."""
    from llmsys.course.grading.class_report import header, line, row

    exercises = [each for lesson in manifest.lessons() if numbers is None or lesson.number in numbers
                 for each in lesson.exercises]  # fmt: skip
    first = [line(header(exercises))]

    def show(report) -> None:
        print(*first, line(row(report, exercises)), sep="", end="", flush=True)
        first.clear()

    return show


def _restore(place: Path, numbers: list[str] | None) -> None:
    """Put the original check cells back. A notebook that cannot be read is left to the report."""
    for each in manifest.lessons():
        path = place / each.notebook
        if path.exists() and (numbers is None or each.number in numbers):
            try:
                edited = workspaces.restore_checks(path)
            except NotebookError as error:
                typer.secho(error, err=True)
                continue
            print(f"{path}: {', '.join(edited) or 'no check cell'} put back")


def build(
    lesson: Annotated[str | None, typer.Argument(metavar="LESSON", help="Its number; all if left out.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where a notebook is stale.")] = False,
    reuse: Annotated[bool, typer.Option("--reuse", help="Keep the outputs of the last run (prose edits).")] = False,
) -> None:
    """Build the notebooks from their sources, in a checkout: solutions/NN_slug.py is executed and stripped."""
    from rich.console import Console

    chosen = [manifest.lesson(lesson)] if lesson else manifest.lessons()
    _checkout()
    from llmsys.course.authoring import build

    if check:
        stale = build.check(lesson)
        print("\n".join(stale) or "Every notebook follows from its source.")
        raise typer.Exit(1 if stale else 0)
    for each in chosen:
        with Console(stderr=True).status(f"running lesson {each.number}"):
            written = build.build(each.number, execute=not reuse)
        print(*(f"{path.parent.name}/{path.name}" for path in written))


def lint(
    lesson: Annotated[str | None, typer.Argument(metavar="LESSON", help="Its number; all if left out.")] = None,
) -> None:
    """Say what is missing in the form of a lesson, in a checkout: roles, exercises, pictures, claims, questions."""
    if lesson:
        manifest.lesson(lesson)
    _checkout()
    from llmsys.course.authoring.lint import lint

    found = lint(lesson)
    print("\n".join(map(str, found)) or "Nothing to mend.")
    raise typer.Exit(1 if found else 0)


def new(
    number: Annotated[str, typer.Argument(metavar="NUMBER", help='The lesson\'s number, like "07".')],
    slug: Annotated[str, typer.Argument(metavar="SLUG", help='Its name in files and imports, like "kv_cache".')],
    title: Annotated[
        str | None, typer.Option(help="Its title.", show_default="that of the planned lesson, or made of the slug")
    ] = None,
) -> None:
    """Lay the files of a new lesson, in a checkout: a small whole one, to be rewritten part by part."""
    _checkout()
    from llmsys.course.authoring.new import NewLessonError, new_lesson

    try:
        written = new_lesson(number, slug, title=title)
    except NewLessonError as error:
        raise Refused(str(error)) from None
    root = manifest.solutions_dir().parent
    print(*(path.relative_to(root) for path in written), sep="\n")
    number = number.zfill(2)
    print(f"Next: llmsys check --self-test {number} && llmsys build {number} && llmsys lint {number}")


def nbgrader(
    lesson: Lesson,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="nbgrader's course directory; made if need be.")],
) -> None:
    """Write a lesson as an nbgrader assignment, into a course directory."""
    from llmsys.course.authoring.nbgrader_export import export_nbgrader

    name = manifest.lesson(lesson).name
    _checkout()
    try:
        path = export_nbgrader(lesson, directory)
    except (FileNotFoundError, FileExistsError) as error:
        raise Refused(str(error)) from None
    print(f"{path}\nNext: cd {shlex.quote(str(directory))} && nbgrader generate_assignment {name}")


def _checkout() -> None:
    """The sources of the lessons are in the repository alone."""
    try:
        manifest.solutions_dir()
    except FileNotFoundError as error:
        raise Refused(str(error)) from None
