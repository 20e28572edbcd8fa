"""Lesson 01's opening picture: its sizes and times are the library's."""

import sys
from xml.etree import ElementTree

import pytest

from llmsys.attention import cost
from llmsys.viz.memory_wall import overview


def rects(picture, colour):
    """Widths of the rectangles of a colour, from the largest."""
    found = ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}rect")
    return sorted((float(each.get("width")) for each in found if each.get("class") == colour), reverse=True)


def test_the_overview_has_the_librarys_sizes_and_times(assert_legible, monkeypatch, words):
    picture = overview()
    assert_legible(picture.svg)
    assert "S32 MiB" in words(picture) and "P32 MiB" in words(picture) and "41.3 µs · 132 MiB" in words(picture)
    assert "8.68 µs · 8.6 GFLOP" in words(picture) and "1 MiB" in words(picture)
    long, short = rects(picture, "orange")[0], rects(picture, "green")[0]
    assert long / short == pytest.approx(41.3 / 8.68, rel=0.01)  # the bars are the two times
    double = cost.naive_cost(1, 1, 8192, 128)
    monkeypatch.setattr(sys.modules["llmsys.viz.memory_wall.overview"], "naive_cost", lambda *a, **how: double)
    assert overview().svg != picture.svg
