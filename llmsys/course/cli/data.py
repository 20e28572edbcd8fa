"""The traces of real services that lessons and benchmarks replay: fetched once, from where they were published."""

import urllib.error
from pathlib import Path
from typing import Annotated

import typer

from llmsys.course.cli.errors import Refused


def data(
    names: Annotated[
        list[str] | None, typer.Argument(help="Which traces, like azure-code; all where none is named.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where to keep them.", show_default="LLMSYS_TRACES, or llmsys/traces in your cache"
        ),
    ] = None,
) -> None:
    """Fetch the traces of real services that workloads are made of (5 MB in all), and check what came."""
    from rich.console import Console

    from llmsys.serving.workload.traces import TRACES, fetch_trace

    if unknown := [name for name in names or () if name not in TRACES]:
        raise typer.BadParameter(f"no trace {unknown[0]!r}; there are: {', '.join(TRACES)}", param_hint="NAMES")
    console = Console(stderr=True)
    for name in names or TRACES:
        trace, got = TRACES[name], 0
        with console.status(f"fetching {name}") as status:

            def say(more: int, name=name, status=status) -> None:
                nonlocal got
                got += more
                status.update(f"fetching {name}: {got / 1e6:.1f} MB")

            try:
                path = fetch_trace(name, folder=folder, progress=say)
            except urllib.error.URLError as error:
                raise Refused(
                    f"{trace.url} cannot be reached ({error.reason}): fetch it on a machine with a network, and put "
                    f"{trace.file} into the folder that `llmsys data --folder` or LLMSYS_TRACES names"
                ) from None
            except ValueError as error:
                raise Refused(str(error)) from None
        print(f"{name}: {trace.requests:,} requests, {path}")
