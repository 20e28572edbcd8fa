"""What a learner does in a terminal: lay the lessons out, see how far they are, check, take a hint, start over."""

import contextlib
import shlex
from pathlib import Path
from typing import Annotated

import typer

from llmsys.course import manifest
from llmsys.course.cli.errors import Refused
from llmsys.course.workspace import workspace as workspaces

Exercise = Annotated[str, typer.Argument(metavar="EXERCISE", help='The id of an exercise, like "02.merge".')]

RELOAD = "If it is open in JupyterLab: File › Reload Notebook from Disk."


def here() -> Path:
    """The workspace of the current directory, or the one in work/ below it. WorkspaceError where there is none."""
    return workspaces.require(workspaces.find() or workspaces.find(Path.cwd() / "work"))


def start(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where you want to work; made if need be.")] = Path(
        "work"
    ),
) -> None:
    """Lay the lessons into a directory, your workspace. Whatever is there already stays as it is."""
    done = workspaces.start(directory)
    laid = [name for name in done.laid if name.endswith(".ipynb")]
    kept = [name for name in done.kept if name.endswith(".ipynb")]
    if laid:
        print(f"{_count(len(laid), 'lesson')} laid into {done.workspace}: {', '.join(laid)}")
    if kept:
        print(f"{_count(len(kept), 'lesson')} there already, left as {'it is' if len(kept) == 1 else 'they are'}")
    print(f"To begin: cd {shlex.quote(str(directory))} && jupyter lab {manifest.lessons()[0].notebook}")


def update() -> None:
    """Bring new and corrected lessons into your workspace. Cells that you have edited are never overwritten."""
    from llmsys.course.workspace.update import update

    changed = [each for each in update(here()) if each.action not in ("same", "kept")]
    print("\n".join(map(str, changed)) if changed else "Every lesson is up to date.")
    if any(each.action == "updated" for each in changed):
        print(RELOAD.replace("it is", "one of them is"))


def status() -> None:
    """Show how far you are: lessons, exercises passed, points, hints asked for, and what comes next."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from llmsys.course.workspace import progress
    from llmsys.course.workspace.status import status as status_of

    workspace = here()
    records = progress.load(workspace).exercises
    found = status_of(workspace)
    table = Table(box=box.SIMPLE, caption=f"workspace {workspace}", caption_justify="left")
    for column in ("", "lesson", "exercises", "points", "hints"):
        right = column in ("points", "hints")
        table.add_column(column, justify="right" if right else "left", no_wrap=column != "lesson")
    for each in found:
        glyphs = " ".join(_glyph(exercise, exercise in each.passed) for exercise in each.lesson.exercises)
        hints = sum(records[exercise.id].asked for exercise in each.lesson.exercises if exercise.id in records)
        points = f"{each.points} of {each.lesson.points}"
        table.add_row(each.lesson.number, each.lesson.title, glyphs, points, str(hints or ""))
    total, of = sum(each.points for each in found), sum(each.lesson.points for each in found)
    table.add_section()
    passed = [exercise for each in found for exercise in each.passed]
    beyond = sum(exercise.optional for exercise in passed)
    counted = f"{len(passed) - beyond} passed" + (f", and {beyond} optional" if beyond else "")
    table.add_row("", "in all", counted, f"{total} of {of}", "")
    Console(highlight=False).print(table)
    if any(exercise.optional for each in found for exercise in each.lesson.exercises):
        print("(·) is an optional exercise: it has no points")
    for each in found:
        if not each.present:
            print(f"{each.lesson.notebook} is not here: `llmsys update` brings it")
    print(_next(found))


def check(
    what: Annotated[
        str | None, typer.Argument(metavar="LESSON|EXERCISE", help='"02" or "02.merge"; every lesson if left out.')
    ] = None,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Test the checks themselves: stubs, solutions, mistakes, mutations.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="With --self-test: draws the mutations. Default: the date.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="With --self-test: every mutation, and each mistake twice.")
    ] = False,
) -> None:
    """Check the answers in your notebooks, as saved, and say what each check found.

    Each runs in a process of its own, as in the grader. Progress is what your check cells record when you run them.
    """
    if self_test:
        _self_test(what, seed, everything)
        return
    if seed is not None or everything:
        raise Refused("--seed and --all go with --self-test")
    workspace = here()
    exercise = manifest.exercise(what) if what and "." in what else None
    chosen = [manifest.lesson(exercise.lesson if exercise else what)] if what else manifest.lessons()
    from rich.console import Console

    from llmsys.course.grading.grade import check_notebook
    from llmsys.course.workspace import progress

    known, passed, failed = progress.passed(workspace), [], []
    for lesson in chosen:
        grades = check_notebook(workspace / lesson.notebook, only=exercise and exercise.id)
        while True:
            with Console(stderr=True).status(f"checking lesson {lesson.number}"):
                if (grade := next(grades, None)) is None:
                    break
            print(grade, end="\n\n")
            if not grade and grade.exercise.optional and exercise is None:
                print("It is optional, and does not count.", end="\n\n")
            else:
                (passed if grade else failed).append(grade.exercise.id)
    if unknown := [id for id in passed if id not in known]:
        print(f"Run the check cells of {', '.join(unknown)} in the notebook, and `llmsys status` will know, too.")
    raise typer.Exit(1 if failed else 0)


def _self_test(what: str | None, seed: int | None, everything: bool) -> None:
    from llmsys.course.authoring.self_test import self_test

    report = self_test(what, seed=seed, everything=everything, progress=lambda line: print(line, flush=True))
    print(str(report).splitlines()[-1])
    raise typer.Exit(0 if report.ok else 1)


def hint(exercise: Exercise) -> None:
    """Show the next hint for an exercise: a nudge, then the invariant, then pseudocode."""
    from llmsys.course.attempts import hint

    id = manifest.exercise(exercise).id
    with contextlib.chdir(workspaces.find() or workspaces.find(Path.cwd() / "work") or Path.cwd()):
        print(repr(hint(id)))  # recorded in the workspace of the current directory


def reset(
    what: Annotated[str, typer.Argument(metavar="LESSON|EXERCISE", help='"02" or "02.merge".')],
) -> None:
    """Put a lesson, or one exercise, back as it was. Your version is kept."""
    done = workspaces.reset(what, here())
    print(f"{done.id} is as it was in {done.notebook}. Your version is kept: {done.backup}")
    print(RELOAD)


def _next(found: list) -> str:
    """What to do next: the first exercise that has not passed, of a lesson already begun if there is one. Optional ones
    are named when all others have passed."""
    begun = sorted(found, key=lambda each: not (each.passed and set(each.lesson.required) - set(each.passed)))
    for each in begun:
        for exercise in each.lesson.required:
            if exercise not in each.passed:
                where = f"in {each.lesson.notebook}, about {_count(exercise.minutes, 'minute')}"
                return f"Next: {exercise.id} ({where}). {exercise.summary}"
    left = [exercise.id for each in found for exercise in each.lesson.exercises if exercise not in each.passed]
    beyond = f" Optional ones are left: {', '.join(left)}." if left else ""
    return f"All exercises have passed.{beyond} `llmsys update` brings new lessons when there are some."


def _glyph(exercise: manifest.Exercise, passed: bool) -> str:
    glyph = "✓" if passed else "·"
    return f"({glyph})" if exercise.optional else glyph


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
