"""From a request to its answer on the wire: whole, as JSON, or a piece at a time, as server-sent events.

    data: {"id": "chatcmpl-…", "choices": [{"index": 0, "delta": {"content": "Hel"}, …}]}

    data: {"id": "chatcmpl-…", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}

    data: [DONE]

A client that hangs up must not go on costing blocks and steps, streamed to or not. So while an answer is made, somebody
listens for the client's end, and then cancels it; `Service.ask` aborts what is in the engine. A client that reads
slowly is waited for by its own answer alone: the engine goes on, and what it says waits in the request's queue.

An error before the first byte has a status of its own. Later there is none left to give, so it is an event, which
clients of OpenAI's raise as an error.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.server.errors import ApiError
from llmsys.serving.server.replies import Reply, as_json
from llmsys.serving.server.service import Asked, Service

_LOGGER = logging.getLogger(__name__)

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy must not wait until it has more
]
ALL = b"data: [DONE]\n\n"


class Answering(Response):
    """The answer to one request, made while it is sent: what fails before that is raised, as an `ApiError`."""

    def __init__(
        self,
        service: Service,
        reply: Reply,
        prompts: Sequence[Callable[[], list[int]]],
        params: SamplingParams,
        *,
        stream: bool,
        include_usage: bool,
    ):
        super().__init__()
        self._service, self._reply, self._prompts, self._params = service, reply, prompts, params
        self._stream_it, self._include_usage = stream, include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_hung_up(self._answer(scope, receive, send), receive)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._service.ask(self._reply.id, self._prompts, self._params) as asked:
            if self._stream_it:
                return await self._stream(asked, send)
            async for _ in asked:
                pass
        whole = Response(as_json(self._reply.whole(asked.responses)), media_type="application/json")
        await whole(scope, receive, send)

    async def _stream(self, asked: Asked, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        try:
            for choice in range(asked.choices):
                await self._say(send, self._reply.opening(choice))
            async for choice, update in asked:
                await self._say(send, self._reply.piece(choice, update))
            if self._include_usage:
                await self._say(send, self._reply.closing(asked.responses))
        except Exception as error:
            if not isinstance(error, ApiError):
                _LOGGER.exception("a stream failed")
                error = ApiError(500, "this request failed, as the server's log says")
            await send(_event(error.json().encode()))
        await send({"type": "http.response.body", "body": ALL, "more_body": False})

    async def _say(self, send: Send, chunk: dict[str, Any] | None) -> None:
        if chunk is not None:
            await send(_event(as_json({"usage": None} | chunk if self._include_usage else chunk)))


def _event(data: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: %b\n\n" % data, "more_body": True}


async def unless_hung_up(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Does the work, or as much of it as the client waits for. The request's body must have been read."""
    task, listening = asyncio.create_task(work), asyncio.create_task(_hang_up(receive))
    try:
        await asyncio.wait([task, listening], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in (task, listening):
            each.cancel()
        # Until both have cleaned up; their results are looked at below.
        await asyncio.wait([task, listening])
    if not task.cancelled():
        task.result()


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
