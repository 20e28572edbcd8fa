"""A step while it is planned: who computes how much, and how many of its tokens are left."""

from dataclasses import dataclass

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import Copy
from llmsys.serving.plan import StepPlan, Work
from llmsys.serving.request import Request


@dataclass
class Share:
    """What one request has of a step: its next `n` tokens and, if these are all that are known, guesses."""

    request: Request
    n: int
    guesses: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return self.n + len(self.guesses)

    def work(self, pool: BlockPool) -> Work:
        request, end = self.request, self.request.computed + self.n
        tokens = (*request.tokens[request.computed : end], *self.guesses)
        blocks = tuple(request.table.blocks[: pool.blocks_for(request.computed + self.tokens)])
        logits = 1 + len(self.guesses) if end == len(request.tokens) else 0
        return Work(request.id, tokens, request.computed, blocks, logits, request.sampling)


class Step:
    """The scheduler's notes on one step, from its beginning until its result is taken in."""

    def __init__(self, budget: int, began: float):
        self.left = budget  # tokens
        self.began = began  # seconds, on the scheduler's clock
        self.shares: dict[str, Share] = {}  # by the requests' ids
        self.copies: list[Copy] = []
        self.preempted = False
        self.plan: StepPlan | None = None  # once it is made
        self.phase = ""

    def add(self, request: Request, n: int) -> None:
        self.shares[request.id] = Share(request, n)
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
        """The request is preempted, and has no share, if it had one."""
        self.preempted = True
        if share := self.shares.pop(request.id, None):
            self.left += share.tokens

    def finish(self, number: int, pool: BlockPool, ended: list[str]) -> StepPlan:
        """The plan, when all have what they get."""
        kinds = {share.request.in_prefill for share in self.shares.values()}
        self.phase = "mixed" if len(kinds) == 2 else "prefill" if True in kinds else "decode"
        work = tuple(share.work(pool) for share in self.shares.values())
        self.plan = StepPlan(number, work, tuple(self.copies), tuple(ended))
        return self.plan
