"""The self-test of one exercise's check, as a test of its lesson (tests/lessons/test_NN_slug.py)."""

import pytest

from llmsys.course import manifest
from llmsys.course.authoring.self_test import self_test
from tests.support.size import FULL, SEED


def exercises_of(number: str) -> list:
    """The ids of a lesson's exercises, for pytest's parametrize; kernels, which take long, are marked `slow`."""
    return [
        pytest.param(exercise.id, marks=[pytest.mark.slow] if exercise.kernel else [])
        for exercise in manifest.lesson(number).exercises
    ]


def assert_check_stands(id: str) -> None:
    """Fail with the self-test's report unless the exercise's check stands it."""
    report = self_test(id, seed=SEED, everything=FULL)
    assert report.ok, str(report)
