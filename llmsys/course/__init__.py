"""The course's machinery: what a notebook imports is here.

    from llmsys.course import check, diagnose, hint, measured, mine, predict

Each name is fetched from its module when it is first used, so that `llmsys start` and `llmsys doctor` need neither
torch nor a second of start-up.

    manifest        which lessons and exercises there are (lessons.toml)
    attempts        what a learner calls: `check` and `hint`
    predictions     predict, then measure
    display         how results, hints and predictions look
    doctor          what this machine can do, found out by installation
    checking/       an exercise's check: written, found, run; mistakes recognised
    workspace/      where a learner works, and what happens to their notebooks there
    grading/        each exercise in a process of its own
    authoring/      for those who write lessons: new, build, lint, self_test
    cli/            the commands
"""

from importlib import import_module
from pathlib import Path

_MODULES = {
    "check": "llmsys.course.attempts",
    "hint": "llmsys.course.attempts",
    "predict": "llmsys.course.predictions",
    "measured": "llmsys.course.predictions",
    "mine": "llmsys.course.workspace.mine",
    "diagnose": "llmsys.course.doctor",
}
__all__ = sorted(_MODULES)
__path__.append(str(Path(__file__).parents[1] / "moved" / "course"))  # names from before: llmsys.moved


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'llmsys.course' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
