"""A kernel that passed on a GPU, once more in the interpreter, where its memory is watched.

Compiled, a load past the end of a tensor finds whatever lies there, and the result may well be right; nor does anybody
count the bytes. Only Triton's interpreter can be watched (`llmsys.hardware.sanitizer`), and it cannot share a process
with compiled kernels. So on a GPU machine `check` has a kernel that passed called again in the grader's worker process,
which always interprets.
"""

from llmsys.course.checking.checks import run_check
from llmsys.course.workspace import mine
from llmsys.hardware.kernel_source import underlying


def confirm(check, answer: object, result):
    """The `result` of a check that passed, unless the kernel, interpreted, touches memory that it should not, or moves
    more bytes than it may: then the result of that. Nothing else that may go wrong over there (no source, no worker
    process on this platform, something that the interpreter does not know) takes the pass away."""
    from llmsys.course.grading.remote import RemoteRunner
    from llmsys.course.grading.sandbox import GradeError, Sandbox
    from llmsys.hardware.tier import interpreting

    if interpreting():
        return result
    function = underlying(answer)
    try:
        cell = mine.section_source(function)
        sandbox = Sandbox()
    except (OSError, TypeError, AttributeError, SyntaxError, GradeError):
        return result
    with sandbox:
        runner = RemoteRunner(sandbox)
        job = {"id": check.id, "function": function.__name__, "setup": (), "cells": ((check.id, cell),), "module": ""}
        if runner.open(job).problem:
            return result
        # Misconceptions would run compiled, unwatched, and the kernel has been compiled here.
        again = run_check(check, runner, name_mistakes=False, compile_kernels=False)
    return again if again.failure and again.failure.kind in ("memory", "traffic", "products", "tiles") else result
