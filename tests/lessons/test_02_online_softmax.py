"""Lesson 02's checks: they take what is right, and name what is wrong."""

import pytest

from tests.support.self_tests import assert_check_stands, exercises_of


@pytest.mark.parametrize("exercise", exercises_of("02"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
