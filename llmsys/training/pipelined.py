"""Training in stages: the same run as `train`'s, on the ranks of a pipeline.

    schedule = schedule_for("zb-v", 4, 8)                    # four stages, two on each of two ranks; 8 microbatches
    run = train_in_stages(None, corpus, config, schedule)    # on each rank

A step of `accumulate` batches is a step of as many microbatches. So a run in stages sees the batches that `train` sees
with the same settings, in the same order, and has its losses and weights but for rounding. The optimiser runs on each
rank, on the weights that are there, with the length of the whole gradient. A checkpoint is gathered by rank 0 and is
`train`'s: load it, talk to it, go on from it with another schedule, other stages, or none.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llmsys.cache import Backend, check_token_ids
from llmsys.hardware.disk import check_writable
from llmsys.models.checkpoints.weights import class_of, find_smollm2, open_checkpoint
from llmsys.models.llama import Llama, LlamaConfig
from llmsys.models.text.tokenizer import Tokenizer
from llmsys.parallel.execute import (
    Copy,
    Cut,
    Joint,
    Pipeline,
    SplitBackward,
    check_class,
    check_model,
    load_stages,
    split_backward,
    stages_of,
)
from llmsys.parallel.pipeline import F, Placement, Schedule, Timeline, make_schedule
from llmsys.parallel.ranks import device
from llmsys.training.checkpoint import latest_checkpoint, load_parts, prune, save_checkpoint
from llmsys.training.corpus import Corpus
from llmsys.training.optimise import Optimiser, no_gradient
from llmsys.training.run import DTYPES, Run, Step, TrainConfig, to_json
from llmsys.training.trainer import check_finite, check_folder, rate_of, saved_run, take_steps

BYTES_A_WEIGHT = 3 * 4  # of a checkpoint: master and running means, fp32


def schedule_for(name: str, stages: int, microbatches: int) -> Schedule:
    """The schedule of that name for a model in so many stages, on as many ranks as it takes: with two stages a rank
    half as many.

    Raises ValueError for a name that is none, and for numbers that the schedule cannot be made for.
    """
    if stages < 1:
        raise ValueError(f"stages must be at least 1, got {stages}")
    for ranks in (stages, stages // 2):
        if ranks and make_schedule(name, ranks, 4 * stages).num_stages == stages:  # enough microbatches for any
            return make_schedule(name, ranks, microbatches)
    raise ValueError(f"stages must be even, as {name} has two on each rank; got {stages}")


def train_in_stages(
    model: Llama | str | Path | None,
    corpus: Corpus,
    config: TrainConfig,
    schedule: Schedule,
    *,
    attention: str | Callable | Backend = "sdpa",
    backward: SplitBackward = split_backward,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
    on_step: Callable[[Step], object] | None = None,
    on_timeline: Callable[[Timeline], object] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Run:
    """Train a model to predict the corpus' next tokens, as `train` does. Every rank of the schedule calls this alike.

    Parameters
    ----------
    model
        What `load_model` takes: each rank reads its own stages. Or a whole model, which stays as it is: each rank
        copies its stages from it, and they are in the run's `model`.
    schedule
        Of `config.accumulate` microbatches.
    out
        A folder that all ranks see. Rank 0 writes there.
    backward
        How a matrix's backward pass is split, where the schedule has an I or a W; at all stages but the first.
    progress, on_step
        Of each rank that asks for it.
    on_timeline
        Called after each step with what all ranks did in it, when. Given to all ranks or to none, as they exchange it.
    should_stop
        Asked on each rank after each step; if one says True, all end there, with a checkpoint.
    attention, resume
        As for `train`.

    Returns
    -------
    The run, the same on all ranks; its `model` has the stages of this rank, "REPLICA-STAGE" by name.

    Raises what `train` does, on all ranks; but OSError, of a folder that cannot be written to, on rank 0 alone. Who
    started the ranks has to end the others then, as `llmsys.parallel.ranks` and torchrun do.
    """
    rank, out = dist.get_rank(), None if out is None else Path(out)
    settings, tokenizer = _settings(model)
    cut = check_run(settings, schedule, corpus, config, out, resume)
    if isinstance(model, Llama):
        stages = stages_of(model, schedule, cut, rank, backward=backward, attention=attention)
        for each in stages.values():
            each.part.to(device())
    else:
        stages = load_stages(model, schedule, cut, rank, device=device(), backward=backward, attention=attention)
    parts = nn.ModuleDict({f"{replica}-{stage}": each.part for (replica, stage), each in stages.items()})
    optimiser = Optimiser(parts, dtype=DTYPES[config.dtype], betas=config.betas, weight_decay=config.weight_decay)
    optimiser.gather_at_once()
    joint = Joint(schedule, cut, rank)
    run = Run(parts, config)
    if resume:
        checkpoint = latest_checkpoint(out)
        saved = saved_run(checkpoint, config, corpus)
        load_parts(checkpoint, parts, optimiser, cut.whole_name)
        run.go_on(saved, checkpoint)
    dist.barrier()  # nobody writes to the folder before all have looked at it

    pipeline = Pipeline(schedule, stages)
    batches = corpus.batches(config.batch, config.context, seed=config.seed)
    held_out = corpus.held_out_batches(config.batch, config.context)
    few = [held_out[i] for i in range(min(config.evaluate_batches, len(held_out)))]
    first = {key: each for key, each in stages.items() if key[0] == 0}  # one replica will do
    forwards = Pipeline(_forwards(schedule.placement, len(few)), first, gradients=False)

    def step(number: int) -> Step:
        start = time.perf_counter()
        numbers = range(number * config.accumulate, (number + 1) * config.accumulate)
        losses = pipeline.step([batches[i] for i in numbers])
        if on_timeline is not None:
            on_timeline(pipeline.timeline())
        gradients = {(each.key, each.name): _gradient(optimiser, each) for each in joint.here()}
        joint.add_copies(gradients)
        length, loss, rate = joint.length(gradients), float(losses.sum()), rate_of(number, config)
        norm = optimiser.step(rate, clip=config.clip, norm=length.float())
        check_finite(number + 1, loss, norm)
        return Step(number + 1, loss, rate, norm, time.perf_counter() - start)

    def save(path: Path) -> None:
        collected = _collect(joint, optimiser)
        if rank == 0:
            save_checkpoint(path, _meta(settings, tokenizer), collected, to_json(run, corpus))
            prune(out, config.keep)
        dist.barrier()

    try:
        take_steps(
            run,
            step=step,
            held_out=lambda: float(forwards.step(few).sum()),
            save=save,
            out=out,
            progress=progress,
            on_step=on_step,
            should_stop=lambda: _anyone(should_stop is not None and should_stop()),
        )
    finally:
        parts.requires_grad_(False).eval()
    return run


def _settings(model: Llama | str | Path | None) -> tuple[LlamaConfig, Tokenizer | None]:
    """Of the whole model; ValueError where it cannot be run in stages."""
    if not isinstance(model, Llama):
        checkpoint = open_checkpoint(find_smollm2() if model is None else Path(model))
        return checkpoint.config, checkpoint.tokenizer
    check_model(model)
    return model.config, model.tokenizer


def check_run(
    settings: LlamaConfig, schedule: Schedule, corpus: Corpus, config: TrainConfig, out: Path | None, resume: bool
) -> Cut:
    """Look at what `train` looks at before it begins, here or on a rank, with its errors. Where the model is cut."""
    check_class(class_of(settings))
    if schedule.num_microbatches != config.accumulate:
        raise ValueError(
            f"accumulate must be the schedule's {schedule.num_microbatches} microbatches, got {config.accumulate}"
        )
    cut = Cut.by_cost(settings, schedule.num_stages, config.context)
    if config.context > settings.context_length:
        raise ValueError(f"context must be at most the model's {settings.context_length}, got {config.context}")
    for tokens in (corpus.train, corpus.held_out):
        check_token_ids(tokens.numpy(), settings.vocab_size, "corpus: its tokens")
    if out is not None:
        check_folder(out, resume)
        if not dist.is_initialized() or dist.get_rank() == 0:
            check_writable(out, need=BYTES_A_WEIGHT * sum(each.numel() for each in _meta(settings).parameters()))
    elif resume:
        raise ValueError("out must be given to resume: the folder that holds the run's checkpoints")
    return cut


def _meta(settings: LlamaConfig, tokenizer: Tokenizer | None = None) -> Llama:
    """The whole model without numbers."""
    with torch.device("meta"):
        return Llama(settings, tokenizer)


def _forwards(placement: Placement, batches: int) -> Schedule:
    """A schedule that runs batches through the first replica, each after the other."""
    first = Placement(placement.name, placement.ranks[:1])
    orders = [
        [F(stage, m) for m in range(batches) for _, stage in first.stages(rank)] for rank in range(first.num_ranks)
    ]
    return Schedule("forwards", first, batches, orders)


def _gradient(optimiser: Optimiser, copy: Copy) -> Tensor:
    name = _name(copy)
    gradient = optimiser.masters[name].grad
    if gradient is None:
        raise no_gradient(name)
    return gradient


def _name(copy: Copy) -> str:
    """What the optimiser of the parts calls a weight."""
    return f"{copy.replica}-{copy.stage}.{copy.name}"


def _anyone(asks: bool) -> bool:
    """Whether any rank does."""
    asked = torch.tensor(int(asks), device=device())
    dist.all_reduce(asked)
    return bool(asked)


@dataclass(frozen=True)
class Collected:
    """The masters and running means of a whole model, as `save_checkpoint` wants them of an optimiser."""

    masters: dict[str, Tensor]
    means: dict[str, Tensor]

    def state(self) -> dict[str, Tensor]:
        return self.means


def _collect(joint: Joint, optimiser: Optimiser) -> Collected:
    """On rank 0 everything, on its CPU; on the others nothing, they send what they own. One weight after the other, so
    that no GPU has to hold more than it trains."""
    rank, state = dist.get_rank(), optimiser.state()
    collected = Collected({}, {})
    for whole, (owner, *_) in joint.copies.items():
        if owner.rank == rank:
            name = _name(owner)
            tensors = torch.stack([optimiser.masters[name].detach(), state[f"m.{name}"], state[f"v.{name}"]])
            if rank != 0:
                dist.send(tensors, 0)
        elif rank == 0:
            tensors = torch.empty(3, *joint.shapes[whole], device=device())
            dist.recv(tensors, owner.rank)
        if rank == 0:
            collected.masters[whole], collected.means[f"m.{whole}"], collected.means[f"v.{whole}"] = tensors.cpu()
    return collected
