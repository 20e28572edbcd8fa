"""Two ranks with a connection of their own, which can be broken off and made anew while everything else goes on.

The default process group lives and dies as a whole. Where ranks may die and be replaced, as in serving, two of them
that exchange tensors make a pair:

    pair = pair_group(0, 2)           # both call it
    pair.send(tensor)                 # and on the other one: pair.recv(tensor)
    pair.abort()                      # who waits in it, here or there, gets PairBroken
    pair = pair_group(0, 2)           # both again: a new one

Underneath it is a process group of torch for these two alone, made without the others: gloo for tensors in CPU memory,
NCCL for those on GPUs. torch's gloo groups cannot be aborted, so `abort` shuts the connection's socket down, which
gloo takes for the end of the other side.
"""

import contextlib
import datetime
import json
import os
import socket
import stat
import threading
import time
import uuid
import weakref
from collections.abc import Iterator

from llmsys.parallel.ranks import calls, inside

LOOK = 0.002  # seconds between looks whether the other has come
_NO_LIMIT = datetime.timedelta(days=365)
_locks: dict[tuple[int, int], threading.Lock] = {}
_met: set[str] = set()


class PairBroken(ConnectionError):
    """A pair cannot be used any more: it was aborted, here or there, or the other rank is gone. `peer` is its rank."""

    def __init__(self, message: str, peer: int):
        super().__init__(message)
        self.peer = peer


class Transfer:
    """A send or receive that has begun. `wait` returns when the tensor may be used again (on a GPU: on this stream)."""

    def __init__(self, pair: "Pair", name: str, tensor, tag: int):
        pair._expect_open()
        self._pair, self._tensor = pair, tensor  # which gloo reads or writes: it must live as long
        record = calls.watching()
        members = sorted(pair.ranks)
        words = calls.in_words([tensor])
        self._key = record and record.begin(name, pair.name, members, pair.peer, words)
        begin = pair._group.send if name == "send" else pair._group.recv
        with self._explained():
            self._work = begin([tensor], members.index(pair.peer), tag)
        if record:
            record.issued(self._key, self._work)

    def wait(self, timeout: float | None = None) -> None:
        """Raises PairBroken. After so many seconds the pair is broken, too. (With NCCL the host waits only where it is
        told how long; else the stream does.)"""
        with self._explained():
            if timeout is not None:
                self._work.wait(datetime.timedelta(seconds=timeout))
            elif self._pair.backend == "nccl":  # to which any time at all says that the host is to wait
                self._work.wait()
            else:
                self._work.wait(_NO_LIMIT)

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except RuntimeError as error:
            if record := calls.watching():
                record.end(self._key)
            why = "it was aborted" if self._pair.aborted else str(error)
            self._pair.abort()
            raise PairBroken(f"{self._pair.name} is broken: {why}", self._pair.peer) from None


class Pair:
    """The connection of two ranks. `pair_group` makes it.

    ranks     both, as they were given
    peer      the other one
    aborted   it is of no use any more
    """

    def __init__(self, ranks: tuple[int, int], peer: int, backend: str, group, wire: socket.socket | None):
        self.ranks, self.peer, self.backend, self.aborted = ranks, peer, backend, False
        self._group, self._wire = group, wire
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """For people."""
        return f"the pair of ranks {self.ranks[0]} and {self.ranks[1]}"

    def send(self, tensor, tag: int = 0) -> None:
        """Sends a tensor to the other rank. Raises PairBroken."""
        self.isend(tensor, tag).wait()

    def recv(self, tensor, tag: int = 0) -> None:
        """Fills a tensor with what the other rank sends; shape and dtype must agree. Raises PairBroken."""
        self.irecv(tensor, tag).wait()

    def isend(self, tensor, tag: int = 0) -> Transfer:
        """Begins to send. Tensors with the same tag arrive in order; NCCL knows no tags, and all come in order."""
        return Transfer(self, "send", tensor.contiguous(), tag)

    def irecv(self, tensor, tag: int = 0) -> Transfer:
        """Begins to receive."""
        if not tensor.is_contiguous():
            raise ValueError("tensor must be contiguous, for what arrives is written into it in order")
        return Transfer(self, "recv", tensor, tag)

    def abort(self) -> None:
        """Breaks the connection: whoever waits in it gets PairBroken. Any thread may call it, and again."""
        with self._lock:
            if self.aborted:
                return
            self.aborted = True
        if self._wire is not None:
            with contextlib.suppress(OSError):  # the other side was faster
                self._wire.shutdown(socket.SHUT_RDWR)
            self._wire.close()
        else:
            self._group.abort()

    def _expect_open(self) -> None:
        if self.aborted:
            a, b = self.ranks
            raise PairBroken(f"{self.name} was aborted; both call pair_group({a}, {b}) for a new one", self.peer)


