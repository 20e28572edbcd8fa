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
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llmsys.cache import Backend, as_backend, check_token_ids
from llmsys.hardware.disk import check_writable
from llmsys.models.modules import unwrapped
from llmsys.models.training_step import TrainingStep, token_loss
from llmsys.training.checkpoint import (
    STATE,
    damaged,
    latest_checkpoint,
    load_checkpoint,
    name_of,
    prune,
    read_state,
    save_checkpoint,
)
from llmsys.training.corpus import Batches, Corpus
from llmsys.training.optimise import Optimiser, cosine_schedule
from llmsys.training.progress import Progress
from llmsys.training.run import DTYPES, Run, Saved, Step, TrainConfig, from_json, to_json


def train(
    model: nn.Module,
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
    model
        A whole one. What torch.compile or data parallelism made of one is run as it is, and saved as the model itself.
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
        A checkpoint cannot be written to `out`, which is seen before the first step; or it could not be written, and
        those before are whole.
    """
    inner = unwrapped(model)
    if not inner.is_whole:
        raise ValueError("model must be a whole one to be trained, and this is a part, without some layers or an end")
    if config.context > inner.config.context_length:
        raise ValueError(f"context must be at most the model's {inner.config.context_length}, got {config.context}")
    for tokens in (corpus.train, corpus.held_out):  # here, for a model on a GPU does not look at them
        check_token_ids(tokens.numpy(), inner.config.vocab_size, "corpus: its tokens")
    if out is not None:
        out = Path(out)
        check_folder(out, resume)
        masters_and_means = 3 * 4 * sum(weight.numel() for weight in inner.parameters())  # bytes, fp32
        check_writable(out, need=masters_and_means)
    elif resume:
        raise ValueError("out must be given to resume: the folder that holds the run's checkpoints")
    batches = corpus.batches(config.batch, config.context, seed=config.seed)
    held_out = corpus.held_out_batches(config.batch, config.context)
    backend = as_backend(attention, spec=inner.cache_spec())

    model.requires_grad_(True).train()
    try:
        optimiser = Optimiser(model, dtype=DTYPES[config.dtype], betas=config.betas, weight_decay=config.weight_decay)
        run = Run(model, config)
        if resume:
            checkpoint = latest_checkpoint(out)
            saved = saved_run(checkpoint, config, corpus)
            load_checkpoint(checkpoint, model, optimiser)
            run.go_on(saved, checkpoint)
            prune(out, config.keep)  # it may have been killed while it removed one, and have no more to save

        def save(path: Path) -> None:
            save_checkpoint(path, model, optimiser, to_json(run, corpus))
            prune(out, config.keep)

        take_steps(
            run,
            step=lambda number: _step(number, model, batches, backend, optimiser, config, sum_over_ranks),
            held_out=lambda: evaluate(model, held_out, backend, config.evaluate_batches),
            save=save,
            out=out,
            progress=progress,
            on_step=on_step,
            should_stop=should_stop,
        )
    finally:
        model.requires_grad_(False).eval()
    return run


def take_steps(
    run: Run,
    *,
    step: Callable[[int], Step],
    held_out: Callable[[], float],
    save: Callable[[Path], object],
    out: Path | None,
    progress: bool,
    on_step: Callable[[Step], object] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    """The loop itself, whoever computes: `step(number)`, counted from 0, until the run is over; in between and at both
    ends a held-out loss; and checkpoints. The other arguments are `train`'s."""
    config = run.config
    with Progress(config.steps, len(run.steps), show=progress) as bar:
        if not run.steps:
            run.held_out[0] = held_out()
        while len(run.steps) < config.steps and not run.stopped:
            run.steps.append(done := step(len(run.steps)))
            last = done.number == config.steps
            if last or done.number % config.evaluate_every == 0:
                run.held_out[done.number] = held_out()
            bar.update(done.number, done.loss, run.tokens_per_second, run.held_out)
            if on_step is not None:
                on_step(done)
            run.stopped = not last and should_stop is not None and should_stop()
            if out is not None and (last or run.stopped or done.number % config.save_every == 0):
                run.checkpoint = out / name_of(done.number)
                save(run.checkpoint)


def saved_settings(out: str | Path) -> tuple[TrainConfig, int]:
    """The settings of the run in `out`, and of how many files its corpus was. Errors as for `train`."""
    check_folder(Path(out), resume=True)
    saved = _saved(latest_checkpoint(out))
    return saved.config, saved.files


def next_token_loss(
    model: nn.Module, tokens: Int[Tensor, "B T1"], attention: str | Callable | Backend = "sdpa"
) -> Float[Tensor, ""]:
    """−log p of each token after the first, given those before it: the mean, in fp32."""
    logits = model(tokens[:, :-1], as_backend(attention, spec=unwrapped(model).cache_spec()))  # (B, T, V)
    return token_loss(logits, tokens[:, 1:])


@torch.no_grad()
def evaluate(model: nn.Module, batches: Batches, attention: str | Callable | Backend = "sdpa", count: int = 8) -> float:
    """The mean loss over the first `count` batches, or all where they are fewer."""
    check_token_ids(batches.tokens.numpy(), unwrapped(model).config.vocab_size, "batches: their tokens")
    numbers = range(min(count, len(batches)))
    losses = [next_token_loss(model, batches[i].to(unwrapped(model).device), attention) for i in numbers]
    return float(torch.stack(losses).mean())


def training_step(model: nn.Module, tokens: Int[Tensor, "B T1"], backend: Backend) -> TrainingStep:
    """The losses and loads of one batch: the model's own `training_step`, if it has one, or the next token's loss."""
    own = getattr(unwrapped(model), "training_step", None)
    return TrainingStep(next_token_loss(model, tokens, backend)) if own is None else own(tokens, backend)


def _step(
    number: int,
    model: nn.Module,
    batches: Batches,
    backend: Backend,
    optimiser: Optimiser,
    config: TrainConfig,
    sum_over_ranks: Callable[[Tensor], Tensor] | None,
) -> Step:
    start = time.perf_counter()
    total = torch.zeros((), device=unwrapped(model).device)
    terms: dict[str, Tensor] = {}
    loads: dict[str, Tensor] = {}
    for i in range(number * config.accumulate, (number + 1) * config.accumulate):
        done = training_step(model, batches[i].to(unwrapped(model).device), backend)
        loss = done.loss / config.accumulate
        parts = {name: term / config.accumulate for name, term in done.terms.items()}
        sum(parts.values(), start=loss).backward()
        optimiser.gather()
        total += loss.detach()
        _add(terms, parts)
        _add(loads, done.loads)
    rate = rate_of(number, config)
    norm = optimiser.step(rate, clip=config.clip)
    loss = float(total)
    check_finite(number + 1, loss, norm)
    if (after_step := getattr(unwrapped(model), "after_step", None)) is not None:
        with torch.no_grad():
            after_step({name: sum_over_ranks(load) if sum_over_ranks else load for name, load in loads.items()})
    seconds = time.perf_counter() - start
    return Step(number + 1, loss, rate, norm, seconds, {name: float(term) for name, term in terms.items()})


def rate_of(number: int, config: TrainConfig) -> float:
    """The learning rate of a step, counted from 0."""
    return cosine_schedule(
        number,
        steps=config.steps,
        warmup=config.warmup_steps,
        peak=config.learning_rate,
        final=config.learning_rate * config.final_rate,
    )


def check_finite(step: int, loss: float, norm: float) -> None:
    """FloatingPointError where a step's loss or its gradient's length is no finite number."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise FloatingPointError(
            f"step {step}: the loss is {loss} and its gradient's length {norm}, so the run cannot go on. A lower "
            "learning_rate or a longer warmup helps most often; an attention of your own may be at fault, too"
        )


def _add(sums: dict[str, Tensor], more: Mapping[str, Tensor]) -> None:
    """Add tensors to those of the same names, without their graphs."""
    for name, x in more.items():
        sums[name] = sums[name] + x.detach() if name in sums else x.detach()


def check_folder(out: Path, resume: bool) -> None:
    """Raises FileExistsError and FileNotFoundError as `train` does."""
    latest = latest_checkpoint(out)
    if latest and not resume:
        raise FileExistsError(f"{out}: holds a run already, up to {latest.name}; resume it, or give another folder")
    if resume and not latest:
        raise FileNotFoundError(f"{out}: holds no checkpoint to resume from")


def saved_run(checkpoint: Path, config: TrainConfig, corpus: Corpus) -> Saved:
    """What the checkpoint knows of its run. ValueError where that is not the run with these settings on this corpus."""
    saved = _saved(checkpoint)
    for name, setting in TrainConfig.__dataclass_fields__.items():
        theirs, ours = getattr(saved.config, name), getattr(config, name)
        if theirs != ours and "free" not in setting.metadata:
            raise ValueError(f"{name} must stay what it was to resume {checkpoint}, {theirs}, got {ours}")
    if saved.corpus["digest"] != corpus.digest:
        raise ValueError(f"{checkpoint}: was trained on another corpus, or with another tokenizer ({saved.corpus})")
    return saved


def _saved(checkpoint: Path) -> Saved:
    state = read_state(checkpoint)
    try:
        saved = from_json(state)
        if checkpoint.name != name_of(len(saved.steps)):
            raise ValueError(f"step is {len(saved.steps)}, and the folder is called {checkpoint.name}")
    except ValueError as error:
        raise damaged(checkpoint, STATE, error) from None
    return saved
