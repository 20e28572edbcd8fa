"""Paged decode: attention of one new token a sequence over a paged cache, against what memory can do.

Every key and value is read once, and there is next to nothing to compute, so the measure is bytes of K and V a second.
Beside our kernels (`KERNELS`) stand two peers: a *copy* of as many bytes as K and V have, half of them read and half
written, in the faster of torch's two ways; and the *dense* decode of a cache without pages, cuDNN's on a GPU, where all
lengths are equal.

On a GPU each is a CUDA graph of a few calls, on different tensors in turn, which together are larger than the L2 cache.
Pages are dealt at random, and what belongs to nobody is NaN. On a CPU the form in plain PyTorch is timed, on small
shapes: an interpreter's time is not a kernel's.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmsys.attention import naive_attention
from llmsys.attention.paged import PagedAttention, gather_pages, paged_attention, paged_attention_reference
from llmsys.bench.low_precision import eager_attention
from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved

KERNELS: dict[str, PagedAttention] = {
    language: partial(paged_attention, language=language) for language in ("gluon", "triton")
}
"""Who is measured on a GPU, by name."""
COPY, DENSE = "copy", "dense"
NO_GPU = "there is no GPU, and an interpreter's time is not a kernel's"
ENOUGH = 12 * 10**8
"""Bytes that the calls of a graph read together. L2 has 50 MB; and of short calls there must be several, because what
starts a graph is not what is measured."""


@dataclass(frozen=True)
class Shape:
    """A batch of sequences that decode one token each."""

    batch: int
    heads: int
    kv_heads: int
    head_size: int
    page: int
    shortest: int
    longest: int

    @property
    def name(self) -> str:
        span = f"{self.longest}" if self.equal else f"{self.shortest}–{self.longest}"
        return f"B {self.batch}, {self.heads}/{self.kv_heads} heads of {self.head_size}, L {span}"

    @property
    def equal(self) -> bool:
        return self.shortest == self.longest

    def lengths(self) -> list[int]:
        draw = random.Random(0)
        return [draw.randint(self.shortest, self.longest) for _ in range(self.batch)]


def shapes(gpu: bool, quick: bool) -> list[Shape]:
    """PERFORMANCE's rows with pages of 16 and 64, then longer contexts, heads without groups, and other pages."""
    if not gpu:
        few = [Shape(4, 9, 3, 64, page, 128, 128) for page in (16, 64)] + [Shape(8, 9, 3, 64, 16, 16, 256)]
        return few[::2] if quick else few + [Shape(16, 9, 3, 64, 16, 1024, 1024)]
    target = [(64, 32, 8, 128, 1024), (64, 32, 8, 128, 8192), (128, 9, 3, 64, 1024)]
    found = [
        shape
        for page in (16, 64)
        for shape in (
            *(Shape(B, Hq, Hkv, D, page, L, L) for B, Hq, Hkv, D, L in target),
            *(Shape(256, Hq, Hkv, D, page, 64, 4096) for Hq, Hkv, D in ((32, 8, 128), (9, 3, 64))),
        )
    ]
    if quick:
        return found[::4]
    found += [Shape(16, 32, 8, 128, 16, L, L) for L in (1024, 4096, 16_384, 65_536)]
    found += [Shape(16, 32, 32, 128, 16, 4096, 4096), Shape(1, 32, 8, 128, 16, 65_536, 65_536)]
    return found + [Shape(B, Hq, Hkv, D, page, L, L) for page in (32, 128, 256) for B, Hq, Hkv, D, L in target[::2]]


def measure(quick: bool = False) -> Record:
    """Time every shape: on a GPU in bf16, on a CPU in fp32."""
    gpu = torch.cuda.is_available()
    missing = {} if gpu else dict.fromkeys(KERNELS, NO_GPU)
    kernels = KERNELS if gpu else {"torch": paged_attention_reference}
    rows = []
    for shape in shapes(gpu, quick):
        rows += _compare(shape, kernels, missing, repeats=5 if quick else 20)
        if gpu:
            torch.cuda.empty_cache()
    return new_record("paged_decode", rows, missing)


