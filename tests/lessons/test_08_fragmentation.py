"""Lesson 08's memories under load: what their slots are used for adds up, is counted by hand in small cases, and is
what the definitions say in large ones."""

import pytest

from llmsys.lessons.lesson_08_paged_kv_cache.fragmentation import Blocks, EqualRows, Pieces, fill
from llmsys.serving import RequestLength, draw_lengths

WAYS = {
    "rows": lambda slots: EqualRows(slots, row=6000),
    "pieces": lambda slots: Pieces(slots, answer=500),
    "oracle": lambda slots: Pieces(slots, answer=None),
    "blocks": lambda slots: Blocks(slots, block_size=16),
}
REQUESTS = [each for each in draw_lengths("azure-conversation", 60, seed=1) if each.prompt + each.output <= 5000]


def parts(shares):
    return shares.kept, shares.later, shares.never, shares.holes, shares.too_few


@pytest.mark.parametrize("way", WAYS)
def test_the_parts_are_not_negative_and_add_up_to_the_memory(way):
    shares = fill(WAYS[way](40_000), REQUESTS)
    assert min(parts(shares)) >= 0 and sum(parts(shares)) == pytest.approx(1)
    assert shares.waste == pytest.approx(1 - shares.kept) and shares.sequences >= 1


def test_rows_by_hand():
    """One row of 10 for prompts of 4 and answers of 2: it holds 4 tokens, then 5; the rest of 22 slots is one free row
    and two slots, which are in pieces that a row is too long for."""
    shares = fill(EqualRows(12, row=10), [RequestLength(4, 2)] * 3)
    assert shares.kept == pytest.approx((4 + 5) / 2 / 12)
    assert shares.later == pytest.approx((2 + 1) / 2 / 12) and shares.never == pytest.approx(4 / 12)
    assert (shares.holes, shares.too_few) == (0, pytest.approx(2 / 12))
    assert shares.sequences == 1


def test_a_hole_is_free_and_too_small_in_one_piece():
    """Three pieces of 4 fill 12 slots. The outer two end first and leave two holes of 4; the next wants 6."""
    requests = [RequestLength(3, 1), RequestLength(1, 3), RequestLength(3, 1), RequestLength(5, 1), RequestLength(5, 1)]
    memory = Pieces(12, answer=None)
    places = [memory.take(each) for each in requests[:3]]
    assert places == [(0, 4), (4, 8), (8, 12)] and memory.take(requests[3]) is None
    memory.give_back(places[0]), memory.give_back(places[2])
    assert memory.free == 8 >= memory.wants(requests[3]) and memory.take(requests[3]) is None
    memory.give_back(places[1])
    assert memory.take(requests[3]) == (0, 6)  # holes that touch are one again
    assert fill(Pieces(12, answer=None), requests).holes > 0


def test_the_oracle_reserves_nothing_for_nothing_and_blocks_have_no_holes():
    assert fill(WAYS["oracle"](40_000), REQUESTS).never == 0
    for size in (1, 16, 256):
        shares = fill(Blocks(40_000, block_size=size), REQUESTS)
        assert shares.holes == 0 and shares.never + shares.later < shares.sequences * size / 40_000
    assert fill(Blocks(40_000, block_size=1), REQUESTS).never == 0


def test_smaller_blocks_keep_more_tokens_and_blocks_more_than_pieces():
    kept = [fill(Blocks(40_000, block_size=size), REQUESTS).kept for size in (16, 64, 256)]
    assert kept == sorted(kept, reverse=True)
    others = [fill(WAYS[way](40_000), REQUESTS).kept for way in ("oracle", "pieces", "rows")]
    assert [kept[0], *others] == sorted([kept[0], *others], reverse=True)


def test_without_a_block_left_the_newest_goes_out_and_comes_again():
    """Two sequences of 4 grow to 12 in 5 blocks of 4: there is room for one and a half."""
    shares = fill(Blocks(20, block_size=4), [RequestLength(4, 8)] * 4)
    assert shares.preempted >= 1 and sum(parts(shares)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("memory", "longest"),
    [(EqualRows(100, row=50), 50), (Pieces(100, answer=None), 100), (Pieces(100, answer=30), 70),
     (Blocks(100, block_size=10), 100)],
)  # fmt: skip
def test_a_request_that_can_never_be_served_is_refused_at_once(memory, longest):
    with pytest.raises(ValueError, match=f"must have at most {longest} tokens"):
        fill(memory, [RequestLength(1, 1), RequestLength(longest, 1)])


def test_without_a_queue_nothing_is_measured():
    with pytest.raises(ValueError, match="requests must be more than"):
        fill(EqualRows(100, row=50), [RequestLength(1, 1)])
