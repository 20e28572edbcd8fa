"""Lesson 01: right answers are taken and wrong ones rejected, and large logits trip no right answer."""

import math

import pytest
import torch

from llmsys.attention import cost
from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.checking.mistakes import edited
from llmsys.hardware import roofline
from llmsys.lessons.common import multiples
from llmsys.lessons.lesson_01_memory_wall import mistakes
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, fresh


def test_the_attention_that_the_mistakes_are_edits_of_passes():
    check = get_check("01.naive_attention")
    for seed in range(3):
        result = run_check(check, check.local_runner(mistakes.attention), seed=seed)
        assert result, result


@pytest.mark.parametrize("wrong, right", [(mistakes.wrong_cost, cost.naive_cost),
                                          (mistakes.wrong_seconds, roofline.roofline_seconds)])  # fmt: skip
def test_mistakes_in_counting_are_edits_of_the_librarys_function(wrong, right):
    assert wrong.right is right
    assert get_check(wrong.exercise).reference is right


@pytest.mark.parametrize("seed", range(20))
def test_scores_of_few_bits_are_exact_in_float32_however_large(seed):
    """Otherwise a right answer differs from the exact one where two of the largest scores are close together."""
    generator = torch.Generator().manual_seed(seed)
    q = multiples(torch.randn(8, 16, generator=generator) * 1e4, 128)
    k = torch.randn(24, 16, generator=generator).round()
    assert q.abs().max() > 1e4
    scores = (q @ k.T) / 4
    assert torch.equal(scores.double(), (q.double() @ k.double().T) / 4)
    assert torch.equal(scores, (q / 4) @ k.T)  # wherever the scale goes
    gaps = scores.sort(dim=-1).values.diff(dim=-1)
    assert ((gaps == 0) | (gaps >= 32)).all()


def counted(B, H, T, D, *, itemsize=2):
    return tuple(cost.naive_cost(B, H, T, D, itemsize=itemsize))  # the library's own


def in_floats(B, H, T, D, *, itemsize=2):
    scores, rows = B * H * T**2, B * H * T * D
    return 4.0 * scores * D, scores, itemsize * 4 * (rows + scores), itemsize * scores


def with_a_mask(B, H, T, D, *, itemsize=2):
    scores, rows = B * H * T * (T + 1) // 2, B * H * T * D
    return 4 * scores * D, scores, itemsize * 4 * (rows + scores), itemsize * scores


@fresh
def remembers_the_shape():
    known = {}

    def naive_cost(B, H, T, D, *, itemsize=2):
        scores, rows = B * H * T**2, B * H * T * D
        new = (4 * scores * D, scores, itemsize * 4 * (rows + scores), itemsize * scores)
        return known.setdefault((B, H, T, D), new)

    return naive_cost


@pytest.mark.parametrize("answer", [counted, in_floats, with_a_mask, remembers_the_shape])
def test_wrong_counts_are_rejected(answer):
    assert_rejected("01.naive_cost", answer)


def by_einsum(q, k, v, *, causal=False, scale=None, return_lse=False):
    """Groups as a dimension of their own, and the mask added."""
    (B, Hq, Tq, Dk), (Hkv, Tk) = q.shape, k.shape[1:3]
    s = torch.einsum("bhgid,bhjd->bhgij", q.reshape(B, Hkv, Hq // Hkv, Tq, Dk), k).float()
    s = s * (Dk**-0.5 if scale is None else scale)
    if causal:
        s = s + torch.full((Tq, Tk), -math.inf).triu(Tk - Tq + 1)
    p = torch.softmax(s, -1).nan_to_num(0.0)
    o = torch.einsum("bhgij,bhjd->bhgid", p.to(v.dtype), v).reshape(B, Hq, Tq, -1)
    return [o, torch.logsumexp(s, -1).reshape(B, Hq, Tq)] if return_lse else o


def test_another_right_attention_is_taken():
    assert_taken("01.naive_attention", by_einsum)


def attention_but(name, *changes):
    return edited(mistakes.attention, name, *changes)


@fresh
def remembers_the_result():
    known = {}

    def attention(q, k, v, **options):
        shape = q.shape, k.shape, v.shape, q.dtype, tuple(options.items())
        return known.setdefault(shape, mistakes.attention(q, k, v, **options))

    return attention


def the_fused_one(q, k, v, *, causal=False, scale=None, return_lse=False):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale, enable_gqa=True)


def the_next_stage(q, k, v, **options):
    from llmsys.attention.online import online_attention

    return online_attention(q, k, v, **options)


@pytest.mark.parametrize(
    "answer",
    [
        attention_but("causal_forgets_the_groups", ("x.repeat_interleave(Hq // Hkv, dim=1)",
                      "x.repeat_interleave(Hq // Hkv, dim=1) if not causal else x.repeat(1, Hq // Hkv, 1, 1)")),
        attention_but("one_sequence_is_masked", ("masked_fill(~visible, -math.inf)",
                      "where(visible | (torch.arange(len(s)) > 0)[:, None, None, None], -math.inf)")),
        attention_but("default_scale_of_the_values", ("math.sqrt(Dk)", "math.sqrt(v.shape[-1])")),
        attention_but("lse_ignores_ones_own_scale", ("torch.logsumexp(s, dim=-1)",
                      "torch.logsumexp(s / scale / math.sqrt(Dk), dim=-1)")),
        attention_but("reads_memory_in_order", ("    s = (q @", "    q = torch.as_strided(q, q.shape, "
                      "torch.empty(q.shape).stride(), q.storage_offset())\n    s = (q @")),
        attention_but("o_in_the_queries_place", ("p.to(v.dtype) @ v", "(p.to(v.dtype) @ v)[..., : q.shape[-1]]")),
        remembers_the_result, the_fused_one, the_next_stage,
    ],
)  # fmt: skip
def test_wrong_attention_is_rejected(answer):
    assert_rejected("01.naive_attention", answer)


@fresh
def remembers_the_kernels():
    known = {}

    def seconds(operations, *, peak_flops, bandwidth):
        new = sum(max(f / peak_flops, b / bandwidth) for f, b in operations)
        return known.setdefault(tuple(map(tuple, operations)), new)

    return seconds


def by_the_ridge_of_one_machine(operations, *, peak_flops, bandwidth):
    return sum(f / peak_flops if f > 50 * b else b / bandwidth for f, b in operations)


def each_kernel_once(operations, *, peak_flops, bandwidth):
    return sum(max(f / peak_flops, b / bandwidth) for f, b in set(map(tuple, operations)))


def by_intensity(operations, *, peak_flops, bandwidth):
    return sum(f / min(peak_flops, f / b * bandwidth) for f, b in operations)


def the_librarys_total(operations, *, peak_flops, bandwidth):
    from llmsys.hardware import roofline

    return roofline.roofline_seconds(list(operations), peak_flops=peak_flops, bandwidth=bandwidth)


@pytest.mark.parametrize("answer", [remembers_the_kernels, by_the_ridge_of_one_machine, each_kernel_once, by_intensity,
                                    the_librarys_total])  # fmt: skip
def test_wrong_seconds_are_rejected(answer):
    assert_rejected("01.roofline_seconds", answer)


@pytest.mark.parametrize("exercise", exercises_of("01"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
