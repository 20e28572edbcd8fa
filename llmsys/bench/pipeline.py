"""Pipeline schedules on two ranks: tokens per second, the bubble measured and simulated, torch's runtime beside ours.

Each schedule trains the same random Llama on the same microbatches, forward and backward, without an optimiser. torch's
runtime (torch.distributed.pipelining) has plain stages with the same weights, and the same schedule of its own; both
take turns, and their gradients are compared first. A step's time is that of the slower rank, between two barriers; the
median of the steps counts.

The simulator is given what the actions of the median step took, for each stage the mean of each kind, and transfers
that are free. How long it says that ranks are idle, and how long they were, are the two bubbles, as shares of the step;
their difference is what the simulator leaves out.

A third run takes turns with these two: ours, but each receive begins early (`llmsys.parallel.pipeline.programs`), and
waits beside what its rank computes.

Each schedule has a run of its own, with a deadline. Where one fails, ours is measured alone; what is missing then, and
why, is in the record, and where the ranks were is printed.

On a machine with two GPUs the ranks are theirs, with NCCL. Otherwise, and with --quick, they are two processes on the
CPU with gloo and a tiny model: figures of no interest, but the same code.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmsys.bench.record import Record, new_record
from llmsys.models import Llama, LlamaConfig
from llmsys.models.training_step import token_loss
from llmsys.parallel.execute import Cut, Pipeline, Stage, stages_of
from llmsys.parallel.pipeline import Schedule, Timeline, costs_of, make_schedule, simulate
from llmsys.parallel.ranks import RanksFailed, device, run

RANKS = 2
PEERS = {
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zb-h1": "ScheduleInterleavedZeroBubble",  # with one stage a rank it is ZB-H1
    "zb-v": "ScheduleZBVZeroBubble",
}
"""Our schedules, and torch's classes for them."""

MODEL = LlamaConfig("1.2B", 32_000, 2048, 20, 16, 16, 128, 5632, 2048, tied_embeddings=False)
"""The model that is measured on GPUs."""

TORCH = "torch.distributed.pipelining"
DEADLINE = 75.0
"""Seconds for a schedule by both, the start of processes included."""


@dataclass(frozen=True)
class Size:
    """A model, and what it is trained on."""

    model: LlamaConfig
    dtype: torch.dtype
    microbatches: int
    B: int  # sequences in a microbatch
    T: int  # tokens in a sequence
    steps: int


def _size(quick: bool) -> Size:
    if quick:
        tiny = LlamaConfig("tiny", 64, 32, 4, 4, 2, 8, 64, 64, tied_embeddings=False)
        return Size(tiny, torch.float32, 4, 2, 16, 3)
    return Size(MODEL, torch.bfloat16, 8, 4, 2048, 8)


def measure(quick: bool = False, *, so_far: Callable[[Record], object] = lambda record: None) -> Record:
    """All four schedules, on two GPUs if there are as many. `so_far` is given the record after each of them."""
    gpus = torch.cuda.device_count() >= RANKS and dist.is_nccl_available()
    size = _size(quick or not gpus)
    rows: list[dict] = []
    missing = {} if gpus else {"two GPUs": "this machine has none; two processes on its CPU"}
    for name in PEERS:
        for with_torch in (True, False):
            what = f"{name}, with {TORCH} in turn" if with_torch else name
            try:
                rows.append(run(_on_a_rank, RANKS, name, size, with_torch, backend="nccl" if gpus else "gloo",
                                timeout=DEADLINE)[0])  # fmt: skip
            except RanksFailed as failed:
                missing[what] = str(failed).partition("\n")[0]
                print(f"{what}: {failed}", file=sys.stderr, flush=True)
                continue
            print(f"{what}: {rows[-1]['tokens_s']:,.0f} tokens/s", file=sys.stderr, flush=True)
            break
        so_far(new_record("pipeline", rows, missing))
    return new_record("pipeline", rows, missing)


def table(record: Record):
    """The record as a rich table: one line a schedule."""
    from rich.table import Table

    columns = "schedule", "tokens/s", TORCH, "ratio", "bubble", "simulated"
    shown = Table(*columns, title=f"pipeline schedules on {RANKS} ranks, {record.device}")
    for row in record.rows:
        shown.add_row(
            row["name"],
            f"{row['tokens_s']:,.0f}",
            _or_none(row["torch_tokens_s"], ",.0f"),
            _or_none(row["ratio"], ".3f"),
            f"{row['bubble']:.1%}",
            f"{row['bubble_simulated']:.1%}",
        )
    return shown


