"""Three kinds of attention in the same small model, trained on the same budget: what a smaller cache costs.

    MHA    every head keeps a key and a value of its own         2 · H · D numbers a token and layer
    GQA    four query heads share each                           2 · H/4 · D
    MLA    one latent, of which each makes its own               L + R

All else is the same: DeepSeek-V3's router with groups, its shared expert, a first layer without experts, loads kept
even by the routers' biases and a slight loss over each sequence, as in V3 (https://arxiv.org/abs/2412.19437, section
2.1.2: α 0.0001, γ 0.001, and 0 at the end). Latents are of about as many numbers as GQA's keys and values, so that the
two can be compared. The seed is that of the weights and of the batches' order.

    python -m llmsys.bench mla_training --out DIR          the record: three runs
    python -m llmsys.bench.mla_training DIR                the small model that comes with the package, one run
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from llmsys.bench.moe_training import LAST, active_parameters, held_out_loads
from llmsys.bench.record import Record, new_record
from llmsys.models import Balance, DeepSeek, DeepSeekConfig, MixtureConfig, MixtureLlama, save_model
from llmsys.models.text.byte_tokenizer import byte_tokenizer
from llmsys.moe import RouterConfig, load_statistics
from llmsys.training import Corpus, Run, Step, TrainConfig, evaluate, train

MHA, GQA, MLA = "MHA", "GQA", "MLA"
BALANCE = Balance("sequence", alpha=1e-4, rate=1e-3)
HELD_OUT = 16
"""Batches that the loss and the loads at the end are taken over."""


def kinds(
    C: int, layers: int, heads: int, D: int, latent: int, experts: int, k: int, I: int
) -> dict[str, MixtureConfig]:  # fmt: skip
    """The model with each kind of attention, by name. D is a head's size: of MLA's, the part without a position."""
    common = dict(
        vocab_size=257, hidden_size=C, layers=layers, heads=heads, mlp_size=3 * C, context_length=256, expert_size=I,
        shared_size=I, dense_layers=(0,),
        router=RouterConfig(experts, k, "sigmoid", scale=2.5, bias=True, groups=4, kept_groups=2),
    )  # fmt: skip
    plain = dict(head_size=D, qk_norm=True) | common
    return {
        MHA: MixtureConfig(MHA, kv_heads=heads, **plain),
        GQA: MixtureConfig(GQA, kv_heads=heads // 4, **plain),
        MLA: DeepSeekConfig(
            MLA,
            head_size=D // 2,
            nope_size=D,
            value_size=D,
            latent_size=latent,
            query_latent_size=C // 2,
            **common,
        ),  # fmt: skip
    }


FULL = kinds(256, 6, 8, 32, 96, 32, 4, 192)
TRAINING = TrainConfig(
    steps=250, batch=96, context=256, learning_rate=2e-3, warmup=25, dtype="bfloat16", evaluate_every=50,
    evaluate_batches=4,
)  # fmt: skip
SHIPPED = kinds(96, 3, 4, 24, 32, 16, 4, 24)[MLA]
SHIPPED_TRAINING = replace(TRAINING, steps=700, warmup=50, learning_rate=4e-3)
TINY = kinds(32, 2, 4, 8, 12, 8, 2, 16)
TINY_TRAINING = TrainConfig(
    steps=6, batch=2, context=32, learning_rate=5e-3, evaluate_every=6, evaluate_batches=1
)  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """One run."""

    model: MixtureLlama = field(repr=False)
    run: Run = field(repr=False)
    last: float  #       held-out loss at the end
    busiest: list[float]  # by layer, on held-out batches at the end: the busiest expert's load over the mean load
    seconds: float


def train_one(
    config: MixtureConfig,
    training: TrainConfig,
    corpus: Corpus,
    *,
    device: str | torch.device | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> Trained:
    """Train a new model of this config, from `training.seed`."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    torch.manual_seed(training.seed)
    of_kind = DeepSeek if isinstance(config, DeepSeekConfig) else MixtureLlama
    model = of_kind(config, byte_tokenizer(), balance=BALANCE).to(device)

    def each(step: Step) -> None:
        if step.number >= training.steps * (1 - LAST):
            model.balance = replace(model.balance, rate=0.0)
        if on_step is not None:
            on_step(step)

    start = time.perf_counter()
    run = train(model, corpus, training, on_step=each)
    seconds = time.perf_counter() - start
    batches = corpus.held_out_batches(training.batch, training.context)
    last = evaluate(model, batches, count=HELD_OUT)
    busiest = load_statistics(held_out_loads(model, batches, HELD_OUT)[0]).busiest.tolist()
    return Trained(model, run, last, busiest, seconds)


