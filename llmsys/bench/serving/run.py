"""What is measured, in which order. What fails or finds no time is listed, with the reason; the rest goes on."""

import gc
import time
from dataclasses import dataclass, replace
from statistics import median

import torch
from torch import nn

from llmsys.bench.decode import random_model
from llmsys.bench.record import Record, new_record
from llmsys.bench.serving.execution import ALL, NONE, ways
from llmsys.bench.serving.peer import seconds_of_transformers
from llmsys.bench.serving.serve import Served, Waits, repeated, serve
from llmsys.bench.serving.steps import PARTS_OF_A_STEP, AttentionClock, Split, no_attention, open_profiler, split
from llmsys.bench.serving.workloads import Asked, conversations, equal, least_seconds, mixed
from llmsys.bench.timing import interleaved
from llmsys.models.decode_cost import bytes_per_token, weights_of_step
from llmsys.models.shapes import SHAPES, ModelShape
from llmsys.serving import POLICIES, Engine

BUDGET = 330.0
"""Seconds, after which nothing new is begun."""
FULL, SINGLE = "full batch", "one request"
"""Whose steps are taken apart. The one request is in the middle of its answer."""
CUT = ("alternating", "stall-free")
"""Policies that read prompts in pieces. For the others a step must have room for the longest."""


@dataclass(frozen=True)
class Sizes:
    """How much is asked."""

    shapes: tuple[ModelShape, ...]
    """The first one is also served by the peer and by the four policies."""
    requests: int = 256
    shortest: int = 100
    longest: int = 1024
    max_tokens_per_step: int = 16_384
    slow: int = 4
    """By what answers are divided where steps are launched kernel by kernel: whole ones would take most of the time."""
    one: tuple[int, int] = (128, 512)
    """Prompt and output of the request that is alone."""
    peer: tuple[int, int] = (32, 128)
    """Requests, and tokens of each answer."""
    talks: int = 128
    rate: float = 32.0
    """Conversations, and how many come in a second."""
    shorter: int = 1
    whole: int = 131_072
    pieces: int = 2048
    """Tokens of a step at most, for policies that take prompts whole and for those that cut them."""
    places: int = 64
    steps: int = 10
    patience: float = 15.0
    """Seconds after which a workload is not repeated."""

    @property
    def max_model_len(self) -> int:
        return 2 * self.longest


def sizes(gpu: bool, quick: bool) -> Sizes:
    """On a GPU PERFORMANCE's workload; on a CPU, or quickly, a short one."""
    shapes = (SHAPES["Qwen3-0.6B"], SHAPES["SmolLM2-135M"])
    if gpu and not quick:
        return Sizes(shapes)
    small = Sizes(
        shapes[1:], requests=16, shortest=8, longest=64, max_tokens_per_step=128, slow=1, one=(16, 32), peer=(4, 8),
        talks=16, rate=8.0, shorter=32, whole=1024, pieces=64, places=8, steps=3, patience=0.0,
    )  # fmt: skip
    if not quick:
        return small
    few = tuple(replace(shape, name=f"{shape.name}, 2 layers", layers=2) for shape in shapes)
    if not gpu:
        narrow = dict(width=64, heads=3, kv_heads=1, ffn=128, vocab=512)
        few = (replace(few[1], name=f"{few[1].name}, 64 wide", **narrow),)
    return replace(small, shapes=few, requests=4, longest=24, one=(8, 8), peer=(2, 4), talks=6, rate=50.0)


def measure(quick: bool = False) -> Record:
    """Serve the workloads: on a GPU with the shapes of Qwen3-0.6B and SmolLM2-135M in bf16, on a CPU few requests."""
    gpu = torch.cuda.is_available()
    return new_record("serving", *Run(sizes(gpu, quick)).all())


