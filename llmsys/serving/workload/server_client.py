"""A server somewhere, asked over the network: `llmsys serve`, or any other with OpenAI's /v1/completions.

    async with ServerClient("http://127.0.0.1:8000") as client:
        replayed = await replay(workload, client, vocab=49_152)
    goodput(replayed.requests, Limits(ttft=1.0, tpot=0.05))

A prompt is sent as token ids, the answer is streamed, and a chunk's time is when its bytes were read here. What a token
needs on the way, and the server's own work with text and JSON, is in these times; in an `EngineClient`'s it is not.

**A chunk is not a token.** A server sends text: a token that is half a character, or has no text, comes with the next
one that has, and a server or network that falls behind puts several into one piece. So the server is asked how many
tokens there were (`stream_options.include_usage`), and those for which there was no chunk are counted with the last
one. So the number of tokens is exact; TTFT is the time to the first text, TPOT goes from there to the last chunk, and
the longest gap is one between chunks.

**A request is sent once.** One that is refused (429 as well), whose connection breaks, or that hangs until `timeout`,
raises a `ServerError`, which `replay` keeps among its errors: it is a failed request, and the others go on.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 2.0
"""A connection is used again within that. Servers close idle ones after 5 s or more (uvicorn's default is 5), and a
request that is sent just then would fail."""


class ServerError(Exception):
    """The server cannot be reached, refuses, or breaks off. `status` is its HTTP status; None where there is none."""

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status


class ServerClient:
    """Asks a server, as many requests at a time as there are: a connection each. To be used as an `async with` block,
    which begins by asking who is there: ServerError where nobody answers, or not with OpenAI's API.

    Parameters
    ----------
    url
        With or without /v1 at its end. ValueError where it is none of http or https.
    model
        As the server calls it; None for the first that it names.
    api_key
        Goes into each request as a bearer token.
    ignore_eos
        That answers have the length that was asked for. False for servers that do not know it: an answer that ends by
        itself is then a failed one.
    timeout
        Seconds without a byte after which a request has failed; None for never.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        api_key: str | None = None,
        temperature: float = 0.0,
        ignore_eos: bool = True,
        timeout: float | None = 600.0,
    ):
        if not _is_http(url):
            raise ValueError(f"url must be one of http or https, like http://127.0.0.1:8000, got {url!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be seconds above 0, or None, got {timeout!r}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self._headers = {"Accept-Encoding": "identity"}  # what is packed may be held back until it is worth it
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._options: dict[str, Any] = {"temperature": temperature} | ({"ignore_eos": True} if ignore_eos else {})
        self._timeout = timeout
        self._http = None

    async def __aenter__(self) -> "ServerClient":
        http = _httpx()
        self._http = http.AsyncClient(
            headers=self._headers,
            limits=http.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=IDLE_SECONDS),
            timeout=http.Timeout(self._timeout, connect=CONNECT_SECONDS, pool=None),
        )
        try:
            first = await self._first_model()
        except BaseException:
            await self._http.aclose()
            raise
        self.model = first if self.model is None else self.model
        return self

    async def __aexit__(self, *raised) -> None:
        await self._http.aclose()

    async def submit(self, prompt: Sequence[int], *, max_tokens: int) -> list[float]:
        """As `Client.submit`. ServerError for whatever went wrong."""
        body = self._options | {
            "model": self.model, "prompt": list(prompt), "max_tokens": max_tokens,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        loop, stream, rest = asyncio.get_running_loop(), _Stream(), b""
        async with self._ask("POST", "/v1/completions", json=body) as answer:
            async for piece in answer.aiter_bytes():
                now = loop.time()
                # Not httpx's lines: it also cuts at characters that end a line in a text, and JSON may hold such.
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    stream.take(line, now)
        return stream.times()

    async def _first_model(self) -> str:
        async with self._ask("GET", "/v1/models") as answer:
            text = await answer.aread()
        try:
            return json.loads(text)["data"][0]["id"]
        except (ValueError, LookupError, TypeError):
            raise ServerError(f"{self.url}/v1/models names no model: does it have OpenAI's API?") from None

    @asynccontextmanager
    async def _ask(self, method: str, path: str, **more) -> AsyncIterator[Any]:
        """A block with an answer that has begun, with status 200. What goes wrong in it becomes a ServerError."""
        if self._http is None:
            raise RuntimeError("a ServerClient asks within its block alone: async with ServerClient(url) as client")
        http = _httpx()
        try:
            async with self._http.stream(method, self.url + path, **more) as answer:
                if answer.status_code != 200:
                    raise ServerError(_refusal(answer.status_code, await answer.aread()), answer.status_code)
                yield answer
        except (http.ConnectError, http.ConnectTimeout) as error:
            why = str(error) or f"no connection within {CONNECT_SECONDS:g} s"
            raise ServerError(f"nobody answers at {self.url} ({why}): does the server run, and there?") from None
        except http.TimeoutException:
            raise ServerError(f"the server hung: not a byte came in {self._timeout:g} s") from None
        except (http.HTTPError, http.InvalidURL) as error:
            raise ServerError(f"the connection to {self.url} broke: {str(error) or type(error).__name__}") from None


class _Stream:
    """What has come of an answer so far."""

    def __init__(self):
        self.chunks: list[float] = []
        self.tokens: int | None = None
        self.whole = False

    def take(self, line: bytes, now: float) -> None:
        """One of server-sent events: a chunk, an error, or that this is all."""
        if not line.startswith(b"data:"):
            return
        if (data := line[5:].strip()) == b"[DONE]":
            self.whole = True
            return
        try:
            event = json.loads(data)
            if error := event.get("error"):
                raise ServerError(f"the server broke off: {error['message']}")
            if event.get("choices"):
                self.chunks.append(now)
            if event.get("usage"):
                self.tokens = event["usage"]["completion_tokens"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ServerError(f"the server sent what is no chunk of OpenAI's API: {data[:60]!r}") from None

    def times(self) -> list[float]:
        """One for each token. A closing chunk that has none is not counted."""
        if not self.whole:
            raise ServerError("the connection ended before the answer did")
        if self.tokens is None:
            raise ServerError("the server did not say how many tokens there were: it must know include_usage")
        return (self.chunks + self.chunks[-1:] * (self.tokens - len(self.chunks)))[: self.tokens]


def _refusal(status: int, body: bytes) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}, and not in the form of OpenAI's errors: {body[:60]!r}"


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port above 65535, brackets that do not close
        return False


def _httpx():
    """Imported when it is needed: engines are replayed against without the serving extra."""
    try:
        import httpx2
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        what = 'ServerClient needs httpx2, which is missing: pip install "llmsys[serving]"'
        raise ModuleNotFoundError(what, name="httpx2") from None
    return httpx2