def measure(quick: bool = False) -> Record:
    """Three runs, one a kind of attention. `quick`, and where there is no GPU: a tiny model, for a few steps."""
    small = quick or not torch.cuda.is_available()
    configs, training = (TINY, TINY_TRAINING) if small else (FULL, TRAINING)
    corpus = Corpus.load(byte_tokenizer(), files=80 if small else None)
    rows = []
    for name, config in configs.items():
        trained = train_one(config, training, corpus)
        rows.append(row_of(name, trained, training))
        print(f"{name}: {trained.last:.4f} in {trained.seconds:.0f} s", file=sys.stderr, flush=True)
        del trained
    return new_record("mla_training", rows, {})


def row_of(name: str, trained: Trained, training: TrainConfig, points: int = 50) -> dict:
    """A run as a record's row. The curve is of means over equal stretches of the run, `points` of them at most."""
    model, run = trained.model, trained.run
    window = -(-training.steps // points)
    whole = len(run.losses) // window * window
    numbers = sum(each.bytes_per_token // each.dtype.itemsize for each in model.cache_spec().layers)
    return {
        "name": name, "seed": training.seed, "cache_numbers": numbers // model.config.layers,
        "cache_bytes_bf16": 2 * numbers, "parameters": sum(weight.numel() for weight in model.parameters()),
        "active": active_parameters(model), "steps": training.steps,
        "tokens_a_step": training.batch * training.context * training.accumulate,
        "learning_rate": training.learning_rate, "dtype": training.dtype, "loss": round(trained.last, 5),
        "held_out": [[step, round(loss, 4)] for step, loss in run.held_out.items()], "window": window,
        "losses": [round(statistics.fmean(run.losses[i : i + window]), 4) for i in range(0, whole, window)],
        "busiest": [round(x, 3) for x in trained.busiest], "seconds": round(trained.seconds, 2),
    }  # fmt: skip


def table(record: Record):
    """The record as a rich table, one line a kind of attention."""
    from rich.table import Table

    first = record.rows[0]
    shown = Table(
        "attention", "kept a token and layer", "parameters", "of a token", "held-out loss", "busiest, by layer",
        "seconds", title=f"{first['steps']} steps of {first['tokens_a_step']:,} bytes, on {record.device}",
    )  # fmt: skip
    for row in record.rows:
        shown.add_row(
            row["name"], f"{row['cache_numbers']}", f"{row['parameters']:,}", f"{row['active']:,}",
            f"{row['loss']:.4f}", " ".join(f"{x:.2f}" for x in row["busiest"]), f"{row['seconds']:.1f}",
        )  # fmt: skip
    shown.caption = "loss in nats a byte; busiest: an expert's load over the mean load, on held-out files"
    return shown


def main(arguments: Sequence[str]) -> None:
    """Train the model that comes with the package, and write it into a folder."""
    (folder,) = arguments
    trained = train_one(SHIPPED, SHIPPED_TRAINING, Corpus.load(byte_tokenizer()))
    save_model(trained.model.to(torch.bfloat16), Path(folder))
    print(f"{trained.last:.4f} in {trained.seconds:.0f} s, busiest {trained.busiest}")


if __name__ == "__main__":
    main(sys.argv[1:])
