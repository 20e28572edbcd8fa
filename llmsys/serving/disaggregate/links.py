"""The front's connections to engines in other processes: a socket each, on which messages are pickled.

Who connects proves that it has the key (`multiprocessing.connection`), before anything of what it says is unpickled.

What is said goes through a thread for each engine: one that hangs does not read, and when its socket is full whoever
writes to it waits. That must not be the front, which the others need.
"""

import contextlib
import os
import queue
import signal
import socket
import threading
from collections.abc import Mapping
from multiprocessing import AuthenticationError
from multiprocessing import connection as connections
from typing import Any


class ConnectionLinks:
    """The front's way to engines in other processes: `Links` over a connection each.

    Parameters
    ----------
    to
        The connections, by name.
    wait_for
        The thread of the run that the engines are of, where they are of one.
    processes
        The engines' process ids, by name, where they are this machine's: who is given up is killed, so that its device
        and what it holds there are free.
    """

    def __init__(
        self,
        to: Mapping[str, connections.Connection],
        wait_for: threading.Thread | None = None,
        processes: Mapping[str, int] | None = None,
    ):
        self._to = {name: Outbox(name, each) for name, each in to.items()}
        self._died, self._wait_for, self._processes = [], wait_for, dict(processes or {})

    def send(self, name: str, message) -> None:
        if name in self._to:
            self._to[name].put(message)

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        heard, names = [], {id(each.connection): name for name, each in self._to.items()}
        every = [each.connection for each in self._to.values()]
        for ready in connections.wait(every, 0 if self._died else seconds):
            name = names[id(ready)]
            try:
                while name in self._to and ready.poll():
                    heard.append((name, ready.recv()))
            except (EOFError, OSError):
                self._lose(name)
        died, self._died = self._died, []
        return heard + [(name, None) for name in died]

    def give_up(self, name: str) -> None:
        if name in self._to:
            self._lose(name)
            if name in self._processes:
                with contextlib.suppress(ProcessLookupError):  # it has died just now
                    os.kill(self._processes[name], signal.SIGKILL)

    def close(self) -> None:
        for each in self._to.values():
            each.close()
        self._to = {}
        if self._wait_for is not None:
            self._wait_for.join(30.0)

    def _lose(self, name: str) -> None:
        self._to.pop(name).close()
        self._died.append(name)


class Outbox:
    """A connection, and what is still to be said there. That it has broken is heard by who reads from it."""

    def __init__(self, name: str, connection: connections.Connection):
        self.connection = connection
        self._messages: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"writes to {name}")
        self._thread.start()

    def put(self, message) -> None:
        self._messages.put((message,))

    def close(self) -> None:
        """What is said but not sent within a moment never is: the other end sees the connection's, which says it."""
        self._messages.put(None)
        self._thread.join(0.2)
        if self._thread.is_alive():  # the other end does not read
            with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.connection.fileno())) as ours:
                ours.shutdown(socket.SHUT_RDWR)
            self._thread.join()
        self.connection.close()

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            while (item := self._messages.get()) is not None:
                self.connection.send(*item)


def accept(listener: connections.Listener, key: bytes, came: queue.SimpleQueue) -> None:
    """In a thread: puts what each says first who has the key, and its connection, until the listener is closed.

    The listener itself is made without the key: it would ask for it in `accept`, and who connects and says nothing, as
    who looks for open ports does, would keep all others out.
    """
    while True:
        try:
            connection = listener.accept()
        except ConnectionError:  # gone by now
            continue
        except OSError:  # closed: all are here
            return
        threading.Thread(target=_meet, args=(connection, key, came), daemon=True).start()


def _meet(connection: connections.Connection, key: bytes, came: queue.SimpleQueue) -> None:
    try:
        connections.deliver_challenge(connection, key)
        connections.answer_challenge(connection, key)
        came.put((connection.recv(), connection))
    except (AuthenticationError, EOFError, OSError):  # somebody else
        connection.close()
