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
from tests.support.size import drawn

if not sanitizer.available():
    pytest.skip("the sanitizer watches the interpreter, and is not here", allow_module_level=True)

from llmsys.lessons.lesson_04_flash_triton.kernel_mistakes.ragged_groups import grouped_kernel  # noqa: E402

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


K_EXISTS = "k_stride + d[None, :], mask=keys[:, None] < Tk"
THIRTY_TWO = (  # a product of tiles that are smaller than asked
    ("range(0, stop, BLOCK_N)", "range(0, stop, BLOCK_N if BLOCK_N < 32 else 32)"),
    ("start + tl.arange(0, BLOCK_N)", "start + tl.arange(0, BLOCK_N if BLOCK_N < 32 else 32)"),
)
FIRST_QUERY_BY_D = (
    "q_ptr + rows[:, None] * q_stride",
    "q_ptr + tl.program_id(0) * BLOCK_M * D + tl.arange(0, BLOCK_M)[:, None] * q_stride",
)
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
    ("inner_loop", "columns_up_to_32",
     ((K_EXISTS, K_EXISTS.replace("keys[:, None] < Tk", "(keys[:, None] < Tk) & (d < 32)")),)),
    ("inner_loop", "scores_in_half_precision", (
     ('input_precision="ieee") * scale_log2', 'input_precision="ieee").to(q.dtype).to(tl.float32) * scale_log2'),)),
    ("inner_loop", "m_in_half_precision", (("        m = m_new\n", "        m = m_new.to(v.dtype).to(tl.float32)\n"),)),
    ("inner_loop", "thirty_two_keys_at_most", THIRTY_TWO),
    ("causal", "thirty_two_keys_at_most", THIRTY_TWO),
    ("causal", "queries_begin_at_D", (FIRST_QUERY_BY_D,)),
    ("causal", "pairs_of_tiles", (("BLOCK_M + BLOCK_M + Tk - Tq, Tk)",
     "BLOCK_M + BLOCK_M + Tk - Tq, Tk)\n        stop = tl.minimum(tl.cdiv(stop, 2 * BLOCK_N) * 2 * BLOCK_N, Tk)"),)),
    ("repair_mask", "queries_begin_at_D", (FIRST_QUERY_BY_D,)),
    ("repair_mask", "an_even_number_of_rows",
     (("element_ty), mask=rows[:, None] < Tq", "element_ty), mask=rows[:, None] < Tq // 2 * 2"),)),
    ("repair_sum", "keys_of_zeros_hidden",
     (("seen = keys[None, :] < Tk", "seen = (tl.sum(tl.abs(k), axis=1) > 0)[None, :]"),)),
    ("repair_sum", "rows_beyond_the_keys", (("keys[None, :] < Tk ", "(keys[None, :] < Tk) | (rows[:, None] >= Tk) "),)),
    ("repair_strides", "queries_begin_at_D", (FIRST_QUERY_BY_D,)),
    ("repair_strides", "tiles_begin_at_D",
     (("keys[:, None] * k_stride", "(start * D + (keys - start)[:, None] * k_stride)"),)),
    ("repair_empty_row", "at_least_one_key",
     (("<= rows[:, None] + Tk - Tq", "<= tl.maximum(rows[:, None] + Tk - Tq, 0)"),)),
    ("repair_empty_row", "at_least_minus_100",
     (('tl.where(m_new == float("-inf"), 0.0, m_new)', "tl.maximum(m_new, -100.0)"),)),
]  # fmt: skip


@pytest.mark.parametrize("exercise, name, changes", drawn(UNNAMED, 7))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_mistake_that_is_none_of_the_known_ones_is_rejected_and_not_named(exercise, name, changes):
    result = judged(exercise, name, *changes)
    assert not result and result.misconception is None, result


