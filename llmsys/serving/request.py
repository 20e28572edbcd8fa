"""A request: what somebody wants continued, and how far it has come.

Its whole state is two numbers. **Known** tokens are those of the prompt and those generated so far; **computed** ones
are those of them whose keys and values are in the cache. A step computes some that are known and not computed; when
nothing is left to compute, the last one's logits say one more, which is then known:

    prompt of 6    known ━━━━━━        a chunk of 4: computed ━━━━      another of 2: ━━━━━━ and a 7th token is known
    decoding       known ━━━━━━━       computed ━━━━━━                  each step computes 1, and 1 more is known
    preempted      known ━━━━━━━━━     computed nothing                 its own tokens are one long prompt now
    prefix hit     known ━━━━━━        computed ━━━━ as it enters       only 2 are left

So prefill, decoding, a preempted request's second try and a prefix hit are one thing, "computed catches up with known",
and there are no phases to get wrong. Guesses of a speculative decoder (`draft`) are computed along with what is known,
and become known if the model agrees.

**While a step runs**, it is certain how much more will be computed (`under_way`), and that a token will come of it
(`expected`), though not which. So the step after it can be planned as if it were done: `remaining` counts both. A token
is taken for expected although the request may end, or fail, instead: then what was planned for it came to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from llmsys.cache.block_table import BlockTable
from llmsys.models.sampling import whole_number
from llmsys.serving.plan import TokenLogprobs
from llmsys.serving.sampling.sampling_params import SamplingParams


class Status(Enum):
    """Where a request stands. The last three are its end."""

    WAITING = "waiting"  #  has no blocks: not admitted yet, or preempted
    RUNNING = "running"  #  has blocks
    FINISHED = "finished"  #  `reason` says why
    FAILED = "failed"  #  `error` says why
    ABORTED = "aborted"


ALIVE = (Status.RUNNING, Status.WAITING)


@dataclass(eq=False)
class Request:
    """A prompt in tokens and what has become of it. The scheduler alone changes it; anybody may read it.

    ValueError at once for a prompt without tokens, or of what are no token ids.
    """

    id: str
    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    arrival: float | None = None
    """Seconds on the scheduler's clock. None: when it is added."""
    salt: str | None = None
    """Prefixes are shared only with requests of the same salt (another adapter's weights, another tenant)."""
    parent: "Request | None" = field(default=None, repr=False)
    """The request whose prompt this one shares: of several answers to one prompt, the first."""

    # Its state
    tokens: list[int] = field(init=False, repr=False)
    """Known: prompt + generated, the token that ended it included."""
    computed: int = field(default=0, init=False)
    """How many of them are in the cache."""
    table: BlockTable | None = field(default=None, init=False, repr=False)
    """Its blocks, while it is running."""
    status: Status = field(default=Status.WAITING, init=False)
    reason: str | None = field(default=None, init=False)
    """Of a finished one: "stop" (an end token, a stop token or text) or "length"."""
    stop_token: int | None = field(default=None, init=False)
    """The end or stop token that ended it: the last of `tokens`."""
    error: str | None = field(default=None, init=False)
    under_way: int = field(default=0, init=False, repr=False)
    """How many tokens more the steps will compute that are planned and not done, guesses among them."""
    expected: int = field(default=0, init=False, repr=False)
    """How many of these steps will say a token."""
    limit: int = field(default=0, init=False)
    """Tokens that it can have, prompt included; the scheduler sets it when the request is added."""
    draft: tuple[int, ...] = field(default=(), init=False, repr=False)
    """Guesses at the tokens after the known ones, for the next step that has room for them."""
    logprobs: list[TokenLogprobs] = field(default_factory=list, init=False, repr=False)
    """One for each generated token, where they were asked for."""
    order: int = field(default=0, init=False, repr=False)
    """Its place in the order of arrival."""
    was_planned: bool = field(default=False, init=False, repr=False)
    """Some plan had work of it: its end is told to the runner."""

    def __post_init__(self):
        if not isinstance(self.id, str) or not self.id:
            raise ValueError(f"id must be a text of at least one character, got {self.id!r}")
        if self.salt is not None and not isinstance(self.salt, str):
            raise ValueError(f"salt must be a text, as an adapter's or a tenant's name is, or None, got {self.salt!r}")
        self.prompt = tuple(self.prompt)
        if set(map(type, self.prompt)) != {int} or min(self.prompt) < 0:  # one by one only where there is a need
            self.prompt = tuple(whole_number("prompt's tokens", token, at_least=0) for token in self.prompt)
        if not self.prompt:
            raise ValueError(
                "prompt must have at least one token, for there is nothing to continue: begin with the model's start "
                "token, where it has one"
            )
        self.tokens = list(self.prompt)

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.prompt)

    @property
    def remaining(self) -> int:
        """Tokens that are known and not computed, when all that is planned is done. At least 1 until the request ends,
        for what is next is not known before; below 1 while guesses are under way, for nobody knows which will hold."""
        return len(self.tokens) + self.expected - self.computed - self.under_way

    @property
    def in_prefill(self) -> bool:
        """It has more to compute than its newest token, or has said nothing yet, when all that is planned is done."""
        known = len(self.tokens) + self.expected
        return known - self.computed - self.under_way > 1 or known == len(self.prompt)

    @property
    def goes_on(self) -> bool:
        """It will have more to compute when all that is planned is done, whatever the tokens are that this says: it has
        not reached its limit by then, and no guesses are under way, or follow what is not known."""
        expected = self.expected
        known = len(self.tokens) + expected
        return self.computed + self.under_way < known < self.limit and not (expected and self.draft)

    @property
    def ended(self) -> bool:
        return self.status not in ALIVE
