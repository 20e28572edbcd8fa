"""Two GPUs, divided or not: the same conversations by two engines that each do everything, and by one that computes
prompts and one that goes on from there.

A model of Mistral-7B's shape with random weights, in bf16, in two processes that each have a GPU; keys and values go
from one to the other by NCCL. Conversations (`synthetic`, as long as those of azure-conversation, Poisson arrivals,
forced output lengths, drawn from a seed) come at several rates, and each rate is served by both designs in turn. **It
is the same pair of engines both times**, behind the same front: the router is told who is to do what (`assign`).
Colocated, a request goes to the engine that holds less. Both designs have steps of the same budget.

Rows, by `sweep`:

    link        what a pair's send and receive alone reach between these two GPUs, for messages of `bytes`
    served      `requests` conversations, `rate` a second for both GPUs together, by the design `name`: percentiles of
                TTFT, TPOT and of the time between two tokens, of all requests; `ttft_ms` and `tpot_ms` of each of them;
                the share that met both limits, `attainment`, and at this rate the requests a second and GPU that did,
                `goodput_per_gpu`. `moved_bytes` were sent, a layer of a step's prompts at a time, and `moved_gbps` is
                what they had while they were: from when a layer's rows were computed to when they were there
    step        steps of nearly one load (`llmsys.bench.goodput`), by the `role` of the engine: colocated, prefill,
                decode
    sizes       to how many tokens that role's steps with prompts are filled up

The steps are what a simulator's prices are fitted to (`recorded_times`), which can then be asked the same
(`simulated`). Colocated comes first, which needs no NCCL, and whatever hangs ends after `patience`, with the stacks of
both engines. Without two GPUs the processes are on the CPU, with gloo and a tiny model: figures of no interest, but the
same code.
"""

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from llmsys.bench.decode import random_model
from llmsys.bench.goodput import MISTRAL_7B, SEED, SHORT, TINY, TRACE, condensed, conversations, percentiles
from llmsys.bench.record import Record, new_record
from llmsys.bench.serving.serve import Waits, serve
from llmsys.models.decode_cost import bytes_per_token
from llmsys.models.shapes import ModelShape
from llmsys.parallel.ranks import pair_group, run
from llmsys.serving import Execution
from llmsys.serving.disaggregate import DisaggregatedEngine, Instance, start
from llmsys.serving.goodput import Limits
from llmsys.serving.simulator import (
    Placement,
    Result,
    StepLoad,
    StepRecorder,
    StepTimes,
    TimedStep,
    Transfer,
    fit,
    simulate,
)
from llmsys.serving.telemetry.events import StepDone
from llmsys.serving.workload import synthetic

GPUS = 2
ENGINES = ("prefill 0", "decode 0")
DESIGNS = {
    "colocated": (dict(prefill=(), decode=ENGINES), Placement(colocated=GPUS)),
    "divided": (dict(prefill=ENGINES[:1], decode=ENGINES[1:]), Placement(prefill=1, decode=1)),
}
"""What the router is told, and what a simulator is."""
LIMITS = Limits(ttft=0.5, tpot=0.010)
"""Lesson 11's."""
SMALL = ModelShape("small", layers=4, width=256, heads=4, kv_heads=2, head_dim=64, ffn=512, vocab=1000)


@dataclass(frozen=True)
class Sizes:
    """How much is asked, and the seconds after which nothing new is begun."""

    shape: ModelShape = MISTRAL_7B
    max_model_len: int = 16_384
    max_sequences: int = 256
    max_tokens_per_step: int = 2048
    num_blocks: int = 40_000
    rates: tuple[float, ...] = (32.0, 20.0, 38.0, 26.0)
    """Of both GPUs together."""
    window: float = 10.0
    """Seconds in which the conversations come."""
    shorter: int = 1
    messages: tuple[int, ...] = (2**21, 2**23, 2**28)
    """Bytes: of 512 and of 2,048 tokens, what a layer keeps of them; and many."""
    patience: float = 40.0
    """Seconds after which a workload is taken to hang."""
    seconds: float = 240.0
    gpu: bool = True


def sizes(quick: bool) -> Sizes:
    gpu = torch.cuda.is_available() and torch.cuda.device_count() >= GPUS and dist.is_nccl_available()
    if gpu and not quick:
        return Sizes()
    return Sizes(
        SMALL if gpu else TINY, max_model_len=512, max_sequences=4, max_tokens_per_step=64, num_blocks=400,
        rates=(40.0,), window=0.15, shorter=32, messages=(2**16,), gpu=gpu,
    )  # fmt: skip


