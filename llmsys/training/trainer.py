"""The loop: a batch, a loss, its gradient, a step.

    tokens  (B, T + 1)                       one batch; the model sees the first T and is to say the last T
    loss    −log p(next token), mean over B · T
    a step  `accumulate` batches' gradients added, clipped, AdamW

A model may add terms to the loss and change itself after a step, as a mixture of experts does
(`llmsys.models.training_step`).

The loss of a model that guesses is log V, 10.8 for SmolLM2's vocabulary. Attention is any stage, or a callable with a
stage's contract that is differentiable: your own, say.

Nothing here draws random numbers but the order of the batches, and that follows from the seed and the step's number. So
a run that was interrupted and resumed is the run that was not: on a CPU, with as many threads, to the last bit of every
weight. (On a GPU, sums whose order depends on which program is first can differ in the last bits.)
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llmsys.cache import Backend, as_backend
from llmsys.models.llama import Llama
from llmsys.models.settings import read_json
from llmsys.models.training_step import TrainingStep, token_loss
from llmsys.training.checkpoint import STATE, latest_checkpoint, load_checkpoint, name_of, prune, save_checkpoint
from llmsys.training.corpus import Batches, Corpus
from llmsys.training.optimise import Optimiser, cosine_schedule
from llmsys.training.progress import Progress

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. The first group decides the numbers: a run resumes with the same ones only."""

    steps: int = 200
    batch: int = 4  # sequences in a batch, B
    context: int = 256  # tokens in a sequence, T
    accumulate: int = 1  # batches in a step
    learning_rate: float = 1e-4  # the highest
    final_rate: float = 0.1  # the last, as a part of the highest
    warmup: int | None = None  # steps until the highest; None: 10, or a tenth of fewer than 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float | None = 1.0  # the longest gradient; None for any
    dtype: str = "float32"  # what the model computes in; "bfloat16" keeps fp32 masters
    seed: int = 0  # of the order of the batches

    evaluate_every: int = field(default=50, metadata={"free": True})  # steps between held-out losses
    evaluate_batches: int = field(default=8, metadata={"free": True})  # batches that a held-out loss is the mean of
    save_every: int = field(default=100, metadata={"free": True})  # steps between checkpoints
    keep: int = field(default=2, metadata={"free": True})  # checkpoints that are kept, the newest

    def __post_init__(self):
        counts = "steps batch context accumulate evaluate_every evaluate_batches save_every keep".split()
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup_steps <= self.steps:
            raise ValueError(f"warmup must be from 0 to steps = {self.steps}, got {self.warmup}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be a positive number, or None for no limit, got {self.clip}")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate must be from 0 to 1, a part of learning_rate, got {self.final_rate}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def warmup_steps(self) -> int:
        return min(10, self.steps // 10) if self.warmup is None else self.warmup


@dataclass(frozen=True)
class Step:
    """One step of a run: its losses, its learning rate and its time."""

    number: int  # counted from 1
    loss: float  # of the next token, the mean over its batches, before its update
    learning_rate: float
    gradient_norm: float  # before clipping
    seconds: float
    terms: dict[str, float] = field(default_factory=dict)  # further losses that the model added, by name


@dataclass
class Run:
    """What `train` did, from the first step on, those before a resumption included."""

    model: Llama = field(repr=False)
    config: TrainConfig
    steps: list[Step] = field(default_factory=list, repr=False)
    held_out: dict[int, float] = field(default_factory=dict)  # loss by how many steps had been taken
    checkpoint: Path | None = None  # the last one
    stopped: bool = False  # by `should_stop`, before the last step

    @property
    def losses(self) -> list[float]:
        """The loss of each step, the first step's first."""
        return [step.loss for step in self.steps]

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on in a second, in the median of the last 50 steps."""
        seconds = sorted(step.seconds for step in self.steps[-50:])
        return self.config.batch * self.config.context * self.config.accumulate / seconds[len(seconds) // 2]


def train(
    model: Llama,
    corpus: Corpus,
    config: TrainConfig = TrainConfig(),  # noqa: B008, it is frozen
    *,
    attention: str | Callable | Backend = "sdpa",
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_step: Callable[[Step], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
    sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
) -> Run:
    """Train `model`, in place, to predict the corpus' next tokens.

    Parameters
    ----------
    attention
        A stage's name, a differentiable callable with a stage's contract, or a backend.
    out
        The folder for checkpoints, step-NNNNNN each, which `load_model` reads. None writes nothing.
    resume
        Go on from the newest checkpoint in `out`.
    progress
        Show a bar on stderr.
    on_step
        Called after each step.
    should_stop
        Asked after each step; True writes a checkpoint and ends the run there.
    sum_over_ranks
        Where several processes train together: takes a tensor of counts and returns its sum over all of them. The loads
        of a step go through it on their way to `model.after_step`, so that all make the same change. (Gradients do not:
        they are summed by whatever makes the ranks work together.)

    Raises
    ------
    ValueError
        Settings and model, corpus or checkpoint do not go together; the model is a part of one; or a weight got no
        gradient, as with an attention that has no backward pass.
    FileExistsError, FileNotFoundError
        There is a run in `out` and `resume` is not asked for; or the other way round.
    FloatingPointError
        The loss or its gradient is no finite number any more. The last checkpoint is from before.
    OSError
        A checkpoint could not be written; those before are whole.
    """
    if not model.is_whole:
        raise ValueError("model must be a whole one to be trained, and this is a part, without some layers or an end")
    if config.context > model.config.context_length:
        raise ValueError(f"context must be at most the model's {model.config.context_length}, got {config.context}")
    if out is not None:
        out = Path(out)
        _check_folder(out, resume)
    elif resume:
        raise ValueError("out must be given to resume: the folder that holds the run's checkpoints")
    batches = corpus.batches(config.batch, config.context, seed=config.seed)
    held_out = corpus.held_out_batches(config.batch, config.context)
    backend = as_backend(attention, spec=model.cache_spec())

    model.requires_grad_(True).train()
    try:
        optimiser = Optimiser(model, dtype=DTYPES[config.dtype], betas=config.betas, weight_decay=config.weight_decay)
        run = Run(model, config)
        if resume:
            _resume(run, corpus, optimiser, latest_checkpoint(out))
            prune(out, config.keep)  # it may have been killed while it removed one, and have no more to save
        with Progress(config.steps, len(run.steps), show=progress) as bar:
            if not run.steps:
                run.held_out[0] = evaluate(model, held_out, backend, config.evaluate_batches)
            while len(run.steps) < config.steps:
                step = _step(len(run.steps), model, batches, backend, optimiser, config, sum_over_ranks)
                run.steps.append(step)
                last = step.number == config.steps
                if last or step.number % config.evaluate_every == 0:
                    run.held_out[step.number] = evaluate(model, held_out, backend, config.evaluate_batches)
                bar.update(step.number, step.loss, run.tokens_per_second, run.held_out)
                if on_step is not None:
                    on_step(step)
                run.stopped = not last and should_stop is not None and should_stop()
                if out is not None and (last or run.stopped or step.number % config.save_every == 0):
                    run.checkpoint = out / name_of(step.number)
                    save_checkpoint(run.checkpoint, model, optimiser, _state(run, corpus))
                    prune(out, config.keep)
                if run.stopped:
                    break
    finally:
        model.requires_grad_(False).eval()
    return run


def saved_settings(out: str | Path) -> tuple[TrainConfig, int]:
    """The settings of the run in `out`, and of how many files its corpus was. Errors as for `train`."""
    _check_folder(Path(out), resume=True)
    state = read_json(latest_checkpoint(out) / STATE)
    return _config(state), state["corpus"]["files"]


def next_token_loss(
    model: Llama, tokens: Int[Tensor, "B T1"], attention: str | Callable | Backend = "sdpa"
) -> Float[Tensor, ""]:
    """−log p of each token after the first, given those before it: the mean, in fp32."""
    logits = model(tokens[:, :-1], as_backend(attention, spec=model.cache_spec()))  # (B, T, V)
    return token_loss(logits, tokens[:, 1:])


@torch.no_grad()
def evaluate(model: Llama, batches: Batches, attention: str | Callable | Backend = "sdpa", count: int = 8) -> float:
    """The mean loss over the first `count` batches, or all where they are fewer."""
    numbers = range(min(count, len(batches)))
    losses = [next_token_loss(model, batches[i].to(model.device), attention) for i in numbers]
    return float(torch.stack(losses).mean())


def training_step(model: Llama, tokens: Int[Tensor, "B T1"], backend: Backend) -> TrainingStep:
    """The losses and loads of one batch: the model's own `training_step`, if it has one, or the next token's loss."""
    own = getattr(model, "training_step", None)
    return TrainingStep(next_token_loss(model, tokens, backend)) if own is None else own(tokens, backend)


def _step(
    number: int,
    model: Llama,
    batches: Batches,
    backend: Backend,
    optimiser: Optimiser,
    config: TrainConfig,
    sum_over_ranks: Callable[[Tensor], Tensor] | None,
) -> Step:
    start = time.perf_counter()
    total = torch.zeros((), device=model.device)
    terms: dict[str, Tensor] = {}
    loads: dict[str, Tensor] = {}
    for i in range(number * config.accumulate, (number + 1) * config.accumulate):
        done = training_step(model, batches[i].to(model.device), backend)
        loss = done.loss / config.accumulate
        parts = {name: term / config.accumulate for name, term in done.terms.items()}
        sum(parts.values(), start=loss).backward()
        optimiser.gather()
        total += loss.detach()
        _add(terms, parts)
        _add(loads, done.loads)
    rate = cosine_schedule(
        number,
        steps=config.steps,
        warmup=config.warmup_steps,
        peak=config.learning_rate,
        final=config.learning_rate * config.final_rate,
    )
    norm = optimiser.step(rate, clip=config.clip)
    loss = float(total)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(
            f"step {number + 1}: the loss is {loss} and its gradient's length {norm}, so the run cannot go on. A lower "
            "learning_rate or a longer warmup helps most often; an attention of your own may be at fault, too"
        )
    if (after_step := getattr(model, "after_step", None)) is not None:
        with torch.no_grad():
            after_step({name: sum_over_ranks(load) if sum_over_ranks else load for name, load in loads.items()})
    seconds = time.perf_counter() - start
    return Step(number + 1, loss, rate, norm, seconds, {name: float(term) for name, term in terms.items()})


def _add(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add tensors to those of the same names, without their graphs."""
    for name, x in more.items():
        sums[name] = sums[name] + x.detach() if name in sums else x.detach()


def _check_folder(out: Path, resume: bool) -> None:
    latest = latest_checkpoint(out)
    if latest and not resume:
        raise FileExistsError(f"{out}: holds a run already, up to {latest.name}; resume it, or give another folder")
    if resume and not latest:
        raise FileNotFoundError(f"{out}: holds no checkpoint to resume from")


def _state(run: Run, corpus: Corpus) -> dict[str, Any]:
    return {
        "step": len(run.steps),
        "config": asdict(run.config),
        "corpus": {"name": corpus.name, "files": corpus.files, "digest": corpus.digest},
        "steps": [asdict(step) for step in run.steps],
        "held_out": run.held_out,
    }


def _resume(run: Run, corpus: Corpus, optimiser: Optimiser, checkpoint: Path) -> None:
    state = load_checkpoint(checkpoint, run.model, optimiser)
    saved = _config(state)
    for name, setting in TrainConfig.__dataclass_fields__.items():
        theirs, ours = getattr(saved, name), getattr(run.config, name)
        if theirs != ours and "free" not in setting.metadata:
            raise ValueError(f"{name} must stay what it was to resume {checkpoint}, {theirs}, got {ours}")
    if state["corpus"]["digest"] != corpus.digest:
        raise ValueError(f"{checkpoint}: was trained on another corpus, or with another tokenizer ({state['corpus']})")
    run.steps = [Step(**step) for step in state["steps"]]
    run.held_out = {int(step): loss for step, loss in state["held_out"].items()}
    run.checkpoint = checkpoint


def _config(state: dict[str, Any]) -> TrainConfig:
    saved = state["config"]
    return TrainConfig(**saved | {"betas": tuple(saved["betas"])})  # JSON has lists
