"""The sampler: its distribution, and that a row's token is its own affair."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.models.sampling import probabilities
from llmsys.serving.sampling import sampler
from llmsys.serving.sampling.sampler import Draw, choose, uniform
from llmsys.serving.sampling.sampling_params import SamplingParams
from tests.support.size import SEED, sized
from tests.support.waiting import nothing_waits

V = 13
LOGITS = torch.tensor([2.0, 1.0, 1.0, 0.5, 0.0, -1.0, -1.0, -1.5, -2.0, 0.7, 0.7, -math.inf, -9.0])
KINDS = {
    "plain": dict(temperature=1.0),
    "flat": dict(temperature=2.5),
    "top_k": dict(temperature=1.0, top_k=4),
    "top_p": dict(temperature=0.8, top_p=0.75),
    "both": dict(temperature=1.3, top_k=6, top_p=0.8),
}


def excess(counts: np.ndarray, expected: np.ndarray) -> float:
    """The chi-square statistic of counts, in standard deviations above its mean; tokens that cannot come must not."""
    assert not counts[expected == 0].any(), "a token came that was left out"
    possible = expected > 0
    expected = expected[possible] * counts.sum()
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    return (statistic - (possible.sum() - 1)) / math.sqrt(2 * (possible.sum() - 1))


def tokens(logits, draws):
    return [choice.token for choice in choose(logits, draws).fetch()]


def params(**kind) -> SamplingParams:
    return SamplingParams(**kind)


@pytest.mark.parametrize("along", ["seeds", "positions"])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_come_as_often_as_they_should(kind, along):
    n = 8000
    how = params(**KINDS[kind])
    many = [Draw(how, i, SEED) if along == "positions" else Draw(how, 7, SEED + i) for i in range(n)]
    counts = np.bincount(tokens(LOGITS.expand(n, V), many), minlength=V)
    expected = probabilities(LOGITS[None], **KINDS[kind])[0].double().numpy()
    # The last one is expected less than five times, which chi-square does not bear: it is counted with the one before.
    for x in (counts, expected):
        x[7] += x[12]
    assert excess(counts[:12], expected[:12]) < 6


def test_min_p_leaves_out_what_is_too_unlikely():
    n = 4000
    p = probabilities(LOGITS[None], 1.0)[0].double().numpy()
    p[p < 0.2 * p.max()] = 0
    many = [Draw(params(temperature=1.0, min_p=0.2), i, SEED) for i in range(n)]
    assert excess(np.bincount(tokens(LOGITS.expand(n, V), many), minlength=V), p / p.sum()) < 6


def test_random_numbers_are_spread_evenly_and_neither_seeds_nor_positions_are_neighbours():
    grid = np.stack([uniform([seed] * 300, range(300)) for seed in range(SEED, SEED + 300)])
    assert 0 <= grid.min() and grid.max() < 1
    assert excess(np.bincount((grid * 50).astype(int).ravel(), minlength=50), np.full(50, 1 / 50)) < 6
    for one, other in ((grid[1:], grid[:-1]), (grid[:, 1:], grid[:, :-1]), (grid[1:, :-1], grid[:-1, 1:])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02
    assert len(np.unique(grid)) == grid.size


rows = st.lists(
    st.tuples(
        st.sampled_from([dict(temperature=0.0), *KINDS.values(), dict(temperature=0.7, min_p=0.1, top_p=0.9)]),
        st.integers(0, 5000), st.integers(0, 2**64 - 1), st.sampled_from([None, 0, 1, 4]), st.booleans(),
    ),
    min_size=1, max_size=9,
)  # fmt: skip


@settings(max_examples=sized(short=60, full=1000))
@given(rows, st.sampled_from([1, 3 * V, 2**24]), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_a_row_is_chosen_as_if_it_were_alone(kinds, at_once, dtype):
    logits = torch.from_numpy(np.random.default_rng(SEED).normal(size=(len(kinds), V)) * 2).to(dtype)
    draws = []
    for i, (kind, position, seed, logprobs, bad) in enumerate(kinds):
        draws.append(Draw(params(**kind, logprobs=logprobs), position, seed))
        if bad:
            logits[i, i % V] = [math.nan, math.inf][i % 2]
    before, sampler.ELEMENTS_AT_ONCE = sampler.ELEMENTS_AT_ONCE, at_once
    try:
        together = choose(logits, draws).fetch()
    finally:
        sampler.ELEMENTS_AT_ONCE = before
    alone = [choose(logits[i : i + 1], draws[i : i + 1]).fetch()[0] for i in range(len(draws))]
    assert together == alone
    assert [choice.finite for choice in together] == [not bad for *_, bad in kinds]


def test_greedy_takes_the_first_of_the_largest():
    logits = torch.tensor([[0.0, 3, 3, 1], [5, 0, 0, 5]])
    assert tokens(logits, [Draw(params(temperature=0.0), 0)] * 2) == [1, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_has_no_token_and_its_neighbours_have_theirs(value):
    logits = LOGITS.repeat(3, 1)
    logits[1, 5] = value
    for kind in (dict(temperature=0.0), *KINDS.values()):
        found = choose(logits, [Draw(params(**kind, logprobs=2), 3, 8)] * 3).fetch()
        assert [choice.finite for choice in found] == [True, False, True]
        assert found[0] == found[2] and found[1].token == -1 and found[1].top_logprobs == ()
    logits[1] = -math.inf
    assert not choose(logits, [Draw(params(temperature=0.0), 0)] * 3).fetch()[1].finite


@pytest.mark.parametrize("logprobs", [0, 1, 5, 99])
def test_logprobs_are_those_of_the_model_whatever_the_temperature(logprobs):
    expected = torch.log_softmax(LOGITS.double(), 0)
    for kind in (dict(temperature=0.0), *KINDS.values()):
        found = choose(LOGITS[None], [Draw(params(**kind, logprobs=logprobs), 1, 2)]).fetch()[0]
        assert found.logprob == pytest.approx(expected[found.token].item(), abs=1e-6)
        assert len(found.top_logprobs) == min(logprobs, V)
        assert [p for _, p in found.top_logprobs] == sorted((p for _, p in found.top_logprobs), reverse=True)
        for token, p in found.top_logprobs:
            assert p == pytest.approx(expected[token].item(), abs=1e-6)


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-52])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_the_random_numbers_draw_tokens_that_can_come(monkeypatch, kind, u):
    monkeypatch.setattr(sampler, "uniform", lambda seeds, positions: np.full(len(seeds), u))
    for logits in (LOGITS, LOGITS.sort().values, LOGITS + 1000, LOGITS.sort(descending=True).values - 1000):
        token = tokens(logits[None], [Draw(params(**KINDS[kind]), 0)])[0]
        assert probabilities(logits[None], **KINDS[kind])[0, token] > 0


@pytest.mark.parametrize("more", [dict(temperature=1e-30), dict(top_k=1), dict(top_p=1e-30)])
def test_the_coldest_the_narrowest_and_the_smallest_nucleus_are_greedy(more):
    more = dict(temperature=1.0) | more
    logits = torch.randn(5, V, generator=torch.Generator().manual_seed(SEED)) * 3
    assert tokens(logits, [Draw(params(**more), i, i) for i in range(5)]) == logits.argmax(1).tolist()


@pytest.mark.parametrize("at_once", [V, 2**24])
def test_nothing_waits_before_the_tokens_are_fetched(monkeypatch, at_once):
    monkeypatch.setattr(sampler, "ELEMENTS_AT_ONCE", at_once)
    kinds = [dict(temperature=0.0), *KINDS.values(), dict(temperature=0.7, min_p=0.1)]
    draws = [Draw(params(**kind, logprobs=n), 5, 6) for kind in kinds for n in (None, 3)]
    logits = torch.empty(len(draws), V, device="meta")
    with nothing_waits():
        chosen = choose(logits, draws)
    assert chosen.on_device.shape == (len(draws), 1 + 1 + 2 * 3)


def test_there_is_one_draw_for_each_row():
    with pytest.raises(ValueError, match="draws must be one for each of the 2 rows"):
        choose(torch.zeros(2, V), [Draw(params(), 0)])