def _or_none(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _on_a_rank(name: str, size: Size, with_torch: bool) -> dict:
    torch.manual_seed(0)
    with torch.device(device()):
        model = Llama(size.model).to(size.dtype)
        batch = torch.randint(0, size.model.vocab_size, (size.microbatches * size.B, size.T + 1))
    dist.broadcast(batch, 0)
    schedule = make_schedule(name, RANKS, size.microbatches)
    cut = Cut.by_cost(model.config, schedule.num_stages, size.T)
    ours = stages_of(model, schedule, cut, dist.get_rank())
    pipelines = {way: Pipeline(schedule, ours, transfers=way) for way in ("early", "late")}
    microbatches = batch.chunk(size.microbatches)
    for pipeline in pipelines.values():
        _forget(ours)
        pipeline.step(microbatches)
    torch_step = _torch_step(name, model, schedule, cut, batch, ours, size) if with_torch else None
    runs: dict[str, list[tuple[float, Timeline]]] = {way: [] for way in pipelines}
    others = []
    for _ in range(size.steps):
        for way, pipeline in pipelines.items():
            _forget(ours)
            runs[way].append((_seconds(lambda pipeline=pipeline: pipeline.step(microbatches)), pipeline.timeline()))
        if torch_step is not None:
            others.append(_seconds(torch_step))
    return _row(name, schedule, size, _median(runs["late"]), _median(runs["early"]), others)


def _median(runs: list[tuple[float, Timeline]]) -> tuple[float, Timeline]:
    """The seconds that are the median, and the timeline of the run that took them."""
    return sorted(runs, key=lambda run: run[0])[(len(runs) - 1) // 2]


def _torch_step(
    name: str, model: Llama, schedule: Schedule, cut: Cut, batch: Tensor, ours: dict, size: Size
) -> Callable[[], None]:
    """A step by torch's runtime, which has taken one: its gradients are those that `ours` have."""
    theirs = stages_of(model, schedule, cut, dist.get_rank(), split=False)
    peer = _peer(name, schedule, theirs, size.microbatches)
    first, last = (dist.get_rank() == schedule.placement.rank(stage) for stage in (0, schedule.num_stages - 1))
    tokens = [batch[:, :-1].contiguous()] if first else []  # torch's runtime refuses other strides
    target = batch[:, 1:].contiguous() if last else None

    def step() -> None:
        _forget(theirs)
        peer.step(*tokens, target=target, return_outputs=False)  # nor do we keep the logits

    step()
    _check_equal(ours, theirs, size.dtype)
    return step


def _row(
    name: str,
    schedule: Schedule,
    size: Size,
    late: tuple[float, Timeline],
    early: tuple[float, Timeline],
    others: list[float],
) -> dict:
    """What is recorded of a schedule: our median steps, seconds and timeline, and the seconds of torch's steps."""
    tokens = size.microbatches * size.B * size.T
    seconds, timeline = late
    torch_seconds = statistics.median_low(others) if others else None
    return {
        "name": name,
        "model": size.model.name,
        "stages": schedule.num_stages,
        "microbatches": size.microbatches,
        "shape": f"{size.B} × {size.T}",
        "tokens_s": tokens / seconds,
        "torch_tokens_s": tokens / torch_seconds if torch_seconds else None,
        "ratio": torch_seconds / seconds if torch_seconds else None,
        "bubble": timeline.bubble_share,
        "bubble_simulated": simulate(schedule, costs_of(timeline, schedule.num_stages)).bubble_share,
        "events": _events(timeline),
        "early_tokens_s": tokens / early[0],
        "early_events": _events(early[1]),
    }


def _events(timeline: Timeline) -> list[list]:
    """Rank, action, and its start and end in ms."""
    return [
        [event.rank, str(event.action), round(1000 * event.start, 3), round(1000 * event.end, 3)]
        for row in timeline.events
        for event in row
    ]


class _Part(nn.Module):
    """A part of a model as torch's runtime calls it."""

    def __init__(self, part: Llama):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def _peer(name: str, schedule: Schedule, stages: dict[tuple[int, int], Stage], microbatches: int):
    """torch's schedule of that name over these stages."""
    from torch.distributed.pipelining import PipelineStage, schedules

    made = [
        PipelineStage(_Part(each.part), stage, schedule.num_stages, device()) for (_, stage), each in stages.items()
    ]
    one = name == "1f1b"  # whose class takes a stage, and no list
    return getattr(schedules, PEERS[name])(made[0] if one else made, microbatches, loss_fn=token_loss)


def _check_equal(ours: dict, theirs: dict, dtype: torch.dtype) -> None:
    """RuntimeError where the gradients differ by more than the dtype's rounding. In bf16 the limit is 1/8 of a length:
    a gradient without one of eight microbatches differs by more."""
    for key, stage in ours.items():
        other = theirs[key].weights
        for name, weight in stage.weights.items():
            difference = (weight.grad - other[name].grad).norm() / other[name].grad.norm()
            if not difference < 16 * torch.finfo(dtype).eps:
                raise RuntimeError(f"{name} of stage {key[1]} has another gradient than torch's, by {difference:.2g}")


def _forget(stages: dict) -> None:
    for each in stages.values():
        each.part.zero_grad()


def _seconds(step) -> float:
    """Of the slowest rank."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    dist.barrier()
    start = time.perf_counter()
    step()
    if device().type == "cuda":
        torch.cuda.synchronize()
    seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64, device=device())
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    return float(seconds)
