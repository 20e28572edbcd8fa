"""Which errors are for people: one line that says what is wrong and what to do, instead of a traceback.

Only what the user can mend is listed. Everything else is a bug, and a bug without its traceback cannot be found.
"""

import errno
import sys


class Refused(Exception):
    """What was asked for cannot be done here. The message says why, and what to do."""


# As names, so that nothing is imported for their sake: a module that has not been imported has raised nothing.
FOR_PEOPLE = (
    "llmsys.course.cli.errors:Refused",
    "llmsys.course.manifest:UnknownId",
    "llmsys.course.workspace.workspace:WorkspaceError",
    "llmsys.course.workspace.notebook:NotebookError",
    "llmsys.course.workspace.notebook:CannotWrite",
    "llmsys.course.authoring.execute:BuildError",
    "llmsys.course.grading.sandbox:GradeError",
)

# What a disk says that is full, or that may not be written to. (Other errors of the system's are bugs until shown to be
# a user's: a file that is not there was perhaps never the user's to make.)
OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def for_people(error: Exception) -> str | None:
    """What to tell the user about an error, in one line; None where it is a bug."""
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "llmsys":
        package = error.name.partition(".")[0]
        return f"this command needs {package}, which is missing: `llmsys doctor` says how to get it"
    pairs = (each.split(":") for each in FOR_PEOPLE)
    kinds = tuple(getattr(sys.modules[module], name) for module, name in pairs if module in sys.modules)
    if isinstance(error, kinds):
        return str(error)
    if isinstance(error, OSError) and error.errno in OF_A_DISK:
        from llmsys.course.workspace.notebook import disk_remedy

        return f"{error.filename or 'the disk'}: {error.strerror}: {disk_remedy(error)}"
    return None
