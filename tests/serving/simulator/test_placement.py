"""The search for a placement: it tries all, and what it says of each is so."""

import pytest

from llmsys.serving import Lengths
from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Placed, Placement, Prices, StepTimes, Transfer, placements, search, simulate
from llmsys.serving.workload import synthetic

TIMES = StepTimes(Prices(4e-3, 0.0, 5e-6, 30e-9), Prices(5e-3, 2e-5, 2e-5, 60e-9, 4e-9))
LENGTHS = Lengths(1, (900,) * 11, (60,) * 11, 900.0, 60.0)
LIMITS = Limits(ttft=0.2, tpot=0.0065)
ENGINE = dict(times=TIMES, num_blocks=6000, max_tokens_per_step=1024)


def workload(rate):
    return synthetic(LENGTHS, 60, rate=rate, seed=0)


def test_gpus_are_divided_in_every_way():
    assert placements(1) == [Placement(colocated=1)]
    assert set(placements(4)) == {Placement(colocated=4), *(Placement(prefill=n, decode=4 - n) for n in (1, 2, 3))}
    assert [each.gpus for each in placements(7)] == [7] * 7
    assert str(Placement(prefill=3, decode=1)) == "3 prefill, 1 decode"


def test_each_is_as_good_as_was_found_and_no_better():
    found = search(workload, LIMITS, gpus=3, low=1.0, high=60.0, within=0.05, **ENGINE)
    assert {each.placement for each in found} == set(placements(3))
    assert [each.goodput for each in found] == sorted((each.goodput for each in found), reverse=True)
    for each in found:
        assert each.goodput == each.rate / 3 > 0
        there = simulate(workload(each.rate), placement=each.placement, **ENGINE)
        assert there.attainment(LIMITS) >= 0.9 and (there.ttft(90), there.tpot(90)) == (each.ttft, each.tpot)
        assert simulate(workload(each.rate * 1.06), placement=each.placement, **ENGINE).attainment(LIMITS) < 0.9
    assert found[0].placement.decode, "what decodes is not held up by prompts here"


def test_a_dear_link_or_no_limit_to_tpot_makes_colocated_better():
    tries = dict(candidates=[Placement(colocated=2), Placement(prefill=1, decode=1)], low=1.0, high=60.0, within=0.1)
    slow = Transfer(bytes_per_token=131_072, bandwidth=0.3e9)
    for limits, transfer, best in ((LIMITS, Transfer(), Placement(prefill=1, decode=1)),
                                   (LIMITS, slow, Placement(colocated=2)),
                                   (Limits(ttft=0.2), Transfer(), Placement(colocated=2))):  # fmt: skip
        assert search(workload, limits, transfer=transfer, **tries, **ENGINE)[0].placement == best


def test_where_the_lowest_rate_is_too_high_goodput_is_none():
    (found,) = search(workload, Limits(ttft=1e-6), candidates=[Placement(colocated=1)], **ENGINE)
    assert found == Placed(Placement(colocated=1), 0.0, found.ttft, found.tpot) and found.goodput == 0 < found.ttft
    one = Lengths(1, (5,) * 11, (1,) * 11, 5.0, 1.0)
    (found,) = search(lambda rate: synthetic(one, 20, rate=rate, seed=0), Limits(ttft=0.5), gpus=1, high=1.0, **ENGINE)
    assert found.rate == 1.0 and found.tpot is None


def test_what_cannot_be_is_refused():
    for bad in (dict(), dict(gpus=2, candidates=[Placement(colocated=1)])):
        with pytest.raises(ValueError, match="give either gpus"):
            search(workload, LIMITS, **bad, **ENGINE)
    with pytest.raises(ValueError, match="gpus must be"):
        placements(0)
