"""Messages between the caller and a rank, over a socket: a small picklable tuple, and perhaps a large block of bytes.

(`multiprocessing.connection.Connection` would do, but for what is large it asks for the whole buffer at every read.)
"""

import pickle
import select
import socket
import struct

_HEAD = struct.Struct("!QQ")  # bytes of the message, bytes of the block
_BUFFER = 1 << 21


class Channel:
    """One end. It has `fileno()`, so that several can be waited for."""

    def __init__(self, end: socket.socket):
        self._socket = end
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)

    def send(self, message: tuple, block: bytes = b"") -> None:
        """Raises OSError when the other end is gone."""
        data = pickle.dumps(message)
        self._socket.sendall(_HEAD.pack(len(data), len(block)) + data)
        if block:
            self._socket.sendall(block)

    def recv(self) -> tuple[tuple, bytearray]:
        """A message and its block, as soon as there is one. Raises EOFError when the other end is gone."""
        message, block = _HEAD.unpack(self._read(_HEAD.size))
        return pickle.loads(self._read(message)), self._read(block)

    def poll(self, timeout: float = 0.0) -> bool:
        """Whether there is something to receive within so many seconds, were it only the end."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(timeout * 1000))

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """The other end reads an end."""
        self._socket.close()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        view, got = memoryview(data), 0
        while got < size:
            try:
                some = self._socket.recv_into(view[got:])
            except ConnectionError:
                some = 0
            if not some:
                raise EOFError
            got += some
        return data
