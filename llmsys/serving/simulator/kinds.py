"""What the four named policies do, for who does not want to look at each request that decodes.

A `Policy` is given every running request, and answers with those that compute. Of all four it is true that those that
decode compute all together or not at all, so here they are a number. What is said is the same (a test compares), and a
policy of your own, which may want to look at each, is asked as ever.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from llmsys.serving.policies import Alternating, Orca, Policy, StallFree, Static, Turn
from llmsys.serving.request import Request


class KindTurn(NamedTuple):
    """A `Turn`, of which all that decodes is part, or none."""

    decodes: bool
    prompts: Sequence[Request]
    admit: bool
    cut: bool = True
    decodes_first: bool = False  #  or in the order of admission

    def as_turn(self) -> Turn:
        """What it says of those that do not decode."""
        return Turn(self.prompts, self.admit, self.cut)


def is_known(policy: Policy) -> bool:
    """Whether `kind_turns` can say what it does."""
    return type(policy) in _BY_KIND


def kind_turns(
    policy: Policy, decoding: int, prompts: Sequence[Request], head: Request | None, budget: int
) -> Iterator[KindTurn]:
    """As `policy.turns`: how many requests decode, and those that compute prompts, in the order of admission."""
    return _BY_KIND[type(policy)](policy, decoding, prompts, head, budget)


def _static(policy, decoding, prompts, head, budget):
    if not decoding and not prompts:
        yield KindTurn(False, (), admit=True, cut=False)
    if prompts:
        yield KindTurn(False, prompts, admit=False)
    yield KindTurn(True, prompts, admit=False)


def _orca(policy, decoding, prompts, head, budget):
    if unfinished := [each for each in prompts if each.remaining > 1]:
        yield KindTurn(False, unfinished, admit=False)
    elif head is not None and head.remaining > budget - decoding - len(prompts):
        yield KindTurn(False, (), admit=True, cut=False)
    yield KindTurn(True, prompts, admit=True, cut=False)


def _alternating(policy, decoding, prompts, head, budget):
    for now_prompts in (policy._prompts_are_next, not policy._prompts_are_next):
        policy._prompts_are_next = not now_prompts
        yield KindTurn(False, prompts, admit=True) if now_prompts else KindTurn(True, (), admit=False)


def _stall_free(policy, decoding, prompts, head, budget):
    yield KindTurn(True, prompts, admit=True, decodes_first=True)


_BY_KIND = {Static: _static, Orca: _orca, Alternating: _alternating, StallFree: _stall_free}
