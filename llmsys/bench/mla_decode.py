"""MLA decode: attention of new tokens to a paged latent cache, in the absorbed form, against what the machine can do.

A key is 576 numbers, which all heads share: keys and, but for the last 64, values. So what limits depends on the
rows, the query tokens of a sequence times the heads (`llmsys.attention.latent`): with 16 or 32 memory does, and the
measure is bytes of latents a second, each counted once; with 128 and more it is the tensor cores, and the measure is
TFLOP/s, 2 · (576 + 512) operations for each row and key. Both are recorded of every shape.

Beside our kernels stand a *copy* of as many bytes, half of them read and half written; and, where memory is enough for
keys and values of every head (320 numbers each where the latent has 576 for all), the two ways that do without the
absorbed form: *expanded* is cuDNN's attention to a cache that keeps them, and *naive* makes them of the latents anew
for every step, then attends in the same way. (These two are for equal lengths, one new token of each sequence, and
48 GB of keys and values at most. So they are not measured for two tokens, for mixed lengths, nor for 128 heads with 128
sequences of 8k or 32 of 32k; a record does not list that as missing.)

On a GPU each is a CUDA graph of a few calls, on different tensors in turn, which together are larger than the L2 cache.
Pages are dealt at random, and what belongs to nobody is NaN. On a CPU the definition in plain PyTorch is timed.
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
from llmsys.attention.latent import latent_decode
from llmsys.attention.paged import gather_pages, paged_attention_reference
from llmsys.bench.low_precision import eager_attention
from llmsys.bench.paged_decode import COPY, ENOUGH, NO_GPU, copies, together
from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved

LATENT, ROPE = 512, 64
KEY, VALUE = 192, 128
"""Sizes of a head's key and value, once they are expanded: DeepSeek-V3's."""
SCALE = KEY**-0.5
EXPANDED, NAIVE = "expanded", "naive"
KERNELS: dict[str, Callable] = {
    language: partial(latent_decode, latent=LATENT, scale=SCALE, language=language) for language in ("triton", "gluon")
}
"""Who is measured on a GPU, by name."""
MOST_EXPANDED = 48 * 10**9
"""Bytes of expanded keys and values up to which the forms that need them are measured."""
AT_ONCE = 4 * 10**9
"""Bytes of them that the naive form has at a time."""


@dataclass(frozen=True)
class Shape:
    """A batch of sequences that bring so many tokens each."""

    batch: int
    heads: int
    shortest: int
    longest: int
    tokens: int = 1
    page: int = 64

    @property
    def name(self) -> str:
        span = f"{self.longest}" if self.equal else f"{self.shortest}–{self.longest}"
        return f"B {self.batch}, {self.heads} heads × {self.tokens}, L {span}"

    @property
    def equal(self) -> bool:
        return self.shortest == self.longest

    def lengths(self) -> list[int]:
        draw = random.Random(0)
        return [draw.randint(self.shortest, self.longest) for _ in range(self.batch)]

    @property
    def flops(self) -> int:
        """Of the two products, over the keys that each row sees."""
        seen = sum(n - i for n in self.lengths() for i in range(self.tokens))
        return 2 * self.heads * seen * (2 * LATENT + ROPE)


def shapes(gpu: bool, quick: bool) -> list[Shape]:
    """PERFORMANCE's rows: 16, 32 and 128 heads, one token and two; then batches, and other pages."""
    if not gpu:
        few = [Shape(3, 16, 130, 130), Shape(4, 8, 16, 256, page=16)]
        return few[:1] if quick else few
    spans = [(128, 1024, 1024), (128, 4096, 4096), (128, 8192, 8192), (32, 32_768, 32_768), (128, 1024, 32_768)]
    rows = ((16, 1), (32, 1), (128, 1), (128, 2))
    if quick:
        return [Shape(B, heads, *span, tokens) for heads, tokens in rows[::2] for B, *span in spans[:3:2]]
    found = [Shape(B, heads, *span, tokens) for heads, tokens in rows for B, *span in spans]
    found += [Shape(B, heads, 8192, 8192) for heads in (16, 128) for B in (1, 4, 16, 64)]
    return found + [Shape(128, heads, 4096, 4096, page=page) for heads in (16, 128) for page in (16, 256)]


