"""What the library does from a terminal: examine the machine, let the model talk, run a benchmark."""

from typing import Annotated

import typer

from .errors import Refused


def doctor(
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure this machine's memory and arithmetic (a few seconds).")
    ] = False,
) -> None:
    """Say what this machine can do, what is missing, and how to get it."""
    from rich.console import Console

    from ..doctor import LIMITED, MISSING, OK, diagnose

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
        str, typer.Option(help="The stage to run on: naive, online, sdpa, …, or auto.")
    ] = "sdpa",
    model: Annotated[
        str | None, typer.Option(help="A .gguf file or a Hugging Face directory; SmolLM2 where it is left out.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="How many tokens it may write.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest that share this probability.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
) -> None:
    """Let the model answer, token by token, on any attention stage of the course."""
    from rich.console import Console

    with Console(stderr=True).status("loading the model"):
        from llmsys.attention import STAGES

        if attention not in (*STAGES, "auto"):
            stages = ", ".join((*STAGES, "auto"))
            raise typer.BadParameter(f"no stage {attention!r}; there are: {stages}", param_hint="--attention")
        from llmsys.models import load_model, stream_generate

        try:  # both name what is wrong with a file or an option
            loaded = load_model(model)
            pieces = stream_generate(
                loaded, prompt, attention=attention, max_new_tokens=max_new_tokens,
                temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            raise Refused(str(error)) from None
    if attention == "auto":
        _say_which(loaded)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _say_which(model) -> None:
    """The stages that "auto" will pick for this model: for a prompt, and for one token after the other."""
    from llmsys.attention.auto import pick

    heads, weight = model.config, next(model.parameters())
    keys = weight.new_empty(1, heads.kv_heads, 256, heads.head_size)
    for what, tokens in (("prompt", 256), ("each new token", 1)):
        found = pick(weight.new_empty(1, heads.heads, tokens, heads.head_size), keys, keys)
        typer.echo(f"attention, {what}: {found.name} ({found.why})", err=True)


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

        run(name, out=out, quick=quick)
