"""The engine for many who ask at once: each awaits its own answer, and one task takes the steps for all.

    async with AsyncEngine(Engine(load_model())) as served:
        async for update in served.stream("Tell me a story."):
            print(update.text, end="", flush=True)
        responses = await asyncio.gather(*(served.generate(prompt) for prompt in prompts))

A step blocks, so it runs in a thread, and the event loop goes on: new requests are taken and pieces of text sent while
the model computes. The thread takes one step after the other, and does not wait until all has been sent that a step
said: of a loop that falls behind, readers get more at a time. But an engine may be used by one thread at a time, so who
comes waits for the step's end at a lock, first come first served, and the thread lets go of the engine when somebody
waits. Aborting waits for nothing: it is written down, and done before the next step, for whoever hung up does not wait.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from llmsys.models.text.prompt import Prompt
from llmsys.serving.engine import Engine
from llmsys.serving.responses.response import Response, Update
from llmsys.serving.sampling.sampling_params import SamplingParams


@dataclass(eq=False)
class Reader:
    """Who reads a response, or waits until it can be added."""

    id: str | None
    response: Response | None = None  #  once it is
    updates: asyncio.Queue[Update] = field(default_factory=asyncio.Queue)
    hung_up: bool = False

    async def __aiter__(self) -> AsyncIterator[Update]:
        """What is added to the answers, until the last has ended."""
        left = len(self.response.answers)
        while left:
            update = await self.updates.get()
            left -= update.reason is not None
            yield update


class AsyncEngine:
    """An engine in one event loop. Nobody else may use the engine meanwhile.

    A step that raises fails its requests, whose answers then have an `error`, and the service goes on. An event loop
    that ends closes it: another loop takes another `AsyncEngine`, which may have the same engine.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        self._lock = asyncio.Lock()  # who has it may touch the engine
        self._work = asyncio.Event()  # there is something to do
        self._said: deque[Update] = deque()  # by steps, and not passed on yet
        self._told = 0  # how many updates there were
        self._readers: dict[str, Reader] = {}  # by their responses' ids
        self._coming: list[Reader] = []
        self._hung_up: list[Reader] = []  # whose responses are to be aborted
        self._task: asyncio.Task | None = None
        self._closed = False

    async def __aenter__(self) -> "AsyncEngine":
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """It takes no more prompts: it was closed, its event loop has ended, or its engine is broken."""
        return self._closed

    async def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, id: str | None = None, salt: str | None = None
    ) -> AsyncIterator[Update]:
        """The answers to a prompt, a piece at a time. Closing or cancelling it aborts the request.

        Arguments and errors as for `Engine.add`, at the first piece.
        """
        async with self.reading(prompt, params, id=id, salt=salt) as reader:
            async for update in reader:
                yield update

    async def generate(
        self, prompt: Prompt, params: SamplingParams | None = None, *, id: str | None = None, salt: str | None = None
    ) -> Response:
        """The whole response. Cancelling it aborts the request. Arguments and errors as for `Engine.add`."""
        async with self.reading(prompt, params, id=id, salt=salt) as reader:
            async for _ in reader:
                pass
        return reader.response

    @asynccontextmanager
    async def reading(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        id: str | None = None,
        salt: str | None = None,
        updates: asyncio.Queue[Update] | None = None,
    ) -> AsyncIterator[Reader]:
        """A block with somebody who reads: `async for update in reader`, and `reader.response`, which grows meanwhile.
        When the block ends, what has not ended is aborted.

        `updates` may be a queue that several readers share: then read the queue itself. Other arguments and errors as
        for `Engine.add`, before the block begins.
        """
        reader = Reader(id) if updates is None else Reader(id, updates=updates)
        await self._add(reader, prompt, params, salt)
        try:
            yield reader
        finally:
            if self._readers.get(reader.id) is reader:  # another one's may have its id, if it has ended
                del self._readers[reader.id]
            if not reader.response.finished:
                self._hang_up(reader)

    def abort(self, id: str) -> None:
        """Ends a response before the next step; its reader gets what there is, with the reason "abort". Nothing where
        there is none of that id."""
        for reader in (self._readers.get(id), *self._coming):
            if reader is not None and reader.id == id:
                self._hang_up(reader)

    async def close(self) -> None:
        """Aborts what is under way, and ends the task. Raises what broke the engine, if anything did."""
        self._closed = True
        self._work.set()
        if self._task is not None:
            await self._task

    async def _add(self, reader: Reader, prompt, params, salt) -> None:
        if self._closed:
            raise RuntimeError("this engine has been closed: make a new AsyncEngine")
        if self._task is None:
            self._task = asyncio.create_task(self._serve())
        self._coming.append(reader)
        try:
            async with self._lock:
                if self._closed:  # while it waited
                    raise RuntimeError("this engine has been closed: make a new AsyncEngine")
                reader.response = self.engine.add(prompt, params, id=reader.id, salt=salt, listener=self._tell)
                reader.id = reader.response.id
                self._readers[reader.id] = reader
        finally:
            self._coming.remove(reader)
        if reader.hung_up:
            self._hang_up(reader)
        self._work.set()

    def _hang_up(self, reader: Reader) -> None:
        reader.hung_up = True
        if reader.response is not None:
            self._hung_up.append(reader)
            self._work.set()

    async def _serve(self) -> None:
        """Steps, as long as there is something to do; else waits for it."""
        broken = None
        try:
            while not self._closed:
                await self._work.wait()
                async with self._lock:
                    self._abort_hung_up()
                    if self.engine.has_unfinished and not self._closed:
                        try:
                            await asyncio.to_thread(self._steps, asyncio.get_running_loop())
                        except Exception as error:
                            broken, self._closed = error, True
                    elif not self._hung_up:
                        self._work.clear()
                    self._pass_on()
                await asyncio.sleep(0)  # to who waits for the lock, and to readers
        finally:  # also where the event loop ends, and cancels this while a step goes on: then `abort` waits for it
            self._closed = True
            async with self._lock:
                self._hung_up += self._readers.values()
                self._abort_hung_up()
                self._pass_on()
        if broken is not None:
            raise broken

    def _steps(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: at least one step, and more while nobody else wants the engine."""
        while True:
            told = self._told
            try:
                self.engine.step()
            except Exception:
                if self._told == told:  # else its requests have failed, and say so
                    raise
            if self._coming or self._hung_up or self._closed or not self.engine.has_unfinished:
                return
            loop.call_soon_threadsafe(self._pass_on)

    def _tell(self, update: Update) -> None:
        self._said.append(update)
        self._told += 1

    def _abort_hung_up(self) -> None:
        while self._hung_up:
            response = self._hung_up.pop().response
            if not response.finished:  # else its id may be another one's by now
                self.engine.abort(response.id)

    def _pass_on(self) -> None:
        while self._said:
            update = self._said.popleft()
            if reader := self._readers.get(update.id):
                reader.updates.put_nowait(update)
