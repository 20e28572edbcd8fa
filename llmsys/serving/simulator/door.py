"""Who is asked to serve a request: the engines of one kind, what each has been given, and what each has cached.

A `Door` keeps the columns that a route sees (`llmsys.serving.routing.Engines`), each brought up to date when something
is given to an engine, says its first token, or ends. None of them changes with the tokens that are said in between, so
that no engine has to be brought forward for somebody to choose among all of them.

`Cached` knows who has which prefix. For each, as the hash of its last block, it has a set of engines, as the bits of a
whole number: so the engines that have all of the first n blocks of a prompt are found by n conjunctions, however many
engines there are. What a cache has gained and lost is told when its engine admits or ends a request, as a real engine
reports with its steps; blocks that decoding has taken since then are still taken for cached.
"""

from collections.abc import Callable, Sequence

from llmsys.serving.request import Request
from llmsys.serving.routing import Engines, Route, chosen, fewest_tokens
from llmsys.serving.simulator.instance import Instance
from llmsys.serving.simulator.pool import SimulatedPool
from llmsys.serving.telemetry.events import Admitted, Event, Finished, Progress


class Cached:
    """Which engines have which prefix in their caches."""

    def __init__(self, engines: Sequence[Instance]):
        self.engines = engines
        self._holders: dict[object, int] = {}
        for i in range(len(engines)):
            self.is_new(i)

    def is_new(self, i: int) -> None:
        """The i-th engine's cache is another one, in which nothing is."""
        for prefix in [prefix for prefix, holders in self._holders.items() if holders >> i & 1]:
            self._lose(prefix, 1 << i)
        self.engines[i].scheduler.pool.watch()

    def told(self, i: int) -> None:
        """The i-th engine tells what its cache has gained and lost."""
        bit, holders = 1 << i, self._holders
        for prefix, is_held in self.engines[i].scheduler.pool.changes():
            if is_held:
                holders[prefix] = holders.get(prefix, 0) | bit
            else:
                self._lose(prefix, bit)

    def hits(self, request: Request, among: Sequence[int]) -> list[int]:
        """How many of the request's tokens these engines have."""
        pool = self.engines[among[0]].scheduler.pool
        found, left = [0] * len(self.engines), (1 << len(self.engines)) - 1
        blocks = 0
        for prefix in pool.hashes(request.tokens):
            still = left & self._holders.get(prefix, 0)
            self._write_down(found, left & ~still, blocks)
            left = still
            if not left:
                break
            blocks += pool.block_size
        self._write_down(found, left, blocks)
        return [found[i] for i in among]

    @staticmethod
    def _write_down(found: list[int], engines: int, tokens: int) -> None:
        while tokens and engines:
            lowest = engines & -engines
            found[lowest.bit_length() - 1] = tokens
            engines ^= lowest

    def _lose(self, prefix: object, bit: int) -> None:
        left = self._holders.get(prefix, 0) & ~bit
        if left:
            self._holders[prefix] = left
        else:
            self._holders.pop(prefix, None)


class Door:
    """Engines of one kind.

    Parameters
    ----------
    kind
        As `Engines` has it.
    engines
        The list is the caller's, who may replace one by another that is new.
    route
        Who chooses.

    Attributes
    ----------
    names : list of str
    alive : list of int
        The engines that have not died.
    """

    def __init__(self, kind: str, engines: list[Instance], route: Route):
        self.kind, self.engines, self.route = kind, engines, route
        self.names = [f"{kind} {i}" for i in range(len(engines))]
        self.alive = list(range(len(engines)))
        self._queued, self._held = [0] * len(engines), [0] * len(engines)
        self._given: dict[str, tuple[int, int]] = {}  # to whom, and with how many tokens, until they end there
        self._unsaid: set[str] = set()  # who have not had a token there
        pools = [each.scheduler.pool for each in engines]
        self._room = [(pool.num_blocks - 1) * pool.block_size for pool in pools]
        looks = len(engines) > 1 and route is not fewest_tokens
        self.cached = Cached(engines) if looks and isinstance(pools[0], SimulatedPool) else None
        for i, each in enumerate(engines):
            each.events.listen(self._on(i), progress=self._on_progress, several=False)

    def choose(self, request: Request) -> int:
        """The number of the engine that is to have it. ValueError where the route chooses none that is there."""
        alive = self.alive
        if len(self.engines) == 1:
            return alive[0]
        names, queued, held, room = self.names, self._queued, self._held, self._room
        if len(alive) < len(self.engines):
            names, queued, held, room = ([column[i] for i in alive] for column in (names, queued, held, room))
        find = None if self.cached is None else lambda: self.cached.hits(request, alive)
        size = self.engines[0].scheduler.pool.block_size
        return alive[chosen(self.route, request, Engines(self.kind, names, queued, held, room, size, find))]

    def give(self, i: int, request: Request) -> None:
        """The i-th engine is to have it, now or when its cache arrives."""
        tokens = len(request.tokens)
        self._given[request.id] = i, tokens
        self._held[i] += tokens
        self._queued[i] += tokens
        self._unsaid.add(request.id)

    def take_back(self, name: str) -> None:
        """No engine is to have it any more: it has ended, or begins anew."""
        if name in self._given:
            self._said(name)
            i, tokens = self._given.pop(name)
            self._held[i] -= tokens

    def died(self, i: int) -> None:
        self.alive.remove(i)

    def is_back(self, i: int) -> None:
        """Another engine is in the place of the i-th one, which had died."""
        self.alive = sorted([*self.alive, i])
        if self.cached is not None:
            self.cached.is_new(i)

    def _said(self, name: str) -> None:
        if name in self._unsaid:
            self._unsaid.remove(name)
            i, tokens = self._given[name]
            self._queued[i] -= tokens

    def _on(self, i: int) -> Callable[[Event], None]:
        def on(event: Event) -> None:
            kind = type(event)
            if kind is Finished:
                self.take_back(event.request)
            if self.cached is not None and (kind is Finished or kind is Admitted):
                self.cached.told(i)

        return on

    def _on_progress(self, progress: Progress) -> None:
        if self._unsaid:
            for name, _, _, _, said in progress.rows:
                if said:
                    self._said(name)
