"""Checks: how an exercise's check is written, found and run, and which mistake a wrong answer shows.

    checks       an exercise's check: registered, found by its id, run
    answer       what a check holds of the learner's answer: call it, name properties, say what was expected
    metered      what a check may ask of memory and of a kernel's work
    faults       what can be wrong with an answer, and when two are wrong alike
    runner       one call of the learner's function, watched and metered
    limits       how long it may take, and how it is stopped
    waiting      the line that says what it is doing, to a person who waits
    kernel_work  whether a kernel did the work that the library's does
    compiled     a kernel that passed in the interpreter, put to a GPU's compiler
    compare      plain data, and the first difference between two values
    watch        forbidden functions, seen under any name
    wire         plain data as bytes, between the grader and a learner's process
    diagnosis    misconceptions, recognised in an answer
    mistakes     wrong answers, written as edits of a right one

    from llmsys.course.checking import exercise_check, get_check, run_check

Each name is fetched from its module when it is first used: `check` and `hint` build on the checks, and so does the
worker's process on `runner` alone.
"""

from importlib import import_module

_MODULES = {
    "Check": "llmsys.course.checking.checks",
    "Result": "llmsys.course.checking.checks",
    "exercise_check": "llmsys.course.checking.checks",
    "get_check": "llmsys.course.checking.checks",
    "run_check": "llmsys.course.checking.checks",
    "Hint": "llmsys.course.attempts",  # what a learner calls, which was here before
    "check": "llmsys.course.attempts",
    "hint": "llmsys.course.attempts",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'llmsys.course.checking' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
