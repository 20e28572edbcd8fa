"""The front: the interface of one engine, behind which there are several.

    engine = DisaggregatedEngine(links, hellos, prefill=["prefill 0"], decode=["decode 0"])
    engine.generate(["What is 2 + 2?", "Name a colour."])

Prompts become tokens here, and tokens text; stop strings are found here; requests are counted here. All else is done by
whom `links` reaches. It is an `Engine` to whoever uses one: `AsyncEngine`, the server, a benchmark. (`step` takes in
what engines have said, and waits a moment where they have said nothing.)
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from llmsys.cache import PoolStats
from llmsys.serving.disaggregate.messages import Close, Hello, Ping
from llmsys.serving.disaggregate.pulse import SILENT, Pulse
from llmsys.serving.disaggregate.router import Router
from llmsys.serving.engine import Engine
from llmsys.serving.guard import Guard
from llmsys.serving.responses.response import Update
from llmsys.serving.responses.under_way import Answers
from llmsys.serving.routing import Route
from llmsys.serving.telemetry.events import EventLog
from llmsys.serving.telemetry.metrics import Metrics

_LOGGER = logging.getLogger(__name__)
MOMENT = 0.005
"""Seconds that `step` waits for engines: whoever wants to add a request waits for the end of a step."""


class Links(Protocol):
    """The front's way to its engines."""

    def send(self, name: str, message) -> None:
        """Tells an engine; nothing happens where it is dead."""

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        """What engines have said, (name, message) each, in the order in which each said it; after so many seconds at
        most. (name, None), once: it has died."""

    def give_up(self, name: str) -> None:
        """That one is taken for dead, and told nothing any more; which `wait` will say of it."""

    def close(self) -> None:
        """Nobody will be told anything any more."""


@dataclass(frozen=True)
class Described:
    """What the front has of a model: what it is like, and its words."""

    config: Any
    tokenizer: Any
    dtype: torch.dtype
    device: str  #  where the engines are


class Pools:
    """The blocks of all living engines together, as they last said."""

    def __init__(self, router: Router):
        self._router = router
        self.block_size = min(each.block_size for each in router.hellos.values())

    @property
    def num_blocks(self) -> int:
        return 1 + self._router.blocks

    @property
    def stats(self) -> PoolStats:
        reports = list(self._router.reports.values())  # who asks may be in another thread than who steps
        used = sum(each.blocks_used for each in reports)
        blocks = self._router.blocks
        return PoolStats(blocks, used, blocks - used, 0, 0, 0, 0)


class DisaggregatedEngine(Engine):
    """Serves many requests by several engines, of which some prefill and some decode.

    Parameters
    ----------
    links
        The way to them.
    hellos
        What they are.
    prefill, decode
        Their names, by what they are to do.
    silent_after
        Seconds without a word after which an engine that is asked and does not answer is taken for dead (`pulse`).
        None: it may hang.
    events, clock
        As for `Engine`.
    route
        As for `Router`.

    Attributes
    ----------
    scheduler : Router
    pool : Pools
    links

    Raises
    ------
    ValueError
        A name is not known or has two roles, nobody is to decode, or the models are not one.
    """

    def __init__(
        self,
        links: Links,
        hellos: Sequence[Hello],
        *,
        prefill: Sequence[str],
        decode: Sequence[str],
        silent_after: float | None = SILENT,
        events: EventLog | None = None,
        clock: Callable[[], float] = time.perf_counter,
        route: str | Route | type = "least-full",
    ):
        self.links, self.clock = links, clock
        self.events = EventLog(keep=100_000) if events is None else events
        self.metrics = Metrics()
        self.events.listen(self.metrics.on, progress=self.metrics.on_progress)
        self.scheduler = Router(
            hellos, prefill=prefill, decode=decode, send=links.send, metrics=self.metrics, events=self.events,
            clock=clock, route=route,
        )  # fmt: skip
        first = hellos[0]
        self.model = Described(first.config, first.tokenizer, first.dtype, ", ".join(each.device for each in hellos))
        self.max_model_len, self.pool, self.runner = self.scheduler.max_model_len, Pools(self.scheduler), None
        self._numbers = itertools.count()
        self._guard = Guard(self.abort)
        self._answers = Answers(self.scheduler, self.metrics, self._guard)
        pulse = Pulse(self.scheduler.alive, silent_after, clock)
        self._loop = Listening(self.scheduler, links, pulse, self._guard, self._answers.take)

    @property
    def broken(self) -> bool:
        """None of its engines is left."""
        return not self.scheduler.alive

    def close(self) -> None:
        """The engines end, and what they were doing with them."""
        for name in self.scheduler.alive:
            self.links.send(name, Close())
        self.links.close()

    def __enter__(self) -> "DisaggregatedEngine":
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Listening:
    """In the place of an engine's loop: a step is what engines have said in the meantime."""

    def __init__(
        self,
        router: Router,
        links: Links,
        pulse: Pulse,
        guard: Guard,
        take: Callable[[Iterable[str]], list[Update]],
    ):
        self._router, self._links, self._pulse, self._guard, self._take = router, links, pulse, guard, take

    def step(self, runner: None) -> list[Update]:
        """Takes in what was said, and says what it added; [] where nothing is new. Raises what a listener raised."""
        with self._guard.work():
            changed: dict[str, None] = {}
            if not self._router.alive:
                changed |= dict.fromkeys(self._router.fail_all())
            with self._guard.window():
                heard = self._links.wait(MOMENT) if self._router.alive else []
            for name, message in heard:
                self._pulse.heard(name)
                changed |= dict.fromkeys(self._router.heard(name, message))
            ask, silent = self._pulse.look(self._router.alive)
            for name in ask:
                self._links.send(name, Ping())
            for name in silent:
                _LOGGER.error("%s does not answer: it is taken for dead", name)
                self._links.give_up(name)
            return self._take(changed)

    def forget_ended(self) -> None:
        """Nothing is kept of steps here."""
