"""The benchmark of routes: the highest rate is one, requests come at random, and the record is what is committed."""

from types import SimpleNamespace

import pytest

from llmsys.bench.record import recorded
from llmsys.bench.routing import ENGINES, LIMITS, ROUTES, TRACES, at_random, highest, made_up, measure, served, table
from llmsys.serving.simulator import Prices, StepTimes


def test_the_quick_form_has_a_row_for_each_route_and_number_of_engines():
    record = measure(quick=True)
    assert [(row["engines"], row["name"], row.get("weight")) for row in record.rows] == [
        (engines, *route) for engines in (2, 4) for route in ROUTES
    ]
    assert record.device == "simulated NVIDIA H200" and all(row["goodput"] > 0 for row in record.rows)
    assert len(table(record).rows) == 2


@pytest.mark.parametrize("knee", [0.004, 0.5, 3.0])
@pytest.mark.parametrize("guess", [0.1, 1.0, 20.0])
def test_the_highest_rate_is_within_a_twentieth(knee, guess):
    rate, result = highest(lambda rate: SimpleNamespace(rate=rate, attainment=lambda limits: float(rate <= knee)),
                           guess=guess)  # fmt: skip
    assert rate <= knee < rate * 1.05 and result.rate == rate
    for share, words in ((0.5, "no rate is within"), (1.0, "every rate is within")):
        with pytest.raises(ValueError, match=words):
            highest(lambda rate, share=share: SimpleNamespace(attainment=lambda limits: share), guess=guess)


def test_requests_come_in_their_order_at_random_moments():
    asked = made_up()
    slow, fast = at_random(asked, 1.0), at_random(asked, 4.0)
    assert [each[1:] for each in slow] == [each[1:] for each in asked]
    assert [each.at / 4 for each in slow] == pytest.approx([each.at for each in fast])
    assert 0.6 < slow[-1].at / len(slow) < 1.5


def test_prefixes_are_found_where_the_route_looks_for_them():
    times, asked = StepTimes(Prices(1e-3, per_token=1e-5)), at_random(made_up(), 1.0)
    shares = {
        name: served(asked, engines=4, name=name, weight=weight, times=times, blocks=20_000).hit_share
        for name, weight in (ROUTES[0], ROUTES[-1])
    }
    all_but_the_first_of_four = 0.75 * 40 * 512 / (40 * 512 + 100)
    assert shares["prefix-aware"] == pytest.approx(all_but_the_first_of_four, abs=0.02)
    assert shares["random"] < shares["prefix-aware"] - 0.1


def test_the_committed_record_is_whole():
    record = recorded("routing", "H200")
    found = {(row["sweep"], row["engines"], row["name"], row.get("weight")) for row in record.rows}
    assert found == {(trace, engines, *route) for trace in TRACES for engines in ENGINES for route in ROUTES}
    for row in record.rows:
        assert row["goodput"] == pytest.approx(row["rate"] / row["engines"], rel=1e-3)
        alone = next(each for each in record.rows if each["sweep"] == row["sweep"] and each["engines"] == 1)
        assert row["engines"] > 1 or row["goodput"] == alone["goodput"]
        assert row["ttft_p90_ms"] <= 1e3 * LIMITS.ttft
