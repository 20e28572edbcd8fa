"""Planning: which GPUs do what, before there are any."""

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmsys.course.cli.errors import Refused
from llmsys.course.cli.use import refusals

MEASURED = "Mistral-7B"
LONG_ENOUGH = 10
"""Times that a request takes, for which requests must come. Of the default trace, one GPU serves 20.6, 16.1 and 15.4 a
second within the default limits, by runs of 250, 1,000 and 4,000 requests: 3, 15 and 60 times."""


def serving(
    model: Annotated[
        str, typer.Option(help=f"{MEASURED}, which was measured, or another dense model, by its sizes: Llama-3-8B, …")
    ] = MEASURED,
    trace: Annotated[
        str,
        typer.Option(
            help="Whose lengths requests have (azure-code, azure-conversation, mooncake-conversation), which then come "
            "at random moments; or a trace's file (.csv as Azure's, .jsonl as Mooncake's), which is replayed.",
        ),
    ] = "azure-conversation",
    ttft: Annotated[float, typer.Option(min=1e-6, help="Seconds to the first token that a request may take.")] = 0.5,
    tpot: Annotated[float, typer.Option(min=1e-6, help="Seconds for each token after it, on average.")] = 0.02,
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="So many of the requests must have both.")] = 0.9,
    gpus: Annotated[int, typer.Option(min=1, max=256, help="How many there are.")] = 4,
    parallel: Annotated[
        str, typer.Option(help="Of how many GPUs an engine may be, by tensor parallelism, which is modelled.")
    ] = "1,2",
    link: Annotated[float, typer.Option(min=0.001, help="Gb/s of each GPU's link, over which caches go.")] = 400.0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Send a prompt's cache when it is computed, and not layer by layer.")
    ] = False,
    route: Annotated[
        str, typer.Option(help="Who is asked: random, round-robin, fewest-tokens, least-full, prefix-aware.")
    ] = "fewest-tokens",
    requests: Annotated[int, typer.Option(min=50, help="How many are simulated at each rate.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed draws the same requests.")] = 0,
    device: Annotated[str, typer.Option(help="Whose recorded step times are taken.")] = "H200",
    record: Annotated[
        Path | None, typer.Option(help="Your own, as `llmsys bench goodput --out` saves it.", show_default="ours")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where to draw the result: an .svg or .png file.")] = None,
) -> None:
    """Say how many GPUs should compute prompts, and how many answers: the plan with most requests a second and GPU
    within the limits.

    Nothing is run: engines are simulated, with the times of the steps that a real one took.
    """
    from rich.console import Console

    with Console(stderr=True).status("reading what was measured"), refusals():
        from llmsys.serving.goodput import Limits
        from llmsys.serving.planning import plan
        from llmsys.serving.routing import as_route

        _check_plot(plot)
        as_route(route)
        sizes = _sizes(parallel, gpus)
        engines, transfer, said = _engines(model, sizes, device, record, link * 1e9 / 8, whole)
        workload, block_size = _workload(trace, requests, seed)
        engines = {n: replace(each, num_blocks=each.num_blocks * 16 // block_size) for n, each in engines.items()}
        limits = Limits(ttft=ttft, tpot=tpot)
    with _progress() as progress, refusals():
        found = plan(
            workload, limits, gpus=gpus, engines=engines, transfer=transfer, share=share, progress=progress,
            route=route, block_size=block_size, ahead=True,
        )  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(found, share))
    for line in said:
        console.print(line)
    best = found[0]
    if not best.rate:
        reached = f"the best has TTFT {_ms(best.ttft)} and TPOT {_ms(best.tpot)}"
        if best.ttft is None:
            reached = "no engine does, if it only computes prompts, or only decodes"
        raise Refused(
            f"no plan serves {share:.0%} of these requests within --ttft {ttft:g} and --tpot {tpot:g}, at any rate: "
            f"{reached}. Allow more, or give other --parallel"
        )
    console.print(f"[bold]{best.candidate}[/]: {best.rate:.3g} requests a second, {best.goodput:.3g} for each GPU")
    for line in _doubts(best, workload(best.rate)):
        console.print(line)
    if plot is not None:
        from llmsys.viz.charts.plans import plans

        with refusals():
            console.print(f"drawn: {_draw(plans(found, limits), plot)}")


def _doubts(best, asked) -> list[str]:
    """What is to be said against the best plan's rate: how it was found."""
    from statistics import fmean

    from llmsys.serving.planning.plan import HIGH

    found = []
    if best.rate >= HIGH * best.candidate.gpus:
        found.append(f"at least: higher rates than {HIGH:g} for each GPU are not tried, nor plans at it compared")
    if best.ttft is not None:
        seconds = best.ttft + (best.tpot or 0.0) * fmean(each.output for each in asked)
        comes = asked[-1].at - asked[0].at
        if comes < LONG_ENOUGH * seconds:
            enough = 100 * math.ceil(LONG_ENOUGH * seconds * best.rate / 100)
            found.append(
                f"too short a run: {len(asked):,} requests come in {comes:.3g} s, and one takes about {seconds:.2g} s;"
                f" a service that goes on takes fewer. Give --requests {enough} or more, of a trace that has as many"
            )
    return found


def _check_plot(plot: Path | None) -> None:
    """Before anything is simulated."""
    if plot is None:
        return
    if plot.suffix not in (".svg", ".png"):
        raise typer.BadParameter(f"must end in .svg or .png, got {plot.name}", param_hint="--plot")
    if not (folder := plot.resolve().parent).is_dir():
        raise typer.BadParameter(f"there is no folder {folder}", param_hint="--plot")
    if plot.is_dir() or not os.access(plot if plot.exists() else folder, os.W_OK):
        raise typer.BadParameter(f"{plot} cannot be written: give another path", param_hint="--plot")


def _sizes(parallel: str, gpus: int) -> list[int]:
    words = [word.strip() for word in parallel.split(",")]
    if not all(word.isascii() and word.isdigit() and int(word) for word in words):
        raise typer.BadParameter(f"must be numbers of GPUs, like 1,2,4, got {parallel!r}", param_hint="--parallel")
    sizes = sorted({int(word) for word in words if int(word) <= gpus})
    if not sizes:
        raise typer.BadParameter(f"must have a number up to --gpus {gpus}, got {parallel}", param_hint="--parallel")
    return sizes


def _engines(model: str, sizes: list[int], device: str, record: Path | None, bandwidth: float, whole: bool):
    """What may be built, how caches move, and what is to be said of both."""
    from llmsys.bench.goodput import MISTRAL_7B, SHORT, engine_blocks, recorded_steps
    from llmsys.bench.record import load, recorded
    from llmsys.hardware.devices import detect
    from llmsys.models.decode_cost import bytes_per_token
    from llmsys.models.shapes import SHAPES
    from llmsys.serving.planning import blocks_left, engine_of, rescaled
    from llmsys.serving.simulator import Transfer, fit

    try:
        if record is not None and not record.is_file():
            raise Refused(f"--record: there is no file {record}: `llmsys bench goodput --out DIR` makes one")
        found = recorded("goodput", device) if record is None else load(record)
    except LookupError as error:
        raise Refused(f"--device {device}: {error.args[0]}") from None
    if found.benchmark != "goodput":
        raise Refused(f"--record {record} is of {found.benchmark}: make one by `llmsys bench goodput --out DIR`")
    spec = detect(found.device)
    if spec is None:
        raise Refused(f"the record was made on {found.device}, of which no data sheet is known here: take one of a GPU")
    shapes = {MISTRAL_7B.name: MISTRAL_7B} | {
        name: shape for name, shape in SHAPES.items() if not (shape.experts or shape.latent)
    }
    if model not in shapes:
        raise Refused(f"--model must be one of {', '.join(shapes)}, got {model!r}")
    shape = shapes[model]
    steps, counts, filled = recorded_steps(found)
    times, blocks = fit(steps, weights=counts, sizes=filled, short_tokens=SHORT), engine_blocks(found)
    measured = shape is MISTRAL_7B
    said = [f"step times: {MISTRAL_7B.name} on {found.device}, measured {found.date} ({sum(counts):,} steps)"]
    if not measured:
        times = rescaled(times, MISTRAL_7B, shape, spec)
        blocks = blocks_left(blocks, MISTRAL_7B, shape)
        said.append(f"modelled, not measured: {model}, by its sizes")
    engines = {}
    for size in sizes:
        try:
            engines[size] = engine_of(shape, size, times=times, num_blocks=blocks, device=spec, measured=measured)
        except ValueError as error:
            said.append(f"no engine of {size} GPUs: {error}")
    if not engines:
        raise Refused("; ".join(said[1:]) + ". Give other numbers to --parallel")
    if max(engines) > 1:
        said.append("modelled, not measured: engines of several GPUs (*), whose all-reduces are not hidden")
    transfer = Transfer(bytes_per_token(shape), bandwidth, 20e-6, None if whole else shape.layers)
    return engines, transfer, said


def _workload(trace: str, requests: int, seed: int):
    """Rate → what comes; and how long blocks are. (What prompts have in common, Mooncake's files say in blocks of their
    own, and of shorter ones there is nothing to be gained.)"""
    from llmsys.serving.workload import at_rate, read_azure, read_mooncake, synthetic
    from llmsys.serving.workload.arrivals import BLOCK
    from llmsys.serving.workload.lengths import LENGTHS

    if trace in LENGTHS:
        return lambda rate: synthetic(trace, requests, rate=rate, seed=seed), 16
    path = Path(trace)
    readers = {".csv": read_azure, ".jsonl": read_mooncake}
    if path.suffix not in readers:
        raise Refused(f"--trace must be one of {', '.join(LENGTHS)}, or a file in .csv or .jsonl, got {trace!r}")
    if not path.is_file():
        raise Refused(f"--trace: there is no file {path}; `llmsys data` fetches published ones")
    some = readers[path.suffix](path)[:requests]
    at_rate(some, 1.0)  # refused now, if it has no rate
    return lambda rate: at_rate(some, rate), BLOCK if some[0].blocks else 16


def _progress():
    """A bar on the terminal; as a context, what tells it how far the search is."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    @contextmanager
    def shown():
        columns = (BarColumn(20), TextColumn("{task.completed:.0f} of {task.total:.0f}"), TimeElapsedColumn(),
                   TextColumn("{task.description}"))  # fmt: skip
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("", total=1)
            yield lambda what, done, of: bar.update(task, description=what, completed=done, total=of)

    return shown()


def _table(found, share: float):
    from rich.table import Table

    table = Table(title=f"requests a second, for each GPU and in all; TTFT and TPOT of {share:.0%}, ms")
    for head in ("a GPU", "in all", "TTFT", "TPOT", "engines"):
        table.add_column(head, no_wrap=True)
    for place, each in enumerate(found, 1):
        name = f"{each.candidate}{' *' if each.modelled else ''}"
        if each.rate is None:
            table.add_row(f"≤ {each.bound / each.candidate.gpus:.3g}", "", "", "", name, style="dim")
        else:
            times = (_ms(seconds).removesuffix(" ms") for seconds in (each.ttft, each.tpot))
            table.add_row(f"{each.goodput:.3g}", f"{each.rate:.3g}", *times, name, style="bold" if place == 1 else "")
    table.caption = "≤: at most, by its prefillers, its decoders, or since it does not take the best rate."
    return table


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.3g} ms"


def _draw(picture, path: Path) -> Path:
    if path.suffix == ".svg":
        return picture.save(path)
    picture.figure.savefig(path, dpi=160, facecolor="white")
    return path