def measure(
    quick: bool = False, *, size: Sizes | None = None, save: Callable[[Record], object] = lambda record: None
) -> Record:
    """Serve with both designs at all rates: on two GPUs at the size of Mistral-7B, else with a tiny model on the CPU.

    size      what to serve instead
    save      called with the record so far, after each row
    """
    with tempfile.TemporaryDirectory() as folder:
        return _Run(size or sizes(quick), Path(folder), save).all()


class NoTime(Exception):
    """What was to be done is not begun any more."""


class _Run:
    """`rows` and `missing` grow from job to job; what engines write down lies in `folder`."""

    def __init__(self, size: Sizes, folder: Path, save: Callable[[Record], object]):
        self.size, self.folder, self._save = size, folder, save
        self.rows: list[dict] = []
        self.missing: dict[str, str] = {} if size.gpu else {"two GPUs": "this machine has none; its CPU was taken"}
        halves = size.rates[:2], size.rates[2:]  # what needs no NCCL comes first, and both are there if time is short
        self._jobs = [(name, rate) for rates in halves for name in DESIGNS for rate in rates]
        self._began = time.perf_counter()
        self._intervals: list[tuple[str, float, float]] = []  # which design served when

    def all(self) -> Record:
        size = self.size
        execution = Execution(few_kernels=False, capture="at start") if size.gpu else None
        try:
            with start(
                partial(_load, size.shape, size.max_model_len, self.folder),
                watch=partial(_written_down, self.folder), device="cuda" if size.gpu else "cpu",
                silent_after=60.0, timeout=140.0,
                max_tokens_per_step=size.max_tokens_per_step, max_sequences=size.max_sequences,
                max_model_len=size.max_model_len, num_blocks=size.num_blocks, execution=execution,
            ) as engine:  # fmt: skip
                self._serve_all(engine)
        except Exception as error:  # whatever it is, it is said, and what was measured before is not lost
            self._not_done(_in_words(error))
            _show_stacks(self.folder)
        try:
            self.rows += run(_time_link, GPUS, size.messages, size.gpu, backend="gloo", timeout=30.0)[0]
        except Exception as error:
            self.missing["link"] = _in_words(error)
        return self.record()

    def _serve_all(self, engine: DisaggregatedEngine) -> None:
        """What is done is taken off the jobs."""
        size, waits, warm = self.size, Waits(engine), set()
        while self._jobs:
            name, rate = self._jobs[0]
            try:
                self._in_time()
                if name not in warm:  # kernels are compiled, and a connection is made
                    self._serve(engine, name, max(size.rates), size.window / 3, waits, warm_up=True)
                    warm.add(name)
                self.rows.append(self._serve(engine, name, rate, size.window, waits))
            except Exception as error:  # what an engine is still at would be in the next rows
                self._not_done(_in_words(error))
                if not isinstance(error, NoTime):
                    _show_stacks(self.folder)
                return
            del self._jobs[0]
            self._save(self.record())

    def _in_time(self) -> None:
        if time.perf_counter() - self._began > self.size.seconds:
            raise NoTime(f"not begun: {self.size.seconds:.0f} s were over")

    def _not_done(self, why: str) -> None:
        self.missing |= {f"{name}, {rate:g} a second": why for name, rate in self._jobs}
        self._jobs = []

    def record(self) -> Record:
        return new_record("disaggregate", self.rows + self._steps(), dict(self.missing))

    def _serve(
        self, engine: DisaggregatedEngine, name: str, rate: float, window: float, waits: Waits, *, warm_up=False
    ) -> dict:
        size = self.size
        roles, placement = DESIGNS[name]
        engine.scheduler.assign(**roles)
        asked = conversations(rate, window, vocab=size.shape.vocab, shorter=size.shorter)
        called = f"{name}, {rate:g} a second, {len(asked)} requests"
        begun = time.perf_counter()
        found = serve(engine, asked, called, waits=waits, patience=size.patience)
        ended = time.perf_counter()
        if engine.scheduler.alive != set(ENGINES):
            raise RuntimeError(f"an engine died: {', '.join(engine.scheduler.alive) or 'none'} is left")
        if warm_up:
            return {}
        self._intervals.append((name, begun, ended))
        times = {  # of each request, for all have two tokens at least
            "ttft_ms": [_digits(1e3 * each) for each in found.first],
            "tpot_ms": [_digits(1e3 * each) for each in found.per_token],
        }
        share = share_within(times, LIMITS)
        moved = [row["sent"] for row in self._written() if "sent" in row]
        moved = [(nbytes, end - start) for nbytes, start, end in moved if begun <= end <= ended]
        total, busy = sum(nbytes for nbytes, _ in moved), sum(seconds for _, seconds in moved)
        return {
            "sweep": "served", "name": name, "rate": rate, "requests": len(asked), "gpus": GPUS, "trace": TRACE,
            "seed": SEED, "shorter": size.shorter, "model": size.shape.name, "blocks": size.num_blocks,
            "max_sequences": size.max_sequences, "max_tokens_per_step": size.max_tokens_per_step,
            "prompt_tokens": sum(len(each.prompt) for each in asked),
            **percentiles(found), "ttft_limit_ms": 1e3 * LIMITS.ttft, "tpot_limit_ms": 1e3 * LIMITS.tpot,
            "attainment": _digits(share), "goodput_per_gpu": _digits(share * rate / GPUS), "moved_bytes": total,
            "messages": len(moved), "moved_s": _digits(busy), "moved_gbps": _digits(total / busy / 1e9) if moved else 0,
            **times,
        }  # fmt: skip

    def _written(self) -> list[dict]:
        """What both engines have written down so far."""
        lines = [line for name in ENGINES for line in (self.folder / f"{name}.jsonl").read_text().splitlines(True)]
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _steps(self) -> list[dict]:
        """Rows of steps alike, for each role; the warm-up's are left out."""
        if not self._intervals:
            return []
        steps: dict[str, list[TimedStep]] = {}
        filled: dict[str, list[int]] = {"prefill": []}  # whose steps are launched layer by layer
        for row in self._written():
            if "filled" in row:
                filled |= dict.fromkeys(("colocated", "decode"), row["filled"])
            if "step" not in row:
                continue
            design = next((name for name, start, end in self._intervals if start <= row["at"] <= end), None)
            if design is not None:
                role = design if design == "colocated" else row["engine"].split()[0]
                steps.setdefault(role, []).append(TimedStep(StepLoad(*row["step"]), row["seconds"]))
        rows = [{"sweep": "sizes", "name": role, "role": role, "sizes": filled.get(role, [])} for role in steps]
        for role, some in steps.items():
            rows += [row | {"role": role} for row in condensed(some, tuple(filled.get(role, ())))]
        return rows


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


