"""Several engines in one process whose turns, and the arrival of what they send each other, come in a drawn order."""

import random
from collections import Counter, deque

from llmsys.serving.disaggregate.front import DisaggregatedEngine
from llmsys.serving.disaggregate.here import LinksHere, disaggregated_here
from tests.support.pools import assert_consistent


class Slow:
    """A wire that keeps what it is handed until it is let go, in order."""

    def __init__(self, wire):
        self.wire, self.held = wire, deque()

    def begin(self, *what) -> None:
        self.held.append(("begin", what))

    def layer(self, *what) -> None:
        self.held.append(("layer", what))

    def cut(self, *what) -> None:
        self.held.append(("cut", what))

    def close(self) -> None:
        self.held.clear()
        self.wire.close()

    def let_go(self, n: int) -> None:
        for _ in range(min(n, len(self.held))):
            name, what = self.held.popleft()
            getattr(self.wire, name)(*what)

    @property
    def tokens(self) -> int:
        """Of whose layers some are held."""
        return sum(len(what[2]) for name, what in self.held if name == "layer")


class FuzzedLinks(LinksHere):
    """Now one engine takes a turn and now several, and wires let go of some of what they hold.

    Attributes
    ----------
    wires : dict
        By (sender, receiver).
    after : list of functions
        Called after each wait.
    """

    def __init__(self, instances, draw: random.Random):
        super().__init__(instances)
        self._draw, self.after, self.wires = draw, [], {}
        for name, one in self.instances.items():
            for other, wire in one.push.wires.items():
                self.wires[name, other] = one.push.wires[other] = Slow(wire)

    def wait(self, seconds):
        every = dict(self.instances)
        self.instances = {name: one for name, one in every.items() if self._draw.random() < 0.6}
        left_out = every.keys() - self.instances.keys()
        try:
            said = super().wait(seconds)
        finally:
            dead = every.keys() - self.instances.keys() - left_out
            self.instances = {name: one for name, one in every.items() if name not in dead}
        for (one, other), wire in self.wires.items():
            if one in self.instances and other in self.instances:
                wire.let_go(self._draw.choice([0, 0, 1, 2, 5, 100]))
        for each in self.after:
            each()
        return said


def fuzzed(model, draw: random.Random, **more) -> DisaggregatedEngine:
    """Several engines whose turns are drawn."""
    return disaggregated_here(model, links=lambda instances: FuzzedLinks(instances, draw), **more)


def assert_whole(engine: DisaggregatedEngine) -> None:
    """Every living engine's pool is consistent with the tables of its requests."""
    for one in engine.links.instances.values():
        scheduler = one.scheduler
        tables = [each.table for each in (*scheduler.running, *scheduler.arriving.values())]
        assert_consistent(one.pool, tables)
        assert all(each.table is None for each in scheduler.waiting)


def assert_empty(engine: DisaggregatedEngine) -> None:
    """Nothing is left anywhere of requests that have ended: no block, no note."""
    for wire in engine.links.wires.values() if isinstance(engine.links, FuzzedLinks) else ():
        wire.let_go(10**9)
    assert not engine.links.errors, engine.links.errors
    for one in engine.links.instances.values():
        one.turn()
        scheduler = one.scheduler
        assert one.pool.stats.used == 0, one.name
        assert not (scheduler.requests or scheduler.running or scheduler.waiting or scheduler.arriving), one.name
        assert not (one._requests or one._told or one._whole or one._next or one._asked), one.name
        assert not (one.push.outgoing or one._arrivals._arriving or scheduler._on_the_way), one.name
        assert not one.engine.metrics.requests, one.name
    router = engine.scheduler
    assert not (router.requests or router.running or router.waiting or router.attempts or router._of_request)
    assert not engine.metrics.requests


def happened(engine: DisaggregatedEngine) -> Counter:
    """What can be seen of what happened, by name."""
    totals = [one.engine.metrics.totals for one in engine.links.instances.values()]
    return Counter(
        preempted=sum(each.preemptions for each in totals),
        hit=engine.metrics.totals.hit_tokens,
        aborted=engine.metrics.totals.aborted,
    )
