"""Who may connect to the front, and that nobody keeps another out."""

import queue
import socket
import threading
from multiprocessing import AuthenticationError
from multiprocessing import connection as connections

import pytest

from llmsys.serving.disaggregate.links import accept


def test_who_has_the_key_gets_in_whoever_else_connects_and_says_nothing():
    came = queue.SimpleQueue()
    with connections.Listener(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener, b"key", came), daemon=True).start()
        with socket.create_connection(listener.address):  # and not a word
            with pytest.raises(AuthenticationError):
                connections.Client(listener.address, authkey=b"another")
            with connections.Client(listener.address, authkey=b"key") as client:
                client.send("hello")
                said, connection = came.get(timeout=60)
                assert said == "hello"
                connection.send("welcome")
                assert client.recv() == "welcome"
                connection.close()
    assert came.empty()
