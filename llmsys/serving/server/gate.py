"""Who is let in, before anything of what they say is read for its meaning; and that a body is read within limits.

**A key**, where the server has one, is compared in constant time, so that nobody finds it letter by letter. Open
without it are the page (which asks for it), its files, and /health.

**Other sites' pages.** Whoever runs the server on their own machine also has a browser there, and any page may make
that browser send requests to 127.0.0.1. Two rules stop this. A body must be called application/json, which a page may
send to another site only if that site agrees, and this one does not. And a name of another site that its owner has made
to mean 127.0.0.1 is refused: where nobody needs a key, the host that was asked for must be one of `hosts`.

**A body** is read whole, up to a length and within a time, so a client that sends a byte a minute holds a socket for
half a minute, and nothing else. What is too long is read on for a while, and thrown away: a client that is still
sending does not see an answer that closes its connection.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmsys.serving.server.errors import ApiError
from llmsys.serving.server.service import Service

OPEN = ("/", "/page.css", "/page.js", "/health")
PATHS = (*OPEN, "/v1/completions", "/v1/chat/completions", "/v1/models", "/metrics", "/engine", "/openapi.json")
THROWN_AWAY = 16
"""So many times as long as a body may be, what follows is read on."""


class Gate:
    """An ASGI application around another one.

    Parameters
    ----------
    api_key
        None: nobody needs one.
    hosts
        Names of this server by which it may be asked where there is no key. None: any.
    """

    def __init__(self, app: ASGIApp, service: Service, *, api_key: str | None, hosts: Collection[str] | None):
        self._app, self._service, self._hosts = app, service, hosts
        self._key = None if api_key is None else _digest(api_key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the lifespan
            return await self._app(scope, receive, send)
        path = scope["path"] if scope["path"] in PATHS else "other"

        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._service.measured.http(path, message["status"])
            await send(message)

        try:
            headers = Headers(scope=scope)
            self._check(scope, headers)
            if scope["method"] == "POST":
                receive = await self._read(headers, receive)
        except HungUp:
            return
        except ApiError as error:
            return await error.response()(scope, receive, counted)
        try:
            await self._app(scope, receive, counted)
        except Exception:  # is answered outside of this
            if not begun:
                self._service.measured.http(path, 500)
            raise

    def _check(self, scope: Scope, headers: Headers) -> None:
        if self._key is None and self._hosts is not None and _name(headers.get("host", "")) not in self._hosts:
            names = " or ".join(sorted(self._hosts))
            raise ApiError(403, f"this server is asked as {names}. To reach it by another name, give it an API key")
        if self._key is not None and scope["path"] not in OPEN:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip().encode("latin-1")), self._key):
                what = "an API key is needed, as `Authorization: Bearer KEY`, and this is none or another one"
                raise ApiError(401, what, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, f"the body must be JSON: Content-Type must be application/json, got {kind!r}")

    async def _read(self, headers: Headers, receive: Receive) -> Receive:
        """Reads the body; returns a `receive` that says it once, and then listens on."""
        most, length, body = self._service.limits.body_bytes, 0, []
        try:
            async with asyncio.timeout(self._service.limits.client_seconds):
                more = True
                while more and length <= THROWN_AWAY * most:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise HungUp
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    length += len(piece)
                    if length <= most:
                        body.append(piece)
        except TimeoutError:
            what = f"the body did not come within {self._service.limits.client_seconds} s"
            raise ApiError(408, what, headers={"Connection": "close"}) from None
        if length > most:
            raise ApiError(413, f"the body must have at most {most:,} bytes", headers={"Connection": "close"})
        whole = [{"type": "http.request", "body": b"".join(body), "more_body": False}]

        async def once() -> Message:
            return whole.pop() if whole else await receive()

        return once


class HungUp(Exception):
    """The client did, before its request was whole."""


def _digest(key: bytes) -> bytes:
    """Of one length for all keys, so that not even the length can be measured."""
    return hashlib.sha256(key).digest()


def _name(host: str) -> str:
    """Without its port: of `[::1]:8000`, `[::1]`."""
    if host.startswith("["):
        address, end, port = host.partition("]")
        return address + end if not port or port.startswith(":") else host
    return host.partition(":")[0]
