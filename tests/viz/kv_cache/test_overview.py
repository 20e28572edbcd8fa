"""Lesson 07's opening picture: rows are counted as they are drawn, times are the library's."""

import sys
from xml.etree import ElementTree

import pytest

from llmsys.hardware.devices import DEVICES
from llmsys.hardware.roofline import total_seconds
from llmsys.models.operations import operations
from llmsys.models.shapes import SHAPES
from llmsys.viz.kit.numbers import seconds_in_words
from llmsys.viz.kv_cache import overview
from llmsys.viz.kv_cache.overview import CELL, ROW, counts, waiting


def cells(picture, colour):
    """How many cells of a row of keys or values have a colour."""
    rects = ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}rect")
    size = (str(CELL - 2), str(ROW))
    return sum(each.get("class") == colour and (each.get("width"), each.get("height")) == size for each in rects)


def test_it_can_be_read(assert_legible):
    assert_legible(overview().svg)


def test_as_many_cells_are_drawn_as_are_counted(words):
    picture = overview()
    without, cached = counts(cache=False), counts(cache=True)
    computed = [sum(step[0] for step in steps) for steps in (without, cached)]
    new = 4 + 3  # the prompt, and a token in each further step
    assert (computed, sum(step[1] for step in cached)) == ([4 + 5 + 6 + 7, new], 4 + 5 + 6)
    assert cells(picture, "green") == 2 * (new + new)  # keys and values; without a cache and with
    assert cells(picture, "green-soft") == 2 * (computed[0] - new)
    assert cells(picture, "orange") == 2 * (4 + 5 + 6)
    assert "4 + 5 + 6 + 7= 22" in words(picture) and "4 + 1 + 1 + 1= 7" in words(picture)


@pytest.mark.parametrize("queries", [1, 4096])
def test_times_are_those_of_the_librarys_operations(queries, words):
    step = operations(SHAPES["Llama-3-8B"], batch=1, queries=queries, context=4096)
    seconds = total_seconds(step, DEVICES["H100 SXM"])
    assert sum(waiting(queries).values()) == pytest.approx(seconds)
    picture = overview()
    assert seconds_in_words(seconds) in words(picture) and seconds_in_words(seconds) in picture.alt


def test_prefill_computes_and_decode_reads():
    prefill, decode = waiting(4096), waiting(1)
    assert prefill["compute"] > 10 * prefill["weights"] and decode["compute"] == 0
    assert prefill["cache"] == 0 < decode["cache"] < decode["weights"]
    assert "4.64 ms, 0% of it arithmetic" in overview().alt


def test_it_follows_the_librarys_operations(monkeypatch):
    right = overview().svg
    monkeypatch.setattr(
        sys.modules["llmsys.viz.kv_cache.overview"], "operations", lambda *a, **how: operations(*a, **how)[1:]
    )
    assert overview().svg != right
