"""What limits attention's kernels: hardware counters, read by Nsight Compute (`ncu`) on the rows of the tables.

One call of each kernel is run again and again by ncu, each time with other counters. Every figure is of the longest
kernel of that call (of the backward pass of flash, that which makes dK and dV), as a share of what the unit could do in
that time, if it is not said otherwise:

    tensor                  cycles in which a tensor core's pipe was active
    issue                   cycles in which a scheduler issued an instruction
    exp                     instructions of the unit that computes 2^x
    alu, fma                instructions of the units for integers and comparisons, and for multiply-adds
    shared                  wavefronts of shared memory's data pipe
    bank_reads, bank_writes accesses to the banks of shared memory and L1
    l2, dram                their throughput
    us, ghz                 the time in microseconds, and the clock: ncu leaves it alone, but a kernel that runs once
                            does not heat the GPU up, so times of `bench attention` are longer

`ncu` comes with CUDA. Where it is missing, or may not read counters, that is said and nothing is measured.
"""

import csv
import io
import shutil
import subprocess
import sys
from functools import partial

import torch

from llmsys.bench.attention import NO_GPU
from llmsys.bench.attention_backward import forward_graph, run_backward
from llmsys.bench.attention_peers import fused
from llmsys.bench.record import Record, new_record

OF_PEAK = ".avg.pct_of_peak_sustained_elapsed"
METRICS = {
    "tensor": "sm__pipe_tensor_cycles_active" + OF_PEAK,
    "issue": "sm__inst_issued" + OF_PEAK,
    "exp": "sm__inst_executed_pipe_xu" + OF_PEAK,
    "alu": "sm__inst_executed_pipe_alu" + OF_PEAK,
    "fma": "sm__inst_executed_pipe_fma" + OF_PEAK,
    "shared": "l1tex__data_pipe_lsu_wavefronts_mem_shared" + OF_PEAK,
    "bank_reads": "l1tex__data_bank_reads" + OF_PEAK,
    "bank_writes": "l1tex__data_bank_writes" + OF_PEAK,
    "l2": "lts__t_sectors" + OF_PEAK,
    "dram": "dram__throughput" + OF_PEAK,
    "us": "gpu__time_duration.sum",
    "ghz": "sm__cycles_elapsed.avg.per_second",
}
"""Column -> ncu's name of the metric. Metrics that a GPU does not have are left out."""
FP8 = "hopper_fp8"
KERNELS = ("flash", "hopper", FP8, "cuDNN")
"""What is looked at: stages, the kernel in eight bits, and a peer."""


def measure(quick: bool = False) -> Record:
    """Read the counters of the table's kernels, forward and backward. Needs a GPU and ncu."""
    if not torch.cuda.is_available():
        return new_record("attention_counters", [], {"all": NO_GPU})
    if not (ncu := shutil.which("ncu")):
        return new_record("attention_counters", [], {"all": "ncu (Nsight Compute) is not on the PATH"})
    command = [
        ncu, "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none",
        "--profile-from-start", "off", "--metrics", ",".join(METRICS.values()),
        sys.executable, "-m", "llmsys.bench.attention_counters", *(["quick"] if quick else []),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        return new_record("attention_counters", [], {"all": " ".join(said[-4:])[:300]})
    return new_record("attention_counters", rows_of(done.stdout, cases(quick)), {})


def cases(quick: bool = False) -> list[dict]:
    """Which calls are looked at: of each kernel that has the pass, at that length and head size."""
    found = []
    for direction in ("forward", "backward"):
        for D in (64, 128):
            for T in (1024,) if quick else (1024, 4096, 16384):
                for causal in (False, True):
                    for name in KERNELS:
                        if name != FP8 or (direction == "forward" and D == 128):
                            found.append({"name": name, "pass": direction, "T": T, "D": D, "causal": causal})
    return found


def rows_of(output: str, cases: list[dict]) -> list[dict]:
    """The longest kernel of each case in ncu's table: a spinning kernel ends a case.

    Raises ValueError where the table is not of these cases.
    """
    lines = output.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        raise ValueError("output holds no table of ncu's, whose head begins with ID")
    kernels = list(csv.DictReader(io.StringIO("\n".join(lines[begin:]))))[1:]  # the first line holds the units
    groups: list[list[dict]] = [[]]
    for kernel in kernels:
        if "spin" in kernel["Kernel Name"]:
            groups.append([])
        else:
            groups[-1].append(kernel)
    if len(groups) != len(cases) + 1 or groups.pop() or not all(groups):
        raise ValueError(f"output has {len(groups)} groups of kernels, and there are {len(cases)} cases")
    return [case | _figures(kernels) for case, kernels in zip(cases, groups, strict=True)]


def _figures(kernels: list[dict]) -> dict:
    """The figures of the longest of these kernels: shares as fractions, microseconds, gigahertz."""
    longest = max(kernels, key=lambda kernel: _number(kernel, METRICS["us"]) or 0)
    read = {name: _number(longest, metric) for name, metric in METRICS.items()}
    kept = {name: value for name, value in read.items() if value is not None}
    for name, unit, digits in (("us", 1e3, 1), ("ghz", 1e9, 3)):  # from nanoseconds and hertz
        kept[name] = round(kept[name] / unit, digits)
    return {"kernel": longest["Kernel Name"].split("(")[0][:60]} | {
        name: value if name in ("us", "ghz") else round(value / 100, 3) for name, value in kept.items()
    }


def _number(kernel: dict, metric: str) -> float | None:
    text = (kernel.get(metric) or "").replace(",", "")
    try:
        return float(text)
    except ValueError:
        return None


def table(record: Record):
    """The record as a rich table: a line a kernel and row, shares in percent."""
    from rich.table import Table

    shares = [name for name in METRICS if name not in ("us", "ghz")]
    shown = Table("pass", "D", "T", "causal", "name", "µs", "GHz", *shares, title=f"% of peak on {record.device}")
    for row in record.rows:
        figures = [f"{100 * row[name]:.0f}" if name in row else "–" for name in shares]
        head = (row["pass"], str(row["D"]), str(row["T"]), "yes" if row["causal"] else "no", row["name"])
        shown.add_row(*head, f"{row['us']:.0f}", f"{row['ghz']:.2f}", *figures)
    return shown


def _call(case: dict):
    """A function that makes the case's call once."""
    B, H, T, D = 16384 // case["T"], 2048 // case["D"], case["T"], case["D"]
    q, k, v, do = (torch.randn(B, H, T, D, device="cuda").bfloat16() for _ in range(4))
    if case["name"] == FP8:
        from llmsys.attention.hopper.fp8 import hopper_fp8_forward, quantize_qkv

        return partial(hopper_fp8_forward, quantize_qkv(q, k, v), causal=case["causal"])
    stage = fused()[case["name"]]
    if case["pass"] == "forward":
        return partial(stage, q, k, v, causal=case["causal"])
    return partial(run_backward, *forward_graph(stage, q, k, v, case["causal"]), do)


def _run(quick: bool) -> None:
    """The program that ncu watches: each case once, after a few calls that are not watched."""
    for case in cases(quick):
        call = _call(case)
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        call()
        torch.cuda._sleep(1)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    _run(quick=sys.argv[1:] == ["quick"])
