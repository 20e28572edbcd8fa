"""What a record says: the prices of each design's steps, and what a simulator with these makes of the same requests."""

from statistics import median

from llmsys.bench.disaggregate.designs import DESIGNS
from llmsys.bench.goodput import MISTRAL_7B, SHORT
from llmsys.bench.record import Record
from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.shapes import ModelShape
from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import Result, StepLoad, StepTimes, TimedStep, Transfer, fit, simulate
from llmsys.serving.workload import synthetic


def recorded_times(record: Record, design: str) -> StepTimes:
    """The prices of a design's steps. Divided, of steps with prompts those of who computes prompts count, and of the
    others those of who goes on. ValueError where the record has no steps of it.

    Where launching a step takes the host longer than the device takes for the one before, it waits for that one when it
    has launched the next, and the last of several seems to take no time: what took less than a quarter of the role's
    median is left out.
    """
    wanted = {("decode", "decode"), ("prefill", "mixed")}
    if design == "colocated":
        wanted = {("colocated", "decode"), ("colocated", "mixed")}
    rows = [row for row in record.rows if row["sweep"] == "step" and (row["role"], row["name"]) in wanted]
    filled = {row["role"]: row["sizes"] for row in record.rows if row["sweep"] == "sizes"}
    every = {role: [row["ms"] for row in rows if row["role"] == role for _ in range(row["count"])] for role in filled}
    least = {role: median(took) / 4 for role, took in every.items() if took}
    steps = [TimedStep(StepLoad(*(row[field] for field in StepLoad._fields)), row["ms"] / 1e3) for row in rows]
    used = filled.get("colocated" if design == "colocated" else "prefill", ())
    kept = [(step, row["count"]) for step, row in zip(steps, rows, strict=True) if row["ms"] > least[row["role"]]]
    weights = [count for _, count in kept]
    return fit([step for step, _ in kept], weights=weights, sizes=used, short_tokens=SHORT)


def share_within(row: dict, limits: Limits) -> float:
    """The share of a served row's requests that met these limits."""
    times = list(zip(row["ttft_ms"], row["tpot_ms"], strict=True))
    return sum(first <= 1e3 * limits.ttft and each <= 1e3 * limits.tpot for first, each in times) / len(times)


def simulated(row: dict, times: StepTimes, *, shape: ModelShape = MISTRAL_7B) -> Result:
    """What the simulator says of a row of `served`: the same requests, the same engines, devices with these prices, and
    a link that moves as many bytes a second as were moved."""
    shorter = row.get("shorter", 1)
    workload = [
        each._replace(prompt=max(1, each.prompt // shorter), output=max(2, each.output // shorter))
        for each in synthetic(row["trace"], row["requests"], rate=row["rate"], seed=row["seed"])
    ]
    transfer = Transfer()
    if row["moved_bytes"]:
        each = bytes_per_token(shape)
        transfer = Transfer(bytes_per_token=each, bandwidth=1e9 * row["moved_gbps"], layers=shape.layers)
    return simulate(
        workload, times=times, num_blocks=row["blocks"], placement=DESIGNS[row["name"]][1], transfer=transfer,
        max_tokens_per_step=row["max_tokens_per_step"], max_sequences=row["max_sequences"], ahead=True,
    )  # fmt: skip


def table(record: Record):
    """The record as a rich table: what was served by which design, and the link."""
    from rich.table import Table

    alone = [row["gbps"] for row in record.rows if row["sweep"] == "link"]
    link = f"; the link alone carries {max(alone):.4g} GB/s" if alone else ""
    title = f"conversations on two of {record.device}{link}"
    shown = Table("a second", "design", "TTFT, ms: median", "p90", "p99", "TPOT, ms: median", "p90", "p99",
                  "within limits", "goodput per GPU", "moved, GB", "GB/s", title=title)  # fmt: skip
    for row in record.rows:
        if row["sweep"] == "served":
            times = [f"{row[f'{key}_p{share}_ms']:.4g}" for key in ("ttft", "tpot") for share in (50, 90, 99)]
            shown.add_row(f"{row['rate']:g}", row["name"], *times, f"{row['attainment']:.0%}",
                          f"{row['goodput_per_gpu']:.3g}", f"{row['moved_bytes'] / 1e9:.4g}",
                          f"{row['moved_gbps']:.4g}")  # fmt: skip
    return shown
