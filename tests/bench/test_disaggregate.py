"""The benchmark of two designs: both serve the same, what it writes down can be simulated, and what hangs is said."""

from dataclasses import replace

import pytest
import torch

from llmsys.bench.disaggregate import LIMITS, measure, recorded_times, simulated, sizes, table
from llmsys.bench.goodput import MISTRAL_7B, TINY
from llmsys.bench.record import all_recorded, load
from llmsys.models.decode_cost import bytes_per_token
from llmsys.parallel.ranks import close

CPU = replace(sizes(True), gpu=False) if torch.cuda.device_count() < 2 else None
pytestmark = pytest.mark.skipif(CPU is None, reason="with two GPUs there is another --quick")


@pytest.fixture(scope="module", autouse=True)
def no_processes_are_left():
    yield
    close()


@pytest.fixture(scope="module")
def quick():
    saved = []
    record = measure(quick=True, save=saved.append)
    return record, saved


def test_both_designs_serve_the_same_and_only_one_of_them_moves_caches(quick, tmp_path):
    record, saved = quick
    assert list(record.missing) == ["two GPUs"]
    served = [row for row in record.rows if row["sweep"] == "served"]
    assert [row["name"] for row in served] == ["colocated", "divided"]
    one, other = served
    assert (one["requests"], one["prompt_tokens"], one["output_tokens"]) == tuple(
        other[key] for key in ("requests", "prompt_tokens", "output_tokens")
    )
    assert one["moved_bytes"] == 0
    each = bytes_per_token(TINY, "float32")
    assert other["moved_bytes"] == other["prompt_tokens"] * each
    assert other["moved_gbps"] == pytest.approx(other["moved_bytes"] / other["moved_s"] / 1e9, rel=1e-3)
    for row in served:
        assert len(row["ttft_ms"]) == len(row["tpot_ms"]) == row["requests"]
        met = sum(
            first <= 1e3 * LIMITS.ttft and each <= 1e3 * LIMITS.tpot
            for first, each in zip(row["ttft_ms"], row["tpot_ms"], strict=True)
        )
        assert row["attainment"] == pytest.approx(met / row["requests"], rel=1e-4)
        assert row["goodput_per_gpu"] == pytest.approx(row["attainment"] * row["rate"] / 2, rel=1e-4)
    assert [len([row for row in each.rows if row["sweep"] == "served"]) for each in saved] == [1, 2]
    assert len(table(record).rows) == 2 and load(record.save(tmp_path)) == record


def test_steps_are_written_down_by_the_role_of_who_did_them(quick):
    record, _ = quick
    steps = [row for row in record.rows if row["sweep"] == "step"]
    assert {row["role"] for row in steps} == {"colocated", "prefill", "decode"}
    assert all(row["name"] == "mixed" or row["tokens"] == row["sequences"] for row in steps)
    assert [row["name"] for row in record.rows if row["sweep"] == "link"] == ["gloo"]


def test_a_simulator_can_be_asked_the_same(quick):
    record, _ = quick
    for row in record.rows:
        if row["sweep"] == "served":
            found = simulated(row, recorded_times(record, row["name"]), shape=TINY)
            assert sum(each.prompt_tokens for each in found.requests) == row["prompt_tokens"]
            assert found.output_tokens == row["output_tokens"]
            assert bool(found.transfers) == (row["name"] == "divided")


def test_what_hangs_is_listed_with_where_its_engines_are(capfd):
    record = measure(size=replace(CPU, patience=0.0))
    assert list(record.missing) == ["two GPUs", "colocated, 40 a second", "divided, 40 a second"]
    assert [row["sweep"] for row in record.rows] == ["link"]
    assert "requests had ended after 0 s" in record.missing["divided, 40 a second"]
    said = capfd.readouterr().out
    assert "prefill 0:" in said and "decode 0:" in said and "serve_as_rank" in said


def test_what_finds_no_time_and_what_cannot_be_is_listed():
    late = measure(size=replace(CPU, seconds=-1.0)).missing
    assert list(late) == ["two GPUs", "colocated, 40 a second", "divided, 40 a second"]
    assert late["divided, 40 a second"] == "NoTime: not begun: -1 s were over"
    refused = measure(size=replace(CPU, num_blocks=1))
    assert "num_blocks must be at least 2" in refused.missing["colocated, 40 a second"]


@pytest.mark.skipif(not all_recorded("disaggregate"), reason="no GPUs' record is committed")
def test_a_recorded_pair_of_gpus_has_prices_that_say_its_times():
    for record in all_recorded("disaggregate"):
        for row in record.rows:
            if row["sweep"] == "served" and row["attainment"] > 0.8:  # beyond, queues make much of a small error
                found = simulated(row, recorded_times(record, row["name"]))
                assert row["model"] == MISTRAL_7B.name
                assert found.tpot(50) == pytest.approx(row["tpot_p50_ms"] / 1e3, rel=0.15)
