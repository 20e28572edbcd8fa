"""Answers that a check has not seen: whether it takes the right ones and rejects the wrong ones."""

from collections.abc import Callable

from llmsys.course.checking.checks import Result, get_check, run_check
from llmsys.course.checking.runner import LocalRunner
from tests.support.size import SEED, sized

SEEDS = sized(short=(SEED,), full=(0, 1, 2, SEED))
"""The seeds with which an answer is checked: one that is new every day, and those of notebooks."""


def verdict(
    exercise: str, answer: Callable, seed: int = 0, *, name_mistakes: bool = False, watched: bool = True
) -> Result:
    """What the check of that exercise makes of an answer. `answer` is a function, or one without arguments that is
    marked by `fresh` and makes it. Where it is not watched, it may call what is forbidden, and takes half the time."""
    made = answer() if getattr(answer, "makes_an_answer", False) else answer
    check = get_check(exercise)
    if watched:
        runner = check.local_runner(made)
    else:
        runner = LocalRunner(made, adapt=check.adapt, kernel=check.kernel, build=check.build)
    return run_check(check, runner, seed=seed, name_mistakes=name_mistakes)


def fresh(make: Callable) -> Callable:
    """Mark a function that makes an answer with a memory of its own: each check begins with a new one."""
    make.makes_an_answer = True
    return make


def assert_taken(exercise: str, answer: Callable) -> None:
    for seed in SEEDS:
        result = verdict(exercise, answer, seed)
        assert result, f"seed {seed}\n{result}"


def assert_rejected(exercise: str, answer: Callable) -> None:
    for seed in SEEDS:  # whoever is rejected though everything is allowed need not be watched
        rejected = not verdict(exercise, answer, seed, watched=False) or not verdict(exercise, answer, seed)
        assert rejected, f"it passes with seed {seed}"
