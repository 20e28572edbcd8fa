"""What the library does from a terminal: examine the machine, let the model talk, train it, run a benchmark."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from llmsys.course.cli.errors import Refused


def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure this machine's memory and arithmetic (a few seconds).")
    ] = False,
) -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    from rich.console import Console

    from llmsys.course.doctor import LIMITED, MISSING, OK, diagnose

    console = Console(highlight=False, soft_wrap=True)  # a command must not be broken in two
    colours = {OK: "green", LIMITED: "yellow", MISSING: "red"}
    found = diagnose()
    if measure and found:  # with torch missing, say that instead
        with console.status("measuring"):
            from llmsys.hardware.devices import this_machine

            this_machine(refresh=True)
        found = diagnose()
    for line in repr(found).splitlines():
        console.print(line, style=colours.get(line[:1], ""), markup=False)
    raise typer.Exit(0 if found else 1)


def generate(
    prompt: Annotated[str, typer.Argument(help="What you ask the model.")],
    attention: Annotated[
        str, typer.Option(help="What to run on: a stage (naive, online, sdpa, …), auto, or a cache (contiguous).")
    ] = "sdpa",
    model: Annotated[
        str | None, typer.Option(help="A .gguf file or a Hugging Face directory; SmolLM2 where it is left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens it may write.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest that share this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs, like cpu.", show_default="the GPU, where there is one")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float32, where every stage says the same; bfloat16 or float16, which hopper wants.")
    ] = "float32",
) -> None:
    """Let the model answer, token by token, on any attention stage of the course."""
    from rich.console import Console

    with Console(stderr=True).status("loading the model"):
        import torch

        from llmsys.cache import as_backend
        from llmsys.models import load_model, stream_generate

        if dtype not in (dtypes := ("float32", "bfloat16", "float16")):
            raise typer.BadParameter(f"must be {' or '.join(dtypes)}, got {dtype!r}", param_hint="--dtype")
        with refusals():  # all of these name what is wrong with a file or an option
            as_backend(attention, capacity=1)  # is there such a one? Asked before the model is read
            loaded = load_model(model, device=device_of(device), dtype=getattr(torch, dtype))
            pieces = stream_generate(
                loaded, prompt, attention=attention, max_new_tokens=max_new_tokens,
                temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
            )  # fmt: skip
    if attention == "auto":
        _say_which(loaded)
    with refusals():  # a stage says what it does not take
        for piece in pieces:
            print(piece, end="", flush=True)
    print()


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What the library refuses, in one line. Of torch's errors that is the first: the rest is about debugging."""
    try:
        yield
    except BrokenPipeError:  # who reads the text has heard enough
        raise
    except (ValueError, OSError, FloatingPointError) as error:
        raise Refused(str(error)) from None
    except (RuntimeError, MemoryError) as error:
        raise Refused((str(error) or "the memory does not suffice").splitlines()[0]) from None


