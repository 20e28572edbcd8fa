"""The benchmark of attention in eight bits: what it says without a GPU, and with one."""

import pytest
import torch

from llmsys.bench import recorded
from llmsys.bench.attention_fp8 import BASELINE, QUANTISING, measure, table
from llmsys.bench.record import new_record

NAMES = {"hopper_fp8", QUANTISING, "both", "hopper bf16", BASELINE}
on_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_the_reason_is_given():
    record = measure()
    assert record.rows == [] and "no GPU" in record.missing["hopper_fp8"]


def test_a_table_has_a_line_for_each_shape():
    shape = {"T": 1024, "causal": True, "ms": 0.25}
    rows = [shape | {"name": QUANTISING, "gbps": 2000}, shape | {"name": BASELINE, "tflops": 512.3, "ratio": 1.0}]
    columns = table(new_record("attention_fp8", rows, {})).columns
    assert [list(column.cells) for column in columns] == [["1024"], ["yes"], ["250 µs"], ["512 (1.00)"]]


def test_the_h100_record_is_complete_and_its_ratios_are_those_of_its_times():
    rows = recorded("attention_fp8", "H100").rows
    shapes = {(T, causal) for T in (1024, 4096, 16384) for causal in (False, True)}
    assert {(row["name"], row["T"], row["causal"]) for row in rows} == {(n, *shape) for n in NAMES for shape in shapes}
    baseline = {(row["T"], row["causal"]): row["ms"] for row in rows if row["name"] == BASELINE}
    for row in rows:
        if row["name"] != QUANTISING:
            assert row["ratio"] == pytest.approx(baseline[row["T"], row["causal"]] / row["ms"], rel=0.01)
            assert row["error"] < (0.1 if row["name"] in ("hopper_fp8", "both") else 0.01)


@pytest.mark.gpu
@on_hopper
def test_it_runs_on_a_hopper_gpu():
    record = measure(quick=True)
    assert {row["name"] for row in record.rows} == NAMES
    assert all(row["ms"] > 0 for row in record.rows)
