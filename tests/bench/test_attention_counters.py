"""The hardware counters' benchmark: ncu's table is read as it is printed, and the record holds every row."""

import pytest
import torch

from llmsys.bench import recorded
from llmsys.bench.attention_counters import METRICS, cases, measure, rows_of, table
from llmsys.bench.record import new_record

CASES = [{"name": name, "pass": "forward", "T": 1024, "D": 64, "causal": False} for name in ("flash", "hopper")]
KERNELS = ("rows", 1_000, 1), ("main(int, float)", 2_500_000, 51.26), ("spin_kernel", 5, 0), ("other", 400, 80)


def _printed(*kernels) -> str:
    head = ["ID", "Kernel Name", METRICS["us"], METRICS["tensor"], METRICS["ghz"]]
    lines = [head, ["", "", "ns", "%", "hz"]]
    lines += [[str(i), name, f"{ns:,}", str(share), "1,700,000,000"] for i, (name, ns, share) in enumerate(kernels)]
    return "==PROF== Connected\n" + "\n".join(",".join(f'"{cell}"' for cell in line) for line in lines)


def test_a_row_has_the_figures_of_the_longest_kernel_and_no_missing_metrics():
    first, second = rows_of(_printed(*KERNELS, KERNELS[2]), CASES)
    assert first == CASES[0] | {"kernel": "main", "tensor": 0.513, "us": 2500.0, "ghz": 1.7}
    assert second["name"] == "hopper" and second["kernel"] == "other" and second["tensor"] == 0.8
    cells = [list(column.cells) for column in table(new_record("attention_counters", [first], {})).columns]
    assert cells[4:9] == [["flash"], ["2500"], ["1.70"], ["51"], ["–"]]


@pytest.mark.parametrize("output", ["no table", _printed(*KERNELS), _printed(KERNELS[2], *KERNELS)])
def test_output_that_is_no_table_of_the_cases_is_refused(output):
    with pytest.raises(ValueError, match="output"):
        rows_of(output, CASES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured_and_the_reason_is_given():
    record = measure()
    assert record.rows == [] and "no GPU" in record.missing["all"]


def test_the_h100_record_has_every_case_and_its_shares_are_between_0_and_1():
    rows = recorded("attention_counters", "H100").rows
    assert [{key: row[key] for key in CASES[0]} for row in rows] == cases()
    for row in rows:
        assert all(0 < row[name] < 1 for name in METRICS if name not in ("us", "ghz")) and row["us"] > 50
        assert 1 < row["ghz"] < 2
