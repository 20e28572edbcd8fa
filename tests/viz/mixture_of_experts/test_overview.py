"""Lesson 14's opening picture: what it shows is what the library's router chose, and can be read."""

import torch

from llmsys.viz.mixture_of_experts import overview
from llmsys.viz.mixture_of_experts.overview import KEPT, TOKENS, E, K, example, kept_groups


def test_it_can_be_read(assert_legible):
    assert_legible(overview().svg)


def test_each_tokens_experts_are_in_its_groups_and_it_is_once_with_each(words):
    routing, groups = example()
    kept = kept_groups(routing)
    assert (kept.sum(1) == KEPT).all() and kept.gather(1, routing.experts // (E // kept.shape[1])).all()
    assert sorted(groups.order.tolist()) == list(range(len(TOKENS) * K))
    assert torch.equal(groups.starts.diff().long(), routing.loads)


def test_it_shows_an_expert_without_a_row_and_one_with_more_than_the_mean():
    loads = example()[0].loads
    assert (loads == 0).any() and loads.max() >= 2 * loads.float().mean()
    assert f"the experts have {', '.join(map(str, loads.tolist()))} rows" in overview().alt
