"""Goodput: who met the limits, how many did a second, and the highest rate at which enough do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmsys.serving import RequestMetrics
from llmsys.serving.goodput import (
    Limits,
    attainment,
    goodput,
    highest_rate,
    percentile,
    request_metrics,
)
from llmsys.serving.telemetry.events import Aborted, Admitted, Arrived, Failed, Finished, Preempted, Progress, Token


def request(arrival, first, last, tokens, *, finished=True):
    return RequestMetrics(5, arrival, arrival, first, last, last, finished, tokens)


LOG = [
    Arrived(0, 1.0, "a", 5),
    Admitted(0, 1.5, "a", 0),
    Arrived(0, 1.75, "b", 2),
    Token(1, 3.0, "a", 7),
    Preempted(1, 3.5, "a", 5),
    Token(4, 5.0, "a", 7),
    Admitted(4, 5.0, "b", 0),
    Token(5, 5.5, "a", 7),
    Token(5, 5.5, "b", 7),
    Finished(5, 5.5, "b", "length", 1),
    Token(6, 6.5, "a", 7),
    Finished(6, 6.5, "a", "length", 4),
    Arrived(6, 7.0, "c", 1),
    Aborted(6, 8.0, "c"),
    Arrived(6, 7.0, "d", 1),
    Token(6, 7.5, "d", 1),
    Failed(6, 9.0, "d", "NaN"),
    Arrived(6, 9.0, "e", 1),
]


def test_a_log_says_of_each_request_when_what_happened():
    found = request_metrics(LOG)
    a, b, c, d, e = (found[name] for name in "abcde")
    assert (a.time_to_first_token, a.time_per_output_token) == (2.0, 3.5 / 3) and a.preemptions == 1
    assert (b.time_to_first_token, b.time_per_output_token, b.end_to_end) == (3.75, None, 3.75)
    assert [each.finished for each in (a, b, c, d, e)] == [True, True, False, False, False]
    assert c.first_token is None and d.first_token == 7.5 and e.ended is None
    assert [each.longest_gap for each in (a, b, c, d, e)] == [2.0, None, None, None, None]
    assert request_metrics([]) == {}


def test_who_met_the_limits():
    found = request_metrics(LOG)
    assert [Limits(2.0, 2.0).met(found[name]) for name in "abcde"] == [True, False, False, False, False]
    assert Limits(4.0, 0.1).met(found["b"]), "one token has nothing to wait for after it"
    assert not Limits(4.0, 1.1).met(found["a"]) and Limits(2.0, 3.5 / 3).met(found["a"]), "at the limit is within"
    assert Limits(gap=2.0).met(found["a"]) and not Limits(gap=1.9).met(found["a"]) and Limits(gap=0.1).met(found["b"])
    assert attainment(found.values(), Limits()) == 2 / 5
    assert goodput(found.values(), Limits()) == 2 / 8 and goodput(found.values(), Limits(), seconds=4) == 0.5


@given(
    st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(0, 9), st.integers(1, 5)), min_size=1, max_size=20),
    st.lists(st.floats(0.01, 10), min_size=2, max_size=2),
    st.lists(st.floats(0.01, 10), min_size=2, max_size=2),
)
def test_attainment_rises_with_the_limits(drawn, ttft, tpot):
    requests = [request(a, a + first, a + first + rest, n) for a, first, rest, n in drawn]
    low, high = Limits(min(ttft), min(tpot)), Limits(max(ttft), max(tpot))
    assert 0 <= attainment(requests, low) <= attainment(requests, high) <= attainment(requests, Limits()) == 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 100))
def test_so_many_percent_do_not_exceed_a_percentile(values, share):
    found = percentile(values, share)
    assert found in values and sum(value <= found for value in values) >= share / 100 * len(values) - 1e-9
    assert sum(value < found for value in values) < max(share / 100 * len(values), 1e-300) or found == min(values)
    assert percentile(values, 100) == max(values) and percentile(values, 0) == min(values)


@given(st.floats(0.02, 900), st.sampled_from([0.5, 0.9, 1.0]), st.sampled_from([0.5, 0.02, 1e-4]))
def test_the_highest_rate_is_found_as_nearly_as_was_asked(knee, share, within):
    tried = []

    def attained(rate):
        tried.append(rate)
        return 1.0 if rate <= knee else share - 0.01

    found = highest_rate(attained, low=0.01, high=1000.0, share=share, within=within)
    assert found <= knee <= found * (1 + within) * (1 + 1e-12)
    assert len(tried) < 2 + 2 * math.log2(math.log(1e5) / within)
    assert highest_rate(lambda rate: 1.0, low=1.0, high=8.0) == 8.0


def test_what_cannot_be_is_refused():
    for bad in (dict(ttft=0), dict(tpot=-1.0), dict(ttft=math.nan), dict(gap="1")):
        with pytest.raises(ValueError, match="must be seconds above 0, or infinity"):
            Limits(**bad)
    for none in (attainment, goodput):
        with pytest.raises(ValueError, match="requests must be at least one"):
            none([], Limits())
    with pytest.raises(ValueError, match="seconds must be above 0"):
        goodput([RequestMetrics(5, 1.0)], Limits())
    with pytest.raises(ValueError, match="limits.gap cannot be told"):
        Limits(gap=1.0).met(request(0.0, 1.0, 2.0, 3))
    with pytest.raises(ValueError, match="values must be at least one"):
        percentile([], 50)
    with pytest.raises(ValueError, match="share must be from 0 to 100"):
        percentile([1.0], 101)
    with pytest.raises(ValueError, match="low must be a rate at which 90% is attained: at 1, 20% is"):
        highest_rate(lambda rate: 0.2, low=1.0, high=2.0)
    for bad in (dict(low=0.0, high=1.0), dict(low=2.0, high=1.0), dict(low=1.0, high=math.inf)):
        with pytest.raises(ValueError, match="0 < low < high"):
            highest_rate(lambda rate: 1.0, **bad)
    for bad in (dict(share=0.0), dict(share=1.1), dict(within=0.0), dict(within=1.0)):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be above 0"):
            highest_rate(lambda rate: 1.0, low=1.0, high=2.0, **bad)


def test_a_progress_is_the_events_that_it_stands_for():
    rows = [("a", 4, 1, 0, (9,)), ("b", 0, 5, 0, ())]
    events = [Arrived(0, 0.0, "a", 5), Arrived(0, 0.0, "b", 9), *Progress(0, 1.0, rows).events()]
    assert request_metrics(events)["a"].first_token == 1.0 and request_metrics(events)["b"].first_token is None
