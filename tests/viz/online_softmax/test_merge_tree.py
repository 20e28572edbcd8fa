"""The merge tree's stepper: every tree is one, and all end in the same root."""

import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.attention import online
from llmsys.viz.online_softmax import merge_tree
from llmsys.viz.online_softmax.merge_tree import ROWS, TREES, describe, draw, pairs_of, tiles_of


@given(st.sampled_from([*TREES.values()]), st.integers(1, 12))
def test_every_tree_uses_every_node_once_and_none_before_it_is_there(tree, leaves):
    pairs = pairs_of(tree, leaves)
    assert len(pairs) == leaves - 1
    assert all(child < leaves + n for n, pair in enumerate(pairs) for child in pair)
    assert sorted(child for pair in pairs for child in pair) == list(range(2 * leaves - 2))


@pytest.mark.parametrize("row", ROWS.values())
def test_the_root_is_the_rows_summary_whatever_the_tree(row):
    flat = [each for tile in tiles_of(row) for each in tile]
    m = max(flat)
    for tree in TREES.values():
        last = merge_tree(tree, row).frames[-1]
        assert last.nodes[-1] == pytest.approx((m, sum(math.exp(each - m) for each in flat)))
        assert "the same as the summary of the whole row" in describe(last) and "✓" in draw(last).markup()


def test_no_two_trees_are_the_same():
    assert len({tuple(pairs_of(tree, 8)) for tree in TREES.values()}) == len(TREES)


def test_each_step_does_one_merge_and_draws_no_nan():
    frames = merge_tree().frames
    assert [frame.done for frame in frames] == list(range(8))
    for tree in TREES.values():
        for frame in merge_tree(tree, "masked").frames:
            ElementTree.fromstring(draw(frame).markup())
            assert "nan" not in draw(frame).markup()


def test_masked_tiles_are_the_identity_and_change_nothing():
    frames = merge_tree("left", "masked").frames
    assert frames[0].nodes[3] == (-math.inf, 0)
    assert frames[3].nodes[-1] == frames[2].nodes[-1]


def test_the_tree_merges_with_the_function_that_it_is_given():
    shown = merge_tree("balanced", merge=lambda a, b: tuple(online.merge(a, b))).frames  # a pair will do
    assert shown == merge_tree("balanced").frames


def test_a_merge_that_is_wrong_is_seen_to_be_wrong():
    def forgetful(a, b):
        return a[0].maximum(b[0]), a[1] + b[1]  # no rescaling

    last = merge_tree("balanced", merge=forgetful).frames[-1]
    assert "not the same as" in describe(last) and "✗" in draw(last).markup()


def test_an_unknown_tree_or_row_is_refused():
    with pytest.raises(ValueError, match="tree must be one of 'balanced'"):
        merge_tree("oak")
    with pytest.raises(ValueError, match="row must be one of 'ordinary'"):
        merge_tree(row="long")
