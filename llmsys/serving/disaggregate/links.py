"""The front's connections to engines in other processes: a socket each, on which messages are pickled.

Who connects proves that it has the key (`multiprocessing.connection`), before anything of what it says is unpickled.
"""

import queue
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
    """

    def __init__(self, to: Mapping[str, connections.Connection], wait_for: threading.Thread | None = None):
        self._to, self._died, self._wait_for = dict(to), [], wait_for

    def send(self, name: str, message) -> None:
        if name in self._to:
            try:
                self._to[name].send(message)
            except OSError:
                self._lose(name)

    def wait(self, seconds: float) -> list[tuple[str, Any]]:
        heard, names = [], {id(each): name for name, each in self._to.items()}
        for ready in connections.wait(list(self._to.values()), 0 if self._died else seconds):
            name = names[id(ready)]
            try:
                while name in self._to and ready.poll():
                    heard.append((name, ready.recv()))
            except (EOFError, OSError):
                self._lose(name)
        died, self._died = self._died, []
        return heard + [(name, None) for name in died]

    def close(self) -> None:
        for each in self._to.values():
            each.close()
        self._to = {}
        if self._wait_for is not None:
            self._wait_for.join(30.0)

    def _lose(self, name: str) -> None:
        self._to.pop(name).close()
        self._died.append(name)


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