def pair_group(a: int, b: int, *, backend: str | None = None, timeout: float = 30.0) -> Pair:
    """A new pair of ranks a and b; both call it, and no others. It is aborted as soon as one hears that the other died.

    backend    "gloo" or "nccl"; None: as the run has it
    timeout    seconds to wait until the other comes

    Raises ValueError where the caller is neither; PairBroken where the other does not come, or is dead.
    """
    import torch.distributed as dist  # here: `import llmsys.parallel.ranks` stays quick

    if not dist.is_initialized():
        raise ValueError("pair_group is for functions that run as ranks: call it inside run(…) or run_here(…)")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if a == b or not (0 <= a < ranks and 0 <= b < ranks) or rank not in (a, b):
        raise ValueError(f"a and b must be two of {ranks} ranks, one of them this one, {rank}; they are {a} and {b}")
    if backend not in (None, "gloo", "nccl"):
        raise ValueError(f'backend must be "gloo", "nccl" or None; it is {backend!r}')
    backend = backend or ("nccl" if inside.device().type == "cuda" else "gloo")
    peer, low, high = a + b - rank, min(a, b), max(a, b)
    store = dist.distributed_c10d._get_default_store()
    with _locks.setdefault((low, high), threading.Lock()):
        name = _meet(store, f"pair {low} {high}", rank == low, peer, timeout)
        own = dist.PrefixStore(name, store)
        limit = datetime.timedelta(seconds=timeout)
        wire = None
        try:
            if backend == "nccl":
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = _NO_LIMIT
                options.is_high_priority_stream = True  # what is sent while others compute needs few multiprocessors
                group = dist.ProcessGroupNCCL(own, int(rank == high), 2, options)
            else:
                with _connections() as known:
                    before = set(known)
                group = dist.ProcessGroupGloo(own, int(rank == high), 2, limit)
                group.barrier().wait()
                wire = _wire(own, rank == high, before)
        except RuntimeError as error:
            raise PairBroken(f"rank {peer} came, but no connection was made: {error}", peer) from None
    pair = Pair((a, b), peer, backend, group, wire)
    of_pair = weakref.ref(pair)

    def break_off(dead: int) -> None:
        if dead == peer and (known := of_pair()) is not None:
            known.abort()

    inside.when_dead(break_off)
    return pair


def _meet(store, key: str, offers: bool, peer: int, timeout: float) -> str:
    """The name of a new pair, on which both agree: the lower rank makes an offer, the higher one accepts it."""
    until = time.monotonic() + timeout
    offer = f"{key} offer"
    name = f"{key} {uuid.uuid4().hex}"
    if offers:
        store.set(offer, name)
    while time.monotonic() < until and peer not in inside.dead():
        if offers and store.check([f"{name} accepted"]):
            return name
        if not offers and store.check([offer]):
            name = store.get(offer).decode()
            if name and name not in _met:
                _met.add(name)
                store.set(f"{name} accepted", "")
                return name
        time.sleep(LOOK)
    if offers:
        store.set(offer, "")  # taken back
    why = "is dead" if peer in inside.dead() else f"has not called pair_group within {timeout:g} s"
    raise PairBroken(f"rank {peer} {why}", peer)


@contextlib.contextmanager
def _connections() -> Iterator[dict[tuple, socket.socket]]:
    """The TCP connections of this process: (our address, theirs) -> a socket, a copy that gloo does not close."""
    found = {}
    with contextlib.ExitStack() as copies:
        for name in os.listdir("/dev/fd"):
            try:
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue
                each = copies.enter_context(socket.socket(fileno=os.dup(int(name))))
                if each.family in (socket.AF_INET, socket.AF_INET6) and each.type == socket.SOCK_STREAM:
                    found[_address(each.getsockname()), _address(each.getpeername())] = each
            except OSError:  # closed by now, or not connected
                continue
        yield found


def _address(of_socket: tuple) -> tuple[str, int]:
    return of_socket[0].removeprefix("::ffff:"), of_socket[1]


def _wire(store, high: bool, before: set[tuple]) -> socket.socket:
    """The new connection of which the other rank has the other end."""
    with _connections() as known:
        new = [ends for ends in known if ends not in before]
        store.set(f"connections {int(high)}", json.dumps(new))
        theirs = {(tuple(far), tuple(near)) for near, far in json.loads(store.get(f"connections {int(not high)}"))}
        common = [known[ends] for ends in new if ends in theirs]
        if not common:
            raise RuntimeError("gloo's connection was not found among this process's sockets")
        return socket.socket(fileno=os.dup(common[0].fileno()))  # socket.dup would make gloo's a blocking one
