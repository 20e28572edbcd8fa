"""Several engines in one process, one after the other: for tests, and to look at what happens.

    engine = disaggregated_here(model, prefill=1, decode=1, num_blocks=200)
    engine.generate(["What is 2 + 2?"])

Nothing runs side by side here, so nothing is gained. What is sent, when, and what comes of it is the same.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from llmsys.models.sampling import whole_number
from llmsys.serving.disaggregate.arrivals import Announced, Cut, Rows
from llmsys.serving.disaggregate.front import DisaggregatedEngine
from llmsys.serving.disaggregate.instance import Instance
from llmsys.serving.disaggregate.push import LayerEvent, Transfer, push_each_layer
from llmsys.serving.routing import Route


class WireHere:
    """Puts what it is handed into the other engine's inbox."""

    def __init__(self, sender: str, put: Callable[[object], object]):
        self._sender, self._put = sender, put

    def begin(self, frame, pieces) -> None:
        self._put(Announced(self._sender, frame, tuple(pieces)))

    def layer(self, frame, layer, rows) -> None:
        self._put(Rows(self._sender, frame, layer, rows))

    def cut(self, frame) -> None:
        self._put(Cut(self._sender, frame))

    def close(self) -> None:
        self._put = lambda item: None


class LinksHere:
    """Engines that take a turn each time the front listens. One that raises is dead, as one that is killed.

    Attributes
    ----------
    errors : dict
        What they raised, by their names.
    """

    def __init__(self, instances: Mapping[str, Instance]):
        self.instances, self.dead = dict(instances), []
        self.errors: dict[str, Exception] = {}

    def send(self, name: str, message) -> None:
        if name in self.instances:
            self.instances[name].inbox.put(message)

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        said = []
        for name, instance in list(self.instances.items()):
            try:
                said += [(name, each) for each in instance.turn()]
            except Exception as error:
                self.errors[name] = error
                self.kill(name)
        died, self.dead = self.dead, []
        return said + [(name, None) for name in died]

    def kill(self, name: str) -> None:
        """It does nothing any more, and what it has is gone."""
        if self.instances.pop(name, None) is not None:
            self.dead.append(name)

    def give_up(self, name: str) -> None:
        self.kill(name)

    def close(self) -> None:
        self.instances = {}


def disaggregated_here(
    model: nn.Module,
    *,
    prefill: int = 1,
    decode: int = 1,
    transfer: Transfer = push_each_layer,
    log: Callable[[LayerEvent], object] | None = None,
    of_prefill: Mapping[str, Any] | None = None,
    of_decode: Mapping[str, Any] | None = None,
    links: Callable[[Mapping[str, Instance]], LinksHere] = LinksHere,
    route: str | Route | type = "least-full",
    silent_after: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    **settings,
) -> DisaggregatedEngine:
    """An engine of several in this process, which share the model's weights.

    Parameters
    ----------
    prefill, decode
        How many of each.
    transfer, log
        As for `llmsys.serving.disaggregate.push`: one log for all.
    settings, of_prefill, of_decode
        As for `Instance`: of all, and of those of one kind, which count more.
    links
        Makes the front's way to them, as `LinksHere` does: one that decides whose turn it is, and what arrives when.
    route
        Who of several is asked: a name of `llmsys.serving.routing.ROUTES`, or a route.
    silent_after, clock
        The front's, as for `DisaggregatedEngine`.

    ValueError where a count is below 1, or a setting is refused by `Engine`.
    """
    for name, count in (("prefill", prefill), ("decode", decode)):
        whole_number(name, count, at_least=1)
    here = [Instance(f"prefill {i}", model, transfer=transfer, log=log, **(settings | dict(of_prefill or {})))
            for i in range(prefill)]  # fmt: skip
    there = [Instance(f"decode {i}", model, log=log, **(settings | dict(of_decode or {}))) for i in range(decode)]
    for one in here:
        for other in there:
            one.connect(other.name, WireHere(one.name, other.inbox.put))
    way = links({each.name: each for each in (*here, *there)})
    hellos = [each.hello() for each in (*here, *there)]
    return DisaggregatedEngine(
        way, hellos, prefill=[each.name for each in here], decode=[each.name for each in there],
        route=route, silent_after=silent_after, clock=clock,
    )  # fmt: skip
