"""A decode step of a real model: its time against batch and context, beside what the roofline predicts.

Each of `batch` sequences has `context` tokens with the new one, which a contiguous cache holds. Weights and cached keys
are random: how long a step takes does not depend on what is in them. On a GPU the step is captured in a CUDA graph,
which starts all of its kernels at once, and that is timed; beside it stands the same step in eager mode, whose some
hundred kernels Python starts one by one. On a CPU the step is timed as it is.

A step is attention, which reads the cache, and the rest, which reads the weights; the roofline's two parts
(`llmsys.models.decode_cost`) are compared with one each. On a CPU a clock runs while the stage does. On a GPU the step
is timed in turn with one whose stage returns q as it came, and attention is the difference: the rotation of q and k and
the writing of the cache count as the rest.

What does not fit is tried all the same, and listed with what it would have taken.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import Timing, interleaved
from llmsys.cache import ContiguousCache
from llmsys.hardware.devices import DeviceSpec, detect, this_machine
from llmsys.models.decode_cost import bytes_per_token, decode_step_of, weights_of_step
from llmsys.models.llama import Llama
from llmsys.models.shapes import SHAPES, ModelShape, config_of, shape_of

SHARE = 4
"""On a CPU nothing is tried that takes more than this part of the memory: whoever else is there needs some, too."""
PATIENCE = 4.0
"""Seconds after which a step is not timed again on a CPU, if it has been three times."""


def measure(quick: bool = False) -> Record:
    """Time decode steps: on a GPU of SmolLM2 and Llama-3-8B in bf16, on a CPU of SmolLM2 in fp32."""
    gpu = torch.cuda.is_available()
    shapes = [SHAPES[name] for name in (("SmolLM2-135M", "Llama-3-8B") if gpu else ("SmolLM2-135M",))]
    batches, contexts, repeats = (1, 4, 16), (256, 1024, 4096), 10
    if gpu:
        batches, contexts, repeats = (1, 4, 16, 64, 256), (1024, 4096, 16384), 20
    if quick:
        shapes = [replace(shapes[0], name=f"{shapes[0].name}, 3 layers", layers=3)]
        batches, contexts, repeats = (1, 4), (64, 256), 5
    spec = (detect() if gpu else None) or this_machine()
    rows, missing = [], {}
    for shape in shapes:
        model = random_model(shape, max(contexts))
        rows += sweep(model, batches, contexts, spec=spec, missing=missing, repeats=repeats)
        del model
        _release()
    return new_record("decode", rows, missing)


def table(record: Record):
    """The record as a rich table: a line a model, context and batch; in brackets, what the roofline predicts."""
    from rich.table import Table

    heads = ("model", "context", "batch", "cache, GB", "step, ms", "attention", "rest", "of roofline", "eager, ms")
    shown = Table(*heads, "tokens/s", title=f"decode step, measured (least by the roofline), on {record.device}")
    for row in record.rows:
        pairs = [f"{row[f'{part}ms']:.3g} ({row[f'predicted_{part}ms']:.3g})" for part in ("", "attention_", "rest_")]
        eager = "–" if row["eager_ms"] is None else f"{row['eager_ms']:.3g}"
        shown.add_row(
            row["name"], f"{row['context']:,}", str(row["batch"]), f"{row['cache_bytes'] / 1e9:.3g}", *pairs,
            f"{row['predicted_ms'] / row['ms']:.2f}", eager, f"{1e3 * row['batch'] / row['ms']:,.0f}",
        )  # fmt: skip
    return shown


def sweep(
    model: Llama,
    batches: Sequence[int],
    contexts: Sequence[int],
    *,
    spec: DeviceSpec,
    missing: dict[str, str],
    repeats: int = 20,
) -> list[dict]:
    """A row for each context and batch, predicted for `spec`; what did not fit is added to `missing` instead."""
    shape, dtype = shape_of(model.config), str(model.dtype).removeprefix("torch.")
    resident = sum(weight.nbytes for weight in model.parameters())  # all weights: more than a step reads
    rows = []
    for context in contexts:
        for batch in batches:
            weight_bytes, _ = weights_of_step(shape, batch=batch, dtype=dtype)
            cache_bytes = batch * context * bytes_per_token(shape, dtype)
            point = f"{shape.name} at batch {batch}, context {context}"
            needed = f"{cache_bytes / 1e9:.1f} GB of cache beside {resident / 1e9:.1f} GB of weights"
            if model.device.type == "cpu" and cache_bytes + resident > spec.memory_bytes / SHARE:
                missing[point] = f"not tried: {needed} are more than 1/{SHARE} of {spec.memory_bytes / 1e9:.1f} GB"
                continue
            try:
                times = time_step(model, batch, context, repeats=repeats)
            except torch.OutOfMemoryError:
                missing[point] = f"out of memory: {needed} in {spec.memory_bytes / 1e9:.1f} GB"
                continue
            finally:
                _release()
            least = decode_step_of(shape, spec, batch=batch, context=context, dtype=dtype)
            rest = max(least.weight_seconds, least.arithmetic_seconds)
            predicted = {"": least.seconds, "rest_": rest, "attention_": least.cache_seconds}
            rows.append(
                {"name": shape.name, "batch": batch, "context": context, "dtype": dtype}
                | times
                | {f"predicted_{part}ms": _ms(seconds) for part, seconds in predicted.items()}
                | {"weight_bytes": int(weight_bytes), "cache_bytes": cache_bytes}
                | {"bandwidth": round(spec.bandwidth), "peak_flops": round(spec.flops[dtype])}
            )
    return rows


def random_model(shape: ModelShape, context_length: int, *, device: str | torch.device | None = None) -> Llama:
    """A model of this shape with random weights: on a GPU (None: if there is one) in bf16, on a CPU in fp32."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    with torch.device("meta"):
        model = Llama(config_of(shape, context_length=context_length))
    model = model.to(torch.bfloat16 if gpu else torch.float32).to_empty(device=device)
    model.tie()  # which `to_empty` undid
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02) if weight.dim() == 2 else weight.fill_(1)
    return model.requires_grad_(False).eval()


