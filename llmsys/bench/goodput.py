"""Goodput: four policies on conversations that come faster and faster, and what the simulator is fitted to.

A model of Mistral-7B's shape with random weights serves, in bf16, first requests of equal lengths that are there at
once, in steps of several sizes; then conversations (`synthetic`, as long as those of azure-conversation, Poisson
arrivals, forced output lengths) under each policy at some rates. Every step is written down with its load and its time
(`llmsys.serving.simulator.StepRecorder`). The conversations are drawn from a seed, so a simulator can be asked the
same.

Rows, by `sweep`:

    sizes       to how many tokens a step with prompts is filled up
    step        steps of nearly one load: `tokens`, `sequences`, `attended`, `pairs` are their means, `ms` the median
    served      `requests` conversations, `rate` a second, of `seed`, under the policy `name`: percentiles of TTFT, TPOT
                and of the time between two tokens, over all tokens

What matters most comes first: after `Sizes.seconds` nothing new is begun, and what is not is listed. `few_kernels` is
off: the form of a step that has it is made for smaller models. On this one, on an H200, a step of three sequences took
23 ms in it, and one of five, without, 4.8.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import mean, median

import torch

from llmsys.bench.decode import random_model
from llmsys.bench.record import Record, new_record, recorded
from llmsys.bench.serving.run import warm_up, warm_up_prompts
from llmsys.bench.serving.serve import Served, Waits, serve
from llmsys.bench.serving.workloads import Asked, equal
from llmsys.models.shapes import ModelShape
from llmsys.serving import Engine, Execution
from llmsys.serving.goodput import percentile
from llmsys.serving.policies import as_policy
from llmsys.serving.simulator import Result, StepLoad, StepRecorder, StepTimes, TimedStep, fit, simulate
from llmsys.serving.simulator.step_times import filled_up
from llmsys.serving.workload import prompt_tokens, synthetic

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
TRACE, SEED = "azure-conversation", 0


@dataclass(frozen=True)
class Sizes:
    """How much is asked, and the seconds after which nothing new is begun."""

    shape: ModelShape = MISTRAL_7B
    max_model_len: int = 16_384
    max_sequences: int = 256
    largest: int = 8192
    """Tokens of a step, for policies that take prompts whole."""
    output: int = 12
    together: tuple[tuple[int, int, int], ...] = (
        (1, 64, 2048), (1, 512, 2048), (1, 2048, 2048), (64, 1024, 2048), (16, 2048, 2048), (256, 64, 2048),
        (16, 512, 2048), (3, 2048, 2048), (64, 128, 2048), (32, 4096, 2048), (256, 512, 2048), (64, 512, 512),
        (16, 2048, 8192),
    )  # fmt: skip
    """(requests, tokens of each prompt, tokens of a step) that are there at once."""
    served: tuple[tuple[str, int, float], ...] = (
        *((policy, tokens, rate) for rate in (20.0, 16.0, 24.0, 12.0)
          for policy, tokens in (("stall-free", 2048), ("orca", 8192), ("alternating", 2048))),
        ("static", 8192, 4.0), ("stall-free", 512, 16.0), ("stall-free", 512, 20.0),
    )  # fmt: skip
    """(policy, tokens of a step, rate)."""
    window: float = 8.0
    """Seconds in which the conversations come."""
    shorter: int = 1
    seconds: float = 215.0


def sizes(quick: bool) -> Sizes:
    if torch.cuda.is_available() and not quick:
        return Sizes()
    return Sizes(
        TINY, max_model_len=512, max_sequences=4, largest=64, output=4, together=((1, 40, 16), (4, 9, 16), (3, 70, 64)),
        served=(("stall-free", 32, 40.0), ("orca", 64, 40.0)), window=0.15, shorter=32,
    )  # fmt: skip


def measure(quick: bool = False, *, size: Sizes | None = None) -> Record:
    """Serve, and write every step down: on a GPU at the size of Mistral-7B, on a CPU with a tiny model.

    size      what to serve instead, where there is less time
    """
    start, size = time.perf_counter(), size or sizes(quick)
    settings = {} if torch.cuda.is_available() else dict(num_blocks=400)
    engine = Engine(
        random_model(size.shape, size.max_model_len), max_tokens_per_step=size.largest,
        max_sequences=size.max_sequences, max_model_len=size.max_model_len, execution=Execution(few_kernels=False),
        **settings,
    )  # fmt: skip
    warm_up(engine)
    if torch.cuda.is_available():
        warm_up_prompts(engine)
    recorder, waits = StepRecorder(engine.events), Waits(engine)
    vocab = size.shape.vocab
    jobs = [
        ({"together": count}, "stall-free", most, equal(count, prompt=prompt, output=size.output, vocab=vocab))
        for count, prompt, most in size.together
    ]
    for policy, most, rate in size.served:
        asked = conversations(rate, size.window, vocab=vocab, shorter=size.shorter)
        jobs.append(({"rate": rate, "requests": len(asked)}, policy, most, asked))
    rows, missing = [], {}
    for what, policy, most, asked in jobs:
        how = ", ".join(f"{key} {value:g}" for key, value in what.items())
        name = f"{policy}, steps of {most}, {how}, the first prompt of {len(asked[0].prompt)}"
        if time.perf_counter() - start > size.seconds:
            missing[name] = f"not begun: {size.seconds:.0f} s were over"
            continue
        engine.scheduler.policy, engine.scheduler.max_tokens_per_step = as_policy(policy), most
        try:
            found = serve(engine, asked, name, waits=waits)
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}".splitlines()[0][:240]
            continue
        if "rate" in what:
            row = {"sweep": "served", "name": policy, **what, "max_tokens_per_step": most, "trace": TRACE, "seed": SEED}
            row |= {"model": size.shape.name, "blocks": engine.pool.num_blocks, "max_sequences": size.max_sequences}
            rows.append(row | _times(found))
    padded = engine.runner.graphs.token_buckets if engine.runner.graphs else ()
    rows.append({"sweep": "sizes", "name": "tokens of a step", "sizes": list(padded)})
    return new_record("goodput", rows + condensed(recorder.steps, padded), missing)


def conversations(rate: float, window: float, *, vocab: int, shorter: int = 1) -> list[Asked]:
    """The requests that come in so many seconds, on average; lengths divided by `shorter`."""
    arrivals = synthetic(TRACE, max(2, round(rate * window)), rate=rate, seed=SEED)
    arrivals = [each._replace(prompt=max(1, each.prompt // shorter), output=max(2, each.output // shorter))
                for each in arrivals]  # fmt: skip
    return [Asked(list(prompt_tokens(each, n, vocab=vocab)), each.output, each.at) for n, each in enumerate(arrivals)]


def condensed(steps: list[TimedStep], padded: tuple[int, ...]) -> list[dict]:
    """A row for steps whose loads are alike: of one padded size, and the other numbers within a factor of 2^(1/4) of
    the middle of a class."""
    classes: dict[tuple, list[TimedStep]] = defaultdict(list)
    for step in steps:
        tokens, *others = step.load
        size = filled_up(tokens, padded) if tokens > step.load.sequences else 0
        classes[size, *(round(2 * math.log2(number)) for number in others)].append(step)
    return [
        {"sweep": "step", "name": "decode" if key[0] == 0 else "mixed", "count": len(alike),
         **{field: _digits(mean(getattr(step.load, field) for step in alike)) for field in StepLoad._fields},
         "ms": _digits(1e3 * median(step.seconds for step in alike))}
        for key, alike in sorted(classes.items())
    ]  # fmt: skip


def recorded_steps(record: Record) -> tuple[list[TimedStep], list[int], tuple[int, ...]]:
    """A record's steps, how many each stands for, and the sizes to which steps are filled up."""
    rows = [row for row in record.rows if row["sweep"] == "step"]
    steps = [TimedStep(StepLoad(*(row[field] for field in StepLoad._fields)), row["ms"] / 1e3) for row in rows]
    (filled,) = (row["sizes"] for row in record.rows if row["sweep"] == "sizes")
    return steps, [row["count"] for row in rows], tuple(filled)


