"""A step while it is planned: the work so far, and how many of its tokens are left."""

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import Copy
from llmsys.serving.plan import StepPlan, Work
from llmsys.serving.request import Request


class Step:
    """The scheduler's notes on one step, from its beginning until its result is taken in."""

    def __init__(self, budget: int, began: float):
        self.left = budget  # tokens
        self.began = began  # seconds, on the scheduler's clock
        self.work: dict[str, Work] = {}
        self.copies: list[Copy] = []
        self.preempted: list[str] = []
        self.plan: StepPlan | None = None  # once it is made
        self._kinds: dict[str, str] = {}

    def add(self, request: Request, n: int, guesses: tuple[int, ...], pool: BlockPool) -> None:
        """The request, whose table has room for them, computes its next `n` tokens and these guesses."""
        end = request.computed + n
        tokens = (*request.tokens[request.computed : end], *guesses)
        blocks = tuple(request.table.blocks[: pool.blocks_for(end + len(guesses))])
        logits = 1 + len(guesses) if end == len(request.tokens) else 0
        self.work[request.id] = Work(request.id, tokens, request.computed, blocks, logits, request.sampling)
        self._kinds[request.id] = "prefill" if request.in_prefill else "decode"
        self.left -= len(tokens)

    def drop(self, request: Request) -> None:
        """The request is preempted, and what it was to compute in this step is left out."""
        self.preempted.append(request.id)
        if work := self.work.pop(request.id, None):
            del self._kinds[request.id]
            self.left += len(work.tokens)

    @property
    def phase(self) -> str:
        """ "prefill", "decode" or, with some of both, "mixed"."""
        kinds = set(self._kinds.values())
        return kinds.pop() if len(kinds) == 1 else "mixed"