def measure(quick: bool = False) -> Record:
    """Time every shape: on a GPU in bf16, on a CPU in fp32."""
    gpu = torch.cuda.is_available()
    missing = {} if gpu else dict.fromkeys(KERNELS, NO_GPU)
    kernels = KERNELS if gpu else {"torch": _definition}
    rows = []
    for shape in shapes(gpu, quick):
        rows += _compare(shape, kernels, missing, repeats=5 if quick else 12)
        if gpu:
            torch.cuda.empty_cache()
    return new_record("mla_decode", rows, missing)


def table(record: Record):
    """The record as a rich table: a line a shape and page; GB/s (of the copy) and TFLOP/s of each."""
    from rich.table import Table

    names = list(dict.fromkeys(row["name"] for row in record.rows))
    title = f"{record.benchmark}, GB/s of latents (of the copy) · TFLOP/s on {record.device}"
    shown = Table("shape", "page", *names, title=title)
    for shape, page in dict.fromkeys((row["shape"], row["page"]) for row in record.rows):
        here = {row["name"]: row for row in record.rows if (row["shape"], row["page"]) == (shape, page)}
        shown.add_row(shape, str(page), *[_figure(here[name]) if name in here else "–" for name in names])
    return shown


def _figure(row: dict) -> str:
    if row["name"] == COPY:
        return f"{row['gbps']:.4g}"
    if row["name"] in (EXPANDED, NAIVE):
        return f"{row['us']:.4g} µs"
    return f"{row['gbps']:.4g} ({row['of_copy']:.2f}) · {row['tflops']:.3g}"


def _definition(q: Tensor, pages: Tensor, **step) -> Tensor:
    return paged_attention_reference(q, pages[:, :, None], pages[:, :, None, :LATENT], scale=SCALE, **step)


def _compare(shape: Shape, kernels: dict[str, Callable], missing: dict[str, str], repeats: int) -> list[dict]:
    gpu = torch.cuda.is_available()
    lengths = shape.lengths()
    itemsize = 2 if gpu else 4
    used = sum(lengths) * (LATENT + ROPE) * itemsize
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
    runs = {name: together(some) for name, some in calls.items()}
    counts = dict.fromkeys(runs, variants)
    for name, peer in _peers(shape, cache).items():
        try:
            peer(None)
            runs[name], counts[name] = peer, 1
        except (RuntimeError, ValueError) as error:
            missing[f"{name}, {shape.name}, page {shape.page}"] = str(error).splitlines()[0][:160]
    timings = interleaved(runs, [(cache.q[0],)], repeats=repeats, warmup=2)
    seconds = {name: timing.median / counts[name] for name, timing in timings.items()}
    spreads = {name: timing.spread for name, timing in timings.items()}
    fastest = min((name for name in seconds if name.startswith(COPY)), key=seconds.get)
    best_copy, its_spread = seconds[fastest], spreads[fastest]
    seconds = {name: s for name, s in seconds.items() if not name.startswith(COPY)} | {COPY: best_copy}
    spreads[COPY] = its_spread
    return [
        {
            "name": name, "shape": shape.name, "page": shape.page, "B": shape.batch, "Hq": shape.heads,
            "tokens": shape.tokens, "shortest": shape.shortest, "longest": shape.longest,
            "dtype": "bfloat16" if gpu else "float32", "us": round(s * 1e6, 3), "spread": round(spreads[name], 4),
            "bytes": used, "gbps": float(f"{used / s / 1e9:.5g}"), "of_copy": round(best_copy / s, 4),
            "tflops": None if name == COPY else float(f"{shape.flops / s / 1e12:.5g}"),
        }
        for name, s in seconds.items()
    ]  # fmt: skip


