"""A step while it is planned: who computes how much, and how many of its tokens are left."""

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import AnyCopy, Copy
from llmsys.serving.plan import PLACEHOLDER, StepPlan, Work
from llmsys.serving.request import Request, Status

UNKNOWN = (PLACEHOLDER,)


class Step:
    """The scheduler's notes on one step, from its beginning until its result is taken in.

    Attributes
    ----------
    requests : dict
        Those for which it computes, by their ids.
    work : dict
        What of each, by the same ids: its next tokens and, if these are all that are known, guesses.
    left : int
        Tokens that it may still compute.
    """

    def __init__(self, number: int, budget: int, began: float, pool: BlockPool):
        self.number = number
        self.left = budget
        self.began = began  # seconds, on the scheduler's clock
        self.requests: dict[str, Request] = {}
        self.work: dict[str, Work] = {}
        self.copies: list[AnyCopy] = []
        self.preempted = False
        self.plan: StepPlan | None = None  # once it is made
        self._pool, self._block_size = pool, pool.block_size

    @property
    def counts(self) -> bool:
        """Somebody waits for its result: a request that has not ended."""
        return any(request.status is Status.RUNNING for request in self.requests.values())

    def add(self, request: Request, n: int) -> None:
        """The request's next `n` tokens, for which its table has slots. They are under way from now on."""
        start, known, name = request.computed + request.under_way, len(request.tokens), request.id
        stop = start + n
        tokens = UNKNOWN if start == known else tuple(request.tokens[start:stop])
        logits = 1 if stop == known + request.expected else 0
        blocks, needed = request.table.told(), -(-stop // self._block_size)
        if needed < len(blocks):
            blocks = blocks[:needed]
        request.under_way += n
        request.expected += logits
        self.requests[name] = request
        # As Work(…) is, in half the time: hundreds are made in a step.
        self.work[name] = tuple.__new__(Work, (name, tokens, start, blocks, logits, request.sampling))
        self.left -= n

    def copy(self, copies: list[Copy]) -> None:
        """These are to be made, after all that the pool's host tier has asked for so far."""
        self.copies += [*self._of_host(), *copies]

    def guess(self, request: Request) -> None:
        """As many of its guesses as there are tokens left and blocks free for, and slots for them."""
        work, known = self.work[request.id], len(request.tokens)
        if not work.logits:
            return
        slots = (len(request.table.blocks) + self._pool.free_blocks) * self._block_size - known
        k = max(0, min(len(request.draft), self.left, slots, request.limit - known - 1))
        self._pool.extend(request.table, known + k)
        blocks, tokens = request.table.told()[: self._pool.blocks_for(known + k)], (*work.tokens, *request.draft[:k])
        self.work[request.id] = work._replace(tokens=tokens, blocks=blocks, logits=1 + k)
        request.under_way += k
        self.left -= k

    def drop(self, request: Request) -> None:
        """The request is preempted: it has no work any more, if it had some."""
        self.preempted = True
        if self.requests.pop(request.id, None) is not None:
            self.left += len(self.work.pop(request.id).tokens)
        request.under_way = request.expected = 0

    def void(self, request: Request) -> None:
        """What is under way for the request comes to nothing, for the token that it begins with did not come."""
        if self.requests.pop(request.id, None) is not None:
            request.under_way -= len(self.work.pop(request.id).tokens)
            request.expected -= 1

    def give_up(self) -> None:
        """Nothing of it is under way: it will not be made."""
        for name, request in self.requests.items():
            work = self.work[name]
            request.under_way -= len(work.tokens)
            request.expected -= work.logits > 0
            self._pool.truncate(request.table, len(request.tokens) + request.expected)  # without slots for guesses

    def make(self, ended: list[str]) -> StepPlan:
        """The plan, when all have what they get."""
        self.copies += self._of_host()
        self.plan = StepPlan(self.number, tuple(self.work.values()), tuple(self.copies), tuple(ended))
        return self.plan

    def _of_host(self) -> list[AnyCopy]:
        return [] if self._pool.host is None else self._pool.host.copies()
