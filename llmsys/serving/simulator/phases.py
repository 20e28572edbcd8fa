"""The two halves of an engine: one that computes prompts, and one that goes on with what others computed.

Each has a scheduler of its own, the same as ever. To the first a request is one that ends with its first token. To the
second it is one that is waiting with a prefix hit as long as its whole prompt, so that its first step there computes
one token: nothing in the scheduler knows of two halves.

**Who has room for a cache that is under way?** The one that sends it keeps its blocks until it has arrived, so a slow
link fills up a prefiller, which then admits nobody. At the receiver it waits in the host's memory, of which there is
enough, until the scheduler admits it. (That is how Mooncake receives: section 3 of https://arxiv.org/abs/2407.00079.
Copying it from there to the GPU takes no time here.) Preempted, it is lost, and computed again where it was lost.
"""

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import BlockTable, PrefixHit
from llmsys.serving.request import Request, Status
from llmsys.serving.simulator.instance import Instance, Row
from llmsys.serving.simulator.known_tokens import SAID
from llmsys.serving.simulator.pool import PlainPool
from llmsys.serving.simulator.runs import blocks_needed
from llmsys.serving.simulator.step_times import StepTimes


class Part(NamedTuple):
    """What a step brought of a request's cache."""

    request: str
    found: int  #  tokens that were cached when it was admitted; of its first step only
    made: int  #  tokens that it computed
    done: bool  #  these are the prompt's last


class Prefiller(Instance):
    """An engine whose requests end with their first token.

    Parameters
    ----------
    send
        Called after each step with the ticks at which it began and ended, and with what it brought: says of those of
        the done requests whose caches go elsewhere when these will have arrived.
    settings
        As for `Instance`.
    """

    def __init__(self, times: StepTimes, *, send: Callable[[int, int, Sequence[Part]], Mapping[str, int]], **settings):
        super().__init__(times, **settings)
        self._send = send
        self._begun: set[str] = set()  # some of its prompt was computed, and not all
        self._held: list[tuple[int, int, BlockTable]] = []  # until a tick: a heap, in which no two are alike
        self._number = itertools.count()

    @property
    def held_blocks(self) -> int:
        """Blocks of caches that have not arrived."""
        return sum(len(table.blocks) for _, _, table in self._held)

    def add_at(self, request: Request, tick: int) -> None:
        if request.sampling.max_tokens != 1:
            raise ValueError(f"sampling.max_tokens must be 1, for all it says here, got {request.sampling.max_tokens}")
        super().add_at(request, tick)

    def abort(self, name: str) -> int:
        self._begun.discard(name)
        return super().abort(name)

    def _begin(self, until: float) -> bool:
        scheduler = self.scheduler
        self._let_go()
        if self._held and not scheduler.running:
            if not scheduler.requests:
                self._take_in_coming()
            while self._held and scheduler.waiting and not self._has_room(scheduler.waiting[0]):
                if self._held[0][0] >= until:
                    return False
                self.now = self._held[0][0]
                self._let_go()
        return super()._begin(until)

    _sends_pieces = True

    def _has_room(self, request: Request) -> bool:
        return blocks_needed(request, self.scheduler.pool) <= self.scheduler.pool.free_blocks

    def _let_go(self) -> None:
        """Of what has arrived."""
        while self._held and self._held[0][0] <= self.now:
            self.scheduler.pool.free(heapq.heappop(self._held)[2])

    def _landed(self, began: int, rows: Sequence[Row]) -> None:
        parts, tables = [], {}
        for request, start, tokens in rows:
            name, done = request.id, request.status is Status.FINISHED
            if request.status is Status.ABORTED:
                continue
            parts.append(Part(name, 0 if name in self._begun else start, tokens, done))
            (self._begun.discard if done else self._begun.add)(name)
            tables[name] = request.prompt
        pool = self.scheduler.pool
        for name, tick in self._send(began, self.now, parts).items():
            if tick > self.now:  # its blocks are free, and nobody has taken any since
                prompt = tables[name]
                table = pool.allocate(len(prompt), pool.match(prompt))
                heapq.heappush(self._held, (tick, next(self._number), table))


class Decoder(Instance):
    """An engine that is given requests with their caches and first tokens. Settings: as for `Instance`; it looks for no
    prefixes."""

    def receive(self, request: Request, tick: int) -> None:
        """A request comes, of whose prompt all is computed, and one token said; `sampling` counts that one, too."""
        received = self.scheduler.pool.received
        request.tokens.append(SAID)
        request.salt = request.id  # what has come is a prefix that it alone can hit
        self.add_at(request, tick)
        received[request.id] = len(request.prompt)

    def has(self, request: Request) -> int:
        return request.computed or self.scheduler.pool.received.get(request.id, 0)

    def _make_pool(self, num_blocks: int, block_size: int, prefixes: bool) -> BlockPool:
        return ReceivingPool(num_blocks, block_size)


class ReceivingPool(PlainPool):
    """A pool in which a request can hit what was received for it, as long as the prompt is, once.

    Attributes
    ----------
    received : dict
        Salt → tokens.
    """

    def __init__(self, num_blocks: int, block_size: int):
        super().__init__(num_blocks, block_size)
        self.received: dict[str, int] = {}

    def match(self, tokens: Sequence[int], *, salt: str | None = None) -> PrefixHit:
        return PrefixHit(tokens=self.received.get(salt, 0), salt=salt)

    def allocate(self, length: int, hit: PrefixHit | None = None, *, reserve: int = 0) -> BlockTable:
        table = super().allocate(length, hit, reserve=reserve)
        self.received.pop(hit.salt if hit else None, None)
        return table
