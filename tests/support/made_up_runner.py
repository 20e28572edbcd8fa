"""A runner without a model, for the tests of whoever plans steps.

Its next token is a pure function of all tokens before it, so whatever the schedule, a request must get the same ones.
It does not take these tokens from the request, though: like a model, it knows of a step's earlier tokens only what lies
in the blocks that the plan names. A slot holds what keys and values depend on, the salt and all tokens up to its own.
A place-holder it fills with what it drew for that request in the step before, as it would have been without a limit on
what it accepts.
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from llmsys.cache import AnyCopy, Copy, CopyIn, CopyOut
from llmsys.serving.plan import PLACEHOLDER, Output, StepPlan, StepResult, TokenLogprobs, Work
from llmsys.serving.request import Request

EOS = 7  # of the tokens 0 to 7
POISON = "not finite"
NOT_FINITE = "the logits are not finite"


def next_token(tokens: tuple[int, ...], seed: int | None = None) -> int:
    return hashlib.blake2b(repr((tokens, seed)).encode(), digest_size=1).digest()[0] % 8


def expected_tokens(request: Request, room: int) -> tuple[list[int], str]:
    """All tokens that the request ends with, and why it ends, computed alone; `room` for so many tokens in all."""
    sampling, tokens = request.sampling, list(request.prompt)
    limit = room if sampling.max_tokens is None else min(room, len(tokens) + sampling.max_tokens)
    while True:
        tokens.append(next_token(tuple(tokens), sampling.seed))
        if tokens[-1] in sampling.stop_token_ids or (tokens[-1] == EOS and not sampling.ignore_eos):
            return tokens, "stop"
        if len(tokens) == limit:
            return tokens, "length"


class MadeUpRunner:
    """Runs plans on a made-up memory, and looks at all that a plan says.

    Parameters
    ----------
    salts
        Of the requests that have one.
    accept
        Of `right` tokens that it could say of a work, how many does it? (0 to right.) None: all.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        salts: Mapping[str, str] | None = None,
        accept: Callable[[Work, int], int] | None = None,
    ):
        self.block_size, self.salts = block_size, {} if salts is None else salts
        self.accept = accept or (lambda work, right: right)
        self.memory: list[list] = [[None] * block_size for _ in range(num_blocks)]
        self.on_host: dict[int, list] = {}  # by slot
        self.poisoned: set[str] = set()  # requests of which something was not finite
        self.drawn: dict[str, int] = {}  # in the last step, by request
        self.filled = 0  # place-holders so far

    def __call__(self, plan: StepPlan, poison: str | None = None) -> StepResult:
        """The plan's result. What is computed of the request `poison` in this step is not finite."""
        plan = pickle.loads(pickle.dumps(plan))  # as if the runner were another process
        assert plan.work and len({work.request for work in plan.work}) == len(plan.work)
        self.copy(plan.copies)
        for request in plan.ended:
            self.drawn.pop(request, None)
        plan = replace(plan, work=tuple(map(self._filled, plan.work)))
        self.drawn = {}
        written: set[tuple[int, int]] = set()
        for work in plan.work:
            self._write(work, poison == work.request, written)
        outputs = [output for work in plan.work if (output := self._output(work)) is not None]
        return pickle.loads(pickle.dumps(StepResult(plan.step, tuple(outputs))))

    def copy(self, copies: Sequence[AnyCopy]) -> None:
        for copy in copies:
            if isinstance(copy, CopyOut):
                assert copy.block > 0
                self.on_host[copy.slot] = list(self.memory[copy.block])
            elif isinstance(copy, CopyIn):
                assert copy.block > 0
                self.memory[copy.block] = list(self.on_host[copy.slot])
            else:
                assert isinstance(copy, Copy) and 0 not in copy
                self.memory[copy.target] = list(self.memory[copy.source])

    def break_down(self, plan: StepPlan, copies: int) -> StepResult:
        """The plan's step raises after so many of its copies."""
        self.copy(plan.copies[:copies])
        self.drawn = {}
        self.poisoned |= {work.request for work in plan.work}
        return StepResult(plan.step, tuple(Output(work.request, error=NOT_FINITE) for work in plan.work))

    def _filled(self, work: Work) -> Work:
        if PLACEHOLDER not in work.tokens:
            return work
        assert work.tokens == (PLACEHOLDER,) and work.logits == 1, "what is unknown is the newest token, and alone"
        self.filled += 1
        return work._replace(tokens=(self.drawn[work.request],))

    def _slot(self, work: Work, place: int) -> tuple[int, int]:
        return work.blocks[place // self.block_size], place % self.block_size

    def _prefix(self, work: Work, length: int):
        """What the cache holds of the first `length` tokens: (salt, tokens), or POISON."""
        assert len(work.blocks) * self.block_size >= work.end and 0 not in work.blocks
        before = (self.salts.get(work.request), ())
        for place in range(length):
            block, i = self._slot(work, place)
            held = self.memory[block][i]
            if held == POISON:
                assert work.request in self.poisoned, f"{work.request} reads what another one computed wrongly"
                return POISON
            assert held is not None and (held[0], held[1][:-1]) == before, f"{work.request}: place {place} is another's"
            before = held
        return before

    def _write(self, work: Work, poison: bool, written: set[tuple[int, int]]) -> None:
        assert work.tokens and 0 <= work.logits <= len(work.tokens)
        if poison:
            self.poisoned.add(work.request)
        before = self._prefix(work, work.computed)
        for place, token in enumerate(work.tokens, work.computed):
            slot = self._slot(work, place)
            assert slot not in written, "two tokens of a step are written to one slot"
            written.add(slot)
            before = POISON if poison or before == POISON else (before[0], (*before[1], token))
            self.memory[slot[0]][slot[1]] = before

    def _output(self, work: Work) -> Output | None:
        held = self._prefix(work, work.end)  # after all that this step wrote
        if not work.logits:
            return None
        if held == POISON:
            self.drawn[work.request] = 0
            return Output(work.request, error=NOT_FINITE)
        tokens, known = [], held[1][: work.end - len(work.guesses)]
        for guess in (*work.guesses, None):
            tokens.append(next_token((*known, *tokens), work.sampling.seed))
            if tokens[-1] != guess:
                break
        self.drawn[work.request] = tokens[0]
        tokens = tokens[: self.accept(work, len(tokens))]
        wanted = work.sampling.logprobs is not None
        return Output(work.request, tuple(tokens), tuple(TokenLogprobs(-float(t)) for t in tokens) if wanted else None)
