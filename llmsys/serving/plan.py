"""What scheduler and runner say to each other: a plan for one step, and its result.

    plan = scheduler.plan()
    StepPlan(step=7, work=(Work("a", tokens=(42,), computed=130, blocks=(3, 9, 4), logits=1, …),         decoding
                           Work("b", tokens=(5, …, 8), computed=0, blocks=(6, 7), logits=0, …),           a chunk
                           Work("c", tokens=(17, 2, 2), computed=64, blocks=(8, 1), logits=3, …)), …)     2 guesses
    StepResult(step=7, outputs=(Output("a", (97,)), Output("c", (2, 30))))
    scheduler.update(plan, result)

Both are frozen and made of plain values: they can be pickled to another process, kept, replayed, or made up in a test.
A plan says all that a runner needs, so that a runner remembers nothing of a request but what it likes to keep.

**A plan may be made while the step before it runs.** The newest token of a request that decodes is then not known yet,
and has a place-holder in its work, which the runner fills with what it draws for that request in the step before.

**A result brings from 0 to `logits` tokens a request.** None where a chunk ends before the known tokens do; one for the
last chunk or a decode; and where the last k of a work's tokens are guesses, `logits` is k + 1 and the result has those
that the model agreed with and the model's own next one. What was computed for the others is rolled back.
"""

from dataclasses import dataclass
from typing import NamedTuple

from llmsys.cache.block_table import AnyCopy
from llmsys.serving.sampling.sampling_params import SamplingParams

PLACEHOLDER = -1
"""In `Work.tokens`: the token that the step before draws for this request, which was not known when the plan was made.
The runner has it on the device."""


class Work(NamedTuple):
    """What a step computes of one request; a `llmsys.cache.Chunk` takes it as it is, once there is no place-holder."""

    request: str  #  its id
    tokens: tuple[int, ...]
    """At least one. The last logits − 1 of them are guesses, if logits is above 1. A PLACEHOLDER stands alone."""
    computed: int
    """How many of the request's tokens are in the cache: where `tokens` begin."""
    blocks: tuple[int, ...]
    """Its blocks in order, as many as computed + tokens need."""
    logits: int
    """Of how many of the last tokens the logits are wanted: 0 where more of what is known follows, 1, or k + 1."""
    sampling: SamplingParams
    """A draw of a seeded request depends on the seed and the place of the drawn token alone."""

    @property
    def end(self) -> int:
        """computed + tokens: with logits = 1, the place of the token that comes next."""
        return self.computed + len(self.tokens)

    @property
    def guesses(self) -> tuple[int, ...]:
        return self.tokens[len(self.tokens) - self.logits + 1 :] if self.logits > 1 else ()


@dataclass(frozen=True)
class StepPlan:
    """One step. Work comes in the order in which requests were admitted."""

    step: int  #  counted from 0
    work: tuple[Work, ...]  #  at least one
    copies: tuple[AnyCopy, ...] = ()
    """Blocks to be copied in this order, before the step writes anything: to each other, to the host, and back."""
    ended: tuple[str, ...] = ()
    """Requests that have ended since the last plan: a runner may forget them."""

    @property
    def num_tokens(self) -> int:
        return sum(len(each.tokens) for each in self.work)


@dataclass(frozen=True)
class TokenLogprobs:
    """Of one generated token: its own log-probability, and the likeliest tokens with theirs, the likeliest first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Output(NamedTuple):
    """What a step says of one request: tokens, or an error (as logits that are NaN), which ends this request alone."""

    request: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None  #  one a token, where they were asked for
    error: str | None = None


@dataclass(frozen=True)
class StepResult:
    """What came of a plan: an output for each work that has logits, and for any that failed."""

    step: int
    outputs: tuple[Output, ...] = ()
