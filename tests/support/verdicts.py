"""Answers that a check has not seen: whether it takes the right ones and rejects the wrong ones, for several seeds."""

from collections.abc import Callable

from llmsys.course.checking.checks import Result, get_check, run_check
from tests.support.size import SEED, sized

TAKEN = sized(short=(0, SEED), full=(0, 1, 2, SEED))
"""The seeds with which a right answer is checked: the notebook's, and one that is new every day."""
REJECTED = sized(short=(SEED,), full=(0, 1, 2, SEED))
"""Those with which a wrong one is: where it fails, the first of them tells."""


def verdict(exercise: str, answer: Callable, seed: int = 0, *, name_mistakes: bool = False) -> Result:
    """What the check of that exercise makes of an answer. `answer` is a function, or one without arguments that is
    marked by `fresh` and makes it."""
    made = answer() if getattr(answer, "makes_an_answer", False) else answer
    check = get_check(exercise)
    return run_check(check, check.local_runner(made), seed=seed, name_mistakes=name_mistakes)


def fresh(make: Callable) -> Callable:
    """Mark a function that makes an answer with a memory of its own: each check begins with a new one."""
    make.makes_an_answer = True
    return make


def assert_taken(exercise: str, answer: Callable) -> None:
    for seed in TAKEN:
        result = verdict(exercise, answer, seed)
        assert result, f"seed {seed}\n{result}"


def assert_rejected(exercise: str, answer: Callable) -> None:
    for seed in REJECTED:
        assert not verdict(exercise, answer, seed), f"it passes with seed {seed}"
