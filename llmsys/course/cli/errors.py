"""Which errors are for people: one line that says what is wrong and what to do, instead of a traceback.

Only what the user can mend is listed. Everything else is a bug, and a bug without its traceback cannot be found.
"""

import sys


class Refused(Exception):
    """What was asked for cannot be done here. The message says why, and what to do."""


# As names, so that nothing is imported for their sake: a module that has not been imported has raised nothing.
FOR_PEOPLE = (
    "llmsys.course.cli.errors:Refused",
    "llmsys.course.manifest:UnknownId",
    "llmsys.course.workspace.workspace:WorkspaceError",
    "llmsys.course.workspace.notebook:NotebookError",
    "llmsys.course.authoring.execute:BuildError",
    "llmsys.course.grading.sandbox:GradeError",
)


def for_people(error: Exception) -> str | None:
    """What to tell the user about an error, in one line; None where it is a bug."""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "llmsys":
        package = error.name.partition(".")[0]
        return f"this command needs {package}, which is missing: `llmsys doctor` says how to get it"
    pairs = (each.split(":") for each in FOR_PEOPLE)
    kinds = tuple(getattr(sys.modules[module], name) for module, name in pairs if module in sys.modules)
    return str(error) if isinstance(error, kinds) else None
