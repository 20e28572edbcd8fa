"""Lesson 01: right answers are taken and wrong ones rejected, and large logits trip no right answer."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmsys.attention import cost
from llmsys.course.checking.checks import get_check
from llmsys.course.checking.mistakes import edited
from llmsys.hardware import roofline
from llmsys.lessons.common import multiples
from llmsys.lessons.lesson_01_memory_wall import mistakes
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, fresh, verdict


def test_the_attention_that_the_mistakes_are_edits_of_passes():
    assert_taken("01.naive_attention", mistakes.attention)


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


def figures(B, H, T, D, itemsize):
    scores, rows = B * H * T**2, B * H * T * D
    return 4 * scores * D, scores, itemsize * 4 * (rows + scores), itemsize * scores


def counted_as_floats(B, H, T, D, *, itemsize=2):
    return tuple(map(int, figures(float(B), H, T, D, itemsize)))


def pairs_of_bytes(B, H, T, D, *, itemsize=2):
    return *figures(B, H, T, D, itemsize)[:3], B * H * T**2 // 2 * 2 * itemsize


def one_product_where_T_is_D(B, H, T, D, *, itemsize=2):
    flops, *others = figures(B, H, T, D, itemsize)
    return flops // (1 + (T == D)), *others


def scores_in_four_bytes(B, H, T, D, *, itemsize=2):
    flops, scores, size, saved = figures(B, H, T, D, itemsize)
    return flops, scores, size + 4 * scores * (max(itemsize, 4) - itemsize), saved


def saved_of_one_sequence(B, H, T, D, *, itemsize=2):
    return *figures(B, H, T, D, itemsize)[:3], H * T**2 * itemsize


def as_tensors(B, H, T, D, *, itemsize=2):
    return tuple(torch.tensor(figures(B, H, T, D, itemsize)))


@pytest.mark.parametrize("answer", [counted, in_floats, with_a_mask, remembers_the_shape, counted_as_floats,
                                    pairs_of_bytes, one_product_where_T_is_D, scores_in_four_bytes,
                                    saved_of_one_sequence, as_tensors])  # fmt: skip
def test_wrong_counts_are_rejected(answer):
    assert_rejected("01.naive_cost", answer)


def each_once(B, H, T, D, *, itemsize=2):
    S, qo = B * H * T * T, B * H * T * D
    kernels = 2 * qo + S, S, 2 * qo  # what crosses for q kᵀ, for softmax, for P v
    return 4 * S * D, S, itemsize * sum(kernels), itemsize * S


def the_softmax_in_place(B, H, T, D, *, itemsize=2):
    S, qo = B * H * T * T, B * H * T * D
    kernels = 2 * qo + S, S, S + 2 * qo  # its result is not written
    return 4 * S * D, S, itemsize * sum(kernels), itemsize * S


@pytest.mark.parametrize("answer, said", [
    (each_once, "You let S and P cross only once each"), (the_softmax_in_place, "One crossing is missing"),
])  # fmt: skip
def test_a_crossing_that_is_not_counted_is_named(answer, said):
    assert said in str(verdict("01.naive_cost", answer, name_mistakes=True))


def by_loops(B, H, T, D, *, itemsize=2):
    """A list, head by head."""
    heads = [(4 * T * T * D, T * T, itemsize * (4 * T * D + 4 * T * T), itemsize * T * T) for _ in range(H)]
    return [B * sum(counts) for counts in zip(*heads, strict=True)]


def with_a_kernel_a_line(B, H, T, D, *, itemsize=2):
    qo, s = B * H * T * D, B * H * T**2
    kernels = (qo + qo, s), (s, s), (s + qo, qo)  # read and written
    return 2 * s * D + 2 * qo * T, s, itemsize * sum(map(sum, kernels)), itemsize * s


def by_numpy(B, H, T, D, *, itemsize=2):
    s, qo = np.array([T, D], dtype=object) * (B * H * T)
    return tuple(int(x) for x in (4 * s * D, s, 4 * itemsize * (s + qo), itemsize * s))


@pytest.mark.parametrize("answer", [by_loops, with_a_kernel_a_line, by_numpy])
def test_right_counts_are_taken(answer):
    assert_taken("01.naive_cost", answer)


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


def row_by_row(q, k, v, *, causal=False, scale=None, return_lse=False):
    (B, Hq, Tq, Dk), (Hkv, Tk) = q.shape, k.shape[1:3]
    o, lse = torch.zeros(B, Hq, Tq, v.shape[3], dtype=v.dtype), torch.full((B, Hq, Tq), -math.inf)
    for i in range(Tq):
        seen = max(i + 1 + Tk - Tq, 0) if causal else Tk
        for h in range(Hq if seen else 0):
            K, V = (x[:, h * Hkv // Hq, :seen].float() for x in (k, v))
            s = (K @ q[:, h, i, :, None].float())[..., 0] * (Dk**-0.5 if scale is None else scale)
            o[:, h, i] = (torch.softmax(s, -1)[:, None] @ V)[:, 0].to(v.dtype)
            lse[:, h, i] = torch.logsumexp(s, -1)
    return (o, lse) if return_lse else o


def in_a_pool(q, k, v, **options):
    with ThreadPoolExecutor(2) as pool:
        parts = zip(*(x.split(1) for x in (q, k, v)), strict=True)
        done = list(pool.map(lambda part: mistakes.attention(*part, **options), parts))
    return tuple(map(torch.cat, zip(*done, strict=True))) if options.get("return_lse") else torch.cat(done)


def with_a_softmax_of_its_own(q, k, v, *, causal=False, scale=None, return_lse=False):
    (Hq, Tq, Dk), (Hkv, Tk) = q.shape[1:], k.shape[1:3]
    k, v = (x[:, :, None].expand(-1, -1, Hq // Hkv, -1, -1).flatten(1, 2) for x in (k, v))
    s = (q * (Dk**-0.5 if scale is None else scale) @ k.mT).float()
    if causal:
        s = s.where(torch.arange(Tk) <= torch.arange(Tq)[:, None] + Tk - Tq, -math.inf)
    m = s.amax(-1, keepdim=True).clamp(min=-3e38)
    p = (s - m).exp()
    l = p.sum(-1, keepdim=True)
    o = (p / l.clamp(min=1e-30)).to(v.dtype) @ v
    return (o, (m + l.log())[..., 0]) if return_lse else o


@pytest.mark.parametrize("answer", [by_einsum, row_by_row, in_a_pool, with_a_softmax_of_its_own])
def test_another_right_attention_is_taken(answer):
    assert_taken("01.naive_attention", answer)


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


def the_fused_one_in_a_thread(q, k, v, **options):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(the_fused_one, q, k, v, **options).result()


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
        attention_but("own_scale_ignored_in_half_precision", ("if scale is None else",
                      "if scale is None or q.dtype == torch.float16 else")),
        attention_but("masked_with_the_smallest_number", ("-math.inf", "torch.finfo(torch.float32).min")),
        attention_but("lse_of_nothing_is_zero", ("torch.logsumexp(s, dim=-1)",
                      "torch.logsumexp(s, dim=-1).nan_to_num(neginf=0.0)")),
        attention_but("lse_in_double_precision", ("torch.logsumexp(s,", "torch.logsumexp(s.double(),")),
        remembers_the_result, the_fused_one, the_fused_one_in_a_thread, the_next_stage,
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


def times(operations, peak_flops, bandwidth):
    return [max(flops / peak_flops, size / bandwidth) for flops, size in operations]


def in_float32(operations, *, peak_flops, bandwidth):
    return float(torch.tensor(times(operations, peak_flops, bandwidth)).sum())


def in_whole_seconds(operations, *, peak_flops, bandwidth):
    return float(sum(max(flops // peak_flops, size // bandwidth) for flops, size in operations))


def overlaps_the_next_kernel(operations, *, peak_flops, bandwidth):
    shifted = zip([(0, 0), *operations], [*operations, (0, 0)], strict=True)
    return sum(max(before[0] / peak_flops, after[1] / bandwidth) for before, after in shifted)


def takes_them_away(operations, *, peak_flops, bandwidth):
    return sum(times([operations.pop() for _ in range(len(operations))], peak_flops, bandwidth))


def a_dict_of_them(operations, *, peak_flops, bandwidth):
    return sum(times(dict(operations).items(), peak_flops, bandwidth))


def eight_at_most(operations, *, peak_flops, bandwidth):
    return sum(times(operations[:8], peak_flops, bandwidth))


def without_the_empty_ones(operations, *, peak_flops, bandwidth):
    return sum(times([each for each in operations if all(each)], peak_flops, bandwidth))


def by_exact_sums(operations, *, peak_flops, bandwidth):
    return math.fsum(times(operations, peak_flops, bandwidth))


def by_the_ridge(operations, *, peak_flops, bandwidth):
    seconds = 0
    for flops, size in operations:
        seconds += flops / peak_flops if flops * bandwidth >= size * peak_flops else size / bandwidth
    return seconds


def by_numpys_maximum(operations, *, peak_flops, bandwidth):
    pairs = np.array(operations, float).reshape(-1, 2) / [peak_flops, bandwidth]
    return float(pairs.max(1).sum())


@pytest.mark.parametrize("answer", [by_exact_sums, by_the_ridge, by_numpys_maximum])
def test_right_seconds_are_taken(answer):
    assert_taken("01.roofline_seconds", answer)


@pytest.mark.parametrize(
    "answer",
    [remembers_the_kernels, by_the_ridge_of_one_machine, each_kernel_once, by_intensity, the_librarys_total, in_float32,
     in_whole_seconds, overlaps_the_next_kernel, takes_them_away, a_dict_of_them, eight_at_most,
     without_the_empty_ones],
)  # fmt: skip
def test_wrong_seconds_are_rejected(answer):
    assert_rejected("01.roofline_seconds", answer)


@pytest.mark.parametrize("exercise", exercises_of("01"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
