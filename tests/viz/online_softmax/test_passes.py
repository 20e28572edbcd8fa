"""Passes over memory are drawn as they were counted."""

import pytest

from llmsys.viz.online_softmax import passes


def test_passes_are_drawn_as_counted(words):
    picture = passes({"safe softmax": 3.0, "online softmax": 2.0})
    text = words(picture)
    assert [text.count(f"read {k}") for k in (1, 2, 3, 4)] == [2, 2, 1, 0]
    assert text.count("write") == 2 and text.count("saved") == 1
    assert "4 transfers an element → 3: 25% less" in text
    assert "safe softmax reads the row 3 times, writes it once: 4 transfers" in picture.alt
    other = passes({"mine": 4.5, "online": 2})
    assert "mine reads the row 4.5 times" in other.alt and words(other).count("saved") == 3
    assert "50% more" in words(passes({"a": 1, "b": 2}))
    assert "→" not in words(passes({"alone": 2}))


@pytest.mark.parametrize("counted", [{}, {"mine": -1.0}])
def test_no_passes_and_negative_ones_are_refused(counted):
    with pytest.raises(ValueError, match="passes must name"):
        passes(counted)
