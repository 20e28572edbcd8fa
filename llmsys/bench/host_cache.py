"""Main memory behind the cache: what it costs to have blocks back, what it costs to compute them, and what that makes.

A model with random weights. Rows, by `sweep`:

    trade    a prefix of `tokens` that lies in main memory: `back_ms` to copy its blocks, `again_ms` to compute it (how
             much longer a step takes that computes it, too), and what the rule makes of both (`back_predicted_ms`,
             `again_predicted_ms`; `comes_back` 1 or 0)
    served   questions behind long beginnings, of which the cache holds a few, in turn: "without" and "with" main memory
             behind it; tokens computed and returned, blocks stored, and `seconds`, the processor's on a CPU

On a GPU the model has Llama-3-8B's shape; on a CPU it is a small one, in fp32.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from llmsys.bench.decode import random_model
from llmsys.bench.record import Record, new_record
from llmsys.cache import CopyIn, CopyOut
from llmsys.cache.host_tier import Offer, always
from llmsys.models.shapes import SHAPES, ModelShape
from llmsys.serving import Engine, HostCache, SamplingParams
from llmsys.serving.host_cache import Cheaper, cheaper_here

BLOCK = 16
AFTER = 10
"""Tokens of a question, behind what is had back or computed again."""
SMALL = ModelShape("small", layers=4, width=256, heads=8, kv_heads=4, head_dim=32, ffn=704, vocab=997)


@dataclass(frozen=True)
class Sizes:
    """How much is asked."""

    shape: ModelShape
    prefixes: tuple[int, ...]
    """Tokens, of `trade`."""
    beginnings: int
    beginning: int
    """Tokens of each."""
    rounds: int
    held: int
    """Beginnings for which the cache has room."""
    output: int = 16
    repeats: int = 5


def sizes(quick: bool) -> Sizes:
    if torch.cuda.is_available() and not quick:
        return Sizes(SHAPES["Llama-3-8B"], (64, 256, 512, 1024, 4096, 16_384), 24, 4096, 4, held=8)
    return Sizes(SMALL, (16, 64, 256), 6, 128, 3, held=2, output=4, repeats=3)


def measure(quick: bool = False, *, size: Sizes | None = None) -> Record:
    """The trade of prefixes of some lengths, and a workload without and with the tier.

    size      what to measure instead
    """
    size = size or sizes(quick)
    longest = max(*size.prefixes, size.beginning) + AFTER + size.output
    model = random_model(size.shape, longest)
    rule = cheaper_here(model, BLOCK)
    rows = [trade(model, tokens, rule, size.repeats) for tokens in size.prefixes]
    rows += [served(model, size, name) for name in ("without", "with")]
    return new_record("host_cache", rows, {})


@torch.inference_mode()
def trade(model, tokens: int, rule: Cheaper, repeats: int) -> dict:
    """A row for a prefix of so many tokens, whole blocks."""
    blocks, known = tokens // BLOCK, tokens + AFTER
    row_bytes = BLOCK * model.cache_spec().bytes_per_token
    engine = Engine(
        model, num_blocks=2 + -(-(known + 1) // BLOCK), block_size=BLOCK, max_sequences=1, max_tokens_per_step=known,
        max_model_len=known + 1, host_cache=HostCache((blocks + 1) * (row_bytes + 1024), always),
    )  # fmt: skip
    gen, one = random.Random(tokens), SamplingParams(max_tokens=1, ignore_eos=True)

    def compute(n: int) -> float:
        prompt = [gen.randrange(model.config.vocab_size) for _ in range(n)]
        return seconds(lambda: engine.generate([prompt], one))

    compute(known), compute(AFTER)  # the first of its kind is slower
    again = median(compute(known) for _ in range(repeats)) - median(compute(AFTER) for _ in range(repeats))
    copies, cache = [CopyIn(n, n + 1) for n in range(blocks)], engine.runner.cache
    cache.copy_blocks([CopyOut(n + 1, n) for n in range(blocks)])
    back = [seconds(lambda: cache.copy_blocks(copies)) for _ in range(repeats + 1)]
    row = {"sweep": "trade", "name": f"{tokens} tokens", "model": model.config.name, "tokens": tokens}
    row |= {"back_ms": _ms(median(back[1:])), "again_ms": _ms(again)}
    if isinstance(rule, Cheaper):
        offer = Offer(0, tokens, known, blocks)
        predicted = {"back": rule.back_seconds(offer), "again": rule.again_seconds(offer)}
        row |= {f"{key}_predicted_ms": _ms(value) for key, value in predicted.items()}
        row |= {"comes_back": int(rule(offer)), "link_gb_s": float(f"{rule.link / 1e9:.4g}")}
    return row


def served(model, size: Sizes, name: str) -> dict:
    """A row for the workload, "with" or "without" main memory that has room for all beginnings and more."""
    each = -(-(size.beginning + AFTER + size.output) // BLOCK)
    row_bytes = BLOCK * model.cache_spec().bytes_per_token
    blocks = size.beginnings * (each + size.rounds * (each + 1 - size.beginning // BLOCK))  # with the rounds' own ends
    room = blocks * (row_bytes + 1024) if name == "with" else None
    engine = Engine(
        model, num_blocks=2 + size.held * each, block_size=BLOCK, max_sequences=max(2, size.held // 2),
        host_cache=room, max_model_len=size.beginning + AFTER + size.output,
    )  # fmt: skip
    gen, vocab = random.Random(0), model.config.vocab_size
    beginnings = [[gen.randrange(vocab) for _ in range(size.beginning)] for _ in range(size.beginnings)]
    questions = [[gen.randrange(vocab) for _ in range(AFTER)] for _ in range(size.rounds * size.beginnings)]
    prompts = [[*begin, *asked] for begin, asked in zip(beginnings * size.rounds, questions, strict=True)]
    engine.generate([[gen.randrange(vocab)]], SamplingParams(max_tokens=2, ignore_eos=True))
    took = seconds(lambda: engine.generate(prompts, SamplingParams(max_tokens=size.output, ignore_eos=True)))
    totals = engine.metrics.totals
    return {
        "sweep": "served", "name": name, "model": size.shape.name, "requests": len(prompts),
        "beginning": size.beginning, "blocks": engine.pool.num_blocks, "seconds": float(f"{took:.4g}"),
        "output_tokens_per_second": float(f"{(totals.output_tokens - 2) / took:.4g}"),
        "computed_tokens": totals.computed_tokens, "hit_tokens": totals.hit_tokens,
        "stored_blocks": totals.stored_blocks, "returned_blocks": totals.returned_blocks,
        "returned_tokens": totals.returned_tokens,
    }  # fmt: skip


def seconds(call: Callable[[], object]) -> float:
    """Of the device: on a GPU until it is done, on a CPU the processor's, of all threads."""
    if not torch.cuda.is_available():
        start = time.process_time()
        call()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def table(record: Record):
    """The record as two rich tables."""
    from rich.console import Group
    from rich.table import Table

    trades = Table("prefix", "back, ms", "by the rule", "again, ms", "by the rule", title=f"a hit, on {record.device}")
    served = Table("main memory", "seconds", "tokens/s", "computed", "returned", title="questions behind beginnings")
    for row in record.rows:
        if row["sweep"] == "trade":
            keys = ("back_ms", "back_predicted_ms", "again_ms", "again_predicted_ms")
            trades.add_row(row["name"], *(f"{row[key]:.4g}" if key in row else "–" for key in keys))
        else:
            keys = ("seconds", "output_tokens_per_second", "computed_tokens", "returned_tokens")
            served.add_row(row["name"], *(f"{row[key]:,}" for key in keys))
    return Group(trades, served)


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")
