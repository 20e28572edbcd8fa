"""Samplers: what can be drawn, how often, and the same again for the same seed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.models import greedy, sampler
from llmsys.models.sampling import probabilities


def logits_of(seed, B=2, T=3, V=31, size=5.0):
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed)) * size


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 7, 13), (3, 2, 101)])
def test_greedy_is_the_largest_logit_of_the_last_position(shape):
    logits = torch.randn(*shape)
    assert greedy(logits).tolist() == [max(range(shape[2]), key=lambda i: row[-1, i]) for row in logits]
    assert greedy(logits).dtype == torch.int64


def test_temperature_zero_is_greedy():
    assert sampler(0.0) is greedy


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000), temperature=st.floats(0.01, 10), top_k=st.integers(1, 40), top_p=st.floats(0.01, 1),
)  # fmt: skip
def test_probabilities_keep_the_likeliest_and_their_proportions(seed, temperature, top_k, top_p):
    logits = logits_of(seed)[:, -1].double()
    p = probabilities(logits, temperature, top_k, top_p).double()
    full = torch.softmax(logits / temperature, dim=-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-5, rtol=0)
    for got, whole in zip(p, full, strict=True):
        kept = got > 0
        assert 1 <= kept.sum() <= top_k
        best = whole.sort(descending=True).values[: int(kept.sum())]
        found = got.sort(descending=True).values[: len(best)]
        torch.testing.assert_close(found, best / best.sum(), atol=1e-5, rtol=1e-3)
        among_k = whole.sort(descending=True).values[:top_k]
        nucleus = among_k / among_k.sum()
        assert nucleus[: len(best)].sum() >= top_p - 1e-5  # enough of them …
        assert nucleus[: len(best) - 1].sum() <= top_p + 1e-5  # … and not one more


def test_draws_are_as_frequent_as_they_are_probable():
    logits = torch.tensor([[[9.0, 9.0, 9.0], [0.0, 1.0, 2.0]]]).expand(4000, 2, 3)  # the first position does not matter
    drawn = sampler(temperature=0.7, seed=0)(logits)
    frequency = torch.bincount(drawn, minlength=3) / 4000
    torch.testing.assert_close(frequency, torch.softmax(logits[0, -1] / 0.7, -1), atol=0.03, rtol=0)


def test_a_seed_is_a_stream_of_its_own():
    logits = [logits_of(i) for i in range(20)]

    def run(seed):
        draw = sampler(temperature=2.0, seed=seed)
        return [draw(x).tolist() for x in logits]

    torch.manual_seed(1)
    first = run(5)
    torch.manual_seed(2)
    assert run(5) == first
    assert run(6) != first
    assert run(None) != run(None)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
def test_extreme_temperatures_and_logits_stay_finite(temperature):
    p = probabilities(torch.tensor([[1e4, -1e4, 0.0, float("-inf")]]), temperature)
    assert torch.isfinite(p).all() and abs(float(p.sum()) - 1) < 1e-6


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": -0.5}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be above 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p must be above 0"),
        ({"top_p": 0.9}, "top_p has no effect at temperature 0"),
        ({"top_k": 3}, "top_k has no effect at temperature 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampler(**arguments)
