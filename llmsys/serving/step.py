"""A step while it is planned: who computes how much, and how many of its tokens are left."""

from dataclasses import dataclass

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import Copy
from llmsys.serving.plan import PLACEHOLDER, StepPlan, Work
from llmsys.serving.request import Request, Status


@dataclass(slots=True)
class Share:
    """What one request has of a step: its next `n` tokens and, if these are all that are known, guesses."""

    request: Request
    n: int
    prefill: bool  #  or decoding
    guesses: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return self.n + len(self.guesses)

    def begin(self, pool: BlockPool) -> Work:
        """The work; from now on it is under way."""
        request, guesses = self.request, self.guesses
        start = request.computed + request.under_way
        stop, known = start + self.n, len(request.tokens)
        tokens = (PLACEHOLDER,) if start == known else (*request.tokens[start:stop], *guesses)
        logits = 1 + len(guesses) if stop == known + request.expected else 0
        blocks, needed = request.table.told(), pool.blocks_for(start + len(tokens))
        if needed < len(blocks):
            blocks = blocks[:needed]
        request.under_way += len(tokens)
        request.expected += logits > 0
        return Work(request.id, tokens, start, blocks, logits, request.sampling)


class Step:
    """The scheduler's notes on one step, from its beginning until its result is taken in."""

    def __init__(self, number: int, budget: int, began: float):
        self.number = number
        self.left = budget  # tokens
        self.began = began  # seconds, on the scheduler's clock
        self.shares: dict[str, Share] = {}  # by the requests' ids
        self.copies: list[Copy] = []
        self.preempted = False
        self.plan: StepPlan | None = None  # once it is made

    @property
    def counts(self) -> bool:
        """Somebody waits for its result: a request that has not ended."""
        return any(share.request.status is Status.RUNNING for share in self.shares.values())

    def add(self, request: Request, n: int) -> None:
        self.shares[request.id] = Share(request, n, request.in_prefill)
        self.left -= n

    def guess(self, share: Share, pool: BlockPool) -> None:
        """As many of the request's guesses as there are tokens left and blocks free for, and slots for them."""
        request, known = share.request, len(share.request.tokens)
        if request.draft and share.n == request.remaining:
            slots = (len(request.table.blocks) + pool.free_blocks) * pool.block_size - known
            k = max(0, min(len(request.draft), self.left, slots, request.limit - known - 1))
            pool.extend(request.table, known + k)
            share.guesses = request.draft[:k]
            self.left -= k

    def drop(self, request: Request) -> None:
        """The request has no share any more, if it had one: it is preempted."""
        self.preempted = True
        if share := self.shares.pop(request.id, None):
            self.left += share.tokens

    def void(self, request: Request) -> None:
        """What is under way for the request comes to nothing, for the token that it begins with did not come."""
        if share := self.shares.pop(request.id, None):
            request.under_way -= share.tokens
            request.expected -= 1

    def begin(self, pool: BlockPool, ended: list[str]) -> StepPlan:
        """The plan, when all have what they get."""
        work = tuple([share.begin(pool) for share in self.shares.values()])
        self.plan = StepPlan(self.number, work, tuple(self.copies), tuple(ended))
        return self.plan
