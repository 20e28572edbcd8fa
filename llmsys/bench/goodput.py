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
                and of the time between two tokens, over all tokens; `attained`, the share of requests within LIMITS

Rates around the knee of each policy: by the simulator, with the prices of an H200, 90% of the requests meet 500 ms to
the first token and 30 ms a token up to 18.7 a second (stall-free), 17.0 (orca) and 18.5 (alternating); as recorded, on
a straight line between two rates, up to 18.0, 16.4 and 17.0. Under static batching fewer than 90% do at any rate of
interest, so its four rates are those at which it goes from bad to worse.

Where there are several GPUs each serves a share of the runs, with an engine of its own. What matters most comes first:
after `Sizes.seconds` nothing new is begun, and what is not is listed. `few_kernels` is off: the form of a step that has
it is made for smaller models. On this one, on an H200, a step of three sequences took 23 ms in it, and one of five,
without, 4.8.
"""

import math
import time
from collections import defaultdict
from dataclasses import dataclass
from statistics import mean, median
from typing import NamedTuple

import torch
import torch.distributed as dist

from llmsys.bench.decode import random_model
from llmsys.bench.record import Record, new_record, recorded
from llmsys.bench.serving.run import warm_up, warm_up_prompts
from llmsys.bench.serving.serve import Served, Waits, serve
from llmsys.bench.serving.workloads import Asked, equal
from llmsys.models.shapes import ModelShape
from llmsys.parallel.ranks import run
from llmsys.serving import Engine, Execution
from llmsys.serving.goodput import Limits, attainment, percentile
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
LIMITS = Limits(ttft=0.5, tpot=0.03)
SHORT = 512
"""Tokens of a step with prompts up to which it has prices of its own: `simulator.step_times` says why."""


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
        *((policy, tokens, rate) for rate in (13.0, 16.0, 10.0, 19.0, 22.0)
          for policy, tokens in (("stall-free", 2048), ("orca", 8192), ("alternating", 2048))),
        *(("static", 8192, rate) for rate in (1.0, 0.5, 2.0, 4.0)),
    )  # fmt: skip
    """(policy, tokens of a step, rate)."""
    window: float = 50.0
    """Seconds in which the conversations come."""
    shorter: int = 1
    seconds: float = 1400.0
    """Of all GPUs together."""


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
    size = size or sizes(quick)
    gpus = torch.cuda.device_count() if size.shape is not TINY else 1
    parts = run(_share, gpus, size, backend="gloo", timeout=None, stalled_after=None) if gpus > 1 else [_share(size)]
    rows, missing, steps = [], {}, []
    for found in parts:
        rows += found.rows
        missing |= found.missing
        steps += found.steps
    rows.append({"sweep": "sizes", "name": "tokens of a step", "sizes": list(parts[0].padded)})
    return new_record("goodput", rows + condensed(steps, parts[0].padded), missing)


class Share(NamedTuple):
    """What one GPU did of the runs."""

    rows: list[dict]
    missing: dict[str, str]
    steps: list[TimedStep]
    padded: tuple[int, ...]


def _share(size: Sizes) -> Share:
    """This rank's share of the runs: one in so many as there are ranks."""
    start = time.perf_counter()
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    settings = {} if torch.cuda.is_available() else dict(num_blocks=400)
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
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
    jobs = [({"together": each}, "stall-free", each[2]) for each in size.together]
    jobs += [({"rate": rate}, policy, most) for policy, most, rate in size.served]
    rows, missing = [], {}
    for what, policy, most in jobs[rank::ranks]:
        if "rate" in what:
            asked = conversations(what["rate"], size.window, vocab=vocab, shorter=size.shorter)
            what |= {"requests": len(asked)}
            name = f"{policy}, steps of {most}, {what['rate']:g} a second, {len(asked)} requests"
        else:
            count, prompt, _ = what["together"]
            asked = equal(count, prompt=prompt, output=size.output, vocab=vocab)
            name = f"{policy}, steps of {most}, {count} together, prompts of {prompt}"
        if time.perf_counter() - start > size.seconds / ranks:
            missing[name] = f"not begun: {size.seconds / ranks:.0f} s were over"
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
            rows.append(row | percentiles(found))
    padded = engine.runner.graphs.token_buckets if engine.runner.graphs else ()
    return Share(rows, missing, recorder.steps, tuple(padded))


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
    steps, counts, filled = recorded_steps(recorded("goodput", device))
    return fit(steps, weights=counts, sizes=filled, short_tokens=SHORT)


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


def percentiles(found: Served) -> dict:
    """What a row says of a workload's times."""
    row = {"seconds": _digits(found.seconds), "steps": found.steps, "output_tokens": found.output_tokens}
    for key, values in (("ttft", found.first), ("tpot", found.per_token), ("wait", found.waits)):
        for share in (50, 90, 99):
            row[f"{key}_p{share}_ms"] = _digits(1e3 * percentile(values, share))
    row |= {"attained": _digits(attainment(found.requests, LIMITS)), "attained_of": [LIMITS.ttft, LIMITS.tpot]}
    return row | {"wait_longest_ms": _digits(1e3 * found.waits[-1])}


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
