"""Lesson 09's opening picture: bars are what the scheduler did, and no two share a place at a time."""

import sys
from xml.etree import ElementTree

from llmsys.viz.continuous_batching import overview
from llmsys.viz.continuous_batching.overview import COLOURS, OUTPUTS, PLACES, bars, serve

SVG = "{http://www.w3.org/2000/svg}"


def test_it_can_be_read(assert_legible):
    assert_legible(overview().svg)


def test_a_bar_is_as_long_as_the_answer_and_a_place_has_one_at_a_time():
    for policy in ("static", "stall-free"):
        steps = serve(policy)
        found = bars(steps)
        assert {name: count for name, _, _, count in found} == OUTPUTS
        taken = [(place, first + i) for _, place, first, count in found for i in range(count)]
        assert len(set(taken)) == len(taken) == sum(OUTPUTS.values())
        assert max(step for _, step in taken) == len(steps) - 1 and {place for place, _ in taken} == set(range(PLACES))


def test_a_static_batch_begins_when_all_places_are_empty_and_a_continuous_one_whenever_one_is():
    static, filled = bars(serve("static")), bars(serve("stall-free"))
    assert sorted({first for _, _, first, _ in static}) == [0, 8, 13]
    waiting_for = {first for _, _, first, _ in filled}
    ends = {first + count for _, _, first, count in filled}
    assert waiting_for <= ends | {0} and len(waiting_for) > 4


def test_it_says_how_many_steps_and_empty_places(words):
    said = words(overview())
    for expected in ("19 steps, 22 of 57 places empty", "13 steps, 4 of 39 places empty"):
        assert expected in said
    assert "22 of 57 places in them are empty" in overview().alt


def test_every_bar_is_drawn():
    root = ElementTree.fromstring(overview().svg)
    drawn = [each for each in root.iter(f"{SVG}rect") if each.get("class") in COLOURS and each.get("height") == "24"]
    twice = [36.0 * n - 2 for n in OUTPUTS.values()] * 2
    assert sorted(float(each.get("width")) for each in drawn) == sorted(twice)


def test_it_follows_the_scheduler(monkeypatch):
    module = sys.modules["llmsys.viz.continuous_batching.overview"]
    right, serve_as_it_is = overview().svg, module.serve
    monkeypatch.setattr(module, "serve", lambda policy: serve_as_it_is("static"))
    assert overview().svg != right
