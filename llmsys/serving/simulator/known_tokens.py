"""A request of a simulation, whose tokens nobody writes down one by one.

A workload says of a prompt how many tokens it has and what it begins with, as a key for each BLOCK of them (`Arrival`);
which ids these are changes nothing. So a prompt of 12,000 tokens is kept as 24 keys, and an answer as its length. A
queue of half a million requests then fits into memory, and to see whether two prompts begin alike is to compare keys.

`KnownTokens` is a sequence all the same: whoever looks at its tokens one by one sees those that `prompt_tokens` says.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmsys.serving.request import Request
from llmsys.serving.workload.arrivals import ALONE, BLOCK, Arrival

SAID = 1 << 50
"""Tokens that a simulated device says are from here on, in no prompt."""
Run = tuple[int, int]
"""A token, and how often it stands there."""


class KnownTokens(Sequence):
    """The tokens that are known of a request: those of a prompt, and as many as were said, all of which are alike.

    Parameters
    ----------
    keys
        Each the token of BLOCK places of the prompt; the last one of all the rest.
    prompt
        The prompt's tokens.
    said
        How many were said so far.
    token
        Which stands for each of these, whatever is appended.
    """

    __slots__ = ("keys", "prompt", "said", "token")

    def __init__(self, keys: Sequence[int], prompt: int, said: int = 0, token: int = SAID):
        self.keys, self.prompt, self.said, self.token = keys, prompt, said, token

    def __len__(self) -> int:
        return self.prompt + self.said

    def __getitem__(self, place):
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return [token for token, count in self.runs(start, stop) for _ in range(count)][::step]
        if not -len(self) <= place < len(self):
            raise IndexError(f"place must be below {len(self)}, got {place}")
        place %= len(self)
        return self.token if place >= self.prompt else self.keys[min(place // BLOCK, len(self.keys) - 1)]

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])

    def __iadd__(self, tokens: Sequence[int]) -> "KnownTokens":
        self.said += len(tokens)
        return self

    def append(self, token: int) -> None:
        self.said += 1

    def copy(self) -> "KnownTokens":
        return KnownTokens(self.keys, self.prompt, self.said, self.token)

    def runs(self, start: int, stop: int) -> tuple[Run, ...]:
        """The tokens of these places: each run of equal ones as (token, how many). Two pieces are equal if their runs
        are."""
        keys, prompt, last = self.keys, self.prompt, len(self.keys) - 1
        first = start // BLOCK
        if stop <= prompt and (first >= last or stop <= (first + 1) * BLOCK):
            return ((keys[min(first, last)], stop - start),) if stop > start else ()
        found: list[Run] = []
        while start < stop:
            if start >= prompt:
                token, end = self.token, stop
            else:
                i = min(start // BLOCK, last)
                token, end = keys[i], min(stop, prompt if i == last else (i + 1) * BLOCK)
            if found and found[-1][0] == token:
                found[-1] = token, found[-1][1] + end - start
            else:
                found.append((token, end - start))
            start = end
        return tuple(found)


@dataclass(eq=False)
class SimulatedRequest(Request):
    """A request whose prompt is a `KnownTokens`."""

    def __post_init__(self):
        self.tokens = self.prompt.copy()


def known_prompt(arrival: Arrival, number: int) -> KnownTokens:
    """The prompt that is the `number`-th of its workload; as a sequence it is `prompt_tokens(arrival, number)`.

    ValueError where it has no token, or not a key for each BLOCK of them.
    """
    if arrival.prompt < 1:
        raise ValueError(f"prompt must have at least one token, got {arrival.prompt}")
    if arrival.blocks and len(arrival.blocks) != -(-arrival.prompt // BLOCK):
        raise ValueError(
            f"blocks must be one for each {BLOCK} tokens of a prompt of {arrival.prompt}: "
            f"{-(-arrival.prompt // BLOCK)}, got {len(arrival.blocks)}"
        )
    return KnownTokens(arrival.blocks or (ALONE + number,), arrival.prompt, token=SAID + number)
