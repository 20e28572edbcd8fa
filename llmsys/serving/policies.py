"""Four ways to fill a step: which requests compute together, who may join them, and whether a prompt may be cut.

A prompt's tokens are computed many at a time, and keep the arithmetic units busy; a decoding request has one, and what
takes time is to read the weights. The four differ in what a request that decodes must wait for:

    static       A A A A · ·        a batch is formed, and runs until the last of it has ended; nobody joins it
                 B B · · · ·        (· a place that is empty, while others wait)
                         C C C

    orca         A A A A            requests join and leave at every step; a prompt is computed whole, beside what
                 B B C C C          decodes, and that step takes as long as the prompt does

    alternating  p d p d d d        prompts in pieces, but never beside what decodes: steps of one kind and of the
                                    other in turn, so what decodes waits for every piece

    stall-free   every step computes what decodes first, and fills the rest of its tokens with a piece of a prompt: no
                 step is longer than its budget, and none leaves out a decode

A policy answers with a `Turn`, or with several, of which the first in which there is anything to do is taken. The
scheduler does all else, so that policies can be compared, and written anew: anything with `turns` is one.

Static and iteration-level batching: Orca, https://www.usenix.org/conference/osdi22/presentation/yu. Stall-free: chunked
prefills of Sarathi-Serve, https://arxiv.org/abs/2403.02310; the vLLM it compares with computed whole prompts, ahead
of what decodes. vLLM's scheduler of today is stall-free, and
SGLang's with `enable_mixed_chunk`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmsys.serving.request import Request


@dataclass(frozen=True)
class Turn:
    """What one step may do."""

    compute: Sequence[Request]
    """The running requests that compute, in this order."""
    admit: bool
    """May waiting ones join, first come first served?"""
    cut: bool = True
    """May a prompt be cut where the step's tokens end? If not, only one longer than a whole step is, which then has
    the step for itself."""

    def tokens(self, remaining: int, left: int, budget: int) -> int:
        """How many of a request's `remaining` tokens to compute, where `left` of the step's `budget` are left."""
        if remaining <= left:
            return remaining
        return left if self.cut or left == budget else 0


class Policy(Protocol):
    """One for each scheduler, for it may remember what it did.

    Two attributes, which may be absent, let a simulator skip steps (`llmsys.serving.simulator.runs`). `steady = True`:
    where everything that runs decodes, and nobody can be admitted, a step computes all of it; and to have been asked
    for these turns once is as to have been asked many times. `joins = False`: nobody is admitted beside what decodes,
    though there be room.
    """

    def turns(self, running: Sequence[Request], head: Request | None, budget: int) -> Iterator[Turn]:
        """What the next step may do; each turn is asked for only if there was nothing to do in those before it.

        `running` is in the order of admission, `head` the request that would be admitted next, and `budget` the tokens
        of a step. As long as anything is running, some turn must have it in `compute`; if nothing is, one must admit.
        While a step runs, the next one is planned as if that were done, of what can be known (`Request.remaining`);
        if there is nothing to compute in any turn, turns are asked for again when it is.
        """
        ...


class Static:
    """A batch is as many requests as fit into one step, and the next one begins when all of it have ended."""

    steady, joins = True, False

    def turns(self, running: Sequence[Request], head: Request | None, budget: int) -> Iterator[Turn]:
        if not running:
            yield Turn([], admit=True, cut=False)
        if unfinished := [each for each in running if each.in_prefill]:
            yield Turn(unfinished, admit=False)
        yield Turn(running, admit=False)


class Orca:
    """Whole prompts join those that decode; one for which the step has no room beside them goes first, alone.

    What decodes waits as long as such prompts come one after the other: nothing bounds that.
    """

    steady = True

    def turns(self, running: Sequence[Request], head: Request | None, budget: int) -> Iterator[Turn]:
        if unfinished := [each for each in running if each.remaining > 1]:
            yield Turn(unfinished, admit=False)  # the rest of a prompt that is longer than a step
        elif head is not None and head.remaining > budget - len(running):
            yield Turn([], admit=True, cut=False)
        yield Turn(running, admit=True, cut=False)


class Alternating:
    """A step of prompts, a step of what decodes, and so on in turn; if there is only one kind, that kind."""

    steady = True

    def __init__(self):
        self._prompts_are_next = True

    def turns(self, running: Sequence[Request], head: Request | None, budget: int) -> Iterator[Turn]:
        prompts = Turn([each for each in running if each.in_prefill], admit=True)
        decodes = Turn([each for each in running if not each.in_prefill], admit=False)
        # What is written down before the last `yield` stands, for nobody asks on after the turn that is taken.
        for now_prompts in (self._prompts_are_next, not self._prompts_are_next):
            self._prompts_are_next = not now_prompts
            yield prompts if now_prompts else decodes


class StallFree:
    """What decodes, then pieces of prompts as far as the step's tokens go."""

    steady = True

    def turns(self, running: Sequence[Request], head: Request | None, budget: int) -> Iterator[Turn]:
        decodes, prompts = [], []
        for each in running:
            (prompts if each.in_prefill else decodes).append(each)
        yield Turn(decodes + prompts, admit=True)


POLICIES: dict[str, type] = {
    "static": Static,
    "orca": Orca,
    "alternating": Alternating,
    "stall-free": StallFree,
}
"""The policies that have a name."""


def as_policy(policy: str | Policy) -> Policy:
    """What `policy=` means: a name of POLICIES, or a policy of your own. ValueError for anything else."""
    if isinstance(policy, str) and policy in POLICIES:
        return POLICIES[policy]()
    if not isinstance(policy, str | type) and callable(getattr(policy, "turns", None)):
        return policy
    raise ValueError(f"policy must be one of {', '.join(POLICIES)}, or an object with `turns`, got {policy!r}")
