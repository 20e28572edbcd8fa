"""Mutations are of the solution, all different, and of five kinds; those that the seed draws are of several."""

from collections import Counter

import pytest

from llmsys.course.authoring.mutations import KINDS, MUTANTS, Mutation, draw, mutations

CLIP = '''LIMIT = 10

def clip(x):
    """x, at most 10."""
    ### BEGIN SOLUTION
    if x > LIMIT:
        return LIMIT
    return x
    ### END SOLUTION
'''
ATTENTION = '''import torch

def attention(q, k, v, *, causal=False, scale=None, tile=64):
    """Attention.

    q (B, Hq, Tq, Dk)   k (B, Hkv, Tk, Dk)   v (B, Hkv, Tk, Dv), float32 or float16
    """
    ### BEGIN SOLUTION
    s = (q @ k.mT).float() * (scale or 1)
    if causal:
        s = s.tril()
    return s.to(v.dtype) @ v
    ### END SOLUTION
'''
KERNEL = '''@triton.jit
def kernel(x_ptr, y_ptr, x_stride_b, x_stride_t, y_stride_b, y_stride_t, D: tl.constexpr, CAUSAL: tl.constexpr):
    """x (T, D), y (T, D)."""
    d = tl.arange(0, D)
    ### BEGIN SOLUTION
    total = tl.zeros((D,), tl.float32)
    for t in range(0, 8):
        x = tl.load(x_ptr + t * x_stride_t + d, mask=(d < D) & (t < 7), other=0.0)
        total += tl.dot(x, x)
        if CAUSAL:
            total = total * 2
    tl.store(y_ptr + d, total.to(tl.float16))
    ### END SOLUTION
'''


def of_kind(cell: str, kind: str) -> dict[str, str]:
    return {each.text: each.source for each in mutations(cell) if each.kind == kind}


def test_mutations_are_of_the_solution_only_and_all_different():
    found = of_kind(CLIP, "statements")
    assert list(found) == ["if x > LIMIT → if not x > LIMIT", "x > LIMIT → x >= LIMIT"]  # LIMIT = 10 is given
    assert len(set(found.values())) == len(found)
    texts = of_kind("### BEGIN SOLUTION\na = b + 1\nc = b + 1\n### END SOLUTION", "statements")
    assert "b + 1 → b - 1" in texts and "b + 1 → b - 1 (2)" in texts
    assert "a = b + 1 → left out" in texts and "1 → 2" in texts


@pytest.mark.parametrize("cell", [CLIP, ATTENTION, KERNEL])
def test_every_mutation_is_python_and_has_a_text_of_its_own(cell):
    found = list(mutations(cell))
    assert max(Counter(each.text for each in found).values()) == 1
    for each in found:
        compile(each.source, "mutant", "exec")
        assert each.kind in KINDS and "def " in each.source


def test_casts_are_left_out():
    assert list(of_kind(ATTENTION, "types")) == ["(q @ k.mT).float() → q @ k.mT", "s.to(v.dtype) → s"]


def test_a_kernels_types_are_halved_its_operands_and_running_sums_rounded():
    found = of_kind(KERNEL, "types")
    assert "tl.float32 → tl.float16" in found and "total.to(tl.float16) → total" in found
    operands = [text for text in found if text.startswith("tl.dot(x, x) → ")]
    assert len(operands) == 2
    assert "total += tl.dot(x, x) → total = (total + tl.dot(x, x)).to(tl.float16).to(tl.float32)" in found


def test_a_stride_is_left_out_or_taken_for_a_neighbour_or_the_rows_length():
    found = list(of_kind(KERNEL, "strides"))
    assert found == [
        "t * x_stride_t → t",
        "x_stride_t → y_stride_t",
        "x_stride_t → x_stride_b",
        "x_stride_t → D",
    ]


def test_what_a_mask_leaves_out_is_not_said_and_a_condition_is_forgotten():
    without, left, right = of_kind(KERNEL, "masks").values()
    assert "other=" not in without and "mask=d < D," in left and "mask=t < 7," in right


def test_an_option_is_forgotten_where_another_is_set_and_where_a_size_is_not_the_tame_one():
    found = of_kind(ATTENTION, "options")
    for condition in (
        "scale is not None", "not q.is_contiguous()", "q.dtype.itemsize < 4", "q.shape[0] > 1",
        "k.shape[2] > q.shape[2]", "q.shape[1] != k.shape[1]", "q.shape[3] != v.shape[3]",
    ):  # fmt: skip
        assert f"causal → False where {condition}" in found
    assert "scale → None where causal" in found
    assert "if causal:\n        scale = None\n    s = " in found["scale → None where causal"]
    assert not any(text.startswith("tile") for text in found)  # which this solution has no use for


def test_a_kernels_switch_is_forgotten_without_setting_a_constant_anew():
    (source,) = of_kind(KERNEL, "options").values()
    assert "if CAUSAL and (not x_ptr.dtype.element_ty.primitive_bitwidth < 32):" in source


def test_an_option_that_is_forgotten_is_forgotten_there_and_nowhere_else():
    cell = (
        "def f(x, *, twice=False, negative=False):\n    ### BEGIN SOLUTION\n"
        "    x = 2 * x if twice else x\n    return -x if negative else x\n    ### END SOLUTION\n"
    )
    names: dict = {}
    exec(of_kind(cell, "options")["twice → False where negative"], names)
    f = names["f"]
    assert (f(3), f(3, twice=True), f(3, negative=True), f(3, twice=True, negative=True)) == (3, 6, -3, -3)


def test_the_seed_draws_the_mutations_of_several_kinds():
    every = [Mutation(f"{kind} {n}", "", kind) for kind in KINDS for n in range(40 if kind == "statements" else 6)]
    drawn = draw(20260131, "95.clip", every)
    assert len(drawn) == MUTANTS == len(set(drawn)) and drawn == draw(20260131, "95.clip", every)
    assert {each.kind for each in drawn} == set(KINDS)
    assert len({tuple(draw(seed, "95.clip", every)) for seed in range(5)}) == 5
    assert {each for seed in range(400) for each in draw(seed, "95.clip", every)} == set(every)
    assert len(draw(1, "95.clip", every[:3])) == 3
