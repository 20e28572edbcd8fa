"""Attention: every stage against every peer, and how time and memory grow with the number of tokens.

Two sweeps. *growth* takes one sequence from 1k to 64k tokens, 16 heads of 64: what is quadratic shows. *table* keeps
16k tokens in all and a width of 2048, as papers do, so that a row differs from the next in how long its sequences are
and how large its heads. Each function's output is compared on the same inputs with attention in float64, by the rule
that the error may be at most twice that of eager code in the same precision (`low_precision`); then all are timed in
turn.

TFLOP/s count 4·B·H·T²·D operations, half of them with a causal mask, whatever a kernel really does. Extra memory is
the peak that a call allocates beyond its inputs and its output.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from llmsys.attention import STAGES, naive_attention
from llmsys.bench.attention_peers import fused
from llmsys.bench.low_precision import eager_attention
from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved

BASELINE = "sdpa"
"""The peer whose time is divided by each other's: a ratio above 1 is faster than this peer."""
NO_GPU = "there is no GPU, and an interpreter's time is not a kernel's"
TOO_SLOW = 65_536 * 65_536 * 16  # score elements: beyond, an eager stage is timed three times and not twenty


def measure(quick: bool = False) -> Record:
    """Run both sweeps on the GPU; on a CPU a short growth in float32, of the stages that are PyTorch."""
    gpu = torch.cuda.is_available()
    rows: list[dict] = []
    missing: dict[str, str] = {} if gpu else dict.fromkeys(("flash", "hopper"), NO_GPU)
    lengths = [1 << p for p in range(10, 17)] if gpu else [1 << p for p in range(7, 12)]
    heads, dtype = (16, torch.bfloat16) if gpu else (2, torch.float32)
    for T in lengths[:3] if quick else lengths:
        rows += _compare(_stages(gpu, T), (1, heads, T, 64), dtype, False, "growth", missing)
    for D in (64, 128) if gpu and not quick else ():
        for T in (1024, 4096, 16384):
            for causal in (False, True):
                shape = (16384 // T, 2048 // D, T, D)
                rows += _compare(fused(), shape, dtype, causal, "table", missing)
    return new_record("attention", rows, missing)


def table(record: Record):
    """The record as a rich table: a line a shape, TFLOP/s and the ratio to sdpa's time."""
    from rich.table import Table

    names = list(dict.fromkeys(row["name"] for row in record.rows))
    shown = Table("sweep", "(B, H, T, D)", "causal", *names, title=f"{record.benchmark}, TFLOP/s on {record.device}")
    keys = ("sweep", "B", "H", "T", "D", "causal")
    for key in dict.fromkeys(tuple(row[k] for k in keys) for row in record.rows):
        here = {row["name"]: row for row in record.rows if tuple(row[k] for k in keys) == key}
        figures = [_figure(here[name]) if name in here else "–" for name in names]
        shown.add_row(key[0], str(key[1:5]), "yes" if key[5] else "no", *figures)
    return shown


def _figure(row: dict) -> str:
    ratio = f" ({row['ratio']:.2f})" if row["ratio"] is not None else ""
    return f"{row['tflops']:.3g}{ratio}"


def _stages(gpu: bool, T: int) -> dict[str, Callable]:
    """The stages that a growth compares. On a GPU tiles are large, for each step of the loop costs several launches."""
    block = min(T, 512) if gpu else 128
    found = dict(STAGES) | {"tiled": partial(STAGES["tiled"], block_q=block, block_k=block)}
    # A key at a time would take hours, and what an interpreter takes is not a kernel's time.
    left_out = ("online",) if gpu else ("online", "flash", "hopper")
    return {name: stage for name, stage in found.items() if name not in left_out}


def _compare(stages, shape, dtype: torch.dtype, causal: bool, sweep: str, missing: dict[str, str]) -> list[dict]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    B, H, T, D = shape
    sets = [tuple(torch.randn(shape, device=device).to(dtype) for _ in range(3)) for _ in range(3)]
    right, extra = {}, {}
    with torch.no_grad():
        for name, stage in stages.items():
            function = partial(stage, causal=causal)
            try:
                with peak_memory() as peak:
                    o = function(*sets[0])
            except (RuntimeError, ValueError) as error:  # it cannot run here, or not at this length: said, not hidden
                missing[f"{name} at {shape}{' causal' if causal else ''}"] = str(error).splitlines()[0][:160]
                torch.cuda.empty_cache()
                continue
            extra[name] = None if peak() is None else max(peak() - o.nbytes, 0)  # before the check allocates more
            check_output(name, o, *sets[0], causal)
            right[name] = function
            del o
        eager = B * H * T * T >= TOO_SLOW and "tiled" in right
        timings = interleaved(right, sets, repeats=3 if eager else 20, warmup=1 if eager else 3)
    flops = 4 * B * H * T * T * D / (2 if causal else 1)
    return [
        {
            "name": name, "pass": "forward", "sweep": sweep, "B": B, "H": H, "Hkv": H, "T": T, "D": D,
            "dtype": str(dtype).removeprefix("torch."), "causal": causal,
            "ms": round(timing.median * 1e3, 5), "spread": round(timing.spread, 4),
            "tflops": float(f"{flops / timing.median / 1e12:.4g}"),
            "ratio": round(timings[BASELINE].median / timing.median, 4) if BASELINE in timings else None,
            "extra_bytes": extra[name],
        }
        for name, timing in timings.items()
    ]  # fmt: skip


def check_output(name: str, o: Tensor, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    """Compare the last rows of o's first sequence, which see every tile, with attention in float64.

    Raises RuntimeError where the error is more than twice that of eager code in the same precision.
    """
    last = slice(-64, None)
    q, k, v, o = q[:1, :2, last], k[:1, :2], v[:1, :2], o[:1, :2, last].double()
    exact = naive_attention(q.double(), k.double(), v.double(), causal=causal)
    eager = (eager_attention(q, k, v, causal=causal).double() - exact).abs().max().item()
    error = (o - exact).abs().max().item()
    if not error <= 2 * eager + 1e-6:
        raise RuntimeError(f"{name} is off by {error:.2e}, eager code by {eager:.2e}, at T = {k.shape[2]}")


@contextmanager
def peak_memory() -> Iterator[Callable[[], int | None]]:
    """The most bytes that the block had allocated beyond what was there before. None on a CPU, where it is not known.

    What the block gets is a function to be called for that number.
    """
    if not torch.cuda.is_available():
        yield lambda: None
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield lambda: torch.cuda.max_memory_allocated() - before
