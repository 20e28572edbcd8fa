"""Samplers: what can be drawn, how often, and the same again for the same seed."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
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


@given(
    seed=st.integers(0, 1000), temperature=st.floats(0, exclude_min=True, max_value=1.8e308, allow_subnormal=True),
    size=st.sampled_from([1e-3, 1.0, 1e4, 3e38]), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    top_k=st.none() | st.integers(1, 40), top_p=st.none() | st.floats(0, 1, exclude_min=True, allow_subnormal=True),
)  # fmt: skip
@settings(max_examples=60)
@example(seed=0, temperature=5e-324, size=1.0, dtype=torch.float32, top_k=None, top_p=5e-324)
@example(seed=0, temperature=1e-45, size=3e38, dtype=torch.float32, top_k=40, top_p=1 - 2**-53)
@example(seed=0, temperature=1.7e308, size=3e38, dtype=torch.float32, top_k=2**70, top_p=1.0)
def test_any_temperature_and_any_edge_leave_probabilities(seed, temperature, size, dtype, top_k, top_p):
    """Down to the smallest number that is not 0, up to the largest; in the limit it is greedy."""
    logits = (logits_of(seed, T=1, size=1.0).clamp(-1, 1) * size).to(dtype)
    logits[:, :, ::7] = float("-inf")
    p = probabilities(logits[:, -1], temperature, top_k, top_p)
    assert torch.isfinite(p).all() and (p >= 0).all() and (p[:, ::7] == 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(2), atol=1e-5, rtol=0)
    largest = logits[:, -1] == logits[:, -1].amax(-1, keepdim=True)
    if temperature < 1e-9 * size:
        assert ((p > 0) <= largest).all()
        if (largest.sum(-1) == 1).all():
            assert torch.equal(sampler(temperature, top_k, top_p, seed)(logits), greedy(logits))


def test_logits_in_float64_may_be_larger_than_float32_holds():
    logits = torch.tensor([[1e300, -1e300, 1e300, float("-inf")]], dtype=torch.float64)
    assert probabilities(logits, 1.0).tolist() == [[0.5, 0, 0.5, 0]]


@pytest.mark.parametrize(
    "seed",
    [0, 5, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, 2**63, 2**64 - 1, -1, -5, -(2**63), np.int64(-5), np.uint64(5)],
)
def test_any_seed_of_64_bits_draws_and_draws_again(seed):
    logits = [logits_of(i) for i in range(20)]

    def run(seed):
        draw = sampler(temperature=5.0, seed=seed)
        return [draw(x).tolist() for x in logits]

    assert run(seed) == run(int(seed))
    others = {0, 5, 2**32 + 5, -1, -5, 2**63, 2**64 - 1} - {int(seed)}
    assert all(run(other) != run(seed) for other in others)


def test_a_small_seed_draws_what_torchs_generator_draws():
    logits = logits_of(3)
    random = torch.Generator().manual_seed(1234)
    drawn = sampler(temperature=2.0, seed=1234)(logits)
    assert drawn.tolist() == torch.multinomial(torch.softmax(logits[:, -1] / 2, -1), 1, generator=random)[:, 0].tolist()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "make", [lambda: greedy, lambda: sampler(1.0), lambda: sampler(1.0, 3), lambda: sampler(1.0, None, 0.5)]
)
def test_logits_that_are_not_finite_are_an_error_in_one_row_of_a_batch_too(make, bad):
    logits = logits_of(0)
    logits[:, 0] = bad  # an earlier place is not looked at
    assert make()(logits).shape == (2,)
    logits[1, -1, 30] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        make()(logits)
    logits[1, -1] = float("-inf")
    with pytest.raises(FloatingPointError, match="−∞ all of them"):
        make()(logits)


@pytest.mark.parametrize("temperature", [1, np.float32(0.5), np.float64(2)])
def test_numbers_of_other_libraries_are_numbers(temperature):
    assert sampler(temperature, np.int32(3), np.float32(0.9), np.int64(1))(logits_of(0)).shape == (2,)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"temperature": 1.0, "seed": 2**64}, "seed must have at most 64 bits"),
        ({"seed": -(2**63) - 1}, "seed must be at least -9223372036854775808"),
        ({"temperature": True}, "temperature must be 0"),
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
