"""Four ways to keep experts' loads even, on the same model, corpus and budget: what each costs and buys.

    none        nothing at all
    sequence    a balance loss over each sequence (DeepSeek-V3's equation (17), here without its bias)
    batch       the same loss over the whole batch (Switch's)
    bias        no loss; the routers' biases move against the loads (https://arxiv.org/abs/2408.15664)

All have DeepSeek-V3's router (sigmoid, weights normalised), a shared expert, and a first layer without experts; the
three that do not move the biases have them, too, at 0. A run is `llmsys.training.train`, and nothing else; what is
looked at is the loss on held-out files, the loads of each expert there, and the busiest expert's load over time. The
seed is that of the weights and of the batches' order; every arm has the same seeds, so the same first weights.

α is 0.01, Switch's (https://arxiv.org/abs/2101.03961): at 0.001 a run of this length ends with the busiest expert at
two to four times the mean. (DeepSeek-V3's is 0.0001, and there it only helps the bias.) γ is DeepSeek-V3's 0.001, and 0
for the last 3% of the steps. The lesson's run is so short that a bias would get nowhere at that rate: there it is 0.01.

    python -m llmsys.bench moe_training --out DIR          the record: twelve runs
    python -m llmsys.bench.moe_training DIR                the small model that comes with the package, one run
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from llmsys.bench.record import Record, new_record
from llmsys.cache import NoCache
from llmsys.models import Balance, MixtureConfig, MixtureLlama, save_model
from llmsys.models.text.byte_tokenizer import byte_tokenizer
from llmsys.moe import RouterConfig, load_statistics
from llmsys.training import Batches, Corpus, Step, TrainConfig, evaluate, train

ARMS = NONE, SEQUENCE, BATCH, BIAS = "none", "sequence", "batch", "bias"
LAST = 0.03
"""The share of the steps, at the end, in which biases stay where they are."""


@dataclass(frozen=True)
class Size:
    """A model and its training."""

    model: MixtureConfig
    training: TrainConfig
    alpha: float
    rate: float
    files: int | None = None  # of the corpus; None for all
    held_out: int = 16  # batches that the loss and the loads at the end are taken over

    def arms(self) -> dict[str, Balance]:
        """What keeps the loads even, by the arm's name."""
        return {
            NONE: Balance(),
            SEQUENCE: Balance("sequence", alpha=self.alpha),
            BATCH: Balance("batch", alpha=self.alpha),
            BIAS: Balance(rate=self.rate),
        }


def _model(name: str, C: int, layers: int, experts: int, k: int, I: int, context: int, **options) -> MixtureConfig:
    settings = dict(
        vocab_size=257, heads=C // 32, kv_heads=C // 32, head_size=32, mlp_size=3 * C, context_length=context,
        qk_norm=True, router=RouterConfig(experts, k, "sigmoid", scale=2.5, bias=True), shared_size=I,
        dense_layers=(0,),
    )  # fmt: skip
    return MixtureConfig(name, hidden_size=C, layers=layers, expert_size=I, **(settings | options))


FULL = Size(
    _model("27M, 32 experts", 256, 6, 32, 4, 192, 256, heads=4, kv_heads=4, head_size=64),
    TrainConfig(
        steps=250, batch=96, context=256, learning_rate=2e-3, warmup=25, dtype="bfloat16", evaluate_every=50,
        evaluate_batches=4,
    ),
    alpha=1e-2,
    rate=1e-3,
)  # fmt: skip
SHIPPED = replace(
    FULL,
    model=_model("0.8M, 32 experts", 96, 3, 32, 4, 32, 256),
    training=replace(FULL.training, steps=1000, warmup=60, learning_rate=4e-3),
)
LESSON = Size(
    _model("0.2M, 16 experts", 64, 2, 16, 2, 32, 128, dense_layers=()),
    TrainConfig(steps=80, batch=8, context=128, learning_rate=5e-3, evaluate_every=80, evaluate_batches=4),
    alpha=1e-2,
    rate=1e-2,
    files=80,
    held_out=4,
)  # fmt: skip
TINY = replace(LESSON, training=replace(LESSON.training, steps=6, batch=2, context=32, evaluate_every=6), held_out=1)