def device_of(name: str | None) -> str:
    """The device of that name, the GPU or the CPU where it is None. Refused where torch has none, in whichever of its
    many ways torch says so."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except Exception as error:
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise Refused(
                f"--device {name}: torch finds no GPU here. Leave --device out, or give cpu; `llmsys doctor` says what "
                "is missing"
            ) from None
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise Refused(f"--device {name}: torch cannot compute there ({why}). Leave it out, or give cpu") from None
    return name


def _say_which(model) -> None:
    """The stages that "auto" will pick for this model: for a prompt, and for one token after the other."""
    from llmsys.attention.auto import pick

    heads, weight = model.config, next(model.parameters())
    keys = weight.new_empty(1, heads.kv_heads, 256, heads.head_size)
    for what, tokens in (("prompt", 256), ("each new token", 1)):
        found = pick(weight.new_empty(1, heads.heads, tokens, heads.head_size), keys, keys)
        typer.echo(f"attention, {what}: {found.name} ({found.why})", err=True)


def train(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Where the checkpoints go: DIR/step-000100, …")],
    attention: Annotated[str, typer.Option(help="The stage to train on: tiled, flash, sdpa, …, or auto.")] = "sdpa",
    model: Annotated[
        str | None, typer.Option(help="A .gguf file or a Hugging Face directory; SmolLM2 where it is left out.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR, with that run's settings.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="How many updates.", show_default="200")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Sequences in a batch.", show_default="4")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens in a sequence.", show_default="256")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Batches in a step.", show_default="1")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest rate.", show_default="0.0001")] = None,
    warmup: Annotated[
        int | None, typer.Option(min=0, help="Steps until that rate.", show_default="10, or a tenth of fewer steps")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32; or bfloat16, with master weights in fp32.", show_default="bfloat16 on a GPU, or float32"
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of the batches.", show_default="0")] = None,
    files: Annotated[
        int | None, typer.Option(min=2, help="Only so many of the corpus' files.", show_default="all")
    ] = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between held-out losses.", show_default="50")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints.", show_default="100")
    ] = None,
    stages: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Cut the model into so many stages of a pipeline, on as many processes as the schedule wants for "
            "them; a step is then twice as many batches, unless --accumulate says another number.",
            show_default="one process",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="The pipeline's: gpipe, 1f1b, interleaved, zb-h1, zb-v, dualpipe-v, …", show_default="1f1b"
        ),
    ] = None,
) -> None:
    """Fine-tune the model on SymPy's sources, on any attention stage, with checkpoints to resume from.

    The first Ctrl-C ends the run after the step at hand, with a checkpoint; the second one at once.

    On several machines, or under another launcher: torchrun --nproc-per-node 2 -m llmsys train … --stages 4 --schedule
    zb-v. A run may go on with other stages than it began with.
    """
    given = {
        "steps": steps, "batch": batch, "context": context, "accumulate": accumulate, "learning_rate": learning_rate,
        "warmup": warmup, "dtype": dtype, "seed": seed, "evaluate_every": evaluate_every, "save_every": save_every,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value is not None}
    if resume and (model is not None or files is not None):
        raise typer.BadParameter("the checkpoint says which model and which files", param_hint="--resume")
    if schedule is not None and stages is None:
        raise typer.BadParameter("say into how many stages the model is cut, with --stages", param_hint="--schedule")
    if stages is not None and not resume:
        given = {"accumulate": 2 * stages} | given
    pipeline = None if stages is None else (schedule or "1f1b", stages)
    try:  # all of these say what is wrong with an option, a file, the disk or the numbers
        _train(out, attention, model, resume, files, given, pipeline)
    except (ValueError, OSError, FloatingPointError) as error:
        raise Refused(str(error)) from None
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        raise Refused("the memory does not suffice: take a smaller --batch or --context") from None


def _out_of_memory(error: Exception) -> bool:
    import torch

    # On a CPU torch's error has no class of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _train(
    out: Path,
    attention: str,
    model: str | None,
    resume: bool,
    files: int | None,
    given: dict,
    pipeline: tuple[str, int] | None,
) -> None:
    from dataclasses import replace

    import torch
    from rich.console import Console

    from llmsys.cache import BACKENDS, as_backend
    from llmsys.course.cli.stages import is_first, on_gpus, train_on_ranks
    from llmsys.models import find_smollm2, load_model
    from llmsys.models.checkpoints.weights import open_checkpoint
    from llmsys.training import Corpus, TrainConfig, train
    from llmsys.training.checkpoint import damaged, latest_checkpoint
    from llmsys.training.pipelined import schedule_for
    from llmsys.training.trainer import saved_settings
    from llmsys.viz.charts import loss_curves

    if attention in BACKENDS:
        raise Refused(f"attention must be a stage to train on, and {attention!r} is a cache")
    as_backend(attention)
    if resume:
        config, files = saved_settings(out)
        config = replace(config, **given)
        model = latest_checkpoint(out)
    else:
        config = TrainConfig(**given)
    schedule = None if pipeline is None else schedule_for(*pipeline, config.accumulate)
    gpu = torch.cuda.is_available() if schedule is None else on_gpus(schedule)
    if not resume and "dtype" not in given:
        config = replace(config, dtype="bfloat16" if gpu else "float32")
    with Console(stderr=True).status("loading the model") as status:
        try:
            if schedule is None:
                loaded = load_model(model, device="cuda" if gpu else "cpu")
            else:  # each rank loads its own stages
                loaded = open_checkpoint(find_smollm2() if model is None else Path(model))
        except (ValueError, OSError) as error:
            raise damaged(model, None, error) if resume else error from None
        if loaded.tokenizer is None:
            raise Refused(f"{model}: has no tokenizer, and the corpus is text")
        corpus = Corpus.load(
            loaded.tokenizer,
            files=files,
            progress=lambda done, of: status.update(f"the corpus as tokens: {done:,} of {of:,} files"),
        )
    with TemporaryDirectory() as folder:
        stop = Path(folder) / "stop"  # how processes that this one has started are told
        with _interrupted(stop.touch) as interrupted:
            options = {"attention": attention, "out": out, "resume": resume, "should_stop": interrupted}
            if schedule is None:
                run = train(loaded, corpus, config, **options, progress=True)
            else:
                run = train_on_ranks(model, loaded.config, corpus, config, schedule, **options, stop=stop)
    if schedule is not None and not is_first():
        return
    first, last = min(run.held_out), max(run.held_out)
    print(f"held-out loss: {run.held_out[first]:.4f} at first, {run.held_out[last]:.4f} after {last} steps")
    try:
        picture = loss_curves({attention: run.losses}, held_out={attention: run.held_out}).save(out / "losses.svg")
        print(f"the loss of every step, as a picture: {picture}")
    except OSError as error:  # the run is whole without it
        typer.echo(f"the picture of the losses could not be written ({error})", err=True)
    if run.stopped:
        print(f"stopped after step {len(run.steps)} of {config.steps}; to go on: llmsys train {out} --resume")
    print(f'to talk to it: llmsys generate "…" --model {run.checkpoint}')


@contextlib.contextmanager
def _interrupted(when_asked: Callable[[], object]) -> Iterator[Callable[[], bool]]:
    """Whether the user, or the system, has asked to stop; asked once more, the process is interrupted as usual.
    `when_asked` is called when that happens."""
    asked = []

    def note(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[number])
        when_asked()
        typer.echo("stopping after this step, with a checkpoint", err=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def bench(
    name: Annotated[str, typer.Argument(help="Which benchmark, like softmax.")],
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Where to save the record (JSON).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes and few repeats: does it run at all?")] = False,
) -> None:
    """Run a benchmark on this machine: ours beside its peers, as ratios."""
    from rich.console import Console

    from llmsys.bench import BENCHMARKS

    if name not in BENCHMARKS:
        raise typer.BadParameter(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}", param_hint="NAME")
    with Console(stderr=True).status(f"measuring {name}"):
        from llmsys.bench.__main__ import run

        try:
            run(name, out=out, quick=quick)
        except OSError as error:  # there is no place for the record, which is seen before anything is measured
            raise Refused(str(error)) from None
