"""How long steps of an engine take, by what they have to do: what the simulator's model of a device is fitted to.

A model of Mistral-7B's shape with random weights, in bf16, serves requests of equal lengths, all there at once, with
steps of several sizes; and conversations that come one after the other. Every step is written down with its load
(`llmsys.serving.simulator.StepLoad`) and its time, from one result to the next. Steps of nearly one load are one row, the
median of their times. Of the conversations, the times of requests are recorded, too: the simulator must say the same.

Rows, by `sweep`:

    step        steps of nearly one load: `tokens`, `sequences`, `attended`, `pairs` are their means, `ms` the median
    served      conversations: `rate` a second, `max_tokens_per_step`; medians and 90th percentiles of TTFT and TPOT
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import mean, median

import torch

from llmsys.bench.decode import random_model
from llmsys.bench.record import Record, new_record
from llmsys.bench.serving.run import warm_up, warm_up_prompts
from llmsys.bench.serving.serve import Served, serve
from llmsys.bench.serving.workloads import conversations, equal
from llmsys.models.shapes import ModelShape
from llmsys.serving import Engine
from llmsys.serving.simulator.load import StepRecorder, TimedStep

MISTRAL_7B = ModelShape(
    name="Mistral-7B",
    layers=32,
    width=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14_336,
    vocab=32_000,
    source="Mistral 7B, table 1, https://arxiv.org/abs/2310.06825; without its sliding window, as its later versions",
)
TINY = ModelShape("tiny", layers=2, width=48, heads=6, kv_heads=3, head_dim=8, ffn=64, vocab=97)


@dataclass(frozen=True)
class Sizes:
    """How much is asked, and the seconds after which nothing new is begun."""

    shape: ModelShape = MISTRAL_7B
    max_model_len: int = 16_384
    max_sequences: int = 256
    largest: int = 8192
    """Tokens of a step, the largest budget."""
    output: int = 12
    together: tuple[tuple[int, int, int], ...] = (
        (1, 64, 2048), (1, 512, 2048), (1, 2048, 2048), (1, 8192, 2048), (64, 1024, 2048), (16, 2048, 2048),
        (256, 64, 2048), (16, 512, 2048), (4, 2048, 2048), (64, 128, 2048), (8, 8192, 2048), (32, 4096, 2048),
        (256, 512, 2048), (64, 1024, 512), (4, 2048, 512), (16, 2048, 8192), (4, 2048, 8192), (1, 8192, 8192),
    )  # fmt: skip
    """(requests, tokens of each prompt, tokens of a step) that are there at once."""
    talks: tuple[tuple[float, int, int], ...] = ((10.0, 200, 2048), (10.0, 200, 512), (5.0, 100, 2048))
    """(rate, requests, tokens of a step) of conversations."""
    shorter: int = 1
    seconds: float = 120.0


def sizes(quick: bool) -> Sizes:
    if torch.cuda.is_available() and not quick:
        return Sizes()
    return Sizes(
        TINY, max_model_len=512, max_sequences=4, largest=64, output=4, together=((1, 40, 16), (4, 9, 16), (3, 70, 64)),
        talks=((50.0, 6, 32),), shorter=32,
    )  # fmt: skip


def measure(quick: bool = False) -> Record:
    """Serve, and write every step down: on a GPU at the size of Mistral-7B, on a CPU with a tiny model."""
    start, size = time.perf_counter(), sizes(quick)
    settings = {} if torch.cuda.is_available() else dict(num_blocks=400)
    engine = Engine(
        random_model(size.shape, size.max_model_len), max_tokens_per_step=size.largest,
        max_sequences=size.max_sequences, max_model_len=size.max_model_len, **settings,
    )  # fmt: skip
    warm_up(engine)
    if torch.cuda.is_available():
        warm_up_prompts(engine)
    rows, missing, recorder = [], {}, StepRecorder(engine.events)
    vocab = size.shape.vocab
    jobs = [(f"{count} of {prompt}, steps of {most}", most, equal(count, prompt=prompt, output=size.output, vocab=vocab))
            for count, prompt, most in size.together]  # fmt: skip
    talks = [(f"{rate:g} a second, steps of {most}", most,
              conversations(count, rate=rate, vocab=vocab, shorter=size.shorter))
             for rate, count, most in size.talks]  # fmt: skip
    found: dict[str, Served] = {}
    for name, most, asked in jobs + talks:
        if time.perf_counter() - start > size.seconds:
            missing[name] = f"not begun: {size.seconds:.0f} s were over"
            continue
        engine.scheduler.max_tokens_per_step = most
        try:
            found[name] = serve(engine, asked, name)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:240]
    for (rate, count, most), (name, _, _) in zip(size.talks, talks, strict=True):
        if name in found:
            rows.append(served_row(found[name], rate=rate, requests=count, max_tokens_per_step=most))
    rows += condensed(recorder.steps)
    model = {"model": size.shape.name, "blocks": engine.pool.num_blocks}
    return new_record("step_times", [row | model if row["sweep"] == "served" else row for row in rows], missing)


def served_row(found: Served, *, policy: str = "stall-free", **asked) -> dict:
    row = {"sweep": "served", "name": policy, **asked, "seconds": _digits(found.seconds), "steps": found.steps}
    for key, values in (("ttft", found.first), ("tpot", found.per_token)):
        ordered = sorted(values)
        for share in (50, 90, 99):
            row[f"{key}_p{share}_ms"] = _digits(1e3 * ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)])
    return row


def condensed(steps: list[TimedStep]) -> list[dict]:
    """A row for steps whose loads are alike: each of its numbers within a factor of 2^(1/4) of the middle of a class."""
    classes: dict[tuple, list[TimedStep]] = defaultdict(list)
    for step in steps:
        classes[tuple(round(2 * math.log2(number)) for number in step.load)].append(step)
    return [
        {"sweep": "step", "name": "steps", "count": len(alike),
         **{key: _digits(mean(getattr(step.load, key) for step in alike)) for key in alike[0].load._fields},
         "ms": _digits(1e3 * median(step.seconds for step in alike))}
        for _, alike in sorted(classes.items())
    ]  # fmt: skip


def table(record: Record):
    """The record as rich tables: requests, and the steps of a decode and of the largest prompts."""
    from rich.console import Group
    from rich.table import Table

    served = Table("policy", "a second", "tokens a step", "TTFT, ms: median", "p90", "TPOT, ms: median", "p90",
                   title=f"conversations, on {record.device}")  # fmt: skip
    steps = Table("steps", "tokens", "sequences", "attended", "ms", title="steps, by their load")
    for row in record.rows:
        if row["sweep"] == "served":
            waits = [f"{row[f'{key}_p{share}_ms']:.4g}" for key in ("ttft", "tpot") for share in (50, 90)]
            served.add_row(row["name"], f"{row['rate']:g}", str(row["max_tokens_per_step"]), *waits)
        else:
            numbers = [f"{row[key]:,.0f}" for key in ("count", "tokens", "sequences", "attended")]
            steps.add_row(*numbers, f"{row['ms']:.4g}")
    return Group(served, steps)


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
