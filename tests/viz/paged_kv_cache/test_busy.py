"""Programs on multiprocessors: every tile is walked over once, and each way is done when its longest row is."""

import pytest

from llmsys.viz.paged_kv_cache import busy
from llmsys.viz.paged_kv_cache.busy import LENGTHS, cut, in_line, in_turn, whole

CASES = [(LENGTHS, 2, 4, 12), ((60,), 3, 4, 8), ((7, 1, 5), 1, 3, 2), ((3, 3), 2, 16, 16)]


def tiles(bars, sequence):
    return sum(bar.end - bar.start for bar in bars if bar.sequence == sequence)


@pytest.mark.parametrize(("lengths", "heads", "pieces", "rows"), CASES)
def test_every_tile_has_one_program_and_no_row_runs_two_at_once(lengths, heads, pieces, rows):
    for bars in (in_turn(whole(lengths, heads), rows), in_turn(cut(lengths, heads, pieces), rows),
                 in_line(lengths, heads, rows)):  # fmt: skip
        for n, length in enumerate(lengths):
            assert tiles(bars, n) == heads * length
        for row in range(rows):
            here = sorted((bar.start, bar.end) for bar in bars if bar.row == row)
            assert all(one[1] <= other[0] for one, other in zip(here, here[1:], strict=False))


@pytest.mark.parametrize(("lengths", "heads", "pieces", "rows"), CASES)
def test_a_line_is_done_first_and_as_soon_as_can_be(lengths, heads, pieces, rows):
    end = max(bar.end for bar in in_line(lengths, heads, rows))
    assert end == -(-heads * sum(lengths) // rows)
    assert end <= max(bar.end for bar in in_turn(cut(lengths, heads, pieces), rows))
    assert end <= max(bar.end for bar in in_turn(whole(lengths, heads), rows)) >= max(lengths)


def test_pieces_are_no_more_than_asked_for_and_equal_but_for_the_last():
    assert cut((90,), 1, 4) == [(23, 0), (23, 0), (23, 0), (21, 0)]
    assert cut((3,), 2, 16) == [(1, 0)] * 6


def test_it_can_be_read_and_says_when_each_way_is_done(assert_legible, words):
    for how in ({}, {"lengths": (60,), "heads": 3, "rows": 8}, {"lengths": (5, 90), "pieces": 16, "rows": 16}):
        assert_legible(busy(**how).svg)
    picture = busy()
    assert "a program each, 90 tiles" in picture.alt and "one line, cut evenly, 27 tiles" in picture.alt
    assert "90" in words(picture) and "26.7 tiles each" in words(picture)


@pytest.mark.parametrize(
    ("how", "said"),
    [({"lengths": ()}, "lengths must be 1 to 4 numbers from 1 on"), ({"lengths": (3, 0)}, "lengths must be"),
     ({"rows": 0}, "rows must be from 1 to 16"), ({"pieces": 17}, "pieces must be from 1 to 16")],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(how, said):
    with pytest.raises(ValueError, match=said):
        busy(**how)