class Watched(MixtureLlama):
    """Keeps the loads of each step, in `loads`: (layers, E) each, on its device, so that no step waits for them."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.loads: list[Tensor] = []

    def after_step(self, loads) -> None:
        self.loads.append(torch.stack(list(loads.values())))
        super().after_step(loads)


@dataclass(frozen=True)
class ArmRun:
    """One run of an arm."""

    arm: str
    seed: int
    model: MixtureLlama = field(repr=False)
    losses: list[float]  # of each step
    held_out: dict[int, float]  # by steps that had been taken, over a few batches
    last: float  # on more of the held-out batches, at the end
    steps: Tensor  # (steps, layers, E), the loads of each step
    loads: Tensor  # (layers, E), loads of held-out tokens at the end
    in_sequence: float  # the busiest expert's load within one held-out sequence, over the mean load: mean over all
    seconds: float

    def busiest(self, window: int = 1) -> Tensor:
        """The busiest expert's load over the mean load, (steps // window, layers): 1 where all is even. Loads are added
        up over so many steps."""
        steps, layers, E = self.steps.shape
        sums = self.steps[: steps // window * window].view(-1, window, layers, E).sum(1)
        return load_statistics(sums.flatten(0, 1)).busiest.view(-1, layers)


def train_arm(
    size: Size,
    arm: str,
    corpus: Corpus,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    on_step: Callable[[Step], object] | None = None,
) -> ArmRun:
    """Train a new model in one of the four ways. ValueError for an arm that is none."""
    if arm not in ARMS:
        raise ValueError(f"arm must be one of {', '.join(ARMS)}, got {arm!r}")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    torch.manual_seed(seed)
    model = Watched(size.model, byte_tokenizer(), balance=size.arms()[arm]).to(device)
    settings = replace(size.training, seed=seed)

    def each(step: Step) -> None:
        if step.number >= settings.steps * (1 - LAST):
            model.balance = replace(model.balance, rate=0.0)
        if on_step is not None:
            on_step(step)

    start = time.perf_counter()
    run = train(model, corpus, settings, on_step=each)
    seconds = time.perf_counter() - start
    batches = corpus.held_out_batches(settings.batch, settings.context)
    last = evaluate(model, batches, count=size.held_out)
    loads, in_sequence = held_out_loads(model, batches, size.held_out)
    steps = torch.stack(model.loads).cpu()
    return ArmRun(arm, seed, model, run.losses, run.held_out, last, steps, loads, in_sequence, seconds)


@torch.no_grad()
def held_out_loads(model: MixtureLlama, batches: Batches, count: int) -> tuple[Tensor, float]:
    """Each layer's loads (layers, E) over the first `count` batches; and the busiest expert's load within a sequence,
    over the mean load there, in the mean over layers and sequences."""
    total, busiest = 0, []
    for i in range(min(count, len(batches))):
        tokens = batches[i][:, :-1].to(model.device)
        for layer, routing in enumerate(model.routed(tokens, NoCache())[1].values()):
            B, E = len(tokens), routing.scores.shape[1]
            chosen = routing.experts.view(B, -1)
            loads = torch.zeros(B, E, dtype=torch.int64, device=chosen.device)
            loads.scatter_add_(1, chosen, torch.ones_like(chosen))
            if not torch.is_tensor(total):
                total = torch.zeros(len(model.mixtures), E, dtype=torch.int64)
            total[layer] += loads.sum(0).cpu()
            busiest.append(load_statistics(loads.cpu()).busiest.mean())
    return total, float(torch.stack(busiest).mean())


def measure(quick: bool = False) -> Record:
    """Twelve runs on a GPU, four on a CPU, where the lesson's model is trained; `quick`: of a few steps."""
    gpu = torch.cuda.is_available()
    size = TINY if quick else FULL if gpu else LESSON
    corpus = Corpus.load(byte_tokenizer(), files=size.files)
    rows = []
    for seed in range(3 if gpu and not quick else 1):
        for arm in ARMS:
            run = train_arm(size, arm, corpus, seed=seed)
            rows.append(row_of(run, size))
            print(f"{arm}, seed {seed}: {run.last:.4f} in {run.seconds:.0f} s", file=sys.stderr, flush=True)
            del run
    return new_record("moe_training", rows, {})


