"""Lesson 06's opening picture."""

from llmsys.viz.flash_hopper import overview


def test_the_overview_shows_both_orders_and_the_librarys_registers(assert_legible, texts):
    picture = overview()
    assert_legible(picture.svg)
    assert {"producer", "copy engine", "consumer 0", "consumer 1", "tensor cores", "softmax"} <= set(texts(picture))
    assert {"each on its own", "with turns and overlap"} <= set(texts(picture))
    assert not any("%" in text for text in (*texts(picture), picture.alt))  # the lesson asks for them below it
    assert "24 registers a thread" in picture.alt and "240 registers a thread" in picture.alt
