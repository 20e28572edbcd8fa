"""Lesson 10: its check stands its self-test, judges answers that it has not seen, and expects what torch computes;
its pictures show it."""

import numpy as np
import pytest
import torch

from llmsys.lessons.lesson_10_chunked_prefill.checks import expected
from llmsys.viz.chunked_prefill import overview, stepper
from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, fresh


@pytest.mark.parametrize("exercise", exercises_of("10"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)


# Answers that the check was not written for: right ones by other ways, and wrong ones that look right


def by_split(x, *, tile=16, scale=1.0):
    return sum(((scale * part.float()).exp().sum() for part in x.split(tile)), torch.zeros(()))


def in_place(x, *, tile=16, scale=1.0):
    total, start = torch.zeros(()), 0
    while start < len(x):
        total += (scale * x[start : start + tile].float()).exp_().sum()
        start += tile
    return total


def writes_into_x(x, *, tile=16, scale=1.0):
    return sum((part.float().mul_(scale).exp_().sum() for part in x.split(tile)), torch.zeros(()))


def by_numpy(x, *, tile=16, scale=1.0):
    return torch.tensor(np.exp(scale * x.numpy().astype(np.float32)).sum())


def in_a_list(x, *, tile=16, scale=1.0):
    return torch.stack([(scale * value.float()).exp() for value in x]).sum()


def scaled_in_float32_only(x, *, tile=16, scale=1.0):
    return by_split(x, tile=tile, scale=scale if x.dtype == torch.float32 else 1.0)


def one_tile_more(x, *, tile=16, scale=1.0):
    return by_split(x, tile=tile + 1, scale=scale)


@fresh
def remembers_a_shape():
    sums = {}

    def answer(x, *, tile=16, scale=1.0):
        if (x.shape, scale) not in sums:
            sums[x.shape, scale] = by_split(x, tile=tile, scale=scale)
        return sums[x.shape, scale]

    return answer


@pytest.mark.parametrize("answer", [by_split, in_place])
def test_right_answers_by_other_ways_pass(answer):
    assert_taken("10.sum_of_exponentials", answer)


@pytest.mark.parametrize(
    "answer", [writes_into_x, by_numpy, in_a_list, scaled_in_float32_only, one_tile_more, remembers_a_shape]
)
def test_wrong_answers_that_look_right_are_rejected(answer):
    assert_rejected("10.sum_of_exponentials", answer)


@pytest.mark.parametrize("T", [1, 2, 7, 64, 1009])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_the_expected_sum_is_the_exponential_of_torchs_logsumexp(T, scale):
    x = torch.randn(T, generator=torch.Generator().manual_seed(T))
    assert torch.allclose(expected(x, scale), (scale * x).logsumexp(0).exp())


@pytest.mark.parametrize("T, tile", [(1, 4), (7, 4), (8, 4)])
def test_the_steppers_last_frame_shows_the_whole_sum(T, tile):
    x = torch.linspace(-1, 1, T)
    last = stepper(x, tile=tile).frames[-1]
    assert last.stop == T and last.total == pytest.approx(expected(x).item())


def test_the_overview_says_in_words_what_it_shows():
    assert "only the sum" in overview().alt
