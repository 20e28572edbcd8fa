"""What instructors and authors do: grade notebooks, hand a lesson to nbgrader, build notebooks from their sources."""

from pathlib import Path
from typing import Annotated

import typer

from .. import manifest
from .errors import Refused

Lesson = Annotated[str, typer.Argument(metavar="LESSON", help='A lesson\'s number, like "02".')]


def build(
    lesson: Annotated[str | None, typer.Argument(metavar="LESSON", help="Its number; all if left out.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail where a notebook is stale.")] = False,
    reuse: Annotated[bool, typer.Option("--reuse", help="Keep the outputs of the last run (prose edits).")] = False,
) -> None:
    """Build the notebooks from their sources, in a checkout: solutions/NN_slug.py is executed and stripped."""
    from rich.console import Console

    chosen = [manifest.lesson(lesson)] if lesson else manifest.lessons()
    _checkout()
    from .. import build

    if check:
        stale = build.check(lesson)
        print("\n".join(stale) or "Every notebook follows from its source.")
        raise typer.Exit(1 if stale else 0)
    for each in chosen:
        with Console(stderr=True).status(f"running lesson {each.number}"):
            written = build.build(each.number, execute=not reuse)
        print(*(f"{path.parent.name}/{path.name}" for path in written))


def nbgrader(
    lesson: Lesson,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="nbgrader's course directory; made if need be.")],
) -> None:
    """Write a lesson as an nbgrader assignment, into a course directory."""
    from ..nbgrader_export import export_nbgrader

    name = manifest.lesson(lesson).name
    _checkout()
    try:
        path = export_nbgrader(lesson, directory)
    except (FileNotFoundError, FileExistsError) as error:
        raise Refused(str(error)) from None
    print(f"{path}\nNext: cd {directory} && nbgrader generate_assignment {name}")


def _checkout() -> None:
    """The sources of the lessons are in the repository alone."""
    try:
        manifest.solutions_dir()
    except FileNotFoundError as error:
        raise Refused(str(error)) from None