class Run:
    """One run of the benchmark: `rows` and `missing` grow from job to job."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.gpu = torch.cuda.is_available()
        self.dtype = "bfloat16" if self.gpu else "float32"
        self.rows: list[dict] = []
        self.missing: dict[str, str] = {}
        self.bandwidth = copy_bandwidth()
        self.models: dict[str, nn.Module] = {}

    def all(self) -> tuple[list[dict], dict[str, str]]:
        """What matters most first: it is the rest for which time may run out. With all off, only the first model runs:
        that takes longer than all of its parts together."""
        first, start = self.sizes.shapes[0], time.perf_counter()
        open_profiler()
        self.rows.append({"sweep": "copy", "name": "copy", "gbps": round(self.bandwidth / 1e9, 1)})
        all_ways = ways()
        jobs = [(f"{shape.name}, {ALL}", lambda shape=shape: self.way(shape, ALL)) for shape in self.sizes.shapes]
        jobs += [(f"policy {policy}", lambda policy=policy: self.policy(first, policy)) for policy in POLICIES]
        jobs += [(f"transformers, {first.name}", lambda: self.peer(first))]
        jobs += [(f"{first.name}, {NONE}", lambda: self.way(first, NONE))]
        for shape in self.sizes.shapes:
            rest = [name for name in all_ways if name not in (ALL, NONE)]
            jobs += [(f"{shape.name}, {name}", lambda shape=shape, name=name: self.way(shape, name)) for name in rest]
        for what, job in jobs:
            if time.perf_counter() - start > BUDGET:
                self.missing[what] = f"not begun: {BUDGET:.0f} s were over"
                continue
            try:
                job()
            except Exception as error:  # whatever it is, it is said, and what was measured before is not lost
                self.missing[what] = f"{type(error).__name__}: {error}".splitlines()[0][:240]
            finally:
                _release()
        return self.rows, self.missing

    def model(self, shape: ModelShape) -> nn.Module:
        if shape.name not in self.models:
            context = max(self.sizes.max_model_len, 16_384 // self.sizes.shorter)
            self.models[shape.name] = random_model(shape, context)
        return self.models[shape.name]

    def way(self, shape: ModelShape, name: str) -> None:
        """One way to execute: the full batch's step, all requests, one request's step, one request."""
        size, way = self.sizes, ways()[name]
        every = mixed(size.requests, shortest=size.shortest, longest=size.longest, vocab=shape.vocab)
        one = equal(1, prompt=size.one[0], output=size.one[1], vocab=shape.vocab)
        many = every
        if way.graphs is False:
            many, one = shorter(every, size.slow), shorter(one, size.slow)
        settings = dict(
            max_tokens_per_step=size.max_tokens_per_step, max_sequences=size.requests, max_model_len=size.max_model_len
        )
        if not self.gpu:
            settings |= dict(num_blocks=4 + size.requests * -(-size.max_model_len // 16))
        engine = Engine(self.model(shape), execution=way, **settings)
        warm_up(engine)
        serve(engine, many if name == ALL else shorter(every, 8), "warm-up, many")  # all kernels of mixed steps
        serve(engine, one, "warm-up, one")
        row = {"name": name, "model": shape.name, "dtype": self.dtype}
        patience = size.patience if name == ALL else 0.0
        self._workload(row | {"sweep": "throughput"}, repeated(engine, many, "many", repeats=3, patience=patience),
                       many, shape)  # fmt: skip
        self._workload(row | {"sweep": "one"}, repeated(engine, one, "one", repeats=3, patience=size.patience / 2),
                       one, shape)  # fmt: skip
        clock = None
        if not self.gpu:
            clock = AttentionClock()
            engine = Engine(self.model(shape), execution=way, attention=clock, **settings)
        batches = {
            FULL: [each._replace(output=size.max_model_len - len(each.prompt)) for each in every],
            SINGLE: equal(1, prompt=size.one[0] + size.one[1] // 2, output=size.longest, vocab=shape.vocab),
        }
        for what, asked in batches.items():

            def without(asked=asked) -> Engine:
                nonlocal engine
                engine = None  # its memory first
                _release()
                return Engine(self.model(shape), execution=way, attention=no_attention, **settings)

            found = split(engine, asked, what, steps=size.steps, clock=clock, without=without)
            self._step(row | {"sweep": "step", "batch": what}, found, shape)
            if engine is None:
                break

    def peer(self, shape: ModelShape) -> None:
        """Both on the same short workload."""
        requests, output = self.sizes.peer
        asked = mixed(requests, shortest=self.sizes.shortest, longest=self.sizes.longest, vocab=shape.vocab)
        asked = [each._replace(output=output) for each in asked]
        settings = {} if self.gpu else dict(num_blocks=4 + requests * -(-self.sizes.max_model_len // 16))
        settings |= dict(max_sequences=requests, max_model_len=self.sizes.max_model_len)
        engine = Engine(self.model(shape), execution=ways()[ALL], **settings)
        serve(engine, asked, "warm-up")
        ours = repeated(engine, asked, "peer", repeats=3, patience=self.sizes.patience)[0].seconds
        del engine
        _release()
        row = self._asked(asked) | {"sweep": "peer", "model": shape.name, "dtype": self.dtype}
        tokens = sum(each.output for each in asked)
        self.rows.append(row | {"name": "llmsys", "seconds": _digits(ours), "tokens_per_s": _digits(tokens / ours)})
        if not self.gpu:
            raise RuntimeError("there is no GPU, for which transformers' continuous batching is made")
        theirs, version = seconds_of_transformers(shape, asked, context_length=self.sizes.max_model_len)
        self.rows.append(
            row | {"name": "transformers", "version": version, "seconds": _digits(theirs),
                   "tokens_per_s": _digits(tokens / theirs)}
        )  # fmt: skip

    def policy(self, shape: ModelShape, policy: str) -> None:
        """Conversations that come one after the other."""
        size = self.sizes
        asked = conversations(size.talks, rate=size.rate, vocab=shape.vocab, shorter=size.shorter)
        most = size.pieces if policy in CUT else size.whole
        settings = {} if self.gpu else dict(num_blocks=4 + sum(-(-(len(p) + n) // 16) for p, n, _ in asked))
        settings |= dict(policy=policy, max_tokens_per_step=most, max_sequences=size.places)
        engine = Engine(self.model(shape), execution=ways()[ALL], **settings)
        waits = Waits(engine)
        warm_up(engine)
        serve(engine, asked, "warm-up, all")
        found = serve(engine, asked, policy, waits=waits)
        row = self._asked(asked) | {
            "sweep": "policies", "name": policy, "model": shape.name, "dtype": self.dtype, "rate": size.rate,
            "max_tokens_per_step": most, "max_sequences": size.places, "steps": found.steps,
            "seconds": _digits(found.seconds), "tokens_per_s": _digits(found.speed),
        }  # fmt: skip
        for key, values in (("ttft", found.first), ("tpot", found.per_token), ("wait", found.waits)):
            row |= {f"{key}_median_ms": _digits(1e3 * median(values)), f"{key}_p99_ms": _digits(1e3 * p99(values))}
        self.rows.append(row | {"wait_longest_ms": _digits(1e3 * found.waits[-1])})

    def _asked(self, asked: list[Asked]) -> dict:
        prompts = sum(len(each.prompt) for each in asked)
        return {"requests": len(asked), "prompt_tokens": prompts, "output_tokens": sum(each.output for each in asked)}

    def _workload(self, row: dict, runs: list[Served], asked: list[Asked], shape: ModelShape) -> None:
        least = least_seconds(asked, shape, bandwidth=self.bandwidth, dtype=self.dtype)
        tokens = sum(each.output for each in asked)
        self.rows.append(
            row | self._asked(asked)
            | {"runs": len(runs), "seconds": _digits(runs[0].seconds), "steps": runs[0].steps,
               "fastest_s": _digits(min(each.seconds for each in runs)), "least_s": _digits(least),
               "tokens_per_s": _digits(runs[0].speed), "roofline_tokens_per_s": _digits(tokens / least),
               "of_roofline": _digits(least / runs[0].seconds)}
        )  # fmt: skip

    def _step(self, row: dict, found: Split, shape: ModelShape) -> None:
        weight_bytes, _ = weights_of_step(shape, batch=found.sequences, dtype=self.dtype)
        cache_bytes = found.tokens * bytes_per_token(shape, self.dtype)
        least = 1e3 * (weight_bytes + cache_bytes) / self.bandwidth
        parts = {key: getattr(found, key) for key in ("ms", *PARTS_OF_A_STEP)}
        parts |= {f"host_{phase}_ms": ms for phase, ms in found.host_ms.items()}
        self.rows.append(
            row | {"sequences": found.sequences, "tokens": round(found.tokens), "how": found.how,
                   "launches": found.launches and round(found.launches)}
            | {key: ms if ms is None else _digits(ms) for key, ms in parts.items()}
            | {"weight_bytes": int(weight_bytes), "cache_bytes": int(cache_bytes), "roofline_ms": _digits(least),
               "of_roofline": _digits(least / found.ms)}
        )  # fmt: skip
        if row["name"] in (ALL, NONE):
            for kernel, us, calls in found.kernels:
                self.rows.append(
                    {"sweep": "kernels", "name": row["name"], "model": shape.name, "batch": row["batch"],
                     "kernel": kernel[:120], "us": _digits(us), "calls": round(calls, 2)}
                )  # fmt: skip


def shorter(asked: list[Asked], by: int) -> list[Asked]:
    """The same prompts, with answers of that part of their length."""
    return [each._replace(output=max(2, each.output // by)) for each in asked]


def warm_up(engine: Engine) -> None:
    """What is captured at the first use of a batch's size is: requests that end one after the other, so that fewer and
    fewer are left."""
    count = engine.scheduler.max_sequences
    vocab = engine.model.config.vocab_size
    prompt = equal(count, prompt=4, output=1, vocab=vocab)
    short = [each._replace(output=4 + max(0, count - n) // 8 + max(0, 8 - n)) for n, each in enumerate(prompt)]
    serve(engine, short, "warm-up, batches")


def copy_bandwidth() -> float:
    """Bytes a second that a copy reads and writes together, by the faster of torch's two ways."""
    gpu = torch.cuda.is_available()
    source = torch.empty(2**30 if gpu else 2**24, dtype=torch.uint8, device="cuda" if gpu else "cpu").random_()
    target = torch.empty_like(source)
    as_ints = source.view(torch.int32), target.view(torch.int32)
    ways = {"copy": lambda x: target.copy_(x), "kernel": lambda x: torch.neg(as_ints[0], out=as_ints[1])}
    timings = interleaved(ways, [(source,)], repeats=9)
    return 2 * source.nbytes / min(timing.median for timing in timings.values())


def p99(values: list[float]) -> float:
    """The value that 99% do not exceed."""
    ordered = sorted(values)
    return ordered[-(-99 * len(ordered) // 100) - 1]


def _digits(value: float) -> float:
    """Five digits: no measurement has more."""
    return float(f"{value:.5g}")


def _release() -> None:
    """Give a GPU's memory back, that of graphs, too: the next engine needs all of it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