def recorded_times(device: str = "H200") -> StepTimes:
    """The prices of a device whose record is committed, for a model of Mistral-7B's shape. LookupError if none is."""
    steps, _, filled = recorded_steps(recorded("goodput", device))
    return fit(steps, sizes=filled)


def engine_blocks(record: Record) -> int:
    """Blocks of 16 tokens that the recorded engine's cache had. ValueError where nothing was served."""
    blocks = [row["blocks"] for row in record.rows if row["sweep"] == "served"]
    if not blocks:
        raise ValueError("record must have conversations that were served, to say how large the engine's cache was")
    return blocks[0]


def simulated(row: dict, times: StepTimes, *, gaps: bool = False) -> Result:
    """What the simulator says of a row of `served`: the same requests, the same engine, a device with these prices.

    gaps      whether each request's longest gap is found, too
    """
    workload = synthetic(row["trace"], row["requests"], rate=row["rate"], seed=row["seed"])
    engine = {key: row[key] for key in ("max_tokens_per_step", "max_sequences")}
    engine |= {"num_blocks": row["blocks"], "policy": row["name"], "ahead": True}
    return simulate(workload, times=times, gaps=gaps, **engine)


def table(record: Record):
    """The record as a rich table: what was served, and how many steps were written down."""
    from rich.table import Table

    steps = sum(row["count"] for row in record.rows if row["sweep"] == "step")
    served = Table("policy", "a second", "tokens a step", "TTFT, ms: median", "p90", "TPOT, ms: median", "p90",
                   "longest wait, ms", title=f"conversations, on {record.device}; {steps:,} steps")  # fmt: skip
    for row in record.rows:
        if row["sweep"] == "served":
            keys = [f"{key}_p{share}_ms" for key in ("ttft", "tpot") for share in (50, 90)] + ["wait_longest_ms"]
            numbers = [f"{row[key]:.4g}" for key in keys]
            served.add_row(row["name"], f"{row['rate']:g}", f"{row['max_tokens_per_step']:,}", *numbers)
    return served


def _times(found: Served) -> dict:
    row = {"seconds": _digits(found.seconds), "steps": found.steps, "output_tokens": found.output_tokens}
    for key, values in (("ttft", found.first), ("tpot", found.per_token), ("wait", found.waits)):
        for share in (50, 90, 99):
            row[f"{key}_p{share}_ms"] = _digits(1e3 * percentile(values, share))
    return row | {"wait_longest_ms": _digits(1e3 * found.waits[-1])}


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
