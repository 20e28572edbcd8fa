"""Lesson 05's opening picture."""

from llmsys.viz.backward_pass import overview


def test_the_overview_says_what_is_kept(assert_legible, texts):
    picture = overview()
    assert_legible(picture.svg)
    assert {"P", "o", "lse", "four products", "five products"} <= set(texts(picture))
    products = [text for text in texts(picture) if " = " in text and ("d" in text[:2] or "again" in text)]
    assert len(products) == 4 + 5
