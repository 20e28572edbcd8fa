"""The search: it tries all that there is, leaves out only what is no better, and says what is so."""

import pytest

from llmsys.serving import Lengths
from llmsys.serving.goodput import Limits
from llmsys.serving.planning import Candidate, EngineOf, candidates, plan
from llmsys.serving.simulator import Placement, Prices, StepTimes, Transfer, capacity, simulate
from llmsys.serving.workload import synthetic

TIMES = StepTimes(Prices(4e-3, 0.0, 5e-6, 30e-9), Prices(5e-3, 2e-5, 2e-5, 60e-9, 4e-9))
HALF = StepTimes(Prices(2.5e-3, 0.0, 3e-6, 15e-9), Prices(3e-3, 1.1e-5, 1e-5, 30e-9, 2e-9))
ENGINES = {1: EngineOf(1, TIMES, 6000, modelled=False), 2: EngineOf(2, HALF, 13_000, modelled=True)}
LENGTHS = Lengths(1, (900,) * 11, (60,) * 11, 900.0, 60.0)
LIMITS = Limits(ttft=0.2, tpot=0.0065)
LINK = Transfer(bytes_per_token=131_072, bandwidth=50e9, latency=2e-5, layers=32)
ASKED = dict(engines=ENGINES, transfer=LINK, budgets=(256, 1024), prompt_budget=1024, within=0.05)


def workload(rate):
    return synthetic(LENGTHS, 80, rate=rate, seed=0)


def alone(candidate, transfer=LINK):
    """How `simulate` is asked about a candidate."""
    first, second = ENGINES[candidate.prefill_gpus], ENGINES[candidate.decode_gpus]
    own = dict(placement=candidate.placement, times=first.times, num_blocks=first.num_blocks)
    if not candidate.divided:
        return own | dict(max_tokens_per_step=candidate.budget)
    links = min(candidate.prefill_gpus, candidate.decode_gpus)
    return own | dict(
        prefill_settings=dict(max_tokens_per_step=1024),
        decode_settings=dict(times=second.times, num_blocks=second.num_blocks),
        transfer=Transfer(transfer.bytes_per_token, links * transfer.bandwidth, transfer.latency, transfer.layers),
    )


def test_every_way_to_have_so_many_gpus():
    found = candidates(4, [1, 2], budgets=[256])
    assert len(found) == len(set(found)) == 2 + 2 + 4 + 1 * 1 - 1, "2 colocated; 1 + 3, 2 + 2 in four ways, 3 + 1"
    assert all(each.gpus == 4 for each in found)
    assert Candidate(Placement(prefill=1, decode=2), 2, 1) in found
    assert candidates(1) == [Candidate(Placement(colocated=1), budget=budget) for budget in (256, 512, 2048)]
    with pytest.raises(ValueError, match="gpus must be a number that engines of 2 GPUs add up to: 3"):
        candidates(3, [2])


@pytest.fixture(scope="module")
def found():
    return plan(workload, LIMITS, gpus=3, **ASKED)


def test_each_is_as_good_as_was_found_and_no_better(found):
    assert {each.candidate for each in found} == set(candidates(3, [1, 2], budgets=(256, 1024)))
    rates = [each.rate for each in found if each.rate is not None]
    assert rates == sorted(rates, reverse=True) and found[0].goodput == rates[0] / 3 > 0
    for each in found[: len(rates)]:
        there = simulate(workload(each.rate), **alone(each.candidate))
        assert there.attainment(LIMITS) >= 0.9 and (there.ttft(90), there.tpot(90)) == (each.ttft, each.tpot)
        assert simulate(workload(each.rate * 1.06), **alone(each.candidate)).attainment(LIMITS) < 0.9
        assert each.modelled == (2 in (each.candidate.prefill_gpus, each.candidate.decode_gpus))


def test_what_was_left_out_is_no_better(found):
    left_out = [each for each in found if each.rate is None]
    assert left_out and all(not (each.candidate.prefill_gpus == 1 and not each.candidate.divided) for each in left_out)
    for each in left_out:
        rate = capacity(workload, LIMITS, low=0.5, high=400.0, within=0.05, **alone(each.candidate))
        assert rate <= 1.1 * found[0].rate and "at most" in str(each)


def test_a_dear_link_or_no_limit_to_tpot_makes_colocated_better():
    given = ASKED | dict(engines={1: ENGINES[1]})
    slow = Transfer(bytes_per_token=131_072, bandwidth=0.3e9)
    for limits, transfer, divided in ((LIMITS, LINK, True), (LIMITS, slow, False), (Limits(ttft=0.2), LINK, False)):
        assert plan(workload, limits, gpus=2, **(given | dict(transfer=transfer)))[0].candidate.divided == divided


def test_what_nobody_can_serve_has_no_rate():
    found = plan(workload, Limits(ttft=1e-6), gpus=2, **ASKED)
    assert not any(each.rate for each in found) and found[0].rate == 0 < found[0].ttft
    one = Lengths(1, (5,) * 11, (1,) * 11, 5.0, 1.0)
    best = plan(lambda rate: synthetic(one, 20, rate=rate, seed=0), Limits(ttft=0.5), gpus=1, high=1.0, **ASKED)[0]
    assert best.rate == 1.0 and best.tpot is None


def test_progress_is_told_and_ends():
    told = []
    plan(workload, LIMITS, gpus=2, progress=lambda *what: told.append(what), **(ASKED | dict(within=0.5)))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2] and any("prefill" in what for what, _, _ in told)


def test_no_engines_is_refused():
    with pytest.raises(ValueError, match="engines must be at least one"):
        plan(workload, LIMITS, gpus=2, engines={})


def test_what_is_no_number_of_gpus_or_rate_is_refused():
    with pytest.raises(ValueError, match="degrees must be at least 1"):
        candidates(4, (0, 1))
    with pytest.raises(ValueError, match="that of 2 has 1"):
        plan(workload, LIMITS, gpus=2, engines={2: ENGINES[1]})
    for low, high in [(0.0, 1.0), (5.0, 1.0)]:
        with pytest.raises(ValueError, match="low and high must be rates above 0"):
            plan(workload, LIMITS, gpus=1, engines={1: ENGINES[1]}, low=low, high=high)