def table(record: Record):
    """The record as a rich table: a line a shape and page, GB/s and in brackets the ratios to the copy and to dense."""
    from rich.table import Table

    names = list(dict.fromkeys(row["name"] for row in record.rows))
    title = f"{record.benchmark}, GB/s of K and V (of the copy, of dense) on {record.device}"
    shown = Table("shape", "page", *names, title=title)
    for shape, page in dict.fromkeys((row["shape"], row["page"]) for row in record.rows):
        here = {row["name"]: row for row in record.rows if (row["shape"], row["page"]) == (shape, page)}
        shown.add_row(shape, str(page), *[_figure(here[name]) if name in here else "–" for name in names])
    return shown


def _figure(row: dict) -> str:
    ratios = [f"{row[key]:.2f}" for key in ("of_copy", "of_dense") if row[key] is not None]
    return f"{row['gbps']:.4g}" + (f" ({', '.join(ratios)})" if row["name"] not in (COPY, DENSE) else "")


def _compare(shape: Shape, kernels: dict[str, PagedAttention], missing: dict[str, str], repeats: int) -> list[dict]:
    gpu = torch.cuda.is_available()
    lengths = shape.lengths()
    itemsize = 2 if gpu else 4
    used = sum(lengths) * shape.kv_heads * shape.head_size * 2 * itemsize
    variants = max(1, min(16, ENOUGH // used)) if gpu else 1
    cache = Cache(shape, lengths, variants)
    calls: dict[str, list[Callable[[], object]]] = {}
    for name, kernel in kernels.items():
        try:
            cache.check(name, kernel)
        except (RuntimeError, ValueError) as error:  # it cannot run here, or is wrong: said, not hidden
            missing[f"{name}, {shape.name}, page {shape.page}"] = str(error).splitlines()[0][:160]
            continue
        calls[name] = [lambda i=i, kernel=kernel: cache.decode(kernel, i) for i in range(variants)]
    calls |= copies(used // 2 // itemsize, variants, cache.q[0])
    if shape.equal:
        calls[DENSE] = _dense(shape, variants, cache.q)
    runs = {name: together(some) for name, some in calls.items()}
    timings = interleaved(runs, [(cache.q[0],)], repeats=repeats, warmup=2)
    seconds = {name: timing.median / variants for name, timing in timings.items()}
    spreads = {name: timing.spread for name, timing in timings.items()}
    fastest = min((name for name in seconds if name.startswith(COPY)), key=seconds.get)
    best_copy, its_spread = seconds[fastest], spreads[fastest]
    seconds = {name: s for name, s in seconds.items() if not name.startswith(COPY)} | {COPY: best_copy}
    spreads[COPY] = its_spread
    return [
        {
            "name": name, "shape": shape.name, "page": shape.page, "B": shape.batch, "Hq": shape.heads,
            "Hkv": shape.kv_heads, "D": shape.head_size, "shortest": shape.shortest, "longest": shape.longest,
            "dtype": "bfloat16" if gpu else "float32", "us": round(s * 1e6, 3), "spread": round(spreads[name], 4),
            "bytes": used, "gbps": float(f"{used / s / 1e9:.5g}"), "of_copy": round(best_copy / s, 4),
            "of_dense": round(seconds[DENSE] / s, 4) if DENSE in seconds else None,
        }
        for name, s in seconds.items()
    ]  # fmt: skip


class Cache:
    """A paged cache of `variants` batches of a shape, whose pages lie in random order; NaN where nobody wrote."""

    def __init__(self, shape: Shape, lengths: list[int], variants: int):
        gpu = torch.cuda.is_available()
        device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
        page, Hkv, D = shape.page, shape.kv_heads, shape.head_size
        needed = [-(-n // page) for n in lengths]
        blocks = sum(needed) * variants + 3
        self.shape, self.lengths = shape, lengths
        ids = torch.randperm(blocks, generator=torch.Generator().manual_seed(0))
        self.key_pages, self.value_pages = (
            torch.empty(blocks, page, Hkv, D, dtype=dtype, device=device).normal_() for _ in "kv"
        )
        tables = torch.full((variants, shape.batch, max(needed)), -1, dtype=torch.int32)
        last, place = [], []
        taken = 0
        for i in range(variants):
            for s, n in enumerate(needed):
                tables[i, s, :n] = ids[taken : taken + n]
                taken += n
                last.append(int(tables[i, s, n - 1]))
                place.append((lengths[s] - 1) % page)
        behind = torch.arange(page)[None, :] > torch.tensor(place)[:, None]  # slots that nobody wrote
        rows = (torch.tensor(last)[:, None] * page + torch.arange(page))[behind].to(device)
        for pages in (self.key_pages, self.value_pages):
            pages.flatten(0, 1)[rows] = float("nan")
            pages[ids[taken:].to(device)] = float("nan")
        self.tables = list(tables.to(device))
        self.starts = torch.arange(shape.batch + 1, dtype=torch.int32, device=device)
        self.seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.q = [torch.randn(shape.batch, shape.heads, D, device=device).to(dtype) for _ in range(variants)]

    def decode(self, kernel: PagedAttention, variant: int) -> Tensor:
        """o (B, Hq, D) of a step."""
        return kernel(
            self.q[variant], self.key_pages, self.value_pages, query_start_loc=self.starts, seq_lens=self.seq_lens,
            block_table=self.tables[variant], max_query_len=1, max_seq_len=max(self.lengths),
        )  # fmt: skip

    def check(self, name: str, kernel: PagedAttention) -> None:
        """Compare three sequences with attention in float64, by the rule of `llmsys.bench.low_precision`.

        Raises RuntimeError where the error is more than twice that of eager code in the same precision.
        """
        o = self.decode(kernel, 0)
        for i in {0, len(self.lengths) // 2, len(self.lengths) - 1}:
            q = self.q[0][i][None, :, None]
            pages = (self.key_pages, self.value_pages)
            k, v = (gather_pages(x, self.tables[0][i], self.lengths[i]).transpose(0, 1)[None] for x in pages)
            exact = naive_attention(q.double(), k.double(), v.double())
            eager = (eager_attention(q, k, v).double() - exact).abs().max().item()
            error = (o[i][None, :, None].double() - exact).abs().max().item()
            if not error <= 2 * eager + 1e-4:
                raise RuntimeError(f"{name} is off by {error:.2e}, eager code by {eager:.2e}, in sequence {i}")


def copies(elements: int, variants: int, like: Tensor) -> dict[str, list[Callable[[], object]]]:
    """Reading and writing so many elements each, by the copy engine's way and by a kernel's."""
    sources = [like.new_empty(elements).normal_() for _ in range(variants)]
    targets = [torch.empty_like(x) for x in sources]
    pairs = list(zip(sources, targets, strict=True))
    return {
        COPY: [lambda x=x, y=y: y.copy_(x) for x, y in pairs],
        f"{COPY} by a kernel": [lambda x=x, y=y: torch.neg(x, out=y) for x, y in pairs],
    }


def _dense(shape: Shape, variants: int, q: list[Tensor]) -> list[Callable[[], object]]:
    """The same decode of a dense cache: by cuDNN on a GPU, by what torch picks on a CPU."""
    B, Hkv, L, D = shape.batch, shape.kv_heads, shape.longest, shape.head_size
    k, v = (q[0].new_empty(variants, B, Hkv, L, D).normal_() for _ in "kv")
    backends = [SDPBackend.CUDNN_ATTENTION] if q[0].is_cuda else [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]

    def call(i: int) -> Tensor:
        with sdpa_kernel(backends):
            return F.scaled_dot_product_attention(
                q[i][:, :, None], k[i], v[i], enable_gqa=shape.heads != shape.kv_heads
            )  # fmt: skip

    return [lambda i=i: call(i) for i in range(variants)]


def together(calls: list[Callable[[], object]]) -> Callable[[Tensor], None]:
    """All calls, one after the other: on a GPU as the replay of one graph."""

    def run(_: Tensor | None = None) -> None:
        for call in calls:
            call()

    if not torch.cuda.is_available():
        return run
    aside = torch.cuda.Stream()  # kernels are compiled and chosen before a capture, on another stream, as torch asks
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run(), run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return lambda _: graph.replay()
