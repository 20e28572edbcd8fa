"""A plan in arrays: what the host knows of a step.

    step = HostStep(plan, rows, block_size)
    step.row, step.computed, step.lengths, step.wanted     (S,)   of each work
    step.tokens, step.positions, step.slots                (N,)   of each token, where it stands and where it is kept
    step.owner, step.temperature, step.seed, step.u        (L,)   of each row of logits: whose it is, how it is drawn

All of it is NumPy, over all works at once: while the device computes a step of 256 sequences in a few milliseconds, the
host has to be done with the next one.
"""

from functools import cached_property, lru_cache
from itertools import chain

import numpy as np

from llmsys.cache import Chunk, batch_of
from llmsys.serving.plan import PLACEHOLDER, StepPlan, Work
from llmsys.serving.runner.rows import Rows
from llmsys.serving.sampling.sampler import Draw, uniform


class HostStep:
    """The arrays of a plan, int64. As it is made, the rows are brought up to date.

    Attributes
    ----------
    row
        (S,), of each work (`Rows`).
    starts, ends, seq_lens
        (S,): where its tokens begin and end among the step's, and how many keys it has then.
    logits : int
        L.
    hidden : bool
        There are place-holders.
    one_each : bool
        Of every work the logits of one token are wanted.
    decode : bool
        And every work is one token.
    special
        Which rows of logits need more than a temperature. All others are drawn in two launches (`draw_tokens`).

    Raises
    ------
    ValueError
        A work does not hold together, two tokens would be written to one slot, or a place-holder stands for what nobody
        has drawn. Says which.
    """

    def __init__(self, plan: StepPlan, rows: Rows, block_size: int):
        works = plan.work
        if not works:
            raise ValueError(f"the plan of step {plan.step} must have work: a step of no tokens computes nothing")
        self.row = rows.take(plan)
        lengths = [len(work.tokens) for work in works]
        computed = [work.computed for work in works]
        wanted = [work.logits for work in works]
        held = [len(work.blocks) for work in works]
        known = list(chain.from_iterable([work.tokens for work in works]))
        S, N = len(works), len(known)
        self.longest, self.held = max(lengths), max(held)
        self.computed, self.wanted = _array(computed, S), _array(wanted, S)
        self.tokens = np.array(known)
        single = min(lengths) == self.longest == 1
        if single:
            self.lengths = _ones(S)
            self.positions, row = self.computed, self.row
        else:
            self.lengths = _array(lengths, S)
            self.positions = np.repeat(self.computed - self.starts, self.lengths) + np.arange(N)
            row = np.repeat(self.row, self.lengths)
        self.seq_lens = self.computed + self.lengths
        if min(computed) < 0 or min(lengths) < 1 or min(wanted) < 0 or self.tokens.dtype.kind != "i":
            raise _why(works, block_size)
        if (self.seq_lens > _array(held, S) * block_size).any() or (self.wanted > self.lengths).any():
            raise _why(works, block_size)
        self.hidden = min(known) < 0
        if self.hidden:
            self._check_hidden(works, rows)
        block, place = np.divmod(self.positions, block_size)
        self.slots = rows.host[row, block] * np.int64(block_size) + place
        if N > 1 and _any_twice(self.slots):
            raise _why(works, block_size)
        self.one_each = min(wanted) == max(wanted) == 1
        self.decode = self.one_each and single
        self._say_how_to_draw(rows)

    def _say_how_to_draw(self, rows: Rows) -> None:
        row, self.place = self.row, self.seq_lens
        if not self.one_each:
            first = self.seq_lens - self.wanted + 1 - (self.wanted.cumsum() - self.wanted)
            self.place = first[self.owner] + np.arange(len(self.owner))
            row = row[self.owner]
        self.logits = len(row)
        self.temperature, self.seed = rows.temperature[row], rows.seed[row]
        self.special = rows.special[row].nonzero()[0]

    @cached_property
    def u(self) -> np.ndarray:
        return uniform(self.seed, self.place) if self.temperature.any() else np.zeros(self.logits)

    @cached_property
    def ends(self) -> np.ndarray:
        return self.lengths.cumsum()

    @property
    def starts(self) -> np.ndarray:
        return self.ends - self.lengths

    @cached_property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.row)), self.wanted)

    @property
    def logits_indices(self) -> np.ndarray:
        """(L,), of the tokens after which one is drawn."""
        return np.repeat(self.ends - self.wanted.cumsum(), self.wanted) + np.arange(self.logits)

    def draws(self, works: tuple[Work, ...]) -> list[Draw]:
        """How the token of each special row is chosen."""
        asked = zip(self.owner[self.special].tolist(), self.place[self.special].tolist(), strict=True)
        return [Draw(works[i].sampling, place, works[i].sampling.seed or 0) for i, place in asked]

    def _check_hidden(self, works: tuple[Work, ...], rows: Rows) -> None:
        last = self.tokens[self.ends - 1] == PLACEHOLDER
        if last.sum() < (self.tokens < 0).sum():
            wrong = next(i for i, work in enumerate(works) if min(work.tokens[:-1], default=0) < 0 or
                         work.tokens[-1] < PLACEHOLDER)  # fmt: skip
            raise ValueError(
                f"work of {works[wrong].request!r} must have token ids, the last of them a place-holder "
                f"({PLACEHOLDER}) at most, got {works[wrong].tokens}"
            )
        if not rows.known[self.row[last]].all():
            wrong = next(i for i in last.nonzero()[0] if not rows.known[self.row[i]])
            raise ValueError(
                f"work of {works[wrong].request!r} has a place-holder, and in the step before no token was drawn for it"
            )
        self.filled = last.nonzero()[0]  # works


def _array(numbers: list[int], count: int) -> np.ndarray:
    return np.fromiter(numbers, np.int64, count)  # half of the time that np.array takes


@lru_cache(maxsize=16)
def _ones(count: int) -> np.ndarray:
    return np.ones(count, np.int64)


def _any_twice(numbers: np.ndarray) -> bool:
    ordered = np.sort(numbers)
    return bool((ordered[1:] == ordered[:-1]).any())


def _why(works: tuple[Work, ...], block_size: int) -> ValueError:
    """What is wrong with the works, in the words of `batch_of`, which looks at each."""
    known = [tuple(max(token, 0) for token in work.tokens) for work in works]
    chunks = [Chunk(t, work.computed, work.blocks, logits=work.logits) for t, work in zip(known, works, strict=True)]
    try:
        batch_of(chunks, block_size=block_size)
    except ValueError as error:
        return error
    return ValueError("work must have whole numbers as tokens")
