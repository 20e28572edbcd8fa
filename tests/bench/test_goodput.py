"""The goodput benchmark: it asks what a simulator can be asked, and its steps say what a device's prices are."""

import random
from dataclasses import replace

import pytest

from llmsys.bench.goodput import (
    LIMITS,
    MISTRAL_7B,
    condensed,
    conversations,
    measure,
    recorded_steps,
    recorded_times,
    simulated,
    sizes,
    table,
)
from llmsys.bench.record import Record, all_recorded, load
from llmsys.serving.simulator import Prices, StepLoad, StepTimes, TimedStep, fit, relative_errors
from llmsys.serving.workload import synthetic


@pytest.fixture(scope="module")
def quick():
    return measure(quick=True)


def test_the_shape_is_mistrals():
    assert MISTRAL_7B.parameters == 7_241_732_096


def test_a_simulator_can_be_asked_the_same():
    asked = conversations(10.0, 4.0, vocab=32_000)
    workload = synthetic("azure-conversation", 40, rate=10.0, seed=0)
    assert [(each.at, len(each.prompt), each.output) for each in asked] == [tuple(each[:3]) for each in workload]
    assert len({tuple(each.prompt[:3]) for each in asked}) == 40
    short = conversations(10.0, 4.0, vocab=97, shorter=32)
    assert all(len(s.prompt) == max(1, len(a.prompt) // 32) for s, a in zip(short, asked, strict=True))


def test_it_runs_whole_and_says_what_it_did(quick, tmp_path):
    assert quick.missing == {}
    served = [row for row in quick.rows if row["sweep"] == "served"]
    assert [row["name"] for row in served] == ["stall-free", "orca"]
    for row in served:
        assert 0 < row["ttft_p50_ms"] <= row["ttft_p90_ms"] <= row["ttft_p99_ms"] and row["steps"] > 0
        assert row["wait_p50_ms"] <= row["wait_p99_ms"] <= row["wait_longest_ms"]
        assert 0 <= row["attained"] <= 1 and row["attained_of"] == [0.5, 0.03]
    steps, counts, _ = recorded_steps(quick)
    assert sum(counts) <= sum(row["steps"] for row in served) + 200 and min(counts) > 0
    assert fit(steps, weights=counts).seconds(steps[0].load) > 0
    assert len(table(quick).rows) == 2
    assert load(quick.save(tmp_path)) == quick


def test_what_finds_no_time_is_listed():
    found = measure(size=replace(sizes(True), seconds=-1.0))
    assert len(found.missing) == 5 and all("not begun" in why for why in found.missing.values())
    assert [row["sweep"] for row in found.rows] == ["sizes"]


def test_steps_of_nearly_one_load_are_one_row_and_their_prices_are_found_again():
    draw, true = random.Random(0), StepTimes(Prices(4e-3, 0, 1e-5, 3e-8), Prices(4e-3, 2e-5, 0, 6e-8, 4e-9), (64, 512))
    loads = []
    for _ in range(2000):
        work = [(draw.randrange(2000), 1) for _ in range(draw.randrange(1, 64))]
        work += [(draw.randrange(2000), draw.randrange(2, 400)) for _ in range(draw.randrange(2))]
        loads.append(StepLoad.of(work))
    steps = [TimedStep(each, true.seconds(each)) for each in loads]
    rows = condensed(steps, true.sizes)
    assert sum(row["count"] for row in rows) == 2000 and len(rows) < 700
    record = Record("goodput", "x", {}, "", [*rows, {"sweep": "sizes", "sizes": [64, 512]}])
    found, counts, filled = recorded_steps(record)
    assert max(map(abs, relative_errors(fit(found, weights=counts, sizes=filled), steps))) < 0.03


@pytest.mark.skipif(not all_recorded("goodput"), reason="no GPU's record is committed")
def test_a_recorded_device_has_prices_that_say_its_times():
    for record in all_recorded("goodput"):
        steps, counts, filled = recorded_steps(record)
        times = recorded_times(record.device)
        errors = sorted(
            abs(error) for error, count in zip(relative_errors(times, steps), counts, strict=True) for _ in range(count)
        )
        assert errors[len(errors) // 2] < 0.05 and errors[len(errors) * 9 // 10] < 0.15
        for row in record.rows:
            if row["sweep"] == "served" and row["rate"] < 20:  # beyond, queues make much of a small error
                found, off = simulated(row, times), 0.1 if row["rate"] < 18 else 0.15
                assert found.seconds == pytest.approx(row["seconds"], rel=0.02)
                assert found.attainment(LIMITS) == pytest.approx(row["attained"], abs=off)
                for share in (50, 90):
                    assert found.ttft(share) == pytest.approx(row[f"ttft_p{share}_ms"] / 1e3, rel=off)
                    assert found.tpot(share) == pytest.approx(row[f"tpot_p{share}_ms"] / 1e3, rel=off)
