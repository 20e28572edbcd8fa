"""The course's machinery: what a notebook imports is here.

    from llmsys.course import check, diagnose, hint, measured, mine, predict

Each name is fetched from its module when it is first used, so that `llmsys start` and `llmsys doctor` need neither
torch
nor a second of start-up.
"""

from importlib import import_module

_MODULES = {
    "check": "llmsys.course.attempts",
    "hint": "llmsys.course.attempts",
    "predict": "llmsys.course.predictions",
    "measured": "llmsys.course.predictions",
    "mine": "llmsys.course.workspace.mine",
    "diagnose": "llmsys.course.doctor",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'llmsys.course' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
