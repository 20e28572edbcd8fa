"""A cut into stages is one whose most expensive stage costs as little as any cut's."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.parallel.pipeline import split_layers


def slowest(stages, costs, before, after) -> float:
    sums = [sum(costs[n] for n in stage) for stage in stages]
    sums[0] += before
    sums[-1] += after
    return max(sums)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
def test_no_other_cut_is_better(costs, num_stages, before, after):
    num_stages = min(num_stages, len(costs))
    stages = split_layers(costs, num_stages, before=before, after=after)
    assert [n for stage in stages for n in stage] == list(range(len(costs)))
    assert len(stages) == num_stages and all(stages)
    cuts = ((0, *inner, len(costs)) for inner in combinations(range(1, len(costs)), num_stages - 1))
    best = min(slowest([range(a, b) for a, b in zip(cut, cut[1:], strict=False)], costs, before, after) for cut in cuts)
    assert slowest(stages, costs, before, after) == best


def test_smollm2s_30_layers_over_2_4_and_8_stages():
    for num_stages, most in [(2, 15), (4, 8), (8, 4)]:
        assert max(map(len, split_layers(30, num_stages))) == most
    assert [len(stage) for stage in split_layers(30, 4, after=6)] == [9, 9, 9, 3]


def test_more_stages_than_layers_are_refused():
    with pytest.raises(
        ValueError, match="num_stages must be at most the 3 layers.*; got 4. Take fewer ranks, or fewer"
    ):
        split_layers(3, 4)
    with pytest.raises(ValueError, match="layers must be a whole number of at least 1, got 0"):
        split_layers(0, 1)
    with pytest.raises(ValueError, match="num_stages must be a whole number of at least 1"):
        split_layers(3, 0)
    with pytest.raises(ValueError, match="must be costs, finite and not negative"):
        split_layers([1, -1], 1)
