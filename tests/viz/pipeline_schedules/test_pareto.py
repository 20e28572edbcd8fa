"""Bubble against memory: who is beaten by nobody, and a label for each point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.viz.pipeline_schedules import Point, pareto
from llmsys.viz.pipeline_schedules.pareto import frontier

POINTS = [Point("1f1b", 8, 0.23), Point("gpipe", 24, 0.23), Point("zb-v", 8, 0.0), Point("own", 5, 0.1, 2)]


def test_those_that_nobody_beats():
    assert [each.name for each in frontier(POINTS)] == ["own", "zb-v"]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_whoever_is_left_out_is_beaten_and_nobody_else_is(pairs):
    points = [Point(str(n), memory, bubble / 10) for n, (memory, bubble) in enumerate(pairs)]
    best = frontier(points)
    for each in points:
        beaten = any(
            (o.memory, o.bubble) != (each.memory, each.bubble) and o.memory <= each.memory and o.bubble <= each.bubble
            for o in points
        )
        places = {(o.memory, o.bubble) for o in best}
        assert beaten == ((each.memory, each.bubble) not in places)


def test_every_point_is_named_in_the_picture_and_in_its_words(texts):
    picture = pareto(POINTS)
    for name in ("1F1B", "GPipe", "ZB-V", "own"):
        assert name in texts(picture) and name in picture.alt
    assert "Unbeaten: own, ZB-V" in picture.alt


def test_points_that_lie_on_each_other_share_a_label(texts):
    assert "1F1B, twin" in texts(pareto([*POINTS, Point("twin", 8, 0.23)]))


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="points must have one at least"):
        pareto([])
