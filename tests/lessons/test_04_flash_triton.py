"""Lesson 04's broken kernels: the ones that the lesson shows are the ones that its checks know."""

import re

import pytest

from llmsys.course import manifest
from llmsys.course.authoring.self_test import load
from llmsys.course.checking.checks import get_check, run_check
from llmsys.hardware import sanitizer
from tests.support.self_tests import assert_check_stands, exercises_of

if not sanitizer.available():
    pytest.skip("the sanitizer watches the interpreter, and is not here", allow_module_level=True)

SOURCE = (manifest.solutions_dir() / "04_flash_triton.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("what", ["mask", "sum", "strides", "empty_row"])
def test_a_broken_kernel_of_the_lesson_is_recognised_as_found(what):
    exercise = manifest.exercise(f"04.repair_{what}")
    shown = re.search(
        rf"^@triton\.jit\ndef found_{what}\(.*?\n(?=\n\nexamine)", SOURCE, re.MULTILINE | re.DOTALL
    ).group()
    pasted = "from llmsys.hardware.tier import load_triton\ntriton, tl = load_triton()\n" + shown.replace(
        "found", "repair"
    )
    check = get_check(exercise.id)
    result = run_check(check, check.local_runner(load(pasted, exercise)))
    assert not result and result.misconception.name == f"{what}_as_found", result


@pytest.mark.parametrize("exercise", exercises_of("04"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