GROUPS = [  # of 04.ragged_groups: what is changed, and whether it is still right
    (True, (("tl.where(l > 0, l, 1.0)", "tl.where(l == 0, 1.0, l)"),)),
    (True, (("h * G + rows % G", "h * G + rows - query * G"), ("program_id(1) % Hkv", "program_id(1) - b * Hkv"))),
    (True, (("(m + tl.log2(some)) * 0.6931471805599453", "m * 0.6931471805599453 + tl.log(some)"),)),
    (False, (("rows % G", "(rows % G if G <= 4 else rows % 4)"),)),
    (False, (("b * v_stride_b", "b * k_stride_b"),)),
    (False, (("(b * Hkv * G + head) * Tq", "(b * Hkv + head) * Tq"),)),
    (False, (("BLOCK_M - 1) // G + 1 + Tk", "BLOCK_M + G - 1) // G + 1 + Tk"),)),
    (False, (("seen = keys[None, :] < Tk", "seen = (keys[None, :] < Tk) & (s != 0.0)"),)),
    (False, THIRTY_TWO),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_heads_one_below_the_other_fail_where_the_order_of_rows_is_asked_for():
    stacked = edited(
        grouped_kernel,
        "stacked",
        ("    query = rows // G\n    head = h * G + rows % G\n",
         "    head = h * G + rows // Tq\n    query = rows - rows // Tq * Tq\n"),
        ("(tl.program_id(0) * BLOCK_M + BLOCK_M - 1) // G + 1 + Tk", "tl.max(query) + 1 + Tk"),
    )  # fmt: skip
    check = get_check("04.ragged_groups")
    result = run_check(check, check.local_runner(stacked))
    assert not result and result.misconception.name == "heads_below_each_other", result
    assert "row r is query r // G" in str(result)


SCORES = 'tl.dot(q, tl.trans(k), input_precision="ieee")'


@pytest.mark.parametrize(
    "product, in_float32",
    [("tl.dot(q, tl.trans(k)", "tl.dot(q.to(tl.float32), tl.trans(k.to(tl.float32))"),
     ("tl.dot(p.to(v.dtype), v", "tl.dot(p, v.to(tl.float32)")],
)  # fmt: skip
def test_what_is_said_of_one_product_in_float32_is_true_of_either(product, in_float32):
    result = judged("inner_loop", "one_in_float32", (product, in_float32))
    assert not result and result.misconception.name == "one_product_in_float32", result


@pytest.mark.parametrize("exercise", ["inner_loop", "causal"])
def test_a_product_that_does_not_ask_for_full_precision_is_named(exercise):
    result = judged(exercise, "scores_in_tf32", (SCORES, SCORES.replace(', input_precision="ieee"', "")))
    assert not result and result.misconception.name == "one_product_in_tf32", result


@pytest.mark.parametrize("is_right, changes", drawn(GROUPS, 2))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
def test_a_kernel_with_groups_is_taken_or_rejected_and_not_named(is_right, changes):
    check = get_check("04.ragged_groups")
    result = run_check(check, check.local_runner(edited(grouped_kernel, "another", *changes)))
    assert bool(result) == is_right and result.misconception is None, result


RIGHT = [
    ("inner_loop", (("for start in range(0, stop, BLOCK_N):",
                     "for i in range(0, stop, BLOCK_N):\n        start = stop - BLOCK_N - i"),)),
    ("causal", (('tl.where(seen, s, float("-inf"))', 's + tl.where(seen, 0.0, float("-inf"))'),)),
    ("repair_mask", ((", mask=rows[:, None] < Tq, other=0.0)", ", mask=rows[:, None] < Tq)"),)),
    ("repair_sum", (("s = tl.where(seen, s", "if start + BLOCK_N > Tk:\n            s = tl.where(seen, s"),)),
    ("repair_strides", (("tl.trans(k)", "tl.permute(k, (1, 0))"),)),
    ("repair_empty_row", (('tl.where(m_new == float("-inf"), 0.0, m_new)', "tl.maximum(m_new, -1e30)"),)),
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


@pytest.mark.parametrize("exercise, changes", drawn(RIGHT, 4))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
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
