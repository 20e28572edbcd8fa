"""Engines as ranks: each a process with a device of its own, started here or, on many machines, by torchrun.

    with start(partial(load_model, dtype=torch.bfloat16), prefill=1, decode=1) as engine:    ranks of this machine
        engine.generate(["What is 2 + 2?"])

    plan = Plan(load, prefill=2, decode=6, address=("10.0.0.1", 7000), key=secret)
    run_here(serve_as_rank, plan)              # in a script that torchrun starts, 8 processes in all
    engine = front_of(plan)                    # on 10.0.0.1, in a process of its own

    LLMSYS_ENGINE_KEY=… llmsys serve --prefill 2 --decode 6 --front 10.0.0.1:7000         the same two, as commands:
    LLMSYS_ENGINE_KEY=… torchrun --nproc-per-node 8 -m llmsys serve --prefill 2 --decode 6 --front 10.0.0.1:7000

Ranks 0 to prefill − 1 prefill, the others decode. Between each of the first and each of the second is a pair
(`llmsys.parallel.ranks.pairs`), and from each to the front a connection of its own, on which messages are pickled: so
the front listens on this machine alone where nothing else is said, and who connects must have the key.

A rank that dies is noticed by its connection's end, whoever has started it, and one that hangs by its silence
(`pulse`; of those that were started here the process is killed then). The others go on, if they are let: torchrun ends
all of its processes when one of them fails. A dead one is not started again: a run of ranks has the processes that it
began with.
"""

import contextlib
import functools
import os
import queue
import secrets
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection as connections
from typing import Any

import torch
from torch import nn

from llmsys.models.sampling import whole_number
from llmsys.parallel.ranks import Ending, device, pair_group, run
from llmsys.serving.disaggregate.front import DisaggregatedEngine
from llmsys.serving.disaggregate.instance import Instance
from llmsys.serving.disaggregate.links import ConnectionLinks, accept
from llmsys.serving.disaggregate.messages import Broken, Close, Died, Hello
from llmsys.serving.disaggregate.pulse import SILENT, check_silent_after
from llmsys.serving.disaggregate.wires import PairWire, Receiving
from llmsys.serving.memory import USED_ON_CPU, available_memory
from llmsys.serving.routing import Route, as_route

START = 600.0
"""Seconds for all engines to have loaded their models and to have met."""


