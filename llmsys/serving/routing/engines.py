"""What is known of the engines among which one is chosen, and what chooses.

    def fewest_tokens(request, engines):
        return min(range(len(engines)), key=engines.held.__getitem__)

A **route** is given a request and the engines of one kind that may have it, and answers with the number of one of them.
It is asked once for each engine that a request needs, where there are several: for one where engines do all of a
request (`both`), for one that computes its prompt (`prefill`) and one that goes on from there (`decode`) where they are
divided, in no promised order. An engine that has died is not among them, so numbers may change from one time to the
next, and names do not.

What is known stands in **columns**, the i-th entry of each for the i-th engine, so that to choose among hundreds of
engines is a `min` over a list that somebody keeps, and not the making of hundreds of objects. How much of the prompt
each has cached costs a search, which is done when the first one asks for `hits`, and not at all for a route that does
not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmsys.serving.request import Request

KINDS = ("both", "prefill", "decode")


@dataclass(frozen=True)
class Engines:
    """Engines of one kind, from which one is to be chosen for one request. Good for the time of that choice."""

    kind: str
    """What is wanted of the engine: one of KINDS."""
    names: Sequence[str]
    queued: Sequence[int]
    """Tokens with which the requests came that it was given and that have not had a token from it: what it still has to
    compute before a new prompt's turn, hits not taken off. Of an engine that decodes, those that wait to be sent."""
    held: Sequence[int]
    """Tokens with which all requests came that it was given and has not done with."""
    room: Sequence[int]
    """Tokens that its cache has slots for."""
    block_size: int
    """Tokens in a block of its cache."""
    find: Callable[[], Sequence[int]] | None = None
    """How many of the request's tokens each has cached; None: nobody looks for prefixes."""

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def hits(self) -> Sequence[int]:
        """Of the request's tokens, those that are in each one's cache, as far as is known: whole blocks."""
        return [0] * len(self) if self.find is None else self.find()


Route = Callable[[Request, Engines], int]
"""A request, and the engines that may have it → the number of one of them, from 0 on."""
