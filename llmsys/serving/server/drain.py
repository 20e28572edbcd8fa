"""Running it, and stopping without breaking a promise: who was let in gets an answer.

    SIGTERM or Ctrl-C ──► no new connection ──► answers under way end ──────────────────────────► exit, with status 0
                                            └─ after drain_seconds the rest is aborted, and told ─┘

After a second signal the rest is aborted at once. Under a supervisor (systemd, Kubernetes) `drain_seconds` is what its
grace period is for: give it ten seconds more.
"""

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from llmsys.serving.server.service import Service

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS = 5
"""Seconds, after answers were aborted, for their clients to read that. Connections that are left then are cut."""
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_LOGGER = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Serves an application of `create_app`'s on a socket: `run(sockets=[listening(host, port)])`."""

    def __init__(self, app: FastAPI, *, access_log: bool = False):
        self.service: Service = app.state.service
        self._hurry = False
        self._idle: dict = {}  # connections on which nothing happens: their state, and since when it is that
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="on", log_level="warning", access_log=access_log, server_header=False,
            proxy_headers=False, timeout_keep_alive=30,
        )  # fmt: skip
        super().__init__(config)

    def stop(self) -> None:
        """Begins to drain. May be called from any thread; the second time, answers under way are not waited for."""
        self._hurry = self.should_exit
        self.should_exit = self.service.draining = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {each: signal.signal(each, lambda number, frame: self.stop()) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # every second
            self._close_idle()
        return await super().on_tick(counter)

    def _close_idle(self) -> None:
        """Closes connections over which no request has come for a while, or only the beginning of its head, and those
        whose client reads nothing of its answer: nobody may use up sockets, or places at the door, by doing nothing."""
        now, idle = time.monotonic(), {}
        for each in self.server_state.connections:
            cycle = each.cycle  # the request at hand, or the last one
            if cycle is None or cycle.response_complete:
                state = cycle, "silent"
            elif each.flow.write_paused:
                state = cycle, each.transport.get_write_buffer_size()
            else:
                continue
            before, since = self._idle.get(each, (None, now))
            idle[each] = state, since if before == state else now
        self._idle = idle
        for each, ((_, what), since) in idle.items():
            if now - since > self.service.limits.client_seconds:
                each.transport.close() if what == "silent" else each.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        giving_up = asyncio.create_task(self._give_up())
        try:
            await super().shutdown(sockets)
        finally:
            giving_up.cancel()

    async def _give_up(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.service.limits.drain_seconds
        while loop.time() < end and not self._hurry:
            await asyncio.sleep(0.05)
        _LOGGER.warning("answers that did not end in time, and are aborted: %d", self.service.door.inside)
        await self.service.close()
        await asyncio.sleep(LAST_WORDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that an address that is taken is known before a model is loaded. OSError where it is
    taken, or none of this machine's. Who connects is refused until the server runs."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def url(bound: socket.socket) -> str:
    """Where a socket of `listening`'s is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(bound: socket.socket) -> bool:
    """Only this machine reaches it."""
    host = bound.getsockname()[0]
    return host == "::1" or host.startswith("127.")
