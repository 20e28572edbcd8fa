"""Chunked prefill over pages: attention of a piece of each prompt to all that came before it.

A chunk of Tq tokens meets L keys, the last Tq of which are its own: causal attention, aligned bottom-right. There is as
much to compute as in any prefill, so the measure is TFLOP/s. The peer, *dense*, has tensors of the same sizes and needs
no table: it is FlashAttention-2 (torch's FLASH_ATTENTION) on a GPU, and the naive form on a CPU.

On a CPU the form in plain PyTorch is timed, on small shapes: an interpreter's time is not a kernel's.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention import SDPBackend, sdpa_kernel

from llmsys.attention import naive_attention
from llmsys.attention.paged import PagedAttention, gather_pages, paged_attention, paged_attention_reference
from llmsys.bench import paged_decode
from llmsys.bench.low_precision import eager_attention
from llmsys.bench.paged_decode import Cache
from llmsys.bench.record import Record, new_record
from llmsys.bench.timing import interleaved

KERNELS: dict[str, PagedAttention] = {"triton": paged_attention}
"""Who is measured on a GPU, by name."""
DENSE = "dense"
CHECKED = 64  # queries, the last ones, that are compared with the definition


@dataclass(frozen=True)
class Shape:
    """A batch of prompts, each of which brings `chunk` tokens and then has `length` keys."""

    batch: int
    heads: int
    kv_heads: int
    head_size: int
    page: int
    chunk: int
    length: int

    @property
    def name(self) -> str:
        return f"B {self.batch}, {self.heads}/{self.kv_heads} heads of {self.head_size}, {self.chunk} of {self.length}"

    @property
    def flops(self) -> int:
        """Of the two products, over the keys that each query sees."""
        seen = self.chunk * (self.length - self.chunk) + self.chunk * (self.chunk + 1) // 2
        return 4 * self.batch * self.heads * self.head_size * seen


def shapes(gpu: bool, quick: bool) -> list[Shape]:
    """A whole prompt, chunks deep in one, and chunks of several prompts; pages of 16 and 64."""
    if not gpu:
        return [Shape(1, 9, 3, 64, 16, *sizes) for sizes in ((64, 64), (64, 256))[: 1 if quick else 2]]
    kinds = [(32, 8, 128), (9, 3, 64)]
    sizes = [(1, 8192, 8192), (1, 2048, 16_384), (8, 512, 4096), (16, 128, 8192)]
    found = [
        Shape(B, Hq, Hkv, D, page, chunk, length)
        for page in (16, 64)
        for Hq, Hkv, D in kinds
        for B, chunk, length in sizes
    ]
    return found[1::8] if quick else found


def measure(quick: bool = False) -> Record:
    """Time every shape: on a GPU in bf16, on a CPU in fp32."""
    gpu = torch.cuda.is_available()
    missing = {} if gpu else dict.fromkeys(KERNELS, paged_decode.NO_GPU)
    kernels = KERNELS if gpu else {"torch": paged_attention_reference}
    rows = []
    for shape in shapes(gpu, quick):
        rows += _compare(shape, kernels, missing, repeats=5 if quick else 20)
        if gpu:
            torch.cuda.empty_cache()
    return new_record("paged_prefill", rows, missing)


def table(record: Record):
    """The record as a rich table: a line a shape and page, TFLOP/s and in brackets the ratio to dense."""
    from rich.table import Table

    names = list(dict.fromkeys(row["name"] for row in record.rows))
    shown = Table("shape", "page", *names, title=f"{record.benchmark}, TFLOP/s (of dense) on {record.device}")
    for shape, page in dict.fromkeys((row["shape"], row["page"]) for row in record.rows):
        here = {row["name"]: row for row in record.rows if (row["shape"], row["page"]) == (shape, page)}
        shown.add_row(shape, str(page), *[_figure(here[name]) if name in here else "–" for name in names])
    return shown


def _figure(row: dict) -> str:
    ratio = "" if row["of_dense"] is None or row["name"] == DENSE else f" ({row['of_dense']:.2f})"
    return f"{row['tflops']:.4g}{ratio}"


def _compare(shape: Shape, kernels: dict[str, PagedAttention], missing: dict[str, str], repeats: int) -> list[dict]:
    prompts = Prompts(shape)
    calls: dict[str, Callable[[], object]] = {}
    for name, kernel in kernels.items():
        try:
            prompts.check(name, kernel)
        except (RuntimeError, ValueError) as error:  # it cannot run here, or is wrong: said, not hidden
            missing[f"{name}, {shape.name}, page {shape.page}"] = str(error).splitlines()[0][:160]
            continue
        calls[name] = lambda kernel=kernel: prompts.attend(kernel)
    try:
        calls[DENSE] = prompts.dense()
    except RuntimeError as error:
        missing[f"{DENSE}, {shape.name}"] = str(error)
    timings = interleaved(
        {name: lambda _, call=call: call() for name, call in calls.items()}, [(prompts.q,)], repeats=repeats
    )  # fmt: skip
    seconds = {name: timing.median for name, timing in timings.items()}
    return [
        {
            "name": name, "shape": shape.name, "page": shape.page, "B": shape.batch, "Hq": shape.heads,
            "Hkv": shape.kv_heads, "D": shape.head_size, "chunk": shape.chunk, "length": shape.length,
            "dtype": str(prompts.q.dtype).removeprefix("torch."), "us": round(s * 1e6, 3),
            "spread": round(timings[name].spread, 4), "tflops": float(f"{shape.flops / s / 1e12:.5g}"),
            "of_dense": round(seconds[DENSE] / s, 4) if DENSE in seconds else None,
        }
        for name, s in seconds.items()
    ]  # fmt: skip


class Prompts:
    """The chunks' queries, side by side, over a cache of pages as `llmsys.bench.paged_decode` deals it."""

    def __init__(self, shape: Shape):
        B, L = shape.batch, shape.length
        pages = paged_decode.Shape(B, shape.heads, shape.kv_heads, shape.head_size, shape.page, L, L)
        self.shape, self.cache = shape, Cache(pages, [L] * B, 1)
        like = self.cache.q[0]
        self.q = torch.randn(B * shape.chunk, shape.heads, shape.head_size, device=like.device).to(like.dtype)
        self.starts = torch.arange(B + 1, dtype=torch.int32, device=like.device) * shape.chunk

    def attend(self, kernel: PagedAttention) -> Tensor:
        """o (B · chunk, Hq, D) of a step."""
        cache = self.cache
        return kernel(
            self.q, cache.key_pages, cache.value_pages, query_start_loc=self.starts, seq_lens=cache.seq_lens,
            block_table=cache.tables[0], max_query_len=self.shape.chunk, max_seq_len=self.shape.length,
        )  # fmt: skip

    def dense(self) -> Callable[[], Tensor]:
        """The same attention with dense K and V. Raises RuntimeError where torch would not take FlashAttention-2."""
        B, Hkv, L, D, T = (getattr(self.shape, x) for x in ("batch", "kv_heads", "length", "head_size", "chunk"))
        q = self.q.view(B, T, -1, D).transpose(1, 2)
        k, v = (self.q.new_empty(B, Hkv, L, D).normal_() for _ in "kv")

        def call() -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(
                    q, k, v, attn_mask=causal_lower_right(T, L), enable_gqa=self.shape.heads != Hkv
                )  # fmt: skip

        if not self.q.is_cuda:  # torch has this mask in a fused kernel on a GPU alone
            return lambda: naive_attention(q, k, v, causal=True)
        if not can_use_flash_attention(SDPAParams(q, k, v, None, 0.0, False, self.shape.heads != Hkv)):
            raise RuntimeError("torch does not take FlashAttention-2 for these tensors")
        from torch.nn.attention.bias import causal_lower_right  # imports Triton: not where it is to interpret

        return call

    def check(self, name: str, kernel: PagedAttention) -> None:
        """Compare the last queries of a sequence with attention in float64, as `paged_decode.Cache.check` does.

        Raises RuntimeError where the error is more than twice that of eager code in the same precision.
        """
        rows = slice(max(self.shape.chunk - CHECKED, 0), self.shape.chunk)  # of the first sequence
        o = self.attend(kernel)[rows].transpose(0, 1)[None]
        q = self.q[rows].transpose(0, 1)[None]
        pages = (self.cache.key_pages, self.cache.value_pages)
        k, v = (gather_pages(x, self.cache.tables[0][0], self.shape.length).transpose(0, 1)[None] for x in pages)
        exact = naive_attention(q.double(), k.double(), v.double(), causal=True)
        eager = (eager_attention(q, k, v, causal=True).double() - exact).abs().max().item()
        error = (o.double() - exact).abs().max().item()
        if not error <= 2 * eager + 1e-4:
            raise RuntimeError(f"{name} is off by {error:.2e}, eager code by {eager:.2e}")
