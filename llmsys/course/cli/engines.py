"""`llmsys serve`'s engine: one in this process; several that prefill or decode, in processes that this starts; or the
same on as many machines as torchrun starts them on, where they come to a front."""

import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from llmsys.course.cli.errors import Refused
from llmsys.course.cli.use import device_of

if TYPE_CHECKING:
    from llmsys.serving import Engine

CPU_SEQUENCES, CPU_CACHE = 16, 2.0  # answers side by side, GiB: a laptop is used for other things, too
GIB = 1 << 30
KEY = "LLMSYS_ENGINE_KEY"


def check_engines(
    prefill: int | None, decode: int | None, front: str | None, host_cache: float, route: str | None = None
) -> None:
    """Refuses what cannot go together, before anything is loaded."""
    if (prefill is None) is not (decode is None):
        raise Refused("--prefill and --decode go together, as in --prefill 1 --decode 1")
    if prefill is None and route is not None:
        raise Refused("--route chooses among several engines: give --prefill and --decode, too, or leave it out")
    if prefill is not None and host_cache:
        raise Refused("--host-cache is for one engine: leave it out, or --prefill and --decode")
    if front is None:
        if is_an_engine():
            raise Refused("under torchrun --front says where the engines meet, as in --front 127.0.0.1:7000")
        return
    if prefill is None:
        raise Refused("--front is for engines that torchrun starts: it goes with --prefill and --decode")
    if not os.environ.get(KEY):
        raise Refused(
            f"--front needs {KEY} in the environment, the same for front and engines: who has it may run code in them"
        )
    _address(front)


def is_an_engine() -> bool:
    """Whether this process is one that torchrun has started, to be one engine of several."""
    from llmsys.parallel.ranks import under_torchrun

    return under_torchrun()


def engine_here(
    model, device, dtype, max_sequences, max_model_len, cache, host_cache, policy, prefill=None, decode=None,
    front=None, route="least-full",
) -> "Engine":  # fmt: skip
    """The engine that the options ask for. Where it is a front, it waits until all engines have come."""
    from llmsys.serving import Engine
    from llmsys.serving.disaggregate import front_of, start

    where = device_of(device)
    load, settings = _of_each(model, where, dtype, max_sequences, max_model_len, cache, policy, (prefill or 1, decode))
    if prefill is None:
        return Engine(load(device=where), host_cache=int(host_cache * GIB), **settings)
    if front is None:
        return start(load, prefill=prefill, decode=decode, device=where, route=route, **settings)
    return front_of(_plan(load, prefill, decode, front, {}, None), route=route)


def serve_as_an_engine(
    model, device, dtype, max_sequences, max_model_len, cache, policy, prefill, decode, front
) -> None:
    """In a process that torchrun has started: until the front closes, or is gone."""
    import torch

    from llmsys.parallel.ranks import run_here
    from llmsys.serving.disaggregate import serve_as_rank

    here = int(os.environ["LOCAL_WORLD_SIZE"])
    where = device_of(device)
    if device is None and torch.cuda.device_count() < here:  # as ranks everywhere: a GPU each, or none
        where = "cpu"
    load, settings = _of_each(model, where, dtype, max_sequences, max_model_len, cache, policy, (here, 0))
    plan = _plan(load, prefill, decode, front, settings, torch.device(where).type)
    run_here(serve_as_rank, plan, backend="gloo")


def _of_each(
    model, where: str, dtype, max_sequences, max_model_len, cache, policy, engines: tuple[int, int | None]
) -> tuple[functools.partial, dict[str, Any]]:
    """How an engine's model is loaded, and its settings; on a CPU so many share the memory."""
    import torch

    from llmsys.models import load_model
    from llmsys.serving.memory import USED_ON_CPU, available_memory

    on_cpu = torch.device(where).type == "cpu"
    dtype = dtype or ("float32" if on_cpu else "bfloat16")
    if dtype not in (dtypes := ("float32", "bfloat16", "float16")):
        raise typer.BadParameter(f"must be {' or '.join(dtypes)}, got {dtype!r}", param_hint="--dtype")
    memory = None if cache is None else int(cache * GIB)
    if on_cpu:
        memory = int(min(CPU_CACHE * GIB, USED_ON_CPU * available_memory())) if memory is None else memory
        memory //= engines[0] + (engines[1] or 0)
    sequences = max_sequences or (CPU_SEQUENCES if on_cpu else 256)
    settings = dict(
        memory=memory, max_sequences=sequences, max_tokens_per_step=max(2048, sequences), max_model_len=max_model_len,
        policy=policy,
    )  # fmt: skip
    return functools.partial(load_model, model, dtype=getattr(torch, dtype)), settings


def _plan(load, prefill: int, decode: int, front: str, settings: Mapping[str, Any], device: str | None):
    from llmsys.serving.disaggregate import Plan

    return Plan(
        load, prefill, decode, address=_address(front), key=os.environ[KEY].encode(), settings=settings, device=device
    )


def _address(front: str) -> tuple[str, int]:
    host, _, port = front.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise Refused(f"--front must be a host and a port, as in 10.0.0.1:7000, got {front!r}")
    return host, int(port)
