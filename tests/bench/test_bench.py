"""Benchmarks: functions take turns, records can be saved and loaded, and a peer with wrong results is not timed."""

import json

import pytest
import torch

from llmsys.bench import BENCHMARKS, all_recorded, interleaved, recorded
from llmsys.bench.__main__ import main, run
from llmsys.bench.record import load, new_record
from llmsys.bench.softmax import COPY, OURS, TORCH, _compare, table


def test_functions_take_turns_on_rotating_inputs():
    calls = []
    functions = {name: (lambda x, name=name: calls.append((name, x))) for name in "ab"}
    timings = interleaved(functions, [(1,), (2,)], repeats=3, warmup=0)
    assert calls == [("a", 1), ("b", 1), ("a", 2), ("b", 2), ("a", 1), ("b", 1)]
    assert all(len(t.seconds) == 3 and t.median > 0 and t.spread >= 0 for t in timings.values())


@pytest.mark.parametrize(
    ("functions", "options"), [({}, {}), ({"a": print}, {"repeats": 0}), ({"a": print}, {"inputs": ()})]
)
def test_no_functions_no_inputs_or_no_repeats_are_refused(functions, options):
    with pytest.raises(ValueError, match="at least"):
        interleaved(functions, **options)


def test_a_record_survives_a_round_trip_and_names_device_versions_and_date(tmp_path):
    record = new_record("toy", [{"name": "ours", "gbps": 1.5}, {"name": "copy", "gbps": 2.0}], {"peer": "not here"})
    path = record.save(tmp_path / "new")
    assert load(path) == record and record.versions["torch"] == torch.__version__
    assert json.loads(path.read_text())["date"] == record.date


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"benchmark": 1}')
    with pytest.raises(ValueError, match="x.json is not a record"):
        load(tmp_path / "x.json")


def test_the_error_for_an_unknown_record_or_benchmark_lists_the_known_ones():
    with pytest.raises(LookupError, match="recorded: .*softmax"):
        recorded("chess")
    with pytest.raises(ValueError, match="softmax"):
        run("chess")


def test_all_records_of_a_benchmark_are_of_different_gpus_and_the_first_of_a_name_is_found():
    found = all_recorded("softmax")
    assert {record.benchmark for record in found} == {"softmax"} and recorded("softmax", "H100") in found
    assert len({record.device for record in found}) == len(found) >= 1
    assert {record.benchmark for record in all_recorded()} > {"softmax", "attention"} and all_recorded("chess") == []


def test_every_benchmark_runs_here_in_its_small_form(tmp_path, capsys):
    for name in BENCHMARKS:
        assert main([name, "--quick", "--out", str(tmp_path)]) == 0
    assert "GB/s" in capsys.readouterr().out
    assert len(list(tmp_path.iterdir())) == len(BENCHMARKS)
    (path,) = tmp_path.glob("softmax-*")
    record = load(path)
    assert {row["name"] for row in record.rows} >= {TORCH, COPY}
    assert all(row["gbps"] > 0 and row["ms"] > 0 for row in record.rows)
    if not torch.cuda.is_available():
        assert "interpreter" in record.missing[OURS]


def test_a_wrong_peer_is_not_timed_and_one_that_fails_is_listed():
    def compare(peer, missing):
        return _compare({"peer": peer, COPY: torch.clone}, 2, 8, torch.float32, repeats=1, missing=missing)

    with pytest.raises(RuntimeError, match="peer is wrong"):
        compare(lambda x: torch.softmax(x, -1) / 2, {})
    missing = {}
    rows = compare(lambda x: 1 / 0, missing)
    assert "ZeroDivisionError" in missing["peer"] and [row["name"] for row in rows] == [COPY]


def test_the_h100_record_is_complete_and_its_ratios_are_those_of_its_times():
    record = recorded("softmax", "H100")
    ours = [row for row in record.rows if row["name"] == OURS]
    assert {row["dtype"] for row in ours} == {"float32", "bfloat16"} and len(ours) >= 20

    def shape(row):
        return row["rows"], row["cols"], row["dtype"]

    copies = {shape(row): row["ms"] for row in record.rows if row["name"] == COPY}
    for row in record.rows:
        assert row["ratio"] == pytest.approx(copies[shape(row)] / row["ms"], rel=0.01)


def test_the_table_says_how_much_extra_memory_a_peer_took():
    shape = {"rows": 4, "cols": 8, "dtype": "float32", "gbps": 1.0, "ratio": 1.0}
    rows = [{"name": name, "extra_bytes": n, **shape} for name, n in ((OURS, 0), (TORCH, 3 << 20), (COPY, 0))]
    assert f"{TORCH}: 3.0 MiB beyond input and output" in table(new_record("softmax", rows, {})).caption
    for row in rows:
        del row["extra_bytes"]
    assert not table(new_record("softmax", rows, {})).caption


@pytest.mark.gpu
def test_on_a_gpu_a_softmax_in_several_kernels_is_charged_for_its_temporary_tensors():
    peers = {"ours": lambda x: torch.softmax(x, -1), "wasteful": lambda x: torch.exp(x) / torch.exp(x).sum(-1, True)}
    rows = _compare(peers | {COPY: torch.clone}, 1024, 1024, torch.float32, repeats=3, missing={})
    extra = {row["name"]: row["extra_bytes"] for row in rows}
    assert extra["ours"] == extra[COPY] == 0 and extra["wasteful"] >= 4 * 1024 * 1024
