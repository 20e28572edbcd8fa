"""Lesson 02: the right answers that its mistakes are edits of."""

import pytest

from llmsys.course.checking.checks import get_check, run_check
from llmsys.hardware import sanitizer
from llmsys.lessons.lesson_02_online_softmax import mistakes
from tests.support.self_tests import assert_check_stands, exercises_of


def passes(exercise, answer):
    check = get_check(exercise)
    for seed in range(3):
        result = run_check(check, check.local_runner(answer), seed=seed)
        assert result, result


@pytest.mark.parametrize("name", ["safe_softmax", "merge", "online_softmax"])
def test_the_answer_that_the_mistakes_are_edits_of_passes(name):
    passes(f"02.{name}", getattr(mistakes, name))


@pytest.mark.skipif(not sanitizer.available(), reason="kernels are not interpreted here")
def test_the_kernel_that_the_mistakes_are_edits_of_passes():
    from llmsys.lessons.lesson_02_online_softmax import kernel_mistakes  # loads Triton

    passes("02.softmax_kernel", kernel_mistakes.softmax_kernel)


@pytest.mark.parametrize("exercise", exercises_of("02"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
