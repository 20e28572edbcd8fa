"""The command line, `llmsys`: one function a command, in files by who uses it.

`learn` is for learners, `teach` for instructors and authors, `use`, `serve` and `data` for whoever came for the
library. Here is the table of commands, and what is done with errors: those that are the user's to mend become one line
that says what and how (exit status 2); everything else is a bug, and keeps its traceback. A command imports what it
needs when it runs, so that `llmsys start`, `status` and `doctor` answer at once and need typer and rich alone.
"""

import sys

import typer
from typer.core import TyperGroup

from llmsys.course.cli import data, learn, plan, serve, teach, use
from llmsys.course.cli.errors import for_people

__all__ = ["app", "main"]


class Commands(TyperGroup):
    """The commands in the order below, with errors for people."""

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except Exception as error:
            if (line := for_people(error)) is None:
                raise
            typer.secho(line, err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="LLM systems, from naive attention up: a course that you run.",
    epilog="Begin with: llmsys start work && cd work && jupyter lab",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
planning = typer.Typer(help="What to build, before it is built.", no_args_is_help=True)
export = typer.Typer(help="Lessons for other systems.", no_args_is_help=True)

for panel, function, example in (
    ("Learn", learn.start, "llmsys start work"),
    ("Learn", learn.update, "llmsys update"),
    ("Learn", learn.status, "llmsys status"),
    ("Learn", learn.check, "llmsys check 02.merge"),
    ("Learn", learn.hint, "llmsys hint 02.merge"),
    ("Learn", learn.reset, "llmsys reset 02.merge"),
    ("Use", use.doctor, "llmsys doctor --measure"),
    ("Use", use.generate, 'llmsys generate "Why is the sky blue?" --attention online'),
    ("Use", use.train, "llmsys train my_run --steps 100 --attention tiled"),
    ("Use", serve.serve, "llmsys serve --port 8001"),
    ("Use", serve.chat, "llmsys chat --url http://127.0.0.1:8001"),
    ("Use", data.data, "llmsys data azure-conversation"),
    ("Use", use.bench, "llmsys bench softmax"),
    ("Teach", teach.grade, "llmsys grade work --json grade.json --junit grade.xml"),
    ("Teach", teach.new, "llmsys new 13 sparse_attention"),
    ("Teach", teach.build, "llmsys build 02"),
    ("Teach", teach.lint, "llmsys lint 02"),
):
    app.command(rich_help_panel=panel, epilog=f"Example: {example}")(function)
planning.command("serving", epilog="Example: llmsys plan serving --trace azure-code --ttft 0.5 --tpot 0.01 --gpus 8")(
    plan.serving
)
app.add_typer(
    planning, name="plan", rich_help_panel="Use", epilog="Example: llmsys plan serving --trace azure-code --gpus 8"
)
export.command("nbgrader", epilog="Example: llmsys export nbgrader 02 my_course")(teach.nbgrader)
app.add_typer(export, name="export", rich_help_panel="Teach", epilog="Example: llmsys export nbgrader 02 my_course")


def main() -> None:
    """The console script. A terminal that cannot show a letter is shown its number."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="llmsys")
