"""The server, and a terminal that talks to it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from llmsys.course.cli.engines import check_engines, engine_here, is_an_engine, serve_as_an_engine
from llmsys.course.cli.errors import Refused
from llmsys.course.cli.use import refusals

SMOLLM2 = "SmolLM2-135M-Instruct"


def serve(
    model: Annotated[
        str | None, typer.Option(help="A .gguf file or a Hugging Face directory; SmolLM2 where it is left out.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call it.", show_default="as its file or directory is called")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="LLMSYS_API_KEY", help="Who asks must have it. Better in the environment.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the model runs, like cpu.", show_default="the GPU, where there is one")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16 or float16.", show_default="bfloat16 on a GPU, or float32"),
    ] = None,
    max_sequences: Annotated[
        int | None,
        typer.Option(min=1, help="Answers that are computed side by side.", show_default="256 on a GPU, or 16"),
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=0, help="Answers that may wait; then clients get 429.")] = 1024,
    max_answers: Annotated[int, typer.Option(min=1, help="Answers to one request: its prompts times n.")] = 16,
    max_prompt: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt.", show_default="what there is room for")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a prompt and its answer.", show_default="the model's context")
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 1 << 20,
    cache: Annotated[
        float | None,
        typer.Option(min=0.0, help="GiB for keys and values.", show_default="what a GPU has free; on a CPU at most 2"),
    ] = None,
    host_cache: Annotated[
        float, typer.Option(min=0.0, help="GiB of main memory for what has no room there any more, and may come back.")
    ] = 0.0,
    policy: Annotated[str, typer.Option(help="How a step is filled: static, orca, alternating, stall-free.")] = (
        "stall-free"
    ),
    prefill: Annotated[
        int | None, typer.Option(min=1, help="Engines that compute prompts, a process and device each; with --decode.")
    ] = None,
    decode: Annotated[int | None, typer.Option(min=1, help="Engines that go on from there; with --prefill.")] = None,
    route: Annotated[
        str | None,
        typer.Option(
            help="Which of several such engines a request goes to: random, round-robin, fewest-tokens, least-full, "
            "prefix-aware.",
            show_default="least-full",
        ),
    ] = None,
    front: Annotated[
        str | None, typer.Option(help="Where engines that torchrun starts meet their front, like 10.0.0.1:7000.")
    ] = None,
    drain: Annotated[int, typer.Option(min=1, help="Seconds for answers under way when it is told to stop.")] = 30,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line for each request.")] = False,
) -> None:
    """Serve a model as OpenAI's API does, with a page to talk to it and to watch it.

    SIGTERM or Ctrl-C lets the answers under way end; a second one does not wait.

    With --prefill 1 --decode 1, prompts are computed by one engine and answers by another one, on two GPUs. On several
    machines: llmsys serve --prefill 4 --decode 4 --front 10.0.0.1:7000 on one of them, and on each of them torchrun
    --nnodes 2 --nproc-per-node 4 … -m llmsys serve, with the same options, and LLMSYS_ENGINE_KEY, the same for all.
    """
    from rich.console import Console

    with _needs_serving():
        from llmsys.serving.server.app import create_app
        from llmsys.serving.server.drain import LOOPBACK, Server, is_loopback, listening, url
        from llmsys.serving.server.limits import Limits
    check_engines(prefill, decode, front, host_cache, route)
    asked = dict(
        model=model, device=device, dtype=dtype, max_sequences=max_sequences, max_model_len=max_model_len, cache=cache,
        policy=policy, prefill=prefill, decode=decode, front=front,
    )  # fmt: skip
    if is_an_engine():
        with refusals():
            serve_as_an_engine(**asked)
        return
    try:
        bound = listening(host, port)
    except OSError as error:
        raise Refused(f"--host {host} --port {port}: {error.strerror or error}. --port 0 takes a free one") from None
    with bound, contextlib.ExitStack() as at_the_end:
        doing = "loading the model" if front is None else f"waiting at {front} for {prefill} + {decode} engines"
        with Console(stderr=True).status(doing), refusals():
            engine = engine_here(**asked, host_cache=host_cache, route=route or "least-full")
            if prefill is not None:
                at_the_end.callback(engine.close)
            limits = Limits(
                body_bytes=max_body, prompt_tokens=max_prompt, answers=max_answers, drain_seconds=drain,
                running=engine.scheduler.max_sequences, waiting=max_waiting,
            )  # fmt: skip
            hosts = LOOPBACK if is_loopback(bound) else None
            called = name or (SMOLLM2 if model is None else Path(model).resolve().name.removesuffix(".gguf"))
            app = create_app(engine, name=called, limits=limits, api_key=api_key, hosts=hosts)
        _say(app.state.service, url(bound), open_to_all=hosts is None and api_key is None)
        Server(app, access_log=access_log).run(sockets=[bound])


def _say(service, where: str, *, open_to_all: bool) -> None:
    engine = service.engine
    room = (engine.pool.num_blocks - 1) * engine.pool.block_size
    print(
        f"{service.name} on {engine.model.device}: {service.limits.running} answers at a time, room for {room:,} tokens"
    )
    print(f"{where}        a chat, and the engine at work")
    print(f"{where}/v1     OpenAI's API; in another terminal: llmsys chat --url {where}", flush=True)
    if open_to_all:
        typer.echo("whoever reaches this machine may use it: an API key, in LLMSYS_API_KEY, keeps others out", err=True)


def chat(
    url: Annotated[str, typer.Option(help="Where the server is.")] = "http://127.0.0.1:8000",
    system: Annotated[str | None, typer.Option(help="What the model is told beforehand.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token.")] = 0.7,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer.", show_default="as many as there is room for")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar="LLMSYS_API_KEY", help="If the server wants one.")] = None,
) -> None:
    """Talk to a server of `llmsys serve` in this terminal.

    Ctrl-C ends an answer, Ctrl-D the conversation; /new begins another one.
    """
    from rich.console import Console

    from llmsys.serving.server.terminal import ChatError, Conversation

    console = Console(highlight=False)
    talk = Conversation(url, api_key=api_key, system=system, temperature=temperature, max_tokens=max_tokens)
    try:
        console.print(f"{talk.model()}. Ctrl-C ends an answer, Ctrl-D the conversation; /new begins another one.")
    except ChatError as error:
        raise Refused(str(error)) from None
    while True:
        try:
            text = console.input("[bold]> [/bold]").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if text == "/new":
            talk.forget()
        elif text:
            _answer(console, talk, text)


def _answer(console, talk, text: str) -> None:
    from llmsys.serving.server.terminal import ChatError

    pieces = talk.say(text)
    try:
        for piece in pieces:
            console.out(piece, end="", highlight=False)
        console.print()
    except KeyboardInterrupt:
        console.print(" …")
    except ChatError as error:
        console.print(f"\n{error}", style="red", markup=False)
    finally:
        pieces.close()  # hangs up, if it has not ended


@contextlib.contextmanager
def _needs_serving() -> Iterator[None]:
    """Around imports of the serving extra: where a package is missing, one line says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "llmsys").startswith("llmsys"):
            raise
        what = f'this command needs {error.name}, which is missing: pip install "llmsys[serving]"'
        raise Refused(what) from None
