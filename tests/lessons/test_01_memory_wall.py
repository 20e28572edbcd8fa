"""Lesson 01: the right answers that its mistakes are edits of, and large logits that no right answer trips over."""

import pytest
import torch

from llmsys.attention import cost
from llmsys.course.checking.checks import get_check, run_check
from llmsys.hardware import roofline
from llmsys.lessons.common import multiples
from llmsys.lessons.lesson_01_memory_wall import mistakes
from tests.support.self_tests import assert_check_stands, exercises_of


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


@pytest.mark.parametrize("exercise", exercises_of("01"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