@dataclass(frozen=True)
class Plan:
    """What each rank is told. ValueError at once where a count is below 1, or something else cannot be.

    load        load(device=…) makes the model, or is one
    address     where the front listens: (host, port)
    key         who connects must have it
    settings    of every engine, as for `Instance`; of_prefill and of_decode count more
    silent_after    seconds after which an engine that says nothing, or a transfer that does not end, counts as dead
    watch       called by each rank with its instance before that serves: to listen to its events, say
    device      "cpu", or "cuda" for the GPU of each rank's number on its machine; None: as the ranks' backend says
    """

    load: Callable[..., nn.Module] | nn.Module
    prefill: int = 1
    decode: int = 1
    address: tuple[str, int] = ("127.0.0.1", 0)
    key: bytes = field(default=b"", repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    of_prefill: Mapping[str, Any] = field(default_factory=dict)
    of_decode: Mapping[str, Any] = field(default_factory=dict)
    silent_after: float | None = SILENT
    watch: Callable[[Instance], object] | None = None
    device: str | None = None

    def __post_init__(self):
        for name in ("prefill", "decode"):
            whole_number(name, getattr(self, name), at_least=1)
        check_silent_after(self.silent_after)
        if self.device not in (None, "cpu", "cuda"):
            raise ValueError(f'device must be "cpu", "cuda" or None, got {self.device!r}')
        if not (isinstance(self.load, nn.Module) or callable(self.load)):
            raise ValueError(f"load must be a function that makes the model, or a model, got {self.load!r}")

    @property
    def names(self) -> list[str]:
        """By rank."""
        prefill = [f"prefill {i}" for i in range(self.prefill)]
        return prefill + [f"decode {i}" for i in range(self.decode)]

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The ranks that are connected, in the order in which all of them make these connections."""
        decode = range(self.prefill, self.prefill + self.decode)
        return [(one, other) for one in range(self.prefill) for other in decode]


def start(
    load: Callable[..., nn.Module] | nn.Module,
    *,
    prefill: int = 1,
    decode: int = 1,
    device: str | torch.device | None = None,
    of_prefill: Mapping[str, Any] | None = None,
    of_decode: Mapping[str, Any] | None = None,
    timeout: float = START,
    route: str | Route | type = "least-full",
    silent_after: float | None = SILENT,
    watch: Callable[[Instance], object] | None = None,
    **settings,
) -> DisaggregatedEngine:
    """An engine of several processes on this machine, which end with it: `close`, or at the end of a `with`.

    Parameters
    ----------
    load
        load(device=…) makes the model, in each process; or a model, which travels there.
    prefill, decode
        How many engines of each kind.
    device
        "cpu" for all, or "cuda" for a GPU each. None: GPUs where this machine has any.
    settings, of_prefill, of_decode
        As for `Instance`: of all, and of those of one kind, which count more.
    timeout
        Seconds until all are ready.
    route
        Who of several is asked: a name of `llmsys.serving.routing.ROUTES`, or a route.
    silent_after, watch
        As for `Plan`.

    Raises
    ------
    ValueError
        A count is below 1, there are more engines than GPUs, or an engine refuses its settings.
    RuntimeError
        An engine could not be started. Says why.
    """
    as_route(route)  # refused now, if it is
    plan = Plan(
        load, prefill, decode, key=secrets.token_bytes(32), settings=settings, of_prefill=dict(of_prefill or {}),
        of_decode=dict(of_decode or {}), silent_after=silent_after, watch=watch,
        device=_kind(device, prefill + decode),
    )  # fmt: skip
    if plan.device == "cpu" and not {"num_blocks", "memory"} & {*settings, *plan.of_prefill, *plan.of_decode}:
        # Of what is free in main memory each gets its part; a GPU each has for itself.
        share = int(USED_ON_CPU * available_memory()) // (prefill + decode)
        plan = replace(plan, settings=settings | dict(memory=share))
    listener = connections.Listener(plan.address, backlog=prefill + decode)
    plan = replace(plan, address=listener.address)
    ended: queue.SimpleQueue = queue.SimpleQueue()

    def run_all() -> None:
        try:
            ended.put(
                # Among all of them nothing is sent but numbers. NCCL is for pairs, which may break one by one.
                run(
                    serve_as_rank, prefill + decode, plan,
                    backend="gloo", timeout=None, stalled_after=None, on_death="report",
                )
            )  # fmt: skip
        except BaseException as error:
            ended.put([error])

    thread = threading.Thread(target=run_all, daemon=True, name="ranks of engines")
    thread.start()
    return _front(plan, listener, timeout, ended, thread, route)


def front_of(
    plan: Plan, *, timeout: float = START, route: str | Route | type = "least-full"
) -> DisaggregatedEngine:
    """The front of engines that others have started, or will: it listens at the plan's address until all have come.

    OSError where it cannot listen there; RuntimeError where they do not come in so many seconds; ValueError where they
    have not one model.
    """
    if not plan.key:
        raise ValueError("key must be given, the same to the front and to all ranks: who has it may run code in them")
    listener = connections.Listener(plan.address, backlog=plan.prefill + plan.decode)
    return _front(plan, listener, timeout, queue.SimpleQueue(), None, route)


def serve_as_rank(plan: Plan) -> None:
    """What each rank does, until the front closes, or is gone. ValueError where there are other ranks than planned."""
    import torch.distributed as dist

    rank, ranks, names = dist.get_rank(), dist.get_world_size(), plan.names
    if ranks != len(names):
        raise ValueError(
            f"prefill and decode must be as many as there are ranks, {ranks}: got {plan.prefill} and {plan.decode}"
        )
    where, prefills = _device(plan), rank < plan.prefill
    model = plan.load if isinstance(plan.load, nn.Module) else plan.load(device=where)
    model = model.to(where)
    own = plan.of_prefill if prefills else plan.of_decode
    instance = Instance(names[rank], model, **(dict(plan.settings) | dict(own)))
    ends = _connect(instance, plan, rank, where)
    if plan.watch is not None:
        plan.watch(instance)
    try:
        with connections.Client(tuple(plan.address), authkey=plan.key) as front:
            front.send(instance.hello())
            listens = threading.Thread(target=_listen, args=(front, instance.inbox.put), daemon=True)
            listens.start()
            with contextlib.suppress(BrokenPipeError, ConnectionError):  # the front is gone
                while not instance.closed:
                    for reply in _turn(instance, front):
                        front.send(reply)
    finally:
        for each in ends:
            each.close()


def _turn(instance: Instance, front) -> list:
    """The next one, for which there is something to do by then. The front hears why, if it is the last."""
    try:
        if not instance.busy:
            instance.take(instance.inbox.get())
        return instance.turn()
    except Exception:
        front.send(Died(traceback.format_exc()))
        raise


def _connect(instance: Instance, plan: Plan, rank: int, where: torch.device) -> list[PairWire | Receiving]:
    spec, ends, put = instance.engine.model.cache_spec(), [], instance.inbox.put
    for one, other in plan.pairs:
        if rank not in (one, other):
            continue
        numbers = pair_group(one, other, backend="gloo", timeout=START)
        rows = pair_group(one, other, backend="nccl", timeout=START) if where.type == "cuda" else numbers
        name = plan.names[one + other - rank]
        if rank == one:
            broken = functools.partial(put, Broken(name))
            wire = PairWire(numbers, rows, broken, silent_after=plan.silent_after)
            instance.connect(name, wire)
            ends.append(wire)
        else:
            receiving = Receiving(name, numbers, rows, spec, where, put, silent_after=plan.silent_after)
            instance.hear(name, receiving)
            ends.append(receiving)
    return ends


def _listen(front, put: Callable) -> None:
    with contextlib.suppress(EOFError, OSError):
        while True:
            put(front.recv())
    put(Close())


def _front(plan: Plan, listener, timeout: float, ended: queue.SimpleQueue, thread, route) -> DisaggregatedEngine:
    """When all have come."""
    came: queue.SimpleQueue = queue.SimpleQueue()
    with listener:
        threading.Thread(target=accept, args=(listener, plan.key, came), daemon=True).start()
        hellos: dict[str, Hello] = {}
        to: dict[str, connections.Connection] = {}
        until = time.monotonic() + timeout
        try:
            while missing := [name for name in plan.names if name not in hellos]:
                if not ended.empty():
                    raise _why(ended.get())
                if time.monotonic() > until:
                    raise RuntimeError(
                        f"{', '.join(missing)} did not come within {timeout:g} s: each engine must reach the front at "
                        f"{plan.address}, and have its key"
                    )
                with contextlib.suppress(queue.Empty):
                    hello, connection = came.get(timeout=0.02)
                    hellos[hello.name], to[hello.name] = hello, connection
            names = plan.names
            here = None if thread is None else {name: each.process for name, each in hellos.items()}
            return DisaggregatedEngine(
                ConnectionLinks(to, thread, here), [hellos[name] for name in names],
                prefill=names[: plan.prefill], decode=names[plan.prefill :], route=route,
                silent_after=plan.silent_after,
            )  # fmt: skip
        except BaseException:
            for each in to.values():
                each.close()
            raise


def _why(results: Sequence) -> Exception:
    """What went wrong with a run that ended before all its engines were there."""
    first = next((each for each in results if isinstance(each, BaseException)), None)
    endings = [each for each in results if isinstance(each, Ending)]
    if first is None and endings:
        ending = min(endings, key=lambda each: each.after)
        if isinstance(ending.exception, ValueError):
            return ending.exception
        return RuntimeError(f"the engine of rank {ending.rank} could not be started: {ending.told}")
    return first if isinstance(first, Exception) else RuntimeError(f"the engines ended at once: {first!r}")


def _device(plan: Plan) -> torch.device:
    """This rank's, which is from now on the current one."""
    where = device()
    if plan.device is not None:
        where = torch.device("cpu") if plan.device == "cpu" else torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    return where


def _kind(device: str | torch.device | None, engines: int) -> str:
    kind = None if device is None else torch.device(device).type
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind not in (None, "cpu", "cuda"):
        raise ValueError(f'device must be "cpu", "cuda" or None for engines, got {device!r}')
    if kind == "cpu" or (kind is None and not gpus):
        return "cpu"
    if gpus < engines:
        raise ValueError(
            f"prefill and decode are {engines} engines, each with a GPU of its own, and there are {gpus}: "
            'ask for fewer, or for device="cpu"'
        )
    return "cuda"
