"""Lesson 00's check: it takes what is right, and rejects what is wrong."""

import numpy as np
import pytest
import torch

from tests.support.self_tests import assert_check_stands, exercises_of
from tests.support.verdicts import assert_rejected, assert_taken, fresh


def by_topk(logits):
    return logits[:, -1].topk(1).indices[:, 0]


def in_python(logits):
    rows = logits[:, -1].tolist()
    return torch.tensor([max(range(len(row)), key=row.__getitem__) for row in rows])


def by_sorting(logits):
    return logits[:, -1].sort(dim=-1, descending=True).indices[:, 0]


def of_every_position(logits):
    return logits.max(dim=-1).indices[..., -1]


def a_sequence_at_a_time(logits):
    return torch.stack([sequence[-1].argmax() for sequence in logits])


def by_comparing(logits):
    last = logits[:, -1]
    return (last == last.amax(dim=-1, keepdim=True)).long().argmax(dim=-1)


@pytest.mark.parametrize(
    "answer", [by_topk, in_python, by_sorting, of_every_position, a_sequence_at_a_time, by_comparing]
)
def test_right_answers_are_taken(answer):
    assert_taken("00.next_token", answer)


def int32(logits):
    return logits[:, -1].argmax(dim=-1).int()


def a_column(logits):
    return logits[:, -1].argmax(dim=-1, keepdim=True)


def in_half_precision(logits):
    return logits[:, -1].half().argmax(dim=-1)


def over_memory(logits):
    B, T, V = logits.shape
    return logits.view(B, T * V)[:, -V:].argmax(dim=-1)


def first_above_zero(logits):
    return (logits[:, -1].clamp(min=0) + 0).argmax(dim=-1)


def by_unnormalised_probabilities(logits):
    return logits[:, -1].exp().argmax(dim=-1)


def by_numpys_numbers(logits):
    return np.argmax(logits[:, -1].float().numpy(), axis=-1)


@fresh
def remembers_shapes():
    seen = {}

    def next_token(logits):
        return seen.setdefault(logits.shape, logits[:, -1].argmax(dim=-1))

    return next_token


def the_librarys_sampler(logits):
    from llmsys.models.sampling import sampler

    return sampler(temperature=0.0)(logits)


def the_librarys_probabilities(logits):
    from llmsys.models.sampling import probabilities

    return probabilities(logits[:, -1].double(), 1.0).argmax(dim=-1)


def sampled_very_cold(logits):
    return torch.multinomial(torch.softmax(logits[:, -1].double() * 50, -1), 1)[:, 0]


def from_the_first_words(logits):
    return logits[:, -1, :32768].argmax(dim=-1)


def counted_in_half_precision(logits):
    words = torch.arange(logits.shape[-1]).bfloat16()
    return words[logits[:, -1].argmax(dim=-1)].long()


def at_most_eight_sequences(logits):
    return torch.cat([logits[:8, -1].argmax(dim=-1), logits[8:, 0].argmax(dim=-1)])


def by_size(logits):
    return logits[:, -1].abs().argmax(dim=-1)


@pytest.mark.parametrize(
    "answer",
    [int32, a_column, in_half_precision, over_memory, first_above_zero, by_unnormalised_probabilities,
     by_numpys_numbers, remembers_shapes, the_librarys_sampler, the_librarys_probabilities,
     sampled_very_cold, from_the_first_words, counted_in_half_precision, at_most_eight_sequences, by_size],
)  # fmt: skip
def test_wrong_answers_are_rejected(answer):
    assert_rejected("00.next_token", answer)


@pytest.mark.parametrize("exercise", exercises_of("00"))
def test_the_check_stands_its_self_test(exercise):
    assert_check_stands(exercise)
