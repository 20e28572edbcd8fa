"""The online softmax's stepper draws the library's own states, and nothing else."""

import math
import statistics
import time
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmsys.attention import online
from llmsys.viz.online_softmax import stepper
from llmsys.viz.online_softmax.frame import draw
from llmsys.viz.online_softmax.stepper import LONGEST, ORDERS, describe, row_of, steps

values = st.floats(-50, 50).map(lambda x: round(x, 1))
rows = st.lists(st.one_of(values, st.just(-math.inf)), min_size=1, max_size=LONGEST).filter(
    lambda x: max(x) > -math.inf
)


def fold(row):
    return [step for step in steps(row) if not step.y]


@given(rows)
@settings(max_examples=15)
def test_every_state_is_that_of_the_elements_read(row):
    for step in fold(row):
        seen = torch.tensor(row[: step.read], dtype=torch.float64)
        assert step.m == max(row[: step.read], default=-math.inf)
        if step.m == -math.inf:
            assert step.l == 0
        else:
            assert step.m + math.log(step.l) == pytest.approx(torch.logsumexp(seen, 0).item())
        assert sum(step.terms) == pytest.approx(step.l)


@given(rows)
@settings(max_examples=15)
def test_the_last_steps_have_the_softmax(row):
    found = steps(row)
    expected = torch.softmax(torch.tensor(row, dtype=torch.float64), 0).tolist()
    for step in found[-2:]:
        assert step.y == pytest.approx(expected)
    assert [step.clock for step in found] == [*range(len(row) + 1), 2 * len(row), 3 * len(row)]


def test_an_element_joins_by_the_merge_that_it_is_given():
    calls = []

    def pair(a, b):
        calls.append((a, b))
        return tuple(online.merge(a, b))  # a pair will do

    frames = stepper([1.0, -math.inf, 3.0, 2.0], merge=pair).frames
    assert len(calls) >= 4
    assert frames == stepper([1.0, -math.inf, 3.0, 2.0]).frames

    def forgetful(a, b):
        return a[0].maximum(b[0]), a[1] + b[1]  # no rescaling

    assert stepper([1.0, 3.0], merge=forgetful).frames[2].l == 2.0


@given(rows)
@settings(max_examples=15)
def test_every_step_of_any_row_can_be_drawn_and_described(row):
    for step in steps(row):
        svg = draw(step)
        ElementTree.fromstring(svg.markup())
        assert "nan" not in svg.markup() and "inf" not in svg.markup()
        assert describe(step)


@pytest.mark.parametrize(("order", "rescalings"), [("ascending", 11), ("descending", 0), ("outlier", 3), ("given", 2)])
def test_each_order_rescales_as_often_as_its_name_says(order, rescalings):
    shown = stepper(order=order)
    assert shown.frames[-1].rescalings == rescalings
    shown = stepper()
    shown.set(order=order)
    assert shown.frames[-1].rescalings == rescalings


def test_all_orders_of_the_same_elements_end_alike():
    ends = [stepper(order=order).frames[-1] for order in ORDERS.values() if order != "outlier"]
    assert len({step.m for step in ends}) == 1
    assert [step.l for step in ends] == pytest.approx([ends[0].l] * len(ends))
    assert len({step.x for step in ends}) == len(ends)


@pytest.mark.parametrize("name", ["merge", "summarize", "rescale", "online_softmax"])
def test_the_picture_shows_what_the_library_computes(name, monkeypatch):
    right = [draw(step).markup() for step in steps([1.0, 3.0, 2.0])]
    of_the_library = getattr(online, name)

    def nudged(*args, **kwargs):
        result = of_the_library(*args, **kwargs)
        return online.Partial(result.m + 0.25, result.l * 1.5) if isinstance(result, tuple) else result * 0.5

    monkeypatch.setattr(online, name, nudged)
    assert [draw(step).markup() for step in steps([1.0, 3.0, 2.0])] != right


def test_the_number_of_passes_is_counted_while_the_softmax_runs(monkeypatch):
    three = online.safe_softmax
    monkeypatch.setattr(online, "safe_softmax", lambda x, tile: three(x, tile) + 0 * x)  # reads the row once more
    assert steps([1.0, 3.0])[-1].passes == (2, 4)
    assert steps([1.0, 3.0])[-1].clock == 8


def test_a_step_that_rescales_shows_the_factor_and_moves_the_stack():
    shown = stepper([1, 3])
    picture = shown.svg(2)
    assert "× 0.135" in picture and "e^" not in picture  # e^(1 − 3)
    assert "settle" in picture and "--scale:7.389" in picture  # it starts as high as it was
    assert "settle" not in shown.svg(1)


def test_the_static_frame_is_the_largest_rescaling():
    shown = stepper([0, 0, 0, 5, 5.1])
    assert "x₄ = 5 is a new maximum" in shown.static_html()
    assert "x₃ = 0" in stepper([0, 0, 0]).static_html()  # none: the last of the fold


@pytest.mark.parametrize(
    ("text", "row"),
    [("1 3 2", [1, 3, 2]), (" 1.5,−2 ,1e3", [1.5, -2, 1000]), ("-inf 0", [-math.inf, 0])],
)
def test_a_row_can_be_typed(text, row):
    assert row_of(text) == row
    shown = stepper()
    shown.set(row=text)
    assert list(shown.frames[0].x) == row


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "1 to 16 numbers to be drawn; it has 0"), ("1 two", "'two' is not a number"), ("nan", "NaN"), ("1 inf", "∞"),
     ("-inf -inf", "nothing but −∞"), ("1 " * 17, "it has 17")],
)  # fmt: skip
def test_a_row_without_a_softmax_or_too_long_is_refused_with_the_reason(text, said):
    with pytest.raises(ValueError, match=said):
        stepper().set(row=text)


def test_an_unknown_order_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="order must be one of 'given', .*; got 'upwards'"):
        stepper(order="upwards")


def test_a_frame_costs_a_millisecond_and_not_a_second(record_property):
    shown = stepper()
    times = []
    for index in [*range(len(shown.frames))] * 20:
        start = time.perf_counter()
        shown.svg(index)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    record_property("median_ms", 1e3 * median)  # 0.6 ms on a slow core of 2026; the bound is for a busy machine
    assert median < 0.02