def row_of(run: ArmRun, size: Size, points: int = 50) -> dict:
    """A run as a record's row. Curves are means over equal stretches of the run, `points` of them at most."""
    settings, config, balance = size.training, size.model, size.arms()[run.arm]
    window = -(-settings.steps // points)
    whole = len(run.losses) // window * window
    return {
        "name": run.arm, "seed": run.seed, "model": config.name, "alpha": balance.alpha, "rate": balance.rate,
        "parameters": sum(weight.numel() for weight in run.model.parameters()),
        "active": active_parameters(run.model),
        "layers": list(run.model.mixtures), "experts": config.experts, "k": config.router.k,
        "steps": settings.steps, "tokens_a_step": settings.batch * settings.context * settings.accumulate,
        "learning_rate": settings.learning_rate, "dtype": settings.dtype,
        "loss": round(run.last, 5), "held_out": [[step, round(loss, 4)] for step, loss in run.held_out.items()],
        "window": window,
        "losses": [round(statistics.fmean(run.losses[i : i + window]), 4) for i in range(0, whole, window)],
        "busiest": [[round(x, 3) for x in each] for each in run.busiest(window).tolist()],
        "loads": run.loads.tolist(), "in_sequence": round(run.in_sequence, 4),
        "seconds": round(run.seconds, 2),
    }  # fmt: skip


def active_parameters(model: MixtureLlama) -> int:
    """The parameters that a token goes through: of each layer's experts k."""
    total = sum(weight.numel() for weight in model.parameters())
    for moe in model.mixtures.values():
        experts = sum(weight.numel() for weight in moe.experts.parameters())
        total -= experts - experts // model.config.experts * model.config.router.k
    return total


def table(record: Record):
    """The record as a rich table: one line an arm, means over seeds and the lowest and highest of them."""
    from rich.table import Table

    first = record.rows[0]
    shown = Table(
        "arm", "α", "γ", "held-out loss", "of seeds", "busiest, by layer", "in a sequence", "seconds",
        title=f"{first['model']}, {first['steps']} steps of {first['tokens_a_step']:,} bytes, on {record.device}",
    )  # fmt: skip
    for arm in dict.fromkeys(row["name"] for row in record.rows):
        rows = [row for row in record.rows if row["name"] == arm]
        losses = [row["loss"] for row in rows]
        busiest = torch.stack([load_statistics(torch.tensor(row["loads"])).busiest for row in rows]).mean(0)
        shown.add_row(
            arm, f"{rows[0]['alpha']:g}", f"{rows[0]['rate']:g}", f"{statistics.fmean(losses):.4f}",
            f"{min(losses):.4f}–{max(losses):.4f}", " ".join(f"{x:.2f}" for x in busiest.tolist()),
            f"{statistics.fmean(row['in_sequence'] for row in rows):.2f}",
            f"{statistics.fmean(row['seconds'] for row in rows):.1f}",
        )  # fmt: skip
    shown.caption = "busiest: an expert's load over the mean load, on held-out files; loss in nats a byte"
    return shown


def main(arguments: Sequence[str]) -> None:
    """Train the model that comes with the package, without anything that keeps its loads even, into a folder."""
    (folder,) = arguments
    run = train_arm(SHIPPED, NONE, Corpus.load(byte_tokenizer()))
    save_model(run.model.to(torch.bfloat16), Path(folder))
    print(f"{run.last:.4f} in {run.seconds:.0f} s, busiest {load_statistics(run.loads).busiest.tolist()}")


if __name__ == "__main__":
    main(sys.argv[1:])
