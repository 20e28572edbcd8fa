"""Lesson 04's broken kernels: the ones that the lesson shows are the ones that its checks know."""

import re

import pytest

from llmsys.attention.one_head import one_head_kernel
from llmsys.course import manifest
from llmsys.course.authoring.self_test import load
from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.checking.mistakes import edited
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


def judged(exercise, name, *changes):
    """What the check of an exercise makes of the library's kernel with these changes, called `name`."""
    check = get_check(f"04.{exercise}")
    return run_check(check, check.local_runner(edited(one_head_kernel, name, *changes)))


UNNAMED = [  # wrong, each in a way of its own: what is said of others would not be true of it
    ("inner_loop", "queries_loaded_again", (
     ("        s = tl.dot(q, ", "        q = tl.load(q_at)\n        s = tl.dot(q, "),
     ("    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask",
      "    q_at = q_ptr + rows[:, None] * q_stride + d[None, :]\n    q = tl.load(q_at, mask"))),
    ("repair_mask", "rows_wrap_around",
     (("    d = tl.arange(0, D)\n", "    rows = rows % Tq\n    d = tl.arange(0, D)\n"),)),
    ("repair_mask", "columns_masked", (("mask=rows[:, None] < Tq, other", "mask=d[None, :] < Tq, other"),)),
    ("repair_mask", "last_row_left_out",
     (("element_ty), mask=rows[:, None] < Tq", "element_ty), mask=rows[:, None] < Tq - 1"),)),
    ("repair_empty_row", "an_epsilon", (("tl.where(l > 0, l, 1.0)", "(l + 1e-3)"),)),
    ("causal", "products_of_single_elements",
     (('tl.dot(q, tl.trans(k), input_precision="ieee")', "tl.sum(q[:, None, :] * k[None, :, :], axis=2)"),)),
]  # fmt: skip


@pytest.mark.parametrize("exercise, name, changes", UNNAMED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_mistake_that_is_none_of_the_known_ones_is_rejected_and_not_named(exercise, name, changes):
    result = judged(exercise, name, *changes)
    assert not result and result.misconception is None, result


RIGHT = [
    ("inner_loop", ()),
    ("inner_loop", (("tl.dot(q, tl.trans(k), input", "tl.trans(tl.dot(k, tl.trans(q), input"),
                    ('"ieee") * s', '"ieee")) * s'))),
    ("repair_mask", (("rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq, other=0.0",
                      "(rows % Tq)[:, None] * q_stride + d[None, :]"),)),
    ("repair_empty_row", (('m = tl.full((BLOCK_M,), float("-inf"), tl.float32)',
                           "m = tl.full((BLOCK_M,), -3e38, tl.float32)"),
                          ("tl.where(l > 0, l, 1.0)[:, None]", "tl.where(o == 0, 1.0, l[:, None])"))),
    ("causal", (("    rows = tl.program_id(0) *", "    rows = (tl.num_programs(0) - 1 - tl.program_id(0)) *"),
                ("tl.minimum(tl.program_id(0) *", "tl.minimum((tl.num_programs(0) - 1 - tl.program_id(0)) *"))),
]  # fmt: skip


@pytest.mark.parametrize("exercise, changes", RIGHT)
def test_a_right_answer_in_another_form_passes(exercise, changes):
    assert judged(exercise, "another", *changes)


REFUSED = [
    ("inner_loop", ("l = tl.zeros((BLOCK_M,), tl.float32)", "l = 0"), "Loop-carried variable l"),
    ("causal", ("        keys =", "        if start >= Tk:\n            break\n        keys ="), "Break"),
    ("repair_mask", ("    o = tl.zeros(", "    seen = {}\n    o = tl.zeros("), "Dict"),
]  # fmt: skip


@pytest.mark.parametrize("exercise, change, says", REFUSED)
def test_a_kernel_that_only_the_interpreter_runs_is_refused(exercise, change, says):
    result = judged(exercise, "interpreted_only", change)
    assert result.failure.kind == "compile" and says in result.failure.message


@pytest.mark.parametrize("exercise", exercises_of("04"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
