"""What the application's parts share: the engine in its event loop, who is inside, and what was counted.

A request goes this way, and whatever happens on it, `ask` ends with nothing left in the engine:

    door ──► tokens, in a thread ──► one reader for each prompt, into one queue ──► updates, choice by choice
    429      400                     400: too long                                  500, 503
    400: more answers than there is ever room for
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager

from llmsys.serving.async_engine import AsyncEngine
from llmsys.serving.engine import Engine
from llmsys.serving.responses.response import Response, Update
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.server.errors import ApiError, refused
from llmsys.serving.server.limits import Door, Limits
from llmsys.serving.server.measured import Measured
from llmsys.serving.server.token_text import TokenText

_LOGGER = logging.getLogger(__name__)


class Service:
    """One model that is served.

    Attributes
    ----------
    served : AsyncEngine or None
        From `open` on.
    draining : bool
        Nobody is let in any more.
    """

    def __init__(self, engine: Engine, name: str, limits: Limits):
        self.engine, self.name, self.limits = engine, name, limits
        self.since = int(time.time())
        self.served: AsyncEngine | None = None
        self.draining = False
        self.door = Door(limits.running + limits.waiting)
        self.measured = Measured(engine, name)
        self.text = TokenText(engine.model.tokenizer)
        # Not the loop's own threads: a step must not wait for a long text to be cut into tokens.
        self._tokenizing = ThreadPoolExecutor(2, "tokenize")

    def open(self) -> None:
        """In the event loop that serves."""
        self.served = AsyncEngine(self.engine)

    async def close(self) -> None:
        """What is under way is aborted; those who wait for it are told."""
        self.draining = True
        try:
            if self.served is not None:
                await self.served.close()
        except Exception:
            _LOGGER.exception("the engine broke")
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    @property
    def state(self) -> str:
        """ "ok", "draining", or "broken" where the engine cannot go on."""
        if self.draining:
            return "draining"
        return "broken" if self.served is None or self.served.closed or self.engine.broken else "ok"

    def check_open(self) -> None:
        """ApiError 503 where no request is taken."""
        if self.state == "draining":
            raise ApiError(503, "the server is about to stop: ask another one", headers={"Retry-After": "5"})
        if self.state == "broken":
            raise ApiError(503, "the engine is broken: the server must be started again")

    @asynccontextmanager
    async def ask(
        self, id: str, prompts: Sequence[Callable[[], list[int]]], params: SamplingParams
    ) -> AsyncIterator["Asked"]:
        """A block in which prompts are answered. At its end what has not ended is aborted.

        `prompts` make their token ids, in a thread; what they raise as ValueError is the client's to mend. ApiError
        where the request is not taken.
        """
        arrived, answers = time.perf_counter(), len(prompts) * params.n
        most = min(self.limits.answers, self.door.most)  # beyond the door's there is never room: 429 would be a lie
        if answers > most:
            what = f"n must be at most {most} for all prompts together, got {answers} answers"
            raise ApiError(400, what, param="n")
        self.check_open()
        with self.door.pass_through(answers):
            async with AsyncExitStack() as stack:
                updates: asyncio.Queue[Update] = asyncio.Queue()
                responses = []
                for number, prompt in enumerate(prompts):
                    try:
                        tokens = await asyncio.get_running_loop().run_in_executor(self._tokenizing, prompt)
                        self._check_length(tokens)
                        reading = self.served.reading(tokens, params, id=f"{id}-{number}", updates=updates)
                        responses.append((await stack.enter_async_context(reading)).response)
                    except ValueError as error:
                        raise refused(error) from None
                    except RuntimeError:  # closed meanwhile
                        self.check_open()
                        raise
                yield Asked(responses, updates, params.n, arrived, self.measured)

    def _check_length(self, tokens: Sequence[int]) -> None:
        most = self.limits.prompt_tokens
        if most is not None and len(tokens) > most:
            raise ValueError(f"prompt must have at most {most} tokens here, got {len(tokens)}: shorten it")


class Asked:
    """Prompts that are being answered: `async for choice, update in asked`."""

    def __init__(
        self, responses: list[Response], updates: asyncio.Queue[Update], n: int, arrived: float, measured: Measured
    ):
        self.responses = responses
        self._updates, self._n, self._arrived, self._measured = updates, n, arrived, measured
        self._ahead: Update | None = None  # was taken from the queue, and is another answer's
        self._prompts = {response.id: place for place, response in enumerate(responses)}

    @property
    def choices(self) -> int:
        return len(self.responses) * self._n

    async def __aiter__(self) -> AsyncIterator[tuple[int, Update]]:
        """Until the last answer has ended. ApiError where one fails, or is aborted as the server stops."""
        first, left = {}, self.choices
        while left:
            update = await self._next()
            now, place = time.perf_counter(), self._prompts[update.id]
            choice = place * self._n + update.index
            if choice not in first and update.tokens:
                first[choice] = now
                self._measured.first_token(now - self._arrived)
            if update.reason is not None:
                left -= 1
                tokens = len(self.responses[place].answers[update.index].tokens)
                self._measured.ended(update.reason, now - self._arrived, now - first.get(choice, now), tokens)
            if update.reason == "error":
                raise ApiError(500, f"this request failed: {update.error}")
            if update.reason == "abort":
                raise ApiError(503, "the server stopped before this was answered")
            yield choice, update

    async def _next(self) -> Update:
        """The next update, with those after it that are of the same answer and have come already: who falls behind, as
        the network or this process may, sends fewer pieces, and larger ones."""
        update = self._ahead or await self._updates.get()
        self._ahead = None
        while not self._updates.empty():
            more = self._updates.get_nowait()
            if (more.id, more.index) != (update.id, update.index):
                self._ahead = more
                break
            logprobs = None if update.logprobs is None else update.logprobs + more.logprobs
            text, tokens = update.text + more.text, update.tokens + more.tokens
            update = update._replace(text=text, tokens=tokens, logprobs=logprobs, reason=more.reason, error=more.error)
        return update
