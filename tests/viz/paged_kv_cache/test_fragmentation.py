"""Bars of a memory's slots are as long as the shares, and say the share that holds tokens."""

from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from llmsys.viz.paged_kv_cache import fragmentation
from llmsys.viz.paged_kv_cache.fragmentation import LONGEST, PARTS

SVG = "{http://www.w3.org/2000/svg}"


def shares(kept, later=0.0, never=0.0, holes=0.0, too_few=0.0, sequences=12.0):
    return SimpleNamespace(kept=kept, later=later, never=never, holes=holes, too_few=too_few, sequences=sequences)


SHARES = {
    "one service": {"rows": shares(0.25, 0.125, 0.625), "pieces": shares(0.5, 0, 0.25, 0.25)},
    "another service": {"blocks of 16": shares(0.984, 0.004, 0.002, 0, 0.01, 391.4)},
}


def test_it_can_be_read(assert_legible):
    assert_legible(fragmentation(SHARES).svg)


def test_bars_are_to_scale_and_leave_nothing_out():
    rects = ElementTree.fromstring(fragmentation(SHARES).svg).iter(f"{SVG}rect")
    bars = [each for each in rects if each.get("height") == "19"]
    for part, colour, *_ in PARTS:
        widths = [float(each.get("width")) for each in bars if each.get("class") == colour]
        wanted = [LONGEST * getattr(share, part) for ways in SHARES.values() for share in ways.values()]
        assert widths == pytest.approx([width for width in wanted if width >= 0.5], abs=0.06)


def test_it_says_the_share_of_tokens_in_the_picture_and_in_words(words):
    picture = fragmentation(SHARES, title="Slots")
    for said in ("25%", "50%", "98% · 391", "one service", "blocks of 16", "Slots"):
        assert said in words(picture)
    assert "one service: rows 25%, pieces 50%. another service: blocks of 16 98%." in picture.alt


@pytest.mark.parametrize("nothing", [{}, {"a service": {}}])
def test_where_there_is_nothing_to_draw_it_says_so(nothing):
    with pytest.raises(ValueError, match="shares must have a trace at least"):
        fragmentation(nothing)


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="shares of a service, rows must add up to 1"):
        fragmentation({"a service": {"rows": shares(0.5)}})
