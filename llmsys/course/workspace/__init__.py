"""Where a learner works, and what happens to their notebooks there.

    workspace    its layout; laid out by `start`, put back by `reset`
    notebook     notebook files: read strictly, change by cell id, write so that nothing is lost
    update       new versions of lessons come in, and no edited cell is lost
    progress     what has passed, hints taken, guesses made: one file
    status       how far each lesson is
    mine         passed answers, written out as an importable package
"""

from llmsys.course.workspace.workspace import WorkspaceError, find, require, reset, restore_checks, start

__all__ = ["WorkspaceError", "find", "require", "reset", "restore_checks", "start"]
