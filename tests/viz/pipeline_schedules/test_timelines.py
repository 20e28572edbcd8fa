"""Timelines show what was simulated: a box for each action, where it belongs, and words that say the same."""

from xml.etree import ElementTree

import pytest

from llmsys.parallel import pipeline
from llmsys.parallel.pipeline import Costs, Timeline, simulate
from llmsys.viz.pipeline_schedules import overview, timelines
from llmsys.viz.pipeline_schedules.rows import LEFT, NAMES, RIGHT, second_stages

SVG = "{http://www.w3.org/2000/svg}"
RUNS = {name: simulate(make(4, 8)) for name, make in pipeline.SCHEDULES.items()}


def boxes(picture, *colours):
    """(x, y, width) of the boxes in those colours, without the key's."""
    root = ElementTree.fromstring(picture.svg)
    end = float(root.get("viewBox").split()[3]) - 24
    found = [each for each in root.iter(f"{SVG}rect") if each.get("class") in colours and float(each.get("y")) < end]
    return [tuple(float(each.get(side)) for side in ("x", "y", "width")) for each in found]


@pytest.mark.parametrize("name", RUNS)
def test_every_forward_and_backward_has_a_box(name):
    run = RUNS[name]
    halves = [half for row in run.events for event in row for half in event.action.halves]
    picture = timelines(run)
    for kinds, colour in (("F", "blue"), ("BI", "orange"), ("W", "green")):
        count = sum(str(half.kind) in kinds for half in halves)
        assert len(boxes(picture, colour, f"{colour}-soft")) == count


def test_a_box_is_where_its_action_is_in_time():
    run = simulate(pipeline.one_f_one_b(2, 2), Costs(F=1, I=2, W=1))
    scale = (RIGHT - LEFT) / run.makespan
    forwards = sorted(boxes(timelines(run), "blue-soft"))
    starts = sorted(event.start for row in run.events for event in row if event.action.kind == "F")
    assert [x for x, *_ in forwards] == pytest.approx([LEFT + scale * start + 0.5 for start in starts], abs=0.1)
    assert [width for *_, width in forwards] == pytest.approx([scale - 1] * 4, abs=0.1)


def test_the_second_stage_of_a_rank_is_drawn_strong():
    assert second_stages(RUNS["1f1b"].events) == set()
    assert second_stages(RUNS["zb-v"].events) == {(stage, 0) for stage in range(4, 8)}
    assert second_stages(RUNS["dualpipe"].events) == {(stage, 1) for stage in range(4)}, "the other direction"
    assert len(boxes(timelines(RUNS["interleaved"]), "blue")) == 4 * 8


@pytest.mark.parametrize("name", RUNS)
def test_texts_can_be_read(name, assert_legible):
    assert_legible(timelines(RUNS[name]).svg)


def test_uneven_times_and_several_at_once_can_be_read(assert_legible):
    slow = simulate(pipeline.one_f_one_b(4, 8), Costs(F=(1, 1, 1, 2), I=(1, 1, 1, 2), transfer=0.2))
    picture = timelines(slow, RUNS["gpipe"], RUNS["zb-h1"])
    assert_legible(picture.svg)
    for name in ("1F1B", "GPipe", "ZB-H1"):
        assert name in picture.alt


def test_the_words_say_what_the_timeline_does(words):
    picture = timelines(RUNS["zb-h1"])
    assert "ZB-H1: 27 in all, idle 11.1% of the time; ranks are idle for 3, 3, 3, 3" in picture.alt
    assert "rank 3: 3F0 3I0 3F1 3I1 3F2 3I2 3F3 3I3 3W0" in picture.alt
    assert "idle 11.1% of the time" in words(picture)


def test_every_schedule_of_the_library_has_a_name():
    assert NAMES.keys() == pipeline.SCHEDULES.keys()


def test_nothing_to_draw_is_refused():
    for shown in ((), (Timeline("empty", ((), ())),)):
        with pytest.raises(ValueError, match="timelines takes one timeline at least"):
            timelines(*shown)


def test_the_opening_picture_has_three_schedules_and_can_be_read(assert_legible, words):
    picture = overview()
    assert_legible(picture.svg)
    assert "GPipe 27, 1F1B 27, ZB-H1 21" in words(picture)