# In each engine's process


def _load(shape: ModelShape, max_model_len: int, folder: Path, device: torch.device):
    import faulthandler

    name = ENGINES[dist.get_rank()]
    faulthandler.register(signal.SIGUSR2, file=open(folder / f"{name}.stacks", "w"), all_threads=True)
    (folder / f"{name}.pid").write_text(str(os.getpid()))
    torch.manual_seed(SEED)
    return random_model(shape, max_model_len, device=device)


def _time_link(messages: tuple[int, ...], gpu: bool, *, repeats: int = 20) -> list[dict]:
    """From rank 0 to rank 1, one message behind the other: the median of five times."""
    rank, where = dist.get_rank(), torch.device("cuda", dist.get_rank()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(where)
    pair, rows = pair_group(0, 1, backend="nccl" if gpu else "gloo"), []
    move = pair.recv if rank else pair.send
    for nbytes in messages:
        message, times = torch.zeros(nbytes, dtype=torch.uint8, device=where), []
        for _ in range(1 + 5):  # the first makes the connection
            dist.barrier()
            began = time.perf_counter()
            for _ in range(repeats):
                move(message)
            if gpu:
                torch.cuda.synchronize(where)
            times.append((time.perf_counter() - began) / repeats)
        seconds = median(times[1:])
        rows.append({"sweep": "link", "name": pair.backend, "bytes": nbytes, "us": _digits(1e6 * seconds),
                     "gbps": _digits(nbytes / seconds / 1e9)})  # fmt: skip
    return rows


def _written_down(folder: Path, instance: Instance) -> None:
    """From now on its steps and what it sends are written into a file, a line each."""
    file = open(folder / f"{instance.name}.jsonl", "a", buffering=1)
    recorder = StepRecorder(instance.engine.events)
    graphs = instance.engine.runner.graphs

    def write(**row) -> None:
        file.write(json.dumps(row) + "\n")

    def on(event) -> None:
        if isinstance(event, StepDone) and recorder.steps:  # the recorder has heard of it before
            (step,) = recorder.steps
            recorder.steps.clear()
            write(engine=instance.name, step=step.load, seconds=step.seconds, at=event.time)

    instance.engine.events.listen(on, progress=lambda progress: None)
    for wire in instance.push.wires.values():
        wire.sent = lambda nbytes, began, ended: write(sent=(nbytes, began, ended))
    write(filled=list(graphs.token_buckets) if graphs else [])


def _show_stacks(folder: Path) -> None:
    """Where each engine's threads are, as far as they are alive: something hangs, or has died."""
    for file in sorted(folder.glob("*.pid")):
        try:
            os.kill(int(file.read_text()), signal.SIGUSR2)
        except (OSError, ValueError):  # it is dead
            continue
        time.sleep(1.0)  # for it to write
        print(f"{file.stem}:\n{file.with_suffix('.stacks').read_text()}", flush=True)


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:240]


def _digits(value: float) -> float:
    return float(f"{value:.5g}")
