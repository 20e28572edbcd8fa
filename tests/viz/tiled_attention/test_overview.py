"""Lesson 03's opening picture."""

from llmsys.viz.tiled_attention import overview


def test_the_overview_says_what_never_exists(assert_legible):
    picture = overview()
    assert "the matrix of scores never exists" in picture.alt
