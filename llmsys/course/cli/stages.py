"""`llmsys train --stages`: a run whose model is spread over processes, which this starts, or torchrun has started."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmsys.models import LlamaConfig
    from llmsys.parallel.pipeline import Schedule
    from llmsys.training import Corpus, Run, Step, TrainConfig


def train_on_ranks(
    model: str | Path | None,
    settings: "LlamaConfig",
    corpus: "Corpus",
    config: "TrainConfig",
    schedule: "Schedule",
    *,
    attention: str,
    out: Path,
    resume: bool,
    stop: Path,
    should_stop: Callable[[], bool],
) -> "Run":
    """Train on the ranks of the schedule. The run, without its model; `settings` are the model's.

    Under torchrun this process is one of them, and asks `should_stop`; otherwise they are started here, and rank 0
    looks whether there is a file `stop`. Raises what `train_in_stages` does, and ValueError where torchrun has started
    another number of processes.
    """
    from llmsys.parallel.ranks import RanksFailed, run, run_here, under_torchrun
    from llmsys.training.pipelined import check_run

    check_run(settings, schedule, corpus, config, out, resume)  # before any process is started
    arguments = (model, corpus, config, schedule, attention, out, resume)
    if under_torchrun():
        started = int(os.environ["WORLD_SIZE"])
        if started != schedule.num_ranks:
            raise ValueError(
                f"torchrun must start {schedule.num_ranks} processes for {schedule.num_stages} stages of "
                f"{schedule.name}, and has started {started}"
            )
        return run_here(_on_a_rank, *arguments, should_stop)
    try:
        # A step takes as long as it takes; ranks that wait for each other in it are still found.
        return run(_on_a_rank, schedule.num_ranks, *arguments, stop, timeout=None, stalled_after=300.0, show=True)[0]
    except RanksFailed as error:
        if isinstance(error.__cause__, ValueError | OSError | FloatingPointError):  # of an option, as without ranks
            raise error.__cause__ from None
        raise


def on_gpus(schedule: "Schedule") -> bool:
    """Whether each rank has a GPU of its own here."""
    import torch

    from llmsys.parallel.ranks import under_torchrun

    here = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else schedule.num_ranks
    return torch.cuda.is_available() and torch.cuda.device_count() >= here


def is_first() -> bool:
    """Whether this process is the one that speaks: under torchrun, rank 0."""
    return os.environ.get("RANK", "0") == "0"


def _on_a_rank(
    model: str | Path | None,
    corpus: "Corpus",
    config: "TrainConfig",
    schedule: "Schedule",
    attention: str,
    out: Path,
    resume: bool,
    stop: Path | Callable[[], bool],
) -> "Run":
    from dataclasses import replace

    from llmsys.training.pipelined import train_in_stages

    run = train_in_stages(
        model,
        corpus,
        config,
        schedule,
        attention=attention,
        out=out,
        resume=resume,
        on_step=_say(config) if is_first() else None,
        should_stop=stop if callable(stop) else lambda: is_first() and stop.exists(),
    )
    return replace(run, model=None)


def _say(config: "TrainConfig") -> Callable[["Step"], None]:
    """A line every so often. No bar: what ranks print comes line by line."""
    every = max(1, config.steps // 20)

    def say(step: "Step") -> None:
        if step.number % every == 0 or step.number in (1, config.steps):
            speed = config.batch * config.context * config.accumulate / step.seconds
            print(
                f"step {step.number} of {config.steps} · loss {step.loss:.3f} · {speed:,.0f} tokens/s",
                file=sys.stderr,
                flush=True,
            )

    return say
