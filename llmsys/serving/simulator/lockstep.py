"""Requests that decode side by side, as one: they are in step, so what is true of one n steps later is true of all.

Each step brings each of B requests a token. Written down for each, that is work that grows with B, and after a thousand
steps nobody has read it. So it is kept once for all: how many steps they have `done` together. The rest follows:

    a request that joined when `done` was g with k known tokens has k + done − g of them now
    it has all its tokens when `done` is g + limit − k                                a heap of these says who is next
    it needs another block in a step if its known tokens fill all it has, which is every block_size-th step:
        in those with done ≡ g + 1 − k (mod block_size)                               so counts by that remainder do
    together they attend to the sum of their known tokens, which is B more in the next step

Blocks are taken when they are needed, so that the pool has as many free ones as ever and forgets what it would, but not
for anybody: they lie in a heap, from which a request gets what it lacks when it leaves, or when somebody looks
(`sync`). A step thus takes a time that does not depend on B, but for a block in block_size steps of each.
"""

import heapq
import itertools

from llmsys.serving.request import Request
from llmsys.serving.simulator.known_tokens import SAID
from llmsys.serving.simulator.pool import PlainPool, SimulatedPool


class Lockstep:
    """The requests of one engine that decode.

    Attributes
    ----------
    done : int
        Steps that they have done.
    attended : int
        Tokens whose keys and values their next step reads: the sum of what is known.
    """

    def __init__(self, pool: PlainPool | SimulatedPool):
        self.pool, self.done, self.attended = pool, 0, 0
        self._size = pool.block_size
        self._paid = 0  # steps for which blocks have been taken
        self._spare: list[int] = []  # of these, those that no table has
        self._ahead: list[Request] = []  # who has the block for the next step already
        self._since: dict[Request, int] = {}  # up to which of the steps a request itself is
        self._ends: list[tuple[int, int, Request]] = []  # a heap
        self._filled = [0] * self._size  # how many need a block in a step, by the remainder of its number
        self._serial = itertools.count()

    def __len__(self) -> int:
        return len(self._since)

    @property
    def left(self) -> int:
        """Steps until somebody has all tokens."""
        return self._ends[0][0] - self.done

    def join(self, request: Request) -> None:
        """A request of which all known tokens but the newest are computed."""
        known = len(request.tokens)
        self._since[request] = self.done
        self.attended += known
        self._filled[(self.done + 1 - known) % self._size] += 1
        if len(request.table.blocks) > self.pool.blocks_for(known - 1):  # was preempted, and had to compute all of them
            self._ahead.append(request)
        heapq.heappush(self._ends, (self.done + request.limit - known, next(self._serial), request))

    def steps_with_room(self, steps: int) -> int:
        """How many steps, `steps` at most, they can do with the blocks that are free."""
        members, free = len(self._since), self.pool.free_blocks
        if not members or free >= members * (steps // self._size + 1):
            return steps
        rounds, free = divmod(free, members)  # in block_size steps each needs one
        found = self._paid - self.done + rounds * self._size
        for i in range(self._size):
            free -= self._filled[(self._paid + i) % self._size]
            if free < 0 or found >= steps:
                break
            found += 1
        return min(found, steps)

    def pay(self, steps: int) -> bool:
        """Takes the blocks for the next so many steps. False, and nothing is taken, where they are not free."""
        n = self.done + steps - self._paid
        if n > 0 and self._since:
            rounds, rest = divmod(n, self._size)
            needed = rounds * len(self._since)
            for i in range(rest):
                needed += self._filled[(self._paid + i) % self._size]
            needed -= len(self._ahead)
            if needed > self.pool.free_blocks:
                return False
            self._spare += self.pool.take(needed)
            for request in self._ahead:
                self._spare.append(request.table.blocks.pop())
                request.table.length = request.computed
                request.table.changed()
            self._ahead.clear()
        self._paid = max(self._paid, self.done + steps)
        return True

    def go_on(self, steps: int) -> None:
        """They have done so many more steps, for which there was room."""
        self.pay(steps)
        self.done += steps
        self.attended += steps * len(self._since)

    def ended(self) -> list[Request]:
        """Those that have all their tokens by now; they leave."""
        found = []
        while self._ends and self._ends[0][0] == self.done:
            request = heapq.heappop(self._ends)[2]
            self._bring_up_to_date(request)
            del self._since[request]
            known = len(request.tokens)
            self.attended -= known
            self._filled[(self.done + 1 - known) % self._size] -= 1
            found.append(request)
        return found

    def sync(self) -> None:
        """Every request, and its table, is as if it had done the steps by itself."""
        for request in self._since:
            self._bring_up_to_date(request)

    def dissolve(self) -> None:
        """All leave, between two steps."""
        if not self._since:
            return
        self.sync()
        for members in (self._since, self._ends, self._ahead):
            members.clear()
        self._filled = [0] * self._size
        self.attended = 0

    def _bring_up_to_date(self, request: Request) -> None:
        n = self.done - self._since[request]
        if not n:
            return
        self._since[request] = self.done
        request.tokens += [SAID + request.order] * n
        known, table, pool = len(request.tokens), request.table, self.pool
        request.computed = table.length = known - 1
        if lacking := pool.blocks_for(known - 1) - len(table.blocks):
            table.blocks += self._spare[-lacking:]
            del self._spare[-lacking:]
            table.changed()
        if (known - 1) // self._size > len(table.prefixes):
            pool.register(table, request.tokens, known - 1)
