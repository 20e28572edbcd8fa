"""Lesson 02: right answers are taken, wrong ones rejected, and named only where they are what the name says."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from llmsys.course.checking.checks import get_check, run_check
from llmsys.hardware import sanitizer
from llmsys.lessons.lesson_02_online_softmax import mistakes
from tests.lessons.answers_02 import merge as merges
from tests.lessons.answers_02 import online_softmax as online_softmaxes
from tests.lessons.answers_02 import safe_softmax as safe_softmaxes
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.size import FULL, drawn
from tests.support.verdicts import SEEDS, assert_rejected, assert_taken, fresh, verdict


def passes(exercise, answer):
    check = get_check(exercise)
    for seed in SEEDS:
        result = run_check(check, check.local_runner(answer), seed=seed)
        assert result, result


@pytest.mark.parametrize("name", ["safe_softmax", "merge", "online_softmax"])
def test_the_answer_that_the_mistakes_are_edits_of_passes(name):
    passes(f"02.{name}", getattr(mistakes, name))


def parts(x, tile):
    return x.split(tile, -1)


def passes_turn_round(x, tile):
    """Each pass begins with the tile that the one before ended with: it is still on the chip."""
    m, l, last = x.new_full((*x.shape[:-1], 1), -math.inf), 0, None
    starts = list(range(0, x.shape[-1], tile))
    for start in starts:
        last = x[..., start : start + tile].clone()
        m = torch.maximum(m, last.amax(-1, keepdim=True))
    for start in reversed(starts):
        last = last if start == starts[-1] else x[..., start : start + tile].clone()
        l = l + (last - m).exp().sum(-1, keepdim=True)
    y = torch.empty_like(x)
    for start in starts:
        last = last if start == 0 else x[..., start : start + tile].clone()
        y[..., start : start + tile] = (last - m).exp() / l
    return y


def put_together_in_the_end(x, tile):
    m = torch.stack([part.amax(-1, keepdim=True) for part in parts(x, tile)]).amax(0)
    l = sum((part - m).exp().sum(-1, keepdim=True) for part in parts(x, tile))
    return torch.cat([(part - m).exp() / l for part in parts(x, tile)], -1)


def in_numpy_with_its_own_result(x, tile):
    starts = range(0, x.shape[-1], tile)
    m, l = -np.inf, 0.0
    for start in starts:
        m = np.maximum(m, x[..., start : start + tile].double().numpy().max(-1, keepdims=True))
    for start in starts:
        l = l + np.exp(x[..., start : start + tile].double().numpy() - m).sum(-1, keepdims=True)
    y = np.empty(x.shape, np.float64)
    for start in starts:
        y[..., start : start + tile] = np.exp(x[..., start : start + tile].double().numpy() - m) / l
    return torch.from_numpy(y).to(x.dtype)


def in_a_pool(x, tile):
    with ThreadPoolExecutor(4) as pool:
        m = torch.stack(list(pool.map(lambda part: part.amax(-1, keepdim=True), parts(x, tile)))).amax(0)
        l = sum(pool.map(lambda part: (part - m).exp().sum(-1, keepdim=True), parts(x, tile)))
        return torch.cat(list(pool.map(lambda part: (part - m).exp() / l, parts(x, tile))), -1)


@pytest.mark.parametrize("answer", drawn([passes_turn_round, put_together_in_the_end, in_a_pool], 2))
def test_right_safe_softmaxes_are_taken(answer):
    assert_taken("02.safe_softmax", answer)


def test_right_numbers_by_numpy_are_sent_back_to_torch():
    result = verdict("02.safe_softmax", in_numpy_with_its_own_result)
    assert not result and "data left torch, by numpy()" in str(result)


def in_place_and_whole(x, tile):
    m = x.amax(-1, keepdim=True)
    l = x.sub(m).exp_().sum(-1, keepdim=True)
    return x.sub(m).exp_().div_(l)


def tiles_in_a_dict(x, tile):
    kept = {}
    for i, part in enumerate(parts(x, tile)):
        kept[i] = part.clone()
    m = torch.stack([part.amax(-1, keepdim=True) for part in kept.values()]).amax(0)
    l = sum((part - m).exp().sum(-1, keepdim=True) for part in parts(x, tile))
    return torch.cat([(part - m).exp() / l for part in parts(x, tile)], -1)


def tiles_in_numpy(x, tile):
    kept = []
    for part in parts(x, tile):
        kept.append(part.double().numpy() * 1.0)
    m = np.maximum.reduce([part.max(-1, keepdims=True) for part in kept])
    m = torch.from_numpy(m).to(x.dtype)
    l = sum((part - m).exp().sum(-1, keepdim=True) for part in parts(x, tile))
    return torch.cat([(part - m).exp() / l for part in parts(x, tile)], -1)


def one_numpy_view(x, tile):
    array, y = x.float().numpy(), torch.empty_like(x)
    starts = range(0, x.shape[-1], tile)
    m = np.maximum.reduce([array[..., start : start + tile].max(-1, keepdims=True) for start in starts])
    l = sum(np.exp(array[..., start : start + tile] - m).sum(-1, keepdims=True) for start in starts)
    for start in starts:
        y[..., start : start + tile] = torch.from_numpy(np.exp(array[..., start : start + tile] - m) / l)
    return y


def numpy_views_of_tiles(x, tile):
    views, y = [part.detach().numpy() for part in parts(x, tile)], torch.empty_like(x)
    m = np.maximum.reduce([part.max(-1, keepdims=True) for part in views])
    l = sum(np.exp(part - m).sum(-1, keepdims=True) for part in views)
    for part, into in zip(views, parts(y, tile), strict=True):
        into.copy_(torch.from_numpy(np.exp(part - m) / l))
    return y


def numbers_in_a_list(x, tile):
    rows = x.double().reshape(-1, x.shape[-1]).tolist()
    done = [[math.exp(z - max(row)) for z in row] for row in rows]
    return torch.tensor([[e / sum(row) for e in row] for row in done], dtype=x.dtype).view(x.shape)


def kept_by_a_thread(x, tile):
    kept = []
    with ThreadPoolExecutor(1) as pool:
        kept.extend(pool.map(torch.clone, parts(x, tile)))
    m = torch.stack([part.amax(-1, keepdim=True) for part in kept]).amax(0)
    l = sum((part - m).exp().sum(-1, keepdim=True) for part in kept)
    return torch.cat([(part - m).exp() / l for part in kept], -1)


def fused_in_a_thread(x, tile):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.softmax, x, -1).result()


WRONG_ON_ROWS = [in_place_and_whole, tiles_in_a_dict, tiles_in_numpy, one_numpy_view, numpy_views_of_tiles,
                 numbers_in_a_list, kept_by_a_thread, fused_in_a_thread]  # fmt: skip


@pytest.mark.parametrize("exercise", ["02.safe_softmax", "02.online_softmax"])
@pytest.mark.parametrize("answer", drawn(WRONG_ON_ROWS, 2))
def test_keeping_rows_is_rejected_in_whatever_they_are_kept(exercise, answer):
    assert_rejected(exercise, answer)


def test_a_row_that_is_copied_as_a_whole_is_not_said_to_be_kept_by_tiles():
    def padded(x, tile):
        row = torch.nn.functional.pad(x, (0, -x.shape[-1] % tile), value=-math.inf)
        return mistakes.safe_softmax(row, tile)[..., : x.shape[-1]].contiguous()

    result = verdict("02.safe_softmax", padded, name_mistakes=True)
    assert not result and result.misconception is None


@fresh
def remembers_rows():
    known = {}

    def online_softmax(x, tile):
        return known.setdefault((x.shape, tile), mistakes.online_softmax(x, tile)).clone()

    return online_softmax


def masked_with_a_large_number(x, tile):
    return mistakes.online_softmax(x.clamp(min=max(-1e6, torch.finfo(x.dtype).min)), tile)


def sums_in_the_first_tiles_maximum(x, tile):
    m = x[..., :tile].amax(-1, keepdim=True)
    m = m.masked_fill(m == -math.inf, 0)
    l = sum((part - m).exp().sum(-1, keepdim=True) for part in parts(x, tile))
    return torch.cat([(part - m).exp() / l for part in parts(x, tile)], -1)


def powers_of_two_only(x, tile):
    N = x.shape[-1]
    if N & (N - 1):
        tile = N
    return mistakes.online_softmax(x, tile) if N != 13 else mistakes.online_softmax(x[..., :12], tile)


def over_memory(x, tile):
    return mistakes.online_softmax(x.view(-1, x.shape[-1]), tile).view(x.shape)


WRONG_ONLINE = [remembers_rows, masked_with_a_large_number, sums_in_the_first_tiles_maximum, powers_of_two_only,
                over_memory]  # fmt: skip


@pytest.mark.parametrize("answer", drawn(WRONG_ONLINE, 2))
def test_wrong_online_softmaxes_are_rejected(answer):
    assert_rejected("02.online_softmax", answer)


def merged(a, b, *, maximum=torch.maximum, begin=0.0):
    (m1, l1), (m2, l2) = a, b
    m = maximum(m1, m2)
    finite = m.masked_fill(m == -math.inf, begin)
    return m, l1 * torch.exp(m1 - finite) + l2 * torch.exp(m2 - finite)


def below_a_number_is_nothing(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2).clamp(min=-1e4)
    l = l1 * torch.exp(m1 - m) + l2 * torch.exp(m2 - m)
    return m.masked_fill(l == 0, -math.inf), l


def row_by_row_over_memory(a, b):
    return tuple(x.view(a[0].shape) for x in merged(*(tuple(x.view(-1) for x in pair) for pair in (a, b))))


def always_float32(a, b):
    return tuple(x.float() for x in merged(a, b))


def at_least_one_dimension(a, b):
    return tuple(torch.stack(list(x)) for x in merged(a, b))


@fresh
def remembers_the_first_merge():
    known = {}
    return lambda a, b: known.setdefault((a[0].shape, b[0].shape), merged(a, b))


def by_softplus_of_cumulated_logarithms(a, b):
    (m1, l1), (m2, l2) = a, b
    m = torch.maximum(m1, m2)
    return m, torch.logcumsumexp(torch.stack([m1 - m + l1.log(), m2 - m + l2.log()]), 0)[-1].exp()


def by_the_tiles_state(a, b):
    from llmsys.attention.tiled import State, absorb

    (m1, l1), (m2, l2) = a, b
    state = State(m1[..., None], l1[..., None], torch.zeros(*m1.shape, 1, 1))
    new = absorb(state, (m2 + l2.log())[..., None, None], torch.zeros(*m1.shape, 1, 1), deferred=True)
    return new.m[..., 0], new.l[..., 0]


@pytest.mark.parametrize(
    "answer",
    [below_a_number_is_nothing, row_by_row_over_memory, always_float32, at_least_one_dimension,
     remembers_the_first_merge, by_softplus_of_cumulated_logarithms, by_the_tiles_state],
)  # fmt: skip
def test_wrong_merges_are_rejected(answer):
    assert_rejected("02.merge", answer)


def by_pythons_max(a, b):
    m = max(a[0], b[0])
    return m, a[1] * torch.exp(a[0] - m) + b[1] * torch.exp(b[0] - m)


def by_an_if(a, b):
    (m1, l1), (m2, l2) = a, b
    return (m1, l1 + l2 * torch.exp(m2 - m1)) if m1 > m2 else (m2, l2 + l1 * torch.exp(m1 - m2))


@pytest.mark.parametrize("answer", [by_pythons_max, by_an_if])
def test_a_comparison_of_whole_tensors_is_named(answer):
    assert "You compare whole tensors in Python" in str(verdict("02.merge", answer, name_mistakes=True))


def test_a_merge_may_give_a_list():
    assert_taken("02.merge", lambda a, b: list(merged(a, b)))


ANSWERS = {
    "02.safe_softmax": safe_softmaxes,
    "02.merge": merges,
    "02.online_softmax": online_softmaxes,
}


def of_each_day(which, short):
    """Some of the answers that the modules have, others every day; all of them in the full form of the tests."""
    return [(id, each) for id, module in ANSWERS.items() for each in drawn(getattr(module, which), short)]


def name(value):
    return value if isinstance(value, str) else value.__name__


@pytest.mark.parametrize(("exercise", "answer"), of_each_day("RIGHT", 1), ids=name)
def test_a_right_answer_in_another_form_is_taken(exercise, answer):
    assert_taken(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), of_each_day("WRONG", 3), ids=name)
def test_an_answer_that_is_nearly_right_is_rejected(exercise, answer):
    assert_rejected(exercise, answer)


def of_kernels(which, short):
    if not sanitizer.available():
        return [pytest.param(None, marks=pytest.mark.skip(reason="kernels are not interpreted here"))]
    from tests.lessons.answers_02 import softmax_kernel as kernels  # loads Triton

    return [pytest.param(kernel, id=name) for name, kernel in drawn(getattr(kernels, which).items(), short)]


def judged(kernel, **options):
    check = get_check("02.softmax_kernel")
    return [run_check(check, check.local_runner(kernel), seed=seed, name_mistakes=False, **options) for seed in SEEDS]


@pytest.mark.parametrize("kernel", of_kernels("RIGHT", 1))
def test_a_right_kernel_in_another_form_is_taken(kernel):
    for result in judged(kernel, compile_kernels=FULL):
        assert result, result


@pytest.mark.parametrize("kernel", of_kernels("WRONG", 1))
def test_a_kernel_that_is_nearly_right_is_rejected(kernel):
    assert not any(judged(kernel, compile_kernels=False))


@pytest.mark.parametrize("exercise", exercises_of("02"))
@pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # wrong kernels divide by zero
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