@torch.inference_mode()
def time_step(model: Llama, batch: int, context: int, *, repeats: int = 20) -> dict[str, float | None]:
    """The times of a decode step in ms: whole, without attention, attention's own, and eager on a GPU."""
    tokens = torch.randint(model.config.vocab_size, (batch, 1), device=model.device)
    cache = filled_cache(model, batch, context)
    where = cache.begin(tokens)

    def step() -> Tensor:  # the same each time: it writes the same token to the same place
        return model(tokens, cache, where)

    if not tokens.is_cuda:
        whole, attention = _clocked(step, cache, repeats)
        eager = None
    else:
        graphs = {"step": captured(step)}
        with attending_by(cache, no_attention):
            graphs["rest"] = captured(step)
        replays = {name: (lambda _, graph=graph: graph.replay()) for name, graph in graphs.items()}
        timings = interleaved(replays, [(tokens,)], repeats=repeats, warmup=3)
        whole, attention = timings["step"], timings["step"].median - timings["rest"].median
        eager = _ms(_eager_seconds(step, repeats))
    return {
        "ms": _ms(whole.median), "spread": round(whole.spread, 4), "eager_ms": eager,
        "rest_ms": _ms(whole.median - attention), "attention_ms": _ms(attention),
    }  # fmt: skip


def filled_cache(model: Llama, batch: int, context: int) -> ContiguousCache:
    """A cache of `batch` sequences that holds context − 1 random keys and values of each, and has room for one more.

    They are handed to it layer by layer, as a prompt's would be, without the model: to run that would take hours.
    """
    spec = model.cache_spec()
    cache = ContiguousCache(capacity=context, spec=spec)
    if context == 1:
        return cache
    where = cache.begin(torch.zeros(batch, context - 1, dtype=torch.int64, device=model.device))
    first = spec.layers[0]
    k = torch.empty(batch, first.heads, context - 1, first.Dk, dtype=first.dtype, device=model.device).normal_()
    with attending_by(cache, no_attention):
        for layer in spec.layers:
            cache.attend(layer.layer, k, k, k, where)
    return cache


def no_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None) -> Tensor:
    """A stage that attends to nothing, and takes no time: q, as wide as a value."""
    return q[..., : v.shape[3]]


@contextmanager
def attending_by(cache: ContiguousCache, stage: Callable[..., Tensor]) -> Iterator[None]:
    """Another stage in a cache for a while."""
    before, cache.stage = cache.stage, stage
    try:
        yield
    finally:
        cache.stage = before


def captured(step: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of what `step` launches. It is run a few times before, on a stream of its own, as torch asks for:
    libraries make their workspaces then, and choose their kernels."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph


def _clocked(step: Callable[[], Tensor], cache: ContiguousCache, repeats: int) -> tuple[Timing, float]:
    """A step's times on a CPU, and the median of how much of them passed in the cache's stage."""
    stage, inside = cache.stage, 0.0

    def clocked_stage(*tensors: Tensor, **how) -> Tensor:
        nonlocal inside
        start = time.perf_counter()
        o = stage(*tensors, **how)
        inside += time.perf_counter() - start
        return o

    seconds, attention = [], []
    with attending_by(cache, clocked_stage):
        step()
        while len(seconds) < min(repeats, 3) or (len(seconds) < repeats and sum(seconds) < PATIENCE):
            inside = 0.0
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
            attention.append(inside)
    return Timing(tuple(seconds)), median(attention)


def _eager_seconds(step: Callable[[], Tensor], repeats: int) -> float:
    """By the clock, until the GPU is done: what it waits for Python counts."""
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _release() -> None:
    """Give memory back, that of graphs, too: the next point needs all of it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 5)
