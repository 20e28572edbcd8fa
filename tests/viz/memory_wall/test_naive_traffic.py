"""The traffic of naive attention: each beam is as wide as the bytes that cross."""

from xml.etree import ElementTree

import pytest

from llmsys.attention import cost
from llmsys.viz.kit.numbers import size_in_words
from llmsys.viz.memory_wall import naive_traffic


def rects(picture, colour):
    """Widths of the rectangles of a colour, from the largest."""
    found = ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}rect")
    return sorted((float(each.get("width")) for each in found if each.get("class") == colour), reverse=True)


@pytest.mark.parametrize("T, D", [(4096, 128), (512, 128), (65536, 64), (128, 128), (1024, 16), (64, 256)])
def test_beams_are_as_wide_as_their_bytes(T, D, assert_legible, words):
    picture = naive_traffic(T, D)
    assert_legible(picture.svg)
    beams = rects(picture, "orange-soft") + rects(picture, "blue-soft") + rects(picture, "green-soft")
    assert len(beams) == 8  # q, k; S out, S back; P out, P back; v, o
    large, small = 2 * T * T, 2 * T * D
    for width, size in zip(beams, [large] * 4 + [small] * 4, strict=True):
        assert width == pytest.approx(max(beams[0] * size / large, 1.5), abs=0.11)
    total = cost.naive_cost(1, 1, T, D).hbm_bytes
    assert f"{size_in_words(total)}: {100 * 4 * large / total:.0f}% of it S and P" in words(picture)
    assert f"In all {size_in_words(total)}" in picture.alt and size_in_words(4 * small) in picture.alt


def test_traffic_in_single_precision_is_twice_as_much():
    assert "264 MiB" in naive_traffic(4096, 128, itemsize=4).alt


@pytest.mark.parametrize("how", [(0, 64), (64, 0)])
def test_sizes_that_are_not_positive_are_refused(how):
    with pytest.raises(ValueError, match="T, D and itemsize must be positive"):
        naive_traffic(*how)