class Cache:
    """A paged latent cache of `variants` batches of a shape, its pages dealt at random; NaN where nobody wrote."""

    def __init__(self, shape: Shape, lengths: list[int], variants: int):
        gpu = torch.cuda.is_available()
        device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
        page, width = shape.page, LATENT + ROPE
        needed = [-(-n // page) for n in lengths]
        blocks = sum(needed) * variants + 3
        self.shape, self.lengths = shape, lengths
        ids = torch.randperm(blocks, generator=torch.Generator().manual_seed(0)).int()
        self.pages = torch.empty(blocks, page, width, dtype=dtype, device=device).normal_()
        tables = torch.full((variants, shape.batch, max(needed)), -1, dtype=torch.int32)
        there = torch.arange(max(needed))[None, :] < torch.tensor(needed)[:, None]
        tables[there.expand_as(tables)] = ids[: sum(needed) * variants]
        last = tables[:, torch.arange(shape.batch), torch.tensor(needed) - 1]  # (variants, B)
        filled = torch.tensor([(n - 1) % page + 1 for n in lengths]).expand_as(last)
        slots = torch.arange(page)
        unwritten = (last[..., None].long() * page + slots)[slots >= filled[..., None]].to(device)
        self.pages.flatten(0, 1)[unwritten] = float("nan")
        self.pages[ids[sum(needed) * variants :].long().to(device)] = float("nan")
        self.tables = list(tables.to(device))
        self.starts = torch.arange(shape.batch + 1, dtype=torch.int32, device=device) * shape.tokens
        self.seq_lens = torch.tensor(lengths, dtype=torch.int32, device=device)
        tokens = shape.batch * shape.tokens
        self.q = [torch.randn(tokens, shape.heads, width, device=device).to(dtype) for _ in range(variants)]

    def decode(self, kernel: Callable, variant: int) -> Tensor:
        """o (B · tokens, heads, 512) of a step."""
        return kernel(
            self.q[variant], self.pages, query_start_loc=self.starts, seq_lens=self.seq_lens,
            block_table=self.tables[variant], max_query_len=self.shape.tokens,
        )  # fmt: skip

    def check(self, name: str, kernel: Callable) -> None:
        """Compare three sequences with attention in float64, by the rule of `llmsys.bench.low_precision`.

        Raises RuntimeError where the error is more than twice that of eager code in the same precision.
        """
        o = self.decode(kernel, 0).unflatten(0, (self.shape.batch, self.shape.tokens))
        for i in {0, len(self.lengths) // 2, len(self.lengths) - 1}:
            q = self.q[0].unflatten(0, (self.shape.batch, self.shape.tokens))[i].transpose(0, 1)[None]
            k = gather_pages(self.pages[:, :, None], self.tables[0][i], self.lengths[i]).transpose(0, 1)[None]
            v = k[..., :LATENT]
            exact = naive_attention(q.double(), k.double(), v.double(), causal=True, scale=SCALE)
            eager = eager_attention(q, k, v, causal=True, scale=SCALE)
            error, allowed = ((x.double() - exact).abs().max().item() for x in (o[i].transpose(0, 1)[None], eager))
            if not error <= 2 * allowed + 1e-4:
                raise RuntimeError(f"{name} is off by {error:.2e}, eager code by {allowed:.2e}, in sequence {i}")


def _peers(shape: Shape, cache: Cache) -> dict[str, Callable[[Tensor | None], object]]:
    """The forms without absorption, where they fit: one token a sequence, equal lengths."""
    L, B, H = shape.longest, shape.batch, shape.heads
    each = L * H * (KEY + VALUE) * cache.pages.element_size()  # bytes of a sequence's keys and values
    if not shape.equal or shape.tokens > 1 or B * each > MOST_EXPANDED:
        return {}
    q = cache.q[0].new_empty(B, H, 1, KEY).normal_()
    up = q.new_empty(LATENT, H * (KEY - ROPE + VALUE)).normal_(std=LATENT**-0.5)
    group = max(1, min(B, AT_ONCE // each))
    made: list[Tensor] = []

    def expanded(_: Tensor | None) -> Tensor:
        if not made:  # not before it is wanted: it may be too much
            made.extend(q.new_empty(B, H, L, D).normal_() for D in (KEY, VALUE))
        return _dense(q, *made)

    def naive(_: Tensor | None) -> None:
        for first in range(0, B, group):
            some = cache.pages[cache.tables[0][first : first + group].long()].flatten(1, 2)[:, :L]  # (group, L, 576)
            c, rope = some.split((LATENT, ROPE), -1)
            k, v = (c @ up).unflatten(-1, (H, -1)).split((KEY - ROPE, VALUE), -1)
            k = torch.cat((k, rope[:, :, None].expand(-1, -1, H, -1)), -1)
            _dense(q[first : first + group], k.transpose(1, 2), v.transpose(1, 2))

    return {EXPANDED: expanded, NAIVE: naive}


def _dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one token to k (B, H, L, 192) and v (B, H, L, 128): by cuDNN on a GPU."""
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION] if q.is_cuda else [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION]):
        return F.scaled_dot_product_attention(q, k, v, scale=SCALE)
