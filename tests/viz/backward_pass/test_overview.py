"""Lesson 05's opening picture."""

from llmsys.viz.backward_pass import overview


def test_the_overview_says_what_is_kept_and_leaves_both_predictions_to_the_reader(assert_legible, texts):
    picture = overview()
    assert_legible(picture.svg)
    said = texts(picture)
    assert {"P", "o", "lse", "P is there", "P again, by tiles"} <= set(said)
    everything = " ".join([*said, str(picture.svg)])
    for answer in ("product", "four", "five", "T × T", "T × D"):
        assert answer not in everything
