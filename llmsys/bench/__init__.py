"""Benchmarks: what is measured, how, and the recorded results (JSON, one file a benchmark and GPU, in `recorded/`).

    python -m llmsys.bench softmax --out results/

A speed is always a ratio to a peer that is timed in the same process, in turn, on the same fresh random inputs, after
both have been shown to compute the same thing (`timing`); a record says on which GPU, with which versions and when
(`record`). One module a benchmark; `BENCHMARKS` names them.
"""

from llmsys.bench.record import Record, all_recorded, load, recorded
from llmsys.bench.timing import Timing, interleaved

BENCHMARKS = {
    "softmax": "llmsys.bench.softmax",
    "attention": "llmsys.bench.attention",
    "attention_backward": "llmsys.bench.attention_backward",
    "attention_fp8": "llmsys.bench.attention_fp8",
    "attention_counters": "llmsys.bench.attention_counters",
    "hopper_orders": "llmsys.bench.hopper_orders",
    "decode": "llmsys.bench.decode",
    "paged_decode": "llmsys.bench.paged_decode",
    "paged_prefill": "llmsys.bench.paged_prefill",
    "mla_decode": "llmsys.bench.mla_decode",
    "mla_training": "llmsys.bench.mla_training",
    "serving": "llmsys.bench.serving",
    "goodput": "llmsys.bench.goodput",
    "disaggregate": "llmsys.bench.disaggregate",
    "routing": "llmsys.bench.routing",
    "host_cache": "llmsys.bench.host_cache",
    "moe": "llmsys.bench.moe",
    "moe_training": "llmsys.bench.moe_training",
    "pipeline": "llmsys.bench.pipeline",
    "transfers": "llmsys.bench.transfers",
}
"""Name -> module with `measure(quick) -> Record` and `table(record) -> rich table`."""

__all__ = ["BENCHMARKS", "Record", "Timing", "all_recorded", "interleaved", "load", "recorded"]
