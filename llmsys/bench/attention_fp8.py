"""Attention in eight bits beside sixteen: `hopper_fp8`, and what it costs to quantise, on a Hopper GPU.

The rows are those of the forward's table with heads of 128. Timed in turn: the 8-bit kernel on tensors that have been
quantised, the quantising (with the transpose of v), both together, and in bfloat16 our kernel and cuDNN's. `error` is
the root mean square of the difference from attention in float64, over that of the exact output, for the last rows of
one head; whoever errs by more than a tenth is not timed.
"""

from functools import partial

import torch
from torch import Tensor

from llmsys.attention import STAGES, naive_attention
from llmsys.bench.attention import NO_GPU
from llmsys.bench.attention_peers import fused
from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved

BASELINE = "cuDNN bf16"
"""The peer whose time is divided by each other's: a ratio above 1 is faster than this peer."""
QUANTISING = "quantising"
"""The row that is no attention: it has a time and the bytes a second, and no ratio."""
LARGEST_ERROR = 0.1


def measure(quick: bool = False) -> Record:
    """Time the rows of the table. Without a Hopper GPU nothing is measured."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        return new_record("attention_fp8", [], {"hopper_fp8": "no Hopper GPU" if torch.cuda.is_available() else NO_GPU})
    rows = []
    for T in (1024,) if quick else (1024, 4096, 16384):
        for causal in (False, True):
            rows += _compare(16384 // T, 16, T, causal, repeats=5 if quick else 30)
    return new_record("attention_fp8", rows, {})


def table(record: Record):
    """The record as a rich table: a line a shape, TFLOP/s and the ratio to cuDNN in sixteen bits."""
    from rich.table import Table

    names = list(dict.fromkeys(row["name"] for row in record.rows))
    shown = Table("T", "causal", *names, title=f"attention_fp8, heads of 128, TFLOP/s on {record.device}")
    for T, causal in dict.fromkeys((row["T"], row["causal"]) for row in record.rows):
        here = {row["name"]: row for row in record.rows if (row["T"], row["causal"]) == (T, causal)}
        shown.add_row(str(T), "yes" if causal else "no", *(_figure(here[name]) for name in names))
    return shown


def _figure(row: dict) -> str:
    if row["name"] == QUANTISING:
        return f"{row['ms'] * 1e3:.0f} µs"
    return f"{row['tflops']:.3g} ({row['ratio']:.2f})"


def _compare(B: int, H: int, T: int, causal: bool, repeats: int) -> list[dict]:
    from llmsys.attention.hopper.fp8 import hopper_fp8_attention, hopper_fp8_forward, quantize_qkv

    sets = [tuple(torch.randn(B, H, T, 128, device="cuda").bfloat16() for _ in range(3)) for _ in range(3)]
    quantized = {id(q): quantize_qkv(q, k, v) for q, k, v in sets}
    functions = {
        "hopper_fp8": lambda q, k, v: hopper_fp8_forward(quantized[id(q)], causal=causal)[0],
        QUANTISING: quantize_qkv,
        "both": partial(hopper_fp8_attention, causal=causal),
        "hopper bf16": partial(STAGES["hopper"], causal=causal),
        BASELINE: partial(fused()["cuDNN"], causal=causal),
    }
    with torch.no_grad():
        errors = {
            name: _error(name, function(*sets[0]), *sets[0], causal)
            for name, function in functions.items()
            if name != QUANTISING
        }
        timings = interleaved(functions, sets, repeats=repeats, warmup=3)
    flops = 4 * B * H * T * T * 128 / (2 if causal else 1)
    rows = []
    for name, timing in timings.items():
        shape = {"name": name, "B": B, "H": H, "T": T, "D": 128, "causal": causal}
        times = {"ms": round(timing.median * 1e3, 5), "spread": round(timing.spread, 4)}
        if name == QUANTISING:
            moved = 3 * sets[0][0].numel() * (2 + 1)  # a number is read in two bytes and written in one
            rows.append(shape | times | {"gbps": round(moved / timing.median / 1e9)})
            continue
        rows.append(
            shape | times | {
                "tflops": float(f"{flops / timing.median / 1e12:.4g}"),
                "ratio": round(timings[BASELINE].median / timing.median, 4), "error": float(f"{errors[name]:.3g}"),
            }
        )  # fmt: skip
    return rows


def _error(name: str, o: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> float:
    q, k, v = (x[:1, :1].double() for x in (q[:, :, -128:], k, v))
    exact = naive_attention(q, k, v, causal=causal)
    error = ((o[:1, :1, -128:].double() - exact).norm() / exact.norm()).item()
    if not error <= LARGEST_ERROR:
        raise RuntimeError(f"{name} is off by {error:.1%} of the output, at T = {k.shape[2]}")
    return error
